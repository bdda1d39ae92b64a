"""How fast training samples are made, on one core: ``python -m harness.experiments.benchmarks.data [SPEC]``.

Counts processor seconds of this process, not seconds of the clock, so that other work on the machine disturbs the
figure little. Every picture gets a defect; decoded pictures are in memory, as from the second epoch on.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from core_model.data import Dataset, open_dataset
from core_model.data.defects import RECIPES, Canvas
from core_model.data.defects.recipes import GENERATORS
from harness.records.environment import environment
from harness.records.record_files import write_json


def rate(make: Callable[[int], Any], seconds: float) -> float:
    """Calls of `make` a processor second, over about `seconds` of them."""
    make(0)
    count, begin = 0, time.process_time()
    while (spent := time.process_time() - begin) < seconds:
        make(count)
        count += 1
    return count / spent


def measure(spec: str, size: int, seconds: float) -> dict[str, Any]:
    """Samples a second and core: whole samples by recipe, single generators, decoding."""

    def opened(recipe: str) -> Dataset:
        options = {"defective_share": 1.0, "limit": 60}
        return open_dataset(spec, split="train", image_size=size, seed=0, simulation=recipe, options=options)

    def whole(recipe: str) -> Callable[[int], Any]:
        data = opened(recipe)
        for index in range(len(data)):
            data.get(index, 0)
        return lambda k: data.get(k % len(data), 1 + k // len(data))

    samples = {name: rate(whole(name), seconds) for name in RECIPES}
    data = opened("")
    images = [data._cache.image(position) for position in range(len(data))]
    rng = np.random.default_rng(0)

    def draw(generator: Any) -> Callable[[int], Any]:
        return lambda k: generator(
            Canvas(image=images[k % len(images)], donor=lambda: images[(k * 7 + 3) % len(images)]), rng
        )

    generators = {name: rate(draw(generator), seconds / 2) for name, generator in GENERATORS.items()}
    pictures = data._pictures
    decode = rate(lambda k: pictures[k % len(pictures)].image(size), seconds / 2)
    return {"spec": spec, "size": size, "samples_per_s": samples, "tries_per_s": generators, "decoded_per_s": decode}


def headline(record: Mapping[str, Any]) -> str:
    """Whole samples a second, by recipe."""
    rates = [f"{name} {rate:.0f}" for name, rate in record["samples_per_s"].items()]
    return f"Training samples a second and core: {', '.join(rates)}."


def main() -> None:
    """Command line: samples a second on one core, by recipe and by generator."""
    parser = argparse.ArgumentParser(description="Samples a second on one core, by recipe and by generator.")
    parser.add_argument("spec", nargs="?", default="textures")
    parser.add_argument("--size", type=int, default=224, help="Side of the pictures, pixels.")
    parser.add_argument("--seconds", type=float, default=2.0, help="Processor seconds a figure.")
    parser.add_argument("--json", action="store_true", help="Print JSON.")
    parser.add_argument("--out", type=Path, help="Folder for data.json: results/benchmarks.")
    options = parser.parse_args()
    torch.set_num_threads(1)
    figures = measure(options.spec, options.size, options.seconds)
    if options.out is not None:
        options.out.mkdir(parents=True, exist_ok=True)
        record = {"machine": environment()["cpu"], **figures, "headline": headline(figures)}
        write_json(options.out / "data.json", record)
    if options.json:
        print(json.dumps(figures, indent=1))
        return
    print(f"{options.spec} at {options.size} px, one core, every picture with a defect")
    for name, value in figures["samples_per_s"].items():
        print(f"  recipe {name:12s} {value:7.0f} samples/s")
    for name, value in figures["tries_per_s"].items():
        print(f"  generator {name:9s} {value:7.0f} tries/s")
    print(f"  reading files       {figures['decoded_per_s']:7.0f} pictures/s")


if __name__ == "__main__":
    main()
