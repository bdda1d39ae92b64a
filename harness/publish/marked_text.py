"""Parts of a text file that the program writes, between its own markers, in a file that people write too.

A part begins with a line that is an opening marker and ends with the line ``<!-- end -->``. Outside of them not a byte
is changed.
"""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Callable
from pathlib import Path

from harness.job.declaration import JobError
from harness.records.record_files import write_text

END = "<!-- end -->"
_END = re.compile(r"<!-- end -->[ \t]*")


def read(path: Path) -> str:
    """The file's text as it is, ends of lines too. Raises JobError where it cannot be read as UTF-8."""
    try:
        return path.read_bytes().decode()
    except (OSError, UnicodeDecodeError) as error:
        why = getattr(error, "strerror", None) or "it is not UTF-8"
        raise JobError(f"{path}: cannot be read ({why}), it is left as it is") from None


def replace_parts(path: Path, text: str, opening: re.Pattern[str], body: Callable[[re.Match[str], str], str]) -> str:
    """`text` (of `path`) with ``body(marker, old body)`` in each part whose opening line `opening` matches in full.

    Bodies have ``\\n`` at the ends of lines, the file what it has. Raises JobError for a marker that has no end before
    the next one: what stands behind it would be lost.
    """
    lines = text.splitlines(keepends=True)
    out: list[str] = []
    number = 0
    while number < len(lines):
        line = lines[number]
        out.append(line)
        number += 1
        marker = opening.fullmatch(line.rstrip("\r\n"))
        if marker is None:
            continue
        inside = number
        while number < len(lines) and not _END.fullmatch(lines[number].rstrip("\r\n")):
            if opening.fullmatch(lines[number].rstrip("\r\n")):
                number = len(lines)
                break
            number += 1
        if number >= len(lines):
            raise JobError(f"{path}: line {inside}: '{marker[0]}' has no '{END}' behind it: add one, or take it out")
        newline = "\r\n" if line.endswith("\r\n") else "\n"
        old = "".join(lines[inside:number]).replace("\r\n", "\n")
        new = body(marker, old)
        new += "" if not new or new.endswith("\n") else "\n"
        out.append("".join(lines[inside:number]) if new == old else new.replace("\n", newline))
    return "".join(out)


def write(path: Path, text: str) -> None:
    """Writes it whole or not at all; a link stays a link, and mode and owner what they are. Raises JobError."""
    real = path.resolve()
    try:
        before = real.stat() if real.exists() else None
        write_text(real, text)
        if before is not None:
            os.chmod(real, before.st_mode & 0o7777)
            with contextlib.suppress(OSError):  # only root may
                os.chown(real, before.st_uid, before.st_gid)
    except OSError as error:
        raise JobError(f"{path}: cannot be written ({error.strerror})") from None
