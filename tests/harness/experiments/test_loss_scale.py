"""The figure of the loss scale: engines that move it alike, and one that does not."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

from harness.experiments.parity.loss_scale import sentence, write


def curve(skipped: int) -> list[dict[str, Any]]:
    rows, scale = [], 1024.0
    for step in range(12):
        drop = step == skipped
        norm = None if drop else 1.0 / (step + 1)
        rows.append({"step": step, "loss": 1.0, "loss_scale": scale, "skipped": drop, "grad_norm": norm})
        scale *= 0.5 if drop else 1.0
    return rows


def test_all_alike_is_said_and_drawn(tmp_path: Path) -> None:
    curves = {"horovod": curve(8), "deepspeed ZeRO-2": curve(8)}
    assert sentence(curves) == ("all 2 engines skip step 8 and hold the same loss scale in every step", True)
    paths = write(curves, tmp_path)
    assert [path.name for path in paths] == ["loss_scale.csv", "loss_scale.png", "loss_scale.svg"]
    rows = list(csv.DictReader(paths[0].open()))
    assert [row["step"] for row in rows if row["skipped"] == "True"] == ["8", "8"]
    svg = paths[2].read_text()
    assert "deepspeed ZeRO-2" in svg
    assert "skip step 8" in svg
    first = paths[1].read_bytes()
    assert write(curves, tmp_path)[1].read_bytes() == first, "the same records, the same figure"


def test_an_engine_that_skips_another_step_is_named() -> None:
    text, alike = sentence({"ddp": curve(8), "horovod": curve(8), "deepspeed": curve(9)})
    assert not alike
    assert "ddp skips [8]; deepspeed skips [9]" in text
