"""TOML files that a person names: studies and tuned settings."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any

from harness.job.declaration import JobError


def read_toml(path: Path, *, missing: str) -> dict[str, Any]:
    """What `path` declares. missing: what is said where there is no such file. Raises JobError, one line."""
    try:
        return tomllib.loads(path.read_text())
    except FileNotFoundError:
        raise JobError(f"{path}: {missing}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, OSError) as error:
        raise JobError(f"{path}: not a readable TOML file ({error})") from None
