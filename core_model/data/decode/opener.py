"""The one place that opens picture files: decoding, orientation, colour, and errors of one line that name the file.

Pictures and masks are made from what is read here (`core_model.data.decode.pictures`,
`core_model.data.decode.mask_values`).
"""

from __future__ import annotations

import stat
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from PIL import Image, TiffImagePlugin, UnidentifiedImageError

from core_model.data.decode import wholeness
from core_model.data.errors import DataError

# One worker process = one core: OpenCV's own threads would fight the training step for the other cores.
cv2.setNumThreads(0)
# What OpenCV cannot read becomes a DataError here; its own lines about it would only stand beside that one.
cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)

LOOK_PIXELS = 2**27  # decoded at most, beside one file, where a few files are looked at before a job starts: 1 to 2 s
LARGEST = 2**28  # pixels (268 million): decoded, 0.8 GB of memory
# Pillow takes pictures of more than 179 million pixels for an attack; ours come from the user's own folders.
Image.MAX_IMAGE_PIXELS = LARGEST
# What matters of what Pillow remarks (also on broken EXIF parts, beside sound pixels) is said here, in one line.
warnings.filterwarnings("ignore", module=r"PIL\.")

READ_ERRORS = (
    OSError,
    UnidentifiedImageError,
    SyntaxError,
    ValueError,
    EOFError,
    IndexError,
    KeyError,
    TypeError,
    MemoryError,
    cv2.error,
    Image.DecompressionBombError,
)
_ORIENTATION = 0x0112  # the EXIF tag
# TIFF tags
_SUBFILE, _BITS, _PHOTOMETRIC, _CHANNELS, _PLANES, _SAMPLE_FORMAT = 254, 258, 262, 277, 284, 339
_TIFF_MAGIC = (b"II*\0", b"MM\0*")
# JPEG 2000: a file, a bare stream; the marker of the image's size, 42 bytes after which stand the bits of a value
_JP2_MAGIC, _JP2_SIZE, _JP2_HEAD = (b"\0\0\0\x0cjP  ", b"\xff\x4f\xff\x51"), b"\xff\x4f\xff\x51", 4096
_LOSSY = frozenset({"JPEG", "MPO", "WEBP", "JPEG2000"})
_WEBP_LOSSLESS, _WEBP_HEAD = b"VP8L", 64  # the chunk that says so stands in these first bytes


@dataclass(frozen=True, kw_only=True)
class Header:
    """What a picture file says of itself before it is decoded.

    Args:
        size: (width, height) of the upright picture.
        deep: more than 8 bits a value.
        turned: has an orientation.
    """

    size: tuple[int, int]
    deep: bool
    turned: bool


@dataclass(frozen=True, kw_only=True)
class Raster:
    """The values of a file, upright.

    Args:
        values: (H, W) or (H, W, 3) RGB, uint8 or, of a deep file, the file's own type.
        alpha: (H, W) of the same type where the file has transparency.
        lossy: compression may have changed values.
    """

    values: np.ndarray
    alpha: np.ndarray | None
    lossy: bool

    @property
    def shape_in_alpha(self) -> bool:
        """Whether all pixels have one colour and only the transparency shows anything."""
        alpha, values = self.alpha, self.values
        return alpha is not None and bool((values == values[0, 0]).all()) and bool((alpha != alpha[0, 0]).any())


def header(path: Path, what: str = "image") -> Header:
    """Looks at a file without decoding it, where its kind allows that. Raises DataError where it is no picture, is cut
    off, has several pages or is too large."""
    with _told(path, what):
        _regular(path)
        try:
            opened = Image.open(path)
        except UnidentifiedImageError:
            raster = _by_opencv(path, _first_tags(path))  # some TIFF files of floats
            return Header(size=_size(raster.values), deep=raster.values.dtype != np.uint8, turned=False)
        with opened as picture:
            _not_too_large(path, picture.size)
            _single(path, picture)
            deep, kind = _is_deep(path, picture), picture.format or ""
            if deep:
                _plain_tiff(path, _tiff_tags(picture))
            stored = picture.size
            turned = 1
            if kind != "PNG" or "exif" in picture.info:  # else Pillow would decode the file to look for it
                turned = _orientation(picture)
            if not wholeness.is_whole(path, picture):
                picture.load()  # decode to be sure: some writers leave the end marker out or write past it
    if kind != "TIFF" and turned >= 5:  # Pillow gives the upright size of a TIFF
        stored = stored[::-1]
    return Header(size=stored, deep=deep, turned=turned > 1)


