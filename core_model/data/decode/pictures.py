"""One picture of a data set on disk: where it is, how it is read, how it is checked before a job starts."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import cv2
import numpy as np

from core_model.data.decode import bit_depth, mask_values, opener
from core_model.data.decode.mask_values import read_mask
from core_model.data.errors import DataError

GOOD = "good"


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
    """A picture in a file.

    Args:
        mask_paths: where it has a defect, the files whose union is its mask; none = not drawn.
    """

    id: str
    category: str
    kind: str
    path: Path
    mask_paths: tuple[Path, ...] = ()
    file: str = ""  # the same for all pictures of one file, where several categories show it
    white: float = 0.0  # value that becomes 255, of files with more than 8 bits; 0 = by the file's type

    @property
    def origin(self) -> str:
        """What decides whether it is held out: equal for pictures that show the same, whatever their category."""
        return self.file or self.id

    @property
    def has_mask(self) -> bool:
        return self.kind == GOOD or bool(self.mask_paths)

    def image(self, size: int) -> np.ndarray:
        return resize(read_rgb(self.path, self.white), size)

    def mask(self, size: int) -> np.ndarray:
        if not self.mask_paths:
            return np.zeros((size, size), np.uint8)
        return resize_mask(np.maximum.reduce([read_mask(path) for path in self.mask_paths]), size)


def read_rgb(path: Path, white: float = 0.0) -> np.ndarray:
    """uint8 (H, W, 3), upright. Grey, palette, CMYK and deep files are brought to it; transparency counts only where
    all pixels have one colour.

    Args:
        white: value that becomes 255 in files of more than 8 bits, 0 = by the type.

    Raises:
        DataError: naming the file.
    """
    raster = opener.read(path)
    values = raster.values
    if raster.shape_in_alpha and raster.alpha is not None:
        values = raster.alpha
    values = bit_depth.to_bytes(values, white, path)
    return values if values.ndim == 3 else np.repeat(values[..., None], 3, axis=2)


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


def check(pictures: Iterable[FilePicture]) -> list[str]:
    """Looks at each picture and mask before a job starts: it must not fail at its last step. Returns what is to be
    questioned, a line each.

    Headers only, about 0.2 ms a file; of deep pictures and of masks a few are decoded. Raises DataError for the first
    file that is not an image or is cut off, whose mask has another size, or that would be nearly black.
    """
    deep: dict[float, list[Path]] = {}
    masks: list[Path] = []
    for picture in pictures:
        head = opener.header(picture.path)
        if head.deep:
            deep.setdefault(picture.white, []).append(picture.path)
        for mask_path in picture.mask_paths:
            _same_size(picture.path, mask_path, head)
            masks.append(mask_path)
    for white, paths in deep.items():
        bit_depth.question(paths, white)
    remark = mask_values.questioned(masks)
    return [remark] if remark else []


def _same_size(path: Path, mask_path: Path, head: opener.Header) -> None:
    """Raises DataError where the mask has another size than its upright picture."""
    mask_head = opener.header(mask_path, "mask")
    if mask_head.size == head.size:
        return
    # A PNG's orientation may stand behind its pixels, where the header does not show it.
    (height, width), (high, wide) = opener.read(path).values.shape[:2], read_mask(mask_path).shape
    if (height, width) == (high, wide):
        return
    turned = f" upright (its EXIF orientation turns it{', the mask has none' if not mask_head.turned else ''})"
    raise DataError(
        f"{mask_path}: the mask is {wide}x{high} but its image {path.name} is {width}x{height}"
        f"{turned if head.turned else ''}: give the mask the size of the image"
    )


def content_hash(root: Path, paths: Sequence[Path]) -> str:
    """sha256 of the names (relative to `root`) and sizes of the files: cheap, and the same on every machine."""
    digest = hashlib.sha256()
    for path in sorted(paths):
        opener.require_utf8(path)
        try:
            size = path.stat().st_size
        except OSError:
            opener.header(path)  # says in one line what is wrong: a link to nowhere or in a circle, no permission
            raise
        digest.update(f"{path.relative_to(root).as_posix()} {size}\n".encode())
    return digest.hexdigest()
