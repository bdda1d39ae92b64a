"""A figure while it is drawn: what goes beside the drawing, and what of it can be read by pointer and keys.

The same function draws for a file and for the page. In a file the title, the legend and the note are part of the
picture. The page has them as text, and reads the values of `Sheet.readings` aloud.
"""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.artist import Artist
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

MARKED = "series-{}-{}"  # id of an artist in the page: number of the series, number of the artist in it


@dataclass(frozen=True, kw_only=True)
class Reading:
    """A series of the page: its points in data coordinates of `axes`, and each as text (where, value). slot: number of
    its style, -1 for none. A series without points is drawn but not read (an ideal line)."""

    label: str
    slot: int
    axes: Axes
    points: Sequence[tuple[float, float]]
    texts: Sequence[tuple[str, str]]


@dataclass(kw_only=True)
class Sheet:
    """figure: matplotlib's. page: whether it is drawn for the page. unit: what the values are. where: what the places
    in `Reading.texts` count, "" where they say it themselves."""

    figure: Figure
    page: bool = False
    title: str = ""
    note_text: str = ""
    where: str = ""
    unit: str = ""
    readings: list[Reading] = field(default_factory=list)
    keys: Sequence[str] = ()  # what the styles stand for, by number, where that is not the readings' labels

    def place(self, where: str) -> str:
        """A place of `Reading.texts` with what it counts: ``12 optimizer steps``."""
        return f"{where} {self.where}" if where and self.where else where

    def titled(self, axes: Axes | None, page: str, file: str) -> None:
        """The title: `page` in the page, `file` above `axes` (None: above the whole figure) in a file."""
        self.title = page
        if self.page:
            return
        if axes is None:
            self.figure.suptitle(file)
        else:
            axes.set_title(file)

    def note(self, text: str) -> None:
        """What the reader must know, below the figure."""
        self.note_text = text
        if not self.page:
            self.figure.supxlabel(textwrap.fill(text, 120), fontsize=7.5, color="#555555")

    def legend(self, axes: Axes, **look: Any) -> None:
        """The legend; the page has its own, of buttons."""
        if not self.page:
            axes.legend(**look)

    def labelled(self, axes: Axes, *, x: str, y: str) -> None:
        """Names of the axes. In the page that of y stands above the axis: it can be read on a phone."""
        axes.set_xlabel(x)
        if self.page:
            axes.set_title(y, loc="left", fontsize="medium")
        else:
            axes.set_ylabel(y)

    def read(
        self,
        label: str,
        slot: int,
        axes: Axes,
        artists: Iterable[Artist],
        points: Sequence[tuple[float, float]] = (),
        texts: Sequence[tuple[str, str]] = (),
    ) -> None:
        """Names the artists of one series, so that the page can hide them, and its values."""
        number = len(self.readings)
        for position, artist in enumerate(artists):
            if self.page:
                artist.set_gid(MARKED.format(number, position))
        self.readings.append(Reading(label=label, slot=slot, axes=axes, points=points, texts=texts))


Draw = Callable[[Sheet], object]  # False: there is nothing to show
