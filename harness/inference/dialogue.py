"""The dialogue of `harness model chat`: reads lines, prints replies, writes maps."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mpi.errors import UserError

if TYPE_CHECKING:
    from harness.inference.session import Look, Session


HELP = """\
/image PATH   look at a picture and start anew      /map        the map's 3x3 places in numbers
/reset        forget the conversation               /map FILE   write the map over the picture as PNG
/help         this list                             /quit       end (also Ctrl-D)"""


class Talk:
    """The dialogue: reads lines, prints replies. A mistake in a command is one line, the talk goes on."""

    def __init__(self, session: Session, category: str) -> None:
        self._session, self._category = session, category
        self._look: Look | None = None
        self._conversation: Any = None
        self.at_terminal = sys.stdin.isatty()

    def run(self) -> None:
        """Until /quit or the end of the input."""
        if self.at_terminal:
            import readline  # noqa: F401  (editing and history for input)
        while True:
            try:
                line = input("> " if self.at_terminal else "").strip()
            except EOFError:
                return
            if line in ("/quit", "/exit"):
                return
            if not line:
                continue
            try:
                reply = self._command(line) if line.startswith("/") else self._ask(line)
            except Exception as error:
                if not isinstance(error, UserError):
                    raise
                reply = f"error: {error}"
            self.say(reply)

    def say(self, text: str) -> None:
        """Prints at once: whoever holds the other end of a pipe waits for it."""
        print(text, flush=True)

    def open(self, path: str) -> str:
        """Looks at the picture; what the model makes of it in one line."""
        from harness.inference.detection import line
        from harness.inference.session import picture_paths, read_pictures

        (found, *more) = picture_paths([path])
        if more:
            return f"error: {path}: a folder; name one of its pictures, such as {found}"
        category = self._session.category_of(found, self._category)
        (self._look,) = self._session.look(read_pictures([found], self._session.trained), [str(found)], [category])
        self._conversation = self._session.talk(self._look)
        return line(self._look)

    def _command(self, text: str) -> str:
        name, _, rest = text.partition(" ")
        rest = rest.strip()
        if name == "/image" and rest:
            return self.open(rest)
        if name == "/map":
            return self._map(rest)
        if name == "/reset":
            self._conversation = None if self._look is None else self._session.talk(self._look)
            return "the conversation starts anew"
        return HELP

    def _ask(self, question: str) -> str:
        from harness.inference.session import trimmed_ask

        if self._conversation is None:
            return "no picture yet: /image PATH"
        reply, dropped = trimmed_ask(self._conversation, question)
        forgot = f"\n(the oldest {dropped} turns were forgotten: the conversation outgrew the model)" if dropped else ""
        return (reply or "(no answer)") + forgot

    def _map(self, file: str) -> str:
        if self._look is None:
            return "no picture yet: /image PATH"
        if file:
            return self._write(Path(file))
        from harness.inference.session import place_table

        return place_table(self._look.grid)

    def _write(self, file: Path) -> str:
        from harness.inference.overlay import overlay

        assert self._look is not None
        if file.suffix.lower() != ".png":
            return f"error: {file}: give a name that ends in .png"
        try:
            overlay(self._look.picture, self._look.grid, self._session.scale([self._look])).save(file)
        except OSError as error:
            return f"error: {file}: cannot be written ({error.strerror or error})"
        return f"wrote {file}"
