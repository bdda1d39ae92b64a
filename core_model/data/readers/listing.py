"""What lies in a folder: the pictures, found through sub-folders, and what is passed by, which is said with counts."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

from core_model.data.errors import DataError

# What Pillow opens and people keep photographs in. Listed, not asked of Pillow: the same files on every machine.
SUFFIXES = frozenset(
    {
        ".png", ".apng", ".jpg", ".jpeg", ".jpe", ".jfif", ".bmp", ".dib", ".tif", ".tiff", ".webp", ".gif", ".ppm",
        ".pgm", ".pbm", ".pnm", ".jp2", ".j2k", ".jpx", ".jpf", ".jpc", ".j2c", ".tga", ".pcx", ".avif",
    }
)  # fmt: skip
# Left behind by file managers, archives and file systems; nobody means them.
JUNK = frozenset(
    {"__macosx", "thumbs.db", "ehthumbs.db", "desktop.ini", "@eadir", "$recycle.bin", "lost+found"}
    | {"system volume information"}
)
MASK_ENDINGS = ("_mask", "-mask", "_gt", "-gt", "_ground_truth", "_label")  # of a mask's name, after the picture's


class LeftOut:
    """What a reader passed by.

    Args:
        root: names are said relative to it.
    """

    def __init__(self, root: Path) -> None:
        self._root = root
        self._files: Counter[str] = Counter()
        self._first: dict[str, str] = {}
        self._said: list[str] = []

    def file(self, path: Path) -> None:
        """A file among the pictures that is none by its name."""
        kind = path.suffix.lower() or "without a suffix"
        self._files[kind] += 1
        self._first.setdefault(kind, self.name(path))

    def say(self, text: str) -> None:
        self._said.append(text)

    def name(self, path: Path) -> str:
        """`path` relative to the data set's folder."""
        name = path.relative_to(self._root).as_posix() if path != self._root else path.name
        return name.encode("utf-8", "backslashreplace").decode()  # it goes into records

    def folder(self, path: Path, why: str) -> None:
        """A folder that is not read, if it holds pictures.

        Args:
            why: ends the sentence.
        """
        count = sum(len(pictures) for pictures in _walk_folders(path, None, ()))
        if count:
            self.say(f"{self.name(path)}: {plural(count, 'picture')} left out: {why}")

    def notes(self) -> tuple[str, ...]:
        """A sentence for each thing passed by; empty for a folder that was read whole."""
        if not self._files:
            return tuple(self._said)
        kinds = [f"{count} {kind} ({self._first[kind]})" for kind, count in self._files.most_common()]
        total = sum(self._files.values())
        verb = "is no picture" if total == 1 else "are no pictures"
        return (
            f"{plural(total, 'file')} among the pictures {verb} by name and left out: {', '.join(kinds)}",
            *self._said,
        )


def is_junk(path: Path) -> bool:
    """Whether nobody means it: hidden files, and what programs leave behind."""
    return path.name.startswith(".") or path.name.lower() in JUNK


def is_picture(path: Path) -> bool:
    """By its name; hidden files are none."""
    return path.suffix.lower() in SUFFIXES and not is_junk(path)


def folders_in(folder: Path) -> list[Path]:
    """The folders directly in `folder`, by name; none where it is missing."""
    return sorted(path for path in folder.iterdir() if path.is_dir() and not is_junk(path)) if folder.is_dir() else []


def list_pictures(folder: Path) -> list[Path]:
    """The picture files directly in `folder`, sorted by name; hidden files are left out."""
    return sorted(path for path in folder.iterdir() if is_picture(path) and not path.is_dir())


def pictures_in(folder: Path) -> tuple[list[Path], tuple[str, ...]]:
    """The pictures directly in `folder`, and what of it is left out: sub-folders with pictures, and other files."""
    left_out = LeftOut(folder)
    for path in sorted(folder.iterdir()):
        if path.is_dir() and not is_junk(path):
            left_out.folder(path, "give that folder too, if it is meant")
        elif not is_junk(path) and not is_picture(path):
            left_out.file(path)
    return list_pictures(folder), left_out.notes()


def pictures_below(folder: Path, left_out: LeftOut | None = None) -> list[Path]:
    """The pictures in `folder`, then those in its sub-folders at any depth, by name. Other files go to `left_out`.

    Raises DataError where a link leads back up, and where a mask lies beside its picture: it would be taken for one.
    """
    found = []
    for pictures in _walk_folders(folder, left_out, ()):
        _refuse_masks(pictures)
        found += pictures
    return found


def holds_pictures(folder: Path) -> bool:
    """Whether a picture lies in `folder` or below; False where it is missing."""
    return folder.is_dir() and any(_walk_folders(folder, None, ()))


def _walk_folders(folder: Path, left_out: LeftOut | None, above: tuple[Path, ...]) -> Iterator[list[Path]]:
    own = folder.resolve()
    if own in above:
        raise DataError(f"{folder}: a link to a folder that it lies in: remove the link")
    pictures, folders = [], []
    for path in sorted(folder.iterdir()):
        if is_junk(path):
            continue
        if path.is_dir():
            folders.append(path)
        elif is_picture(path):
            pictures.append(path)
        elif left_out is not None:
            left_out.file(path)
    yield pictures
    for path in folders:
        yield from _walk_folders(path, left_out, (*above, own))


def _refuse_masks(pictures: Sequence[Path]) -> None:
    stems = {path.stem.lower() for path in pictures}
    for path in pictures:
        for ending in MASK_ENDINGS[:-1]:  # "front" and "front_label" may be two views
            if path.stem.lower().endswith(ending) and path.stem.lower().removesuffix(ending) in stems:
                raise DataError(
                    f"{path}: by its name the mask of a picture beside it, and it would be taken for a picture: put "
                    "masks into ground_truth/KIND"
                )


def plural(count: int, noun: str, many: str = "") -> str:
    """``1 picture``, ``2 pictures``.

    Args:
        many: the plural, where it is not the noun with an s.
    """
    return f"{count} {noun if count == 1 else many or noun + 's'}"
