"""The last screen of `harness compare`: 24 lines of 100 characters, whatever the outcome."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from harness.analysis.caveats import Finding, findings
from harness.analysis.comparison import Comparison, summarize_study
from harness.analysis.duels.estimate import Block
from harness.analysis.duels.record import NAME
from harness.commands.last_screen import COLUMNS, LINES, last_screen, next_step
from harness.experiments.duels import record as records
from harness.experiments.duels.fight import Contender, Duel
from harness.experiments.duels.of_study import contenders_of_study
from harness.experiments.duels.pace import Pace
from harness.records.record_files import runs_of, write_json
from harness.records.run_record import RecordedRun
from harness.study.study_file import Study
from tests.harness.made_runs import write_run

REPORT = Path("results/compare/report.html")


def compared(folder: Path, faster: float, scatter: float, duels: int = 6) -> Comparison:
    """A study of two engines on one and two workers; on both Horovod is `faster` (log scale) than DeepSpeed."""
    job = {"preset": "small", "global_batch": 2, "steps": 36}
    backends = ["deepspeed:zero_stage=2", "horovod"]
    study = Study.from_matrix(name="s", backends=backends, workers=[1, 2], repeats=1, job=job)
    for one in study.jobs:
        write_run(folder / "s", one)
    contenders = contenders_of_study(study, [RecordedRun(run) for run in runs_of(folder / "s")])
    rng = np.random.default_rng(3)

    def block(duel: int, turn: int, item: Contender) -> Block:
        log_s = rng.normal() * scatter - (faster if item.cell.backend == "horovod" else 0.0)
        seconds = float(np.exp(log_s)) / (1.5 if item.cell.workers == 2 else 1.0)
        return Block(duel=duel, round=turn, engine=item.name, samples=2, seconds=seconds)

    pace = Pace(warmup=2, steps=1, rounds=10)
    fought = [
        Duel(
            number=duel,
            blocks=[block(duel, turn, item) for turn in range(10) for item in contenders if turn % item.every == 0],
            told={item.name: {"losses": [4.0] * 12, "device_mib": []} for item in contenders},
            start_s=15.0,
            fight_s=50.0,
        )
        for duel in range(duels)
    ]
    pairs = [("single@1", item.name) for item in contenders[1:]]
    pairs += [(f"deepspeed ZeRO-2@{workers}", f"horovod@{workers}") for workers in (1, 2)]
    told = records.record_of(study.jobs[0], contenders, pace, fought, pairs, first_stage=6)
    told["goal"] = {"until": 0.03, "budget_s": 420.0, "first_stage": 6}
    write_json(folder / "s" / NAME, told)
    return summarize_study(folder / "s")


@pytest.mark.parametrize(
    ("faster", "scatter", "word", "command"),
    [
        (0.10, 0.03, "Horovod is 10", "harness tune --backends deepspeed:zero_stage=2,horovod --workers 2"),
        (0.0, 0.03, "are alike in speed", "harness tune --backends"),
        (0.03, 0.4, "Undecided at 2 workers", "the same command with --budget "),
    ],
)
def test_it_fits_says_the_verdict_and_what_to_ask_next(
    faster: float, scatter: float, word: str, command: str, tmp_path: Path
) -> None:
    comparison = compared(tmp_path, faster, scatter)
    many = [Finding(level="warning", code="drift", text="its steps became slower " * 9)] * 3
    many += [Finding(level="warning", code=f"made {number}", text="many words " * 40) for number in range(5)]
    for found in (findings(comparison), many):
        screen = last_screen(comparison, found, REPORT)
        assert len(screen) <= LINES, "\n".join(screen)
        assert max(map(len, screen)) <= COLUMNS
        assert word in screen[0]
        assert f"report: {REPORT}" in screen
        assert command in " ".join(screen[-2:])
        assert sum(line.startswith("warning:") for line in screen) <= 3
        assert not any("slower slower" in line for line in screen), "no warning about figures that are not shown"


def test_its_rates_are_the_duels_not_the_trainings(tmp_path: Path) -> None:
    comparison = compared(tmp_path, 0.10, 0.001)
    rows = [line.split() for line in last_screen(comparison, [], REPORT)]
    shown = [float(row[row.index("2") + 1]) for row in rows if row[:2] == ["Horovod", "2"]]
    assert shown == [pytest.approx(2 * 1.5 * np.exp(0.10), rel=0.01)]


def test_without_duels_the_trainings_own_figures_stand_there(tmp_path: Path) -> None:
    assert compared(tmp_path, 0.10, 0.03).duels is not None
    (tmp_path / "s" / NAME).unlink()
    plain = summarize_study(tmp_path / "s")
    screen = last_screen(plain, findings(plain), REPORT)
    assert len(screen) <= LINES
    assert "harness compare" in next_step(plain)
