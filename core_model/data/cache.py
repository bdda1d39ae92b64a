"""Decoded and resized pictures kept in memory, so that an epoch after the first reads no file."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from core_model.data.decode.pictures import Picture


class PictureCache:
    """First come, first kept, up to `limit_mib`: in a shuffled epoch every picture is used once, so evicting the least
    recently used one would throw out exactly what is needed next."""

    def __init__(self, pictures: Sequence[Picture], size: int, *, limit_mib: int) -> None:
        self._pictures, self._size = pictures, size
        self._left = limit_mib * 2**20
        self._kept: dict[int, np.ndarray] = {}

    def image(self, position: int) -> np.ndarray:
        """uint8 (size, size, 3), read-only."""
        found = self._kept.get(position)
        if found is None:
            found = self._pictures[position].image(self._size)
            if found.flags.owndata or found.base is None:
                found.flags.writeable = False
            if found.nbytes <= self._left:
                self._left -= found.nbytes
                self._kept[position] = found
        return found
