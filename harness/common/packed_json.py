"""JSON as one word of a command line, which passes through any launcher's quoting."""

from __future__ import annotations

import base64
import json
from typing import Any


def pack(value: Any) -> str:
    """`value` (JSON-serializable) as letters, digits, - and _ (and = at the end)."""
    return base64.urlsafe_b64encode(json.dumps(value).encode()).decode()


def unpack(text: str) -> Any:
    """The reverse of `pack`."""
    return json.loads(base64.urlsafe_b64decode(text))
