"""Where the object is: defects are drawn on it, not on the table it lies on (the study's future work, without a
detector).

Industrial pictures show either a surface that fills the frame or an object on a plain ground. The ground is what the
picture's border looks like; if the border is not plain, the whole picture is the object.
"""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np

PLAIN = 14.0  # grey levels: largest spread of a border that counts as plain
CONTRAST = 30.0  # grey levels: least mean distance between object and ground
LEAST, MOST = 0.05, 0.92  # share of the picture: outside of this the estimate is not believed


def foreground(image: np.ndarray) -> np.ndarray | None:
    """bool (S, S), True on the object; None where the object fills the picture or no ground can be told.

    image: uint8 (S, S, 3). The ground's tone is the median of a border of 4 % of the side; a pixel is object if it is
    farther from it than Otsu's threshold of all distances, and small holes are closed.
    """
    side = image.shape[0]
    band = max(1, side // 25)
    smooth = cv2.GaussianBlur(image, (5, 5), 0)
    edges = (smooth[:band], smooth[-band:], smooth[:, :band], smooth[:, -band:])
    border = np.concatenate([edge.reshape(-1, 3) for edge in edges]).astype(np.float32)
    tone = np.median(border, axis=0)
    # Objects may touch the border: three quarters of it must be plain.
    spread = np.abs(border - tone).max(axis=1)
    if np.quantile(spread, 0.75) > PLAIN:
        return None
    distance = np.abs(smooth.astype(np.float32) - tone).max(axis=2)
    distance = np.clip(distance, 0, 255).astype(np.uint8)
    threshold, _ = cv2.threshold(distance, 0, 255, cv2.THRESH_BINARY + cv2.THRESH_OTSU)
    mask = (distance > max(float(threshold) * 0.6, PLAIN)).astype(np.uint8)
    reach = max(3, side // 20) | 1
    mask = cv2.morphologyEx(mask, cv2.MORPH_CLOSE, cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (reach, reach)))
    mask = cv2.morphologyEx(mask, cv2.MORPH_OPEN, np.ones((3, 3), np.uint8))
    touched = sum(float(edge.mean()) > 0.03 for edge in (mask[0], mask[-1], mask[:, 0], mask[:, -1]))
    if touched > 2:  # a pattern that runs through the frame (mortar between bricks), not an object in it
        return None
    share = float(mask.mean())
    if not LEAST <= share <= MOST or float(distance[mask > 0].mean()) < CONTRAST:
        return None
    return mask.astype(bool)


def has_ground(images: Sequence[np.ndarray]) -> bool:
    """Whether a category shows objects on a ground: most of its pictures say so. One picture of a surface may look as
    if it did, a whole category does not."""
    found = sum(foreground(image) is not None for image in images)
    return len(images) > 0 and found >= 0.75 * len(images)
