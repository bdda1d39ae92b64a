"""Duels of a study: who fights beside whom by memory, at which pace, until when; what an interrupt or a failure leaves.

The fights themselves are drawn from a seeded generator here; tests/parallel/test_duel.py fights real ones."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from harness.analysis.duels.estimate import FIRST_STAGE, Block, difference
from harness.analysis.duels.record import NAME, asked_pairs, blocks_of, deciding_pairs
from harness.experiments.duels import until
from harness.experiments.duels.fight import Contender, Duel
from harness.experiments.duels.lineups import Memory, lineups
from harness.experiments.duels.of_study import contenders_of_study, memory_needs, pace_of, why_none
from harness.experiments.duels.pace import Pace
from harness.experiments.duels.record import side
from harness.experiments.duels.until import Campaign, Goal
from harness.experiments.trainings.cells import Cell
from harness.job.declaration import Job, JobError
from harness.records.record_files import runs_of
from harness.records.run_record import RecordedRun
from harness.study.study_file import Study
from tests.harness.made_runs import write_run

PACE = Pace(warmup=2, steps=1, rounds=6)
SIDES = [
    Contender(name="single@1", cell=Cell(backend="single"), global_batch=4),
    Contender(name="single@1 #2", cell=Cell(backend="single"), global_batch=4),
    Contender(name="deepspeed ZeRO-2@2", cell=Cell(backend="deepspeed", zero_stage=2, workers=2), global_batch=4),
    Contender(name="horovod@2", cell=Cell(backend="horovod", workers=2), global_batch=4),
]
NAMES = tuple(item.name for item in SIDES)
SPEED = {"single@1": 1.0, "single@1 #2": 1.0, "deepspeed ZeRO-2@2": 1.5, "horovod@2": 1.6}


class Fights:
    """Stands for `fight`: seconds of each block are drawn. fails: contenders that cannot fight beside others."""

    def __init__(self, scatter: float = 0.01, fails: Callable[[Sequence[str]], str] = lambda names: "") -> None:
        self.scatter, self.fails = scatter, fails
        self.lineups: list[tuple[str, ...]] = []

    def __call__(self, base: Job, sides: Sequence[Contender], pace: Pace, *, number: int, **_: Any) -> Duel:
        names = tuple(item.name for item in sides)
        self.lineups.append(names)
        if reason := self.fails(names):
            raise JobError(f"duel {number + 1} failed: {reason}")
        rng = np.random.default_rng(number)
        blocks = [
            Block(duel=number, round=turn, engine=name, samples=4, seconds=float(np.exp(noise)) / SPEED[name])
            for name in names
            for turn, noise in enumerate(rng.normal(size=pace.rounds) * self.scatter)
        ]
        told = {name: {"losses": [1.0], "device_mib": [None]} for name in names}
        waiting = dict.fromkeys(names, 0.0)
        return Duel(number=number, blocks=blocks, told=told, waiting=waiting, start_s=40.0, fight_s=60.0)


def campaign(
    folder: Path, monkeypatch: pytest.MonkeyPatch, fights: Any, *, wanted: float = 0.05, budget_s: float = 3600.0
) -> Campaign:
    monkeypatch.setattr(until, "fight", fights)
    goal = Goal(wanted=wanted, budget_s=budget_s)
    return Campaign(Job(global_batch=4), SIDES, PACE, folder, goal, seed=0, say=lambda _: None)


def test_a_first_stage_is_enough_where_all_is_quiet_and_the_same_call_then_fights_no_more(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fights = Fights()
    record = campaign(tmp_path, monkeypatch, fights).run([NAMES])
    assert fights.lineups == [NAMES] * FIRST_STAGE
    assert {item["verdict"] for item in record["differences"]} <= {"faster", "slower", "alike"}
    assert json.loads((tmp_path / NAME).read_text())["differences"] == record["differences"]
    campaign(tmp_path, monkeypatch, fights).run([NAMES])
    assert len(fights.lineups) == FIRST_STAGE


def test_it_goes_on_until_the_intervals_are_narrow_or_the_time_is_spent(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    noisy = Fights(scatter=0.06)
    record = campaign(tmp_path / "narrow", monkeypatch, noisy, wanted=0.03, budget_s=1e6).run([NAMES])
    assert FIRST_STAGE < len(noisy.lineups) < Goal(wanted=1, budget_s=1).most
    assert all(item["half_width"] <= 0.03 for item in record["differences"])
    short = Fights(scatter=0.06)
    campaign(tmp_path / "short", monkeypatch, short, wanted=0.03, budget_s=250.0).run([NAMES])
    assert len(short.lineups) == 2, "a third duel of 100 s would not end within 250 s"
    more = Fights(scatter=0.06)
    campaign(tmp_path / "short", monkeypatch, more, wanted=0.03, budget_s=450.0).run([NAMES])
    assert len(more.lineups) == 2, "a larger budget goes on from the finished ones"


def test_an_interrupt_keeps_finished_duels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fights = Fights()

    def stopped(*arguments: Any, number: int, **options: Any) -> Duel:
        if number == 2:
            raise KeyboardInterrupt
        return fights(*arguments, number=number, **options)

    with pytest.raises(KeyboardInterrupt):
        campaign(tmp_path, monkeypatch, stopped).run([NAMES])
    kept = blocks_of(json.loads((tmp_path / NAME).read_text()))
    assert {block.duel for block in kept} == {0, 1}
    record = campaign(tmp_path, monkeypatch, fights).run([NAMES])
    assert blocks_of(record)[: len(kept)] == kept
    assert len(record["duels"]) == FIRST_STAGE


def test_duels_of_another_job_or_pace_are_not_mixed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    campaign(tmp_path, monkeypatch, Fights()).run([NAMES])
    goal = Goal(wanted=0.05, budget_s=3600.0)
    with pytest.raises(JobError, match=r"holds duels of another job \(lr\): choose another --study"):
        Campaign(Job(global_batch=4, lr=0.5), SIDES, PACE, tmp_path, goal, seed=0, say=print)
    other = Pace(warmup=2, steps=2, rounds=6)
    with pytest.raises(JobError, match=r"another job \(pace\)"):
        Campaign(Job(global_batch=4), SIDES, other, tmp_path, goal, seed=0, say=print)
    assert Campaign(Job(global_batch=4), SIDES, other, tmp_path, goal, seed=0, say=print, keep_pace=True).pace == PACE


def test_what_fails_together_is_fought_in_pairs_and_a_pair_that_fails_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fights = Fights(fails=lambda names: "out of memory" if len(names) > 2 or "horovod@2" in names else "")
    record = campaign(tmp_path, monkeypatch, fights).run([NAMES], in_pairs=True)
    assert {(item["a"], item["b"]) for item in record["differences"]} == {
        ("single@1", "single@1 #2"),
        ("single@1", "deepspeed ZeRO-2@2"),
    }
    assert {(item["a"], item["b"]) for item in record["not_fought"]} == {
        ("single@1", "horovod@2"),
        ("deepspeed ZeRO-2@2", "horovod@2"),
    }
    assert all("out of memory" in item["reason"] for item in record["not_fought"])
    nothing = Fights(fails=lambda names: "gone")
    with pytest.raises(JobError, match="gone"):
        campaign(tmp_path / "none", monkeypatch, nothing).run([NAMES], in_pairs=True)
    with pytest.raises(JobError, match="gone"):
        campaign(tmp_path / "once", monkeypatch, nothing).run([NAMES])


def test_a_lineup_that_fought_before_is_tried_once_more(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fails = iter([False, True, *[False] * 9])
    fights = Fights(fails=lambda names: "a rank hangs" if next(fails) else "")
    record = campaign(tmp_path, monkeypatch, fights).run([NAMES], in_pairs=True)
    assert fights.lineups == [NAMES] * (FIRST_STAGE + 1)
    assert len(record["duels"]) == FIRST_STAGE
    assert record["not_fought"] == []


def test_all_at_once_in_pairs_or_not_at_all_by_memory() -> None:
    pairs = asked_pairs([side(item) for item in SIDES])
    needs = {name: Memory(host=2000.0) for name in NAMES}
    assert lineups(NAMES, pairs, needs, Memory(host=9000.0)) == ([NAMES], {})
    assert lineups(NAMES, pairs, needs, Memory(host=8500.0)) == (pairs, {})
    needs["horovod@2"] = Memory(host=9000.0)
    fitting, unfit = lineups(NAMES, pairs, needs, Memory(host=8500.0))
    assert fitting == [pair for pair in pairs if "horovod@2" not in pair]
    assert unfit["single@1", "horovod@2"] == "10.7 GiB of host memory are needed, 8500 MiB are free"
    gpu = {name: Memory(host=1.0, device=30000.0) for name in NAMES}
    assert lineups(NAMES, pairs, gpu, Memory(host=1e6, device=81000.0)) == (pairs, {})
    assert lineups(NAMES, pairs, {}, Memory(host=1.0)) == ([NAMES], {}), "nothing is known: it is tried"


def study_of(**changes: Any) -> Study:
    given = {"name": "s", "backends": ["deepspeed:zero_stage=2", "horovod"], "workers": [1, 2], "repeats": 1}
    job = {"preset": "tiny", "global_batch": 4, "steps": 20, "eval_samples": -1}
    return Study.from_matrix(**{**given, "job": job, **changes})


def test_plain_torch_stands_before_all_that_trained(tmp_path: Path) -> None:
    study = study_of()
    for job in study.jobs:
        write_run(tmp_path / "s", job, memory_mib=500.0, fail="gone" if job.run.startswith("horovod-w1") else "")
    runs = [run for run in map(RecordedRun, runs_of(tmp_path / "s")) if run.ok]
    found = contenders_of_study(study, runs)
    expected = ["single@1", "single@1 #2", "deepspeed ZeRO-2@1", "deepspeed ZeRO-2@2", "horovod@2"]
    assert [item.name for item in found] == expected
    assert set(memory_needs(found, runs)) == set(expected[2:])
    pace = pace_of(found, runs, budget_s=600.0)
    assert 1 <= pace.steps <= 50
    assert 6 <= pace.rounds <= 40
    assert pace_of(found, runs, budget_s=1e5).rounds >= pace.rounds


def test_weak_scaling_gives_plain_torch_one_workers_batch(tmp_path: Path) -> None:
    job = {"preset": "tiny", "global_batch": 4, "steps": 20, "eval_samples": -1, "scaling": "weak"}
    study = study_of(job=job, workers=[2])
    for one in study.jobs:
        write_run(tmp_path / "s", one)
    found = contenders_of_study(study, [RecordedRun(folder) for folder in runs_of(tmp_path / "s")])
    assert [item.global_batch for item in found] == [4, 4, 8, 8]


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({}, ""),
        ({"budget": "0"}, "no budget"),
        ({"matrix": {"precision": ["fp32", "bf16"]}}, "several jobs"),
        ({"backends": ["ddp", "horovod:tune_steps=40"]}, "tunes itself"),
    ],
)
def test_what_is_not_decided_by_duels_says_why(changes: dict[str, Any], reason: str) -> None:
    found = why_none(study_of(**changes))
    assert (reason in found) if reason else not found


@pytest.mark.parametrize("key", ["until", "budget"])
def test_a_wrong_goal_is_one_line_before_anything_starts(key: str) -> None:
    with pytest.raises(JobError, match=f"--{key} 'soon': write"):
        study_of(**{key: "soon"})


def test_without_both_engines_at_equal_workers_each_is_told_against_the_first() -> None:
    sides = [{"name": name, "backend": name[:3], "workers": 2} for name in ("ddp@2", "fsdp2@2", "horovod@2")]
    baseline = {"name": "single@1", "backend": "single", "workers": 1}
    pairs = asked_pairs([baseline, *sides])
    assert pairs[3:] == [("ddp@2", "fsdp2@2"), ("ddp@2", "horovod@2")]
    made = Fights()(Job(), SIDES, PACE, number=0)
    assert difference(made.blocks, "single@1", "horovod@2").value == pytest.approx(0.6, abs=0.03)


def test_who_fights_in_every_second_round_trains_the_samples_of_those_rounds() -> None:
    pace = Pace(warmup=2, steps=3, rounds=6)
    assert [pace.same_samples(step, 1) for step in range(20)] == list(range(20))
    assert [pace.same_samples(step, 2) for step in range(11)] == [0, 1, 2, 3, 4, 8, 9, 10, 14, 15, 16]


def test_duels_go_on_for_the_engines_not_for_their_distance_from_plain_torch() -> None:
    sides = [side(item) for item in SIDES]
    assert deciding_pairs(sides) == [("deepspeed ZeRO-2@2", "horovod@2")]
    assert deciding_pairs(sides[:3]) == asked_pairs(sides[:3])


def test_short_starts_make_more_and_shorter_duels(tmp_path: Path) -> None:
    study = study_of()
    for job in study.jobs:
        write_run(tmp_path / "s", job)
    runs = [RecordedRun(folder) for folder in runs_of(tmp_path / "s")]
    found = contenders_of_study(study, runs)
    assert [item.every for item in found] == [2, 2, 1, 1, 1, 1]
    few, many = (pace_of(found, runs, 300.0, stage=stage, forked=stage == 6) for stage in (4, 6))
    assert few.rounds >= 6
    assert 6 <= many.rounds <= 40
