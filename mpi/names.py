"""Names that become folders: of studies, runs, sets of virtual nodes. One rule for all of them, wherever they come from
(the command line, a study file, a record), and a removal that never leaves its root.
"""

from __future__ import annotations

import re
import shutil
from pathlib import Path

from mpi.errors import UserError

LONGEST = 200  # file systems allow 255 bytes; "-2", "-3" ... and suffixes may come behind a name
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")


class FolderNameError(UserError):
    """A name that cannot become a folder. One line: the name and the remedy."""


def fault(kind: str, name: object) -> str:
    """Why `name` cannot name a `kind` (one line that says what to use), or the empty string.

    A name is one part of a path: it can neither be empty, nor leave its folder, nor be read as an option by a shell.
    """
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        return f"{kind} name {name!r}: use letters, digits, '.', '_' and '-' only, a letter or digit first"
    if len(name) > LONGEST:
        return f"{kind} name '{name[:30]}...' has {len(name)} characters: use at most {LONGEST}"
    return ""


def check_name(kind: str, name: str) -> str:
    """`name`. Raises FolderNameError where it is no name (see `fault`)."""
    if reason := fault(kind, name):
        raise FolderNameError(reason)
    return name


def remove_folder(root: Path, name: str, *, kind: str = "folder") -> None:
    """Removes ``root/name`` with all that is in it; nothing to do where there is none.

    Never anything else: `name` must be a name (so not `root` itself, nothing above or deeper), and a link is not
    followed. Raises FolderNameError, and OSError where the folder cannot be removed.
    """
    folder = root / check_name(kind, name)
    if folder.is_symlink():
        raise FolderNameError(f"{folder}: a link, only folders are removed: remove it by hand")
    try:
        shutil.rmtree(folder)
    except FileNotFoundError:
        if folder.exists():  # something in it went away meanwhile: what is left goes too
            shutil.rmtree(folder)
