"""Writes small made-up data sets in each layout: for tests, demonstrations and trying an installation without data.

Pictures are grey stripes with grain; a defect is a dark disc, its mask the disc. Every writer returns the folder to
name after the layout (``mvtec:DIR``).
"""

from __future__ import annotations

import csv
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

Size = tuple[int, int]  # (width, height), pixels


def picture(number: int, size: Size = (48, 40), *, defective: bool = False) -> tuple[np.ndarray, np.ndarray]:
    """uint8 (H, W, 3) and its mask, uint8 (H, W) of 0 and 255, decided by `number`."""
    rng = np.random.default_rng([17, number])
    width, height = size
    rows, columns = np.mgrid[:height, :width]
    stripes = 140 + 25 * np.sin(columns / 3.0 + number)
    grey = stripes + rng.normal(0, 6, (height, width))
    mask = np.zeros((height, width), np.uint8)
    if defective:
        radius = min(size) * rng.uniform(0.12, 0.25)
        row, column = rng.uniform(0.25, 0.75, 2) * (height, width)
        mask[(rows - row) ** 2 + (columns - column) ** 2 <= radius**2] = 255
        grey = np.where(mask > 0, grey - 90, grey)
    image = np.clip(grey, 0, 255).astype(np.uint8)
    return np.repeat(image[..., None], 3, axis=2), mask


def write_mvtec(
    root: Path,
    *,
    categories: Sequence[str] = ("plate",),
    train: int = 6,
    good: int = 3,
    defective: int = 2,
    kinds: Sequence[str] = ("dent", "hole"),
    size: Size = (48, 40),
) -> Path:
    """MVTec AD's layout: `defective` test pictures of each of `kinds`."""
    for place, category in enumerate(categories):
        folder, number = root / category, 1000 * place
        for index in range(train):
            _save(folder / "train" / "good" / f"{index:03d}.png", picture(number + index, size)[0])
        for index in range(good):
            _save(folder / "test" / "good" / f"{index:03d}.png", picture(number + 100 + index, size)[0])
        for step, kind in enumerate(kinds):
            for index in range(defective):
                image, mask = picture(number + 200 + 50 * step + index, size, defective=True)
                _save(folder / "test" / kind / f"{index:03d}.png", image)
                _save(folder / "ground_truth" / kind / f"{index:03d}_mask.png", mask)
    return root


def write_visa(
    root: Path, *, objects: Sequence[str] = ("candle",), train: int = 5, test: int = 3, size: Size = (48, 40)
) -> Path:
    """VisA's layout: jpeg pictures, masks that hold the number of the defect kind, and split_csv/1cls.csv."""
    rows: list[tuple[str, str, str, Path, Path | None]] = []
    for place, name in enumerate(objects):
        data = root / name / "Data"
        for index in range(train + test):
            path = data / "Images" / "Normal" / f"{index:04d}.JPG"
            _save(path, picture(5000 + 1000 * place + index, size)[0])
            rows.append((name, "train" if index < train else "test", "normal", path, None))
        for index in range(test):
            image, mask = picture(5500 + 1000 * place + index, size, defective=True)
            path = data / "Images" / "Anomaly" / f"{index:03d}.JPG"
            mask_path = data / "Masks" / "Anomaly" / f"{index:03d}.png"
            _save(path, image)
            _save(mask_path, np.minimum(mask, 1 + index % 3).astype(np.uint8))
            rows.append((name, "test", "anomaly", path, mask_path))
    table = root / "split_csv" / "1cls.csv"
    table.parent.mkdir(parents=True, exist_ok=True)
    with table.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["object", "split", "label", "image", "mask"])
        for name, split, label, *files in rows:
            names = [file.relative_to(root).as_posix() if file else "" for file in files]
            writer.writerow([name, split, label, *names])
    return root


def write_aebad(
    root: Path,
    *,
    kinds: Sequence[str] = ("ablation", "breakdown", "fracture", "groove"),
    domains: Sequence[str] = ("same", "background", "illumination", "view"),
    train: int = 2,
    test: int = 1,
    size: Size = (48, 40),
) -> Path:
    """AeBAD-S's layout: `train` good pictures a domain (but ``same``), `test` pictures a kind and domain."""
    base, number = root / "AeBAD_S", 9000
    for place, domain in enumerate(domains):
        for index in range(train if domain != "same" else 0):
            _save(base / "train" / "good" / domain / f"{index:03d}.png", picture(number + 100 * place + index, size)[0])
        for index in range(test):
            _save(base / "test" / "good" / domain / f"{index:03d}.png", picture(number + 50 + 100 * place, size)[0])
            for step, kind in enumerate(kinds):
                image, mask = picture(number + 1000 + 100 * place + 10 * step + index, size, defective=True)
                _save(base / "test" / kind / domain / f"{index:03d}.png", image)
                _save(base / "ground_truth" / kind / domain / f"{index:03d}.png", mask)
    return root


def write_instructions(root: Path, *, count: int = 4, size: Size = (48, 40)) -> Path:
    """PandaGPT's json with its pictures beside it; returns the json file."""
    entries = []
    for index in range(count):
        _save(root / "images" / f"{index:06d}.jpg", picture(20_000 + index, size)[0])
        said = [
            {"from": "human", "value": "What is in the picture?\n<image>"},
            {"from": "gpt", "value": "A striped surface."},
            {"from": "human", "value": "How many stripes?"},
            {"from": "gpt", "value": "Several."},
        ]
        entries.append({"image_name": f"{index:06d}", "conversation": said})
    path = root / "instructions.json"
    path.write_text(json.dumps(entries))
    return path


def _save(path: Path, pixels: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)
