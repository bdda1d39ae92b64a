"""The verdict of duels in sentences: who is faster, what is undecided and what it would take, scaling, calibration."""

from __future__ import annotations

from typing import Any

from harness.analysis.duels.estimate import FIRST_STAGE, Block
from harness.analysis.duels.record import asked_pairs, differences_of
from harness.analysis.duels.sentences import speed

SIDES = [
    {"name": name, "backend": backend, "workers": workers, "zero_stage": stage, "settings": [], "global_batch": 4}
    for name, backend, workers, stage in (
        ("single@1", "single", 1, None),
        ("single@1 #2", "single", 1, None),
        ("deepspeed ZeRO-2@2", "deepspeed", 2, 2),
        ("horovod@2", "horovod", 2, None),
    )
]


def record(seconds: dict[str, list[float]], until: float = 0.05) -> dict[str, Any]:
    """seconds: contender -> of its one block in each duel."""
    blocks = [
        Block(duel=duel, round=0, engine=name, samples=4, seconds=value)
        for name, values in seconds.items()
        for duel, value in enumerate(values)
    ]
    duels = [{"start_s": 60.0, "fight_s": 60.0} for _ in next(iter(seconds.values()))]
    return {
        "contenders": SIDES,
        "blocks": [vars(block) for block in blocks],
        "duels": duels,
        "differences": differences_of(blocks, SIDES, asked_pairs(SIDES)),
        "goal": {"until": until, "budget_s": 480.0},
    }


def test_faster_engine_efficiency_and_calibration() -> None:
    made = record(
        {
            "single@1": [1.0, 1.01, 1.0, 0.99],
            "single@1 #2": [1.0, 1.0, 1.01, 1.0],
            "deepspeed ZeRO-2@2": [0.66, 0.67, 0.66, 0.66],
            "horovod@2": [0.60, 0.61, 0.60, 0.60],
        }
    )
    first, efficiency, calibration = speed(made)
    assert first.startswith("Horovod is 10")
    assert "faster than DeepSpeed ZeRO-2 at 2 workers (95 % CI" in first
    assert first.endswith("4 duels).")
    assert efficiency.startswith(
        "Scaling efficiency at 2 workers, against plain torch on one worker: DeepSpeed ZeRO-2 7"
    )
    assert "Horovod 83 % (8" in efficiency
    assert calibration.startswith("Calibration: plain torch against itself differs by less than 5 %")


def test_undecided_says_how_many_duels_and_what_budget_would_tell() -> None:
    same = [1.0] * FIRST_STAGE
    made = record(
        {
            "single@1": same,
            "single@1 #2": [1.0, 1.3, 0.8, 1.0],
            "deepspeed ZeRO-2@2": [0.7, 0.8, 0.7, 0.6],
            "horovod@2": [0.68, 0.7, 0.7, 0.65],
        }
    )
    found = speed(made)
    assert found[0].startswith("Undecided at 2 workers: Horovod against DeepSpeed ZeRO-2 +")
    assert "more duels (" in found[0]
    assert "for ±5.0 %: --budget " in found[0]
    assert found[-1].startswith("Calibration: plain torch cannot be told from itself, but only within a wide interval")


def test_an_engine_that_differs_from_itself_is_an_alarm() -> None:
    made = record({"single@1": [1.0, 1.0, 1.01, 1.0], "single@1 #2": [1.2, 1.2, 1.21, 1.2]})
    assert speed(made) == [
        next(text for text in speed(made) if text.startswith("CALIBRATION FAILED: plain torch came out different"))
    ]


def test_pairs_that_fought_no_duel_are_named() -> None:
    made = record({"single@1": [1.0] * 4, "single@1 #2": [1.0, 1.01, 1.0, 1.0]})
    made["not_fought"] = [{"a": "single@1", "b": "horovod@2", "reason": "9 GiB are needed, 4 GiB are free"}]
    assert speed(made)[-1].endswith("Horovod with 2 workers fought no duel: 9 GiB are needed, 4 GiB are free.")