def read(path: Path, what: str = "image", *, colour: bool = True) -> Raster:
    """Decodes a file.

    Args:
        colour: 8-bit grey comes as RGB, too.

    Raises:
        DataError: naming the file.
    """
    with _told(path, what):
        _regular(path)
        try:
            opened = Image.open(path)
        except UnidentifiedImageError:
            return _by_opencv(path, _first_tags(path))
        with opened as picture:
            _not_too_large(path, picture.size)
            lossy = _is_lossy(path, picture)
            if _is_deep(path, picture) and (picture.format in ("PNG", "TIFF") or picture.mode == "RGB"):
                # Pillow drops the lower 8 of 16 bits of colours, and has no unsigned 32 bits.
                turned = 1  # OpenCV turns TIFF files by itself
                if picture.format != "TIFF":
                    picture.load()  # an EXIF part may follow the pixels
                    turned = _orientation(picture)
                raster = _by_opencv(path, _tiff_tags(picture))
                alpha = None if raster.alpha is None else _upright(raster.alpha, turned)
                return Raster(values=_upright(raster.values, turned), alpha=alpha, lossy=False)
            return _by_pillow(picture, lossy=lossy, colour=colour)


def shown(path: Path) -> str:
    """The path as printable text, also where its name is not UTF-8."""
    return str(path).encode("utf-8", "backslashreplace").decode()


def require_utf8(path: Path) -> None:
    """Raises DataError for a name that is not UTF-8: it cannot be written into records, which are."""
    try:
        str(path).encode()
    except UnicodeEncodeError:
        raise DataError(f"{shown(path)}: the name is not UTF-8: rename the file or its folder") from None


def _by_pillow(picture: Image.Image, *, lossy: bool, colour: bool) -> Raster:
    picture.load()
    turned = _orientation(picture)
    if picture.mode.startswith(("I", "F")):
        values = np.asarray(picture)
        if picture.format == "PPM" and picture.mode == "I":  # Pillow has brought them to 16 bits
            values = values.astype(np.uint16)
        return Raster(values=_upright(values, turned), alpha=None, lossy=lossy)
    if picture.mode in ("La", "RGBa"):
        picture = picture.convert("LA" if picture.mode == "La" else "RGBA")
    alpha = None
    if picture.mode in ("LA", "PA", "RGBA") or (picture.mode == "P" and "transparency" in picture.info):
        picture = picture if picture.mode == "RGBA" else picture.convert("RGBA")
        alpha = _upright(np.asarray(picture.getchannel("A")), turned)
    mode = "L" if not colour and picture.mode in ("1", "L") else "RGB"
    return Raster(values=_upright(np.asarray(picture.convert(mode)), turned), alpha=alpha, lossy=lossy)


def _by_opencv(path: Path, tags: Mapping[int, Any]) -> Raster:
    """A file that Pillow reads in part or not at all: a TIFF with these tags, upright, or a PNG, as it is stored."""
    data = path.read_bytes()
    if not data.startswith((*_TIFF_MAGIC, b"\x89PNG", *_JP2_MAGIC)):
        raise UnidentifiedImageError("not an image")
    _plain_tiff(path, tags)
    if wholeness.tiff_is_whole(len(data), tags) is False:
        raise ValueError("cut off")
    values = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
    if values is None:
        raise ValueError("of a kind that is not read, or cut off")
    _not_too_large(path, _size(values))
    if values.ndim == 2:
        return Raster(values=values, alpha=None, lossy=False)
    alpha = np.ascontiguousarray(values[..., 3]) if values.shape[2] == 4 else None
    if values.shape[2] not in (3, 4):
        raise ValueError(f"{values.shape[2]} channels")
    return Raster(values=np.ascontiguousarray(values[..., 2::-1]), alpha=alpha, lossy=False)


def _is_deep(path: Path, picture: Image.Image) -> bool:
    """Whether its values do not fit 8 bits without a choice of white."""
    if picture.mode.startswith(("I", "F")):
        return True
    if picture.format == "TIFF":
        tags = _tiff_tags(picture)
        return max(tags.get(_BITS, (1,))) > 8 or any(kind in (2, 3) for kind in tags.get(_SAMPLE_FORMAT, (1,)))
    if picture.format == "JPEG2000":  # other depths than 16 say where their white is, and Pillow heeds it
        with path.open("rb") as file:
            head = file.read(_JP2_HEAD)
        size = head.find(_JP2_SIZE)
        return size >= 0 and len(head) > size + 42 and (head[size + 42] & 0x7F) + 1 == 16
    tiles: Any = getattr(picture, "tile", ())
    return picture.format == "PNG" and bool(tiles) and ";16" in str(tiles[0].args)


def _tiff_tags(picture: Image.Image) -> Mapping[int, Any]:
    """The tags of the page of a TIFF file that is open; {} for other kinds."""
    return getattr(picture, "tag_v2", {})


