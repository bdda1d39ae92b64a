"""One picture of a data set on disk: where it is, how it is read, how it is checked before a job starts."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import cv2
import numpy as np
from PIL import Image, UnidentifiedImageError

from core_model.data.errors import DataError

# One worker process = one core: OpenCV's own threads would fight the training step for the other cores.
cv2.setNumThreads(0)

GOOD = "good"
READ_ERRORS = (OSError, UnidentifiedImageError, SyntaxError, ValueError, EOFError, Image.DecompressionBombError)


class Picture(Protocol):
    """What a data set needs to know of a picture before and while it is read.

    id: unique in the data set and the same on every machine. origin: the same for pictures that show the same in
    several categories, else the id. kind: ``good`` or the name of the defect. has_mask: False where it is defective and
    nobody has drawn the defect; its `mask` is empty then and says nothing.
    """

    @property
    def id(self) -> str: ...

    @property
    def origin(self) -> str: ...

    @property
    def category(self) -> str: ...

    @property
    def kind(self) -> str: ...

    @property
    def has_mask(self) -> bool: ...

    def image(self, size: int) -> np.ndarray:
        """uint8 (size, size, 3), RGB."""
        ...

    def mask(self, size: int) -> np.ndarray:
        """uint8 (size, size), 1 = defect."""
        ...


@dataclass(frozen=True, kw_only=True)
class FilePicture:
    """A picture in a file. mask_paths: where it has a defect, the files whose union is its mask; none = not drawn."""

    id: str
    category: str
    kind: str
    path: Path
    mask_paths: tuple[Path, ...] = ()
    file: str = ""  # the same for all pictures of one file, where several categories show it

    @property
    def origin(self) -> str:
        """What decides whether it is held out: equal for pictures that show the same, whatever their category."""
        return self.file or self.id

    @property
    def has_mask(self) -> bool:
        return self.kind == GOOD or bool(self.mask_paths)

    def image(self, size: int) -> np.ndarray:
        return resize(read_rgb(self.path), size)

    def mask(self, size: int) -> np.ndarray:
        if not self.mask_paths:
            return np.zeros((size, size), np.uint8)
        return resize_mask(np.maximum.reduce([read_mask(path) for path in self.mask_paths]), size)


def read_rgb(path: Path) -> np.ndarray:
    """uint8 (H, W, 3). Grey, palette and 16-bit files are brought to it. Raises DataError naming the file."""
    try:
        with Image.open(path) as picture:
            if picture.mode.startswith("I"):  # 16 bits a pixel: Pillow's own conversion would clip at 255
                grey = np.clip(np.asarray(picture, dtype=np.int64) >> 8, 0, 255).astype(np.uint8)
                return np.repeat(grey[..., None], 3, axis=2)
            return np.asarray(picture.convert("RGB"))
    except FileNotFoundError:
        raise DataError(f"{path}: the image is gone: it was there when the data set was opened") from None
    except READ_ERRORS as error:
        raise DataError(f"{path}: corrupt image ({_first_line(error)}): replace or remove it") from None


def read_mask(path: Path) -> np.ndarray:
    """uint8 (H, W), 1 where the file is not black (MVTec AD writes 255, VisA the number of the defect kind)."""
    try:
        with Image.open(path) as picture:
            values = np.asarray(picture)
    except FileNotFoundError:
        raise DataError(f"{path}: the mask is gone: it was there when the data set was opened") from None
    except READ_ERRORS as error:
        raise DataError(f"{path}: corrupt mask ({_first_line(error)}): replace or remove it") from None
    if values.ndim == 3:
        values = values[..., :3].max(axis=2)
    return (values > 0).astype(np.uint8)


def resize(image: np.ndarray, size: int) -> np.ndarray:
    """uint8 (size, size, 3): area averages when it shrinks, bilinear when it grows. The aspect ratio is not kept."""
    height, width = image.shape[:2]
    if (height, width) == (size, size):
        return np.ascontiguousarray(image)
    method = cv2.INTER_AREA if min(height, width) >= size else cv2.INTER_LINEAR
    return cv2.resize(image, (size, size), interpolation=method)


def resize_mask(mask: np.ndarray, size: int) -> np.ndarray:
    """uint8 (size, size) of 0 and 1: nearest neighbour, which keeps the defect's share of the picture.

    A defect so thin that the nearest neighbour loses all of it keeps every pixel that it touches, because a
    defective picture without a defective pixel would make the pixel figures wrong.
    """
    if mask.shape == (size, size):
        return mask
    small = cv2.resize(mask, (size, size), interpolation=cv2.INTER_NEAREST_EXACT)
    if mask.any() and not small.any():
        small = (cv2.resize(mask * 255.0, (size, size), interpolation=cv2.INTER_AREA) > 0).astype(np.uint8)
    return small


def check(pictures: Iterable[FilePicture]) -> None:
    """Opens the header of each picture and mask: a job must fail before it starts, not at its last step.

    About 0.2 ms a file. Raises DataError for the first file that is not an image, is cut off, or whose mask has
    another size.
    """
    for picture in pictures:
        size = _header(picture.path, "image")
        for mask_path in picture.mask_paths:
            mask_size = _header(mask_path, "mask")
            if mask_size != size:
                raise DataError(
                    f"{mask_path}: the mask is {mask_size[0]}x{mask_size[1]} but its image {picture.path.name} "
                    f"is {size[0]}x{size[1]}: give the mask the size of the image"
                )


def content_hash(root: Path, paths: Sequence[Path]) -> str:
    """sha256 of the names (relative to `root`) and sizes of the files: cheap, and the same on every machine."""
    digest = hashlib.sha256()
    for path in sorted(paths):
        digest.update(f"{path.relative_to(root).as_posix()} {path.stat().st_size}\n".encode())
    return digest.hexdigest()


def _header(path: Path, what: str) -> tuple[int, int]:
    """(width, height). Raises DataError where the file is no image or ends too early."""
    try:
        with Image.open(path) as picture:
            size = picture.size
            if not _has_end(path, picture.format):
                picture.load()  # decode to be sure: some writers leave the end marker out or write past it
    except FileNotFoundError:
        raise DataError(f"{path}: no such {what}") from None
    except READ_ERRORS as error:
        raise DataError(f"{path}: corrupt {what} ({_first_line(error)}): replace or remove it") from None
    return size


def _has_end(path: Path, kind: str | None) -> bool:
    """Whether a PNG or JPEG file carries its end marker; True for the other kinds."""
    marker = {"PNG": b"IEND", "JPEG": b"\xff\xd9"}.get(kind or "")
    if marker is None:
        return True
    with path.open("rb") as file:
        length = file.seek(0, 2)
        file.seek(max(0, length - 64))
        return marker in file.read()


def _first_line(error: BaseException) -> str:
    text = str(error).splitlines()[0] if str(error) else type(error).__name__
    return "not an image" if isinstance(error, UnidentifiedImageError) else text
