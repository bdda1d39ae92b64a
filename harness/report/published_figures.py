"""Figures that others published, shown beside ours: the study that this project reproduces and the AnomalyGPT paper.

Source of TABLE: the study's per-category accuracy of the Yes/No answer and its AUROCs on MVTec AD (in per cent; its
baseline and model versions V2, V4, V5, V6; the first four categories are AeBAD's defects). Source of PAPER: Gu et al.,
arXiv:2308.15366, MVTec AD, unsupervised.
"""

from __future__ import annotations

VERSIONS = ("baseline", "V2", "V4", "V5", "V6")

ACCURACY: dict[str, tuple[float | None, ...]] = {
    "ablation": (None, None, 61.92, 65.38, 75.0),
    "breakdown": (None, None, 78.28, 87.35, 93.07),
    "fracture": (None, None, 69.51, 43.84, 48.85),
    "groove": (None, None, 71.14, 60.28, 62.28),
    "bottle": (92.77, 93.97, 95.18, 96.86, 93.88),
    "cable": (83.33, 86.0, 84.0, 89.25, 88.84),
    "capsule": (85.60, 68.18, 81.81, 82.15, 86.72),
    "carpet": (100.0, 100.0, 100.0, 98.54, 98.05),
    "grid": (97.43, 97.43, 97.43, 97.77, 97.03),
    "hazelnut": (96.36, 97.27, 97.27, 96.66, 98.88),
    "leather": (97.58, 98.38, 98.38, 99.07, 99.07),
    "metal_nut": (99.13, 100.0, 100.0, 98.55, 98.07),
    "pill": (87.42, 85.62, 87.42, 89.93, 90.58),
    "screw": (76.25, 75.0, 76.25, 82.43, 81.0),
    "tile": (99.14, 99.14, 94.01, 96.51, 97.01),
    "toothbrush": (100.0, 95.23, 90.47, 86.11, 93.05),
    "transistor": (84.0, 82.0, 83.0, 85.71, 86.42),
    "wood": (93.67, 94.93, 94.93, 97.12, 96.40),
    "zipper": (82.11, 68.18, 74.17, 87.03, 85.18),
}
MEAN: dict[str, tuple[float, ...]] = {
    "image_auroc": (94.232, 94.232, 91.920, 93.0984, 93.0984),
    "pixel_auroc": (95.457, 95.4573, 95.3716, 94.7474, 94.7474),
    "answer_accuracy": (91.655, 89.5601, 85.8738, 86.2155, 87.8672),
}
PAPER: dict[str, float] = {"image_auroc": 97.4, "pixel_auroc": 93.1, "answer_accuracy": 93.3}