def _plain_tiff(path: Path, tags: Mapping[int, Any]) -> None:
    """Raises DataError for a deep TIFF that OpenCV would read wrongly."""
    if tags.get(_PHOTOMETRIC) == 0:
        raise DataError(f"{path}: 0 stands for white in it (TIFF MinIsWhite): save it with 0 for black")
    if tags.get(_PLANES) == 2 and tags.get(_CHANNELS, 1) > 1:
        raise DataError(f"{path}: its colours lie in planes of their own, or it is a stack: save them interleaved")


def _first_tags(path: Path) -> Mapping[int, Any]:
    """The tags of the first page of a TIFF that Pillow does not read; {} where there are none to be found."""
    try:
        with path.open("rb") as file:
            tags = TiffImagePlugin.ImageFileDirectory_v2(file.read(8))
            file.seek(tags.next or 0)
            tags.load(file)
            return dict(tags)
    except Exception:  # of a file that may be anything
        return {}


def _is_lossy(path: Path, picture: Image.Image) -> bool:
    if picture.format != "WEBP":
        return picture.format in _LOSSY
    with path.open("rb") as file:
        return _WEBP_LOSSLESS not in file.read(_WEBP_HEAD)


def _orientation(picture: Image.Image) -> int:
    """1 to 8 as EXIF numbers them; 1 where the file does not say or its EXIF part is damaged."""
    try:
        turned = picture.getexif().get(_ORIENTATION, 1)
    except Exception:  # what a broken EXIF part raises is not documented; the pixels may be sound
        return 1
    return turned if isinstance(turned, int) and 1 <= turned <= 8 else 1


def _upright(values: np.ndarray, orientation: int) -> np.ndarray:
    """(H, W, ...) stored so, as it is to be seen."""
    if orientation in (5, 6, 7, 8):
        values = values.swapaxes(0, 1)
    if orientation in (3, 4, 7, 8):
        values = values[::-1]
    if orientation in (2, 3, 6, 7):
        values = values[:, ::-1]
    return values if orientation == 1 else np.ascontiguousarray(values)


def _single(path: Path, picture: Image.Image) -> None:
    """Raises DataError for an animation or several pages. Previews do not count: of MPO (phones), of TIFF pyramids."""
    count = getattr(picture, "n_frames", 1)
    if count < 2 or picture.format == "MPO":
        return
    if picture.format == "TIFF":
        full = 1
        for page in range(1, count):
            picture.seek(page)
            full += not _tiff_tags(picture).get(_SUBFILE, 0) & 1
            if full > 1:
                break
        picture.seek(0)
        if full == 1:
            return
    raise DataError(f"{shown(path)}: {count} pictures in one file (pages or an animation): save one picture a file")


def _not_too_large(path: Path, size: tuple[int, int]) -> None:
    pixels = size[0] * size[1]
    if pixels > LARGEST:
        raise DataError(
            f"{shown(path)}: {size[0]}x{size[1]} are {pixels / 1e6:.0f} megapixels, at most {LARGEST / 1e6:.0f} are "
            "read: make the picture smaller or cut it into tiles"
        )


def _size(values: np.ndarray) -> tuple[int, int]:
    return values.shape[1], values.shape[0]


def _regular(path: Path) -> None:
    """A named pipe would be waited for without end."""
    require_utf8(path)
    if not stat.S_ISREG(path.stat().st_mode):
        raise DataError(f"{path}: not a file: remove it or name a picture file")


@contextmanager
def _told(path: Path, what: str) -> Iterator[None]:
    """What goes wrong with a file as a DataError of one line."""
    try:
        yield
    except DataError:
        raise
    except FileNotFoundError:
        if path.is_symlink():
            raise DataError(f"{path}: a link to nowhere ({path.readlink()} is not there): mend or remove it") from None
        raise DataError(f"{path}: no such {what}") from None
    except Image.DecompressionBombError:
        raise DataError(
            f"{path}: more than {2 * LARGEST / 1e6:.0f} megapixels, at most {LARGEST / 1e6:.0f} are read: make the "
            "picture smaller or cut it into tiles"
        ) from None
    except MemoryError:
        raise DataError(f"{path}: not enough memory to decode this {what}: make it smaller") from None
    except READ_ERRORS as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise DataError(f"{shown(path)}: cannot be read ({error.strerror})") from None
        raise DataError(f"{path}: corrupt {what} ({_first_line(error)}): replace or remove it") from None


def _first_line(error: BaseException) -> str:
    text = str(error).splitlines()[0] if str(error) else type(error).__name__
    return "not an image" if isinstance(error, UnidentifiedImageError) else text
