"""Duels: the estimate by hand, the interval against simulated truth, the coordinator with real sockets."""

from __future__ import annotations

import json
import math
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
from scipy import stats

from harness.analysis.duels import record
from harness.analysis.duels.estimate import Block, DuelDifference, difference, duel_ratios, duels_needed, half_width
from harness.analysis.duels.page import page
from harness.experiments.duels import fight as fighting
from harness.experiments.duels import record as writing
from harness.experiments.duels import simulate
from harness.experiments.duels.coordinator import Coordinator, DuelError, Reply, Seat
from harness.experiments.duels.pace import Pace
from harness.experiments.duels.run import contenders_of
from harness.job.declaration import Job, JobError
from harness.job.quantities import seconds, share


def blocks(rates: dict[str, list[list[float]]], samples: int = 12) -> list[Block]:
    """rates: engine -> duel -> seconds of each round."""
    return [
        Block(duel=duel, round=number, engine=engine, samples=samples, seconds=value)
        for engine, duels in rates.items()
        for duel, rounds in enumerate(duels)
        for number, value in enumerate(rounds)
    ]


def test_the_figure_is_the_ratio_of_totals_not_of_medians() -> None:
    # One of a's three blocks is twice as long: a user pays for it, a median would hide it.
    made = blocks({"a": [[1.0, 1.0, 2.0]], "b": [[1.0, 1.0, 1.0]]})
    assert duel_ratios(made, "a", "b") == {0: pytest.approx(math.log(4 / 3))}
    found = difference(made, "a", "b")
    assert found.value == pytest.approx(1 / 3)
    assert (found.low, found.high, found.duels, found.rounds) == (None, None, 1, 3)
    assert not found.decided
    assert not found.alike(0.5)


def test_the_interval_is_students_over_duels() -> None:
    made = blocks(
        {
            "a": [[1.0, 1.1], [1.02, 1.08], [0.99, 1.13], [1.0, 1.1]],
            "b": [[0.9, 1.0], [0.91, 1.0], [0.9, 1.01], [0.88, 1.0]],
        }
    )
    ratios = np.array(list(duel_ratios(made, "a", "b").values()))
    low, high = stats.t.interval(0.95, 3, loc=ratios.mean(), scale=stats.sem(ratios))
    found = difference(made, "a", "b")
    assert (found.low, found.high) == (pytest.approx(math.expm1(low)), pytest.approx(math.expm1(high)))
    assert found.decided
    assert record.verdict(found) == "faster"
    back = difference(made, "b", "a")
    assert (1 + back.value) * (1 + found.value) == pytest.approx(1.0)


@pytest.mark.parametrize(
    ("value", "low", "high", "word"),
    [
        (0.10, 0.08, 0.12, "faster"),
        (-0.10, -0.12, -0.08, "slower"),
        (0.039, 0.031, 0.048, "faster, by less than 5 %"),
        (-0.02, -0.036, -0.006, "slower, by less than 5 %"),
        (0.00, -0.02, 0.02, "alike"),
        (0.05, -0.03, 0.18, "undecided"),  # holds zero, but shows no equality
        (0.05, None, None, "undecided"),
    ],
)
def test_verdicts(value: float, low: float | None, high: float | None, word: str) -> None:
    item = DuelDifference(
        a="a", b="b", value=value, low=low, high=high, duels=4, rounds=40, sd_between=None, sd_within=None
    )
    assert record.verdict(item) == word


def test_rounds_that_only_one_of_them_trained_do_not_count() -> None:
    made = blocks({"a": [[1.0, 1.0, 9.0]], "b": [[1.0, 1.0]]})
    assert difference(made, "a", "b").value == pytest.approx(0.0)
    with pytest.raises(ValueError, match="no round holds both a and c"):
        difference(made, "a", "c")


def test_further_duels_keep_the_first_stages_scatter_and_freedom() -> None:
    ratios = np.array([0.01, 0.03, 0.02, 0.04, 0.9, -0.9])  # the last two must not widen it: n was chosen before them
    first = ratios[:4]
    expected = stats.t.ppf(0.975, 3) * first.std(ddof=1) / math.sqrt(6)
    assert half_width(ratios) == pytest.approx(expected)
    needed = duels_needed(first, 0.01)
    assert half_width(np.resize(first, needed)) <= 0.01 < half_width(np.resize(first, needed - 1))
    assert duels_needed([0.01, 0.01, 0.01, 0.01], 0.01) == 4


@pytest.mark.parametrize(
    ("machine", "options"), [pytest.param(*row[2:], id=f"{row[0]}, {row[1]}") for row in simulate.SETTINGS]
)
def test_intervals_hold_the_truth_as_often_as_they_say(machine: simulate.Machine, options: dict[str, Any]) -> None:
    """95 +- 1 %: with drift, start effects, correlated steps and bursts, and however long the rule goes on."""
    found = simulate.outcome(machine, truth=0.02, studies=6000, seed=3, **options)
    assert 0.94 <= found.coverage <= 0.965, found


def test_a_planted_two_percent_is_found_on_a_quiet_machine_and_none_on_none() -> None:
    assert simulate.outcome(simulate.QUIET, truth=0.02, studies=1000).found > 0.99
    assert simulate.outcome(simulate.QUIET, truth=0.0, studies=4000).found < 0.065


def replying(seat: Seat, speed: float) -> None:
    while seat.next_block():
        time.sleep(speed)
        seat.answer(Reply(seconds=speed, waited_s=1.0, waited_cpu_s=0.0))


def test_blocks_go_to_one_contender_at_a_time_and_strangers_get_none() -> None:
    with Coordinator([2, 1]) as coordinator:
        stranger = Seat(coordinator.address, "wrong", contender=0, rank=0, limit_s=5.0)
        threads = []
        for contender, rank in ((0, 0), (0, 1), (1, 0)):
            seat = Seat(coordinator.address, coordinator.token, contender=contender, rank=rank, limit_s=5.0)
            threads.append(threading.Thread(target=replying, args=(seat, 0.01 * (rank + 1))))
            threads[-1].start()
        coordinator.wait_ready(5.0, lambda: None)
        assert [reply.seconds for reply in coordinator.block(0, 3, limit_s=5.0, check=lambda: None)] == [0.01, 0.02]
        assert len(coordinator.block(1, 3, limit_s=5.0, check=lambda: None)) == 1
        coordinator.finish()
        for thread in threads:
            thread.join(5.0)
            assert not thread.is_alive()
        with pytest.raises(DuelError, match="hung up"):
            stranger.next_block()


SITTING = """
import sys
from harness.experiments.duels.coordinator import Reply, Seat
seat = Seat(("127.0.0.1", int(sys.argv[1])), sys.argv[2], contender=0, rank=0, limit_s=20.0)
while seat.next_block():
    seat.answer(Reply(seconds=1.0, waited_s=1.0, waited_cpu_s=0.0))
"""


def test_who_waits_is_stopped_and_goes_on_for_its_block_and_at_the_end() -> None:
    def until(process: psutil.Process, stopped: bool) -> None:
        limit = time.monotonic() + 10
        while (process.status() == psutil.STATUS_STOPPED) is not stopped:
            assert time.monotonic() < limit, process.status()
            time.sleep(0.01)

    with Coordinator([1]) as coordinator:
        arguments = [sys.executable, "-c", SITTING, str(coordinator.address[1]), coordinator.token]
        rank = subprocess.Popen(arguments, cwd=Path(__file__).resolve().parents[3])
        coordinator.wait_ready(60.0, lambda: None)
        until(psutil.Process(rank.pid), stopped=True)
        for _ in range(2):
            assert len(coordinator.block(0, 1, limit_s=10.0, check=lambda: None)) == 1
            until(psutil.Process(rank.pid), stopped=True)
        coordinator.finish()
        assert rank.wait(timeout=10) == 0
    with Coordinator([1]) as coordinator:  # and where the duel is given up
        arguments = [sys.executable, "-c", SITTING, str(coordinator.address[1]), coordinator.token]
        rank = subprocess.Popen(arguments, cwd=Path(__file__).resolve().parents[3], stderr=subprocess.DEVNULL)
        coordinator.wait_ready(60.0, lambda: None)
    assert rank.wait(timeout=10) == 1


def test_who_is_missing_and_who_is_stuck_is_named_in_time() -> None:
    with Coordinator([1, 1]) as coordinator:
        seat = Seat(coordinator.address, coordinator.token, contender=0, rank=0, limit_s=5.0)
        with pytest.raises(DuelError, match="contender 1 rank 0 not ready"):
            coordinator.wait_ready(1.0, lambda: None)
        began = time.monotonic()
        with pytest.raises(DuelError, match="no end of a block of 3 steps"):
            coordinator.block(0, 3, limit_s=0.3, check=lambda: None)
        assert time.monotonic() - began < 3.0
    assert seat.next_block() == 3
    with pytest.raises(DuelError, match="hung up"):  # the coordinator is gone: nobody waits for it
        seat.next_block()


def planted(monkeypatch: pytest.MonkeyPatch, *, in_block: bool) -> str:
    """Why a duel failed whose second contender runs out of memory, at its start or in a block, by what the user reads:
    the first one comes later, or waits, and finds nobody."""
    told = threading.Event()

    def first(folder: Path) -> dict[int, str]:
        seat = json.loads((folder / "seat.json").read_text())
        try:
            if not in_block:
                told.wait(5.0)
            sitting(seat, 0)
        except (DuelError, OSError) as error:
            return {0: f"a worker failed: {type(error).__name__}: {error}"}
        return {}

    def sitting(seat: dict[str, Any], contender: int) -> None:
        place = {"contender": contender, "rank": 0, "limit_s": 5.0}
        mine = Seat((seat["host"], seat["port"]), seat["token"], **place)
        while mine.next_block():
            if contender == 1:
                return mine.close()
            mine.answer(Reply(seconds=0.1, waited_s=0.1, waited_cpu_s=0.0))

    def second(folder: Path) -> dict[int, str]:
        if in_block:
            sitting(json.loads((folder / "seat.json").read_text()), 1)
            told.wait(0.5)
        return {1: "out of memory: lower --global-batch or raise --accumulation"}

    def begin(_: Any, sides: Any, scratch: Path, *, forked: bool) -> list[Any]:
        assert not forked
        threads = ThreadPoolExecutor(3)
        return [threads.submit(each, side.folder) for each, side in zip((first, second, first), sides, strict=False)]

    close = Coordinator.close
    monkeypatch.setattr(fighting, "start", begin)
    monkeypatch.setattr(fighting, "why_not_forked", lambda _: "planted")
    monkeypatch.setattr(Coordinator, "close", lambda self: (close(self), told.set()))
    base = Job(preset="tiny", global_batch=2)
    contenders = contenders_of("single,single:model.lora=2", 1, base, weak=False, mode="matched")
    pace = Pace(warmup=1, steps=1, rounds=1)
    with pytest.raises(JobError) as failed:
        fighting.fight(base, contenders, pace, number=0, seed=0, say=lambda _: None)
    return str(failed.value)


@pytest.mark.parametrize("in_block", [False, True])
def test_a_failed_duel_names_who_failed_first_and_never_a_consequence(
    monkeypatch: pytest.MonkeyPatch, in_block: bool
) -> None:
    reason = planted(monkeypatch, in_block=in_block)
    assert reason.startswith("duel 1 failed: single (model.lora=2)@1: out of memory: lower --global-batch")
    assert "2 contenders hold memory at once (single@1, single (model.lora=2)@1)" in reason


def test_who_comes_when_the_duel_is_over_says_so() -> None:
    with Coordinator([1]) as coordinator:
        pass
    with pytest.raises(DuelError, match="nobody coordinates any more"):
        Seat(coordinator.address, coordinator.token, contender=0, rank=0, limit_s=5.0)


def test_of_three_that_ran_out_of_memory_two_at_a_time_are_the_remedy() -> None:
    assert "two at a time" in fighting._with_room("out of memory: lower --global-batch", ["a", "b", "c"])
    assert not fighting._with_room("a worker failed: ValueError", ["a", "b", "c"])


def test_the_question_is_asked_and_efficiency_is_against_what_ran_beside() -> None:
    found = contenders_of("single@1,horovod@2,deepspeed:1@2", 2, Job(global_batch=8), weak=True, mode="matched")
    sides = [writing.side(item) for item in found]
    pairs = record.asked_pairs(sides)
    assert pairs[2:] == [("deepspeed ZeRO-1@2", "horovod@2")]
    made = blocks({"single@1": [[1.0], [1.0]]}, samples=8)
    made += blocks({"horovod@2": [[1.25], [1.25]], "deepspeed ZeRO-1@2": [[1.6], [1.6]]}, samples=16)
    rows = record.differences_of(made, sides, pairs)
    assert rows[0]["value"] == pytest.approx(0.6)
    assert rows[0]["efficiency"]["value"] == pytest.approx(0.8)
    assert rows[1]["efficiency"]["value"] == pytest.approx(0.625)
    assert "efficiency" not in rows[2]
    told = {
        "job": {"scaling": "weak"},
        "contenders": sides,
        "blocks": [asdict(block) for block in made],
    }
    assert writing.rendered_again(told)["differences"] == rows


def test_losses_that_part_in_the_first_steps_are_said_later_ones_are_rounding() -> None:
    names = ["a", "b"]
    told = {
        "contenders": [{"name": name, "global_batch": 8} for name in names],
        "environment": {"cpu": {"usable_cores": 2}},
        "duels": [{"foreign_cores": 0.0, "waiting_cores": {"a": 0.2}, "told": {}}],
    }
    losses = {"a": [9.0, 8.0, 7.0, 6.0, 5.0, 1.0], "b": [9.0, 8.0, 7.0, 6.0, 5.0, 1.4]}
    told["duels"][0]["told"] = {name: {"losses": losses[name]} for name in names}  # type: ignore[index]
    assert record.remarks(told) == ["a kept 0.20 of 2 cores busy while it waited for its turn."]
    losses["b"][3] = 6.6
    assert "first 5 losses of b and a differ by up to 10.0%" in record.remarks(told)[1]
    told["duels"][0]["foreign_cores"] = 0.5  # type: ignore[index]
    assert "Other programs kept up to 0.50 of 2 cores busy" in record.remarks(told)[0]
    told["duels"][0]["gpu_processes"] = [{"uuid": "GPU-1", "pid": 4711, "name": "python"}]  # type: ignore[index]
    assert "1 other process computed on the same GPUs during the duels: python (process 4711)." in record.remarks(told)


def test_contenders_may_differ_in_what_they_train() -> None:
    base = Job(global_batch=8, model={"max_tokens": 66})
    text = "single,single:model.pack_on_gpu=true+compile=true,horovod:model.lora=2+cycle_time_ms=0.5"
    plain, packed, lora = contenders_of(text, 1, base, weak=False, mode="matched")
    assert plain.job(base).model == {"max_tokens": 66}
    job = packed.cell.job(packed.job(base))
    assert (job.model, job.compile, job.engine) == ({"max_tokens": 66, "pack_on_gpu": True}, True, {})
    job = lora.cell.job(lora.job(base))
    assert (job.model["lora"], job.compile, job.engine) == (2, False, {"cycle_time_ms": 0.5})
    names = [item.name for item in (plain, packed, lora)]
    assert names[1] == "single (model.pack_on_gpu=true, compile=true)@1"
    assert len({item.cell.name for item in (plain, packed, lora)}) == len(set(names)) == 3
    sides = json.loads(json.dumps([writing.side(item) for item in (plain, packed, lora)]))
    assert [writing.contender_of(side) for side in sides] == [plain, packed, lora]
    assert "pack on gpu True" in record.label(sides[1])
    del sides[0]["changes"]  # of a record that is older than they are
    assert writing.contender_of(sides[0]) == plain


def test_shares_of_the_peak_are_of_a_known_gpu_and_counted_work() -> None:
    made = duel_record_of_one_gpu()
    table = page(made)
    assert "MFU" in table
    assert "| 45.0 % | 60.0 % |" in table
    made["environment"]["gpus"]["devices"][0]["name"] = "NVIDIA Unknown"
    assert "MFU" not in page(made)


def duel_record_of_one_gpu() -> dict[str, Any]:
    base = Job(global_batch=8, precision="bf16", device="cuda")
    sides = [writing.side(item) for item in contenders_of("single,ddp", 1, base, weak=False, mode="matched")]
    names = [side["name"] for side in sides]
    made = blocks({name: [[1.0, 1.0]] for name in names}, samples=100)
    flops = {"useful": 0.45 * 989.4e12 / 100, "done": 0.6 * 989.4e12 / 100, "samples": 8.0}
    told = {name: {"losses": [1.0], "device_mib": [1024.0], "flops": flops} for name in names}
    duel = {"start_s": 1.0, "fight_s": 2.0, "foreign_cores": 0.0, "waiting_cores": {}, "told": told}
    return {
        "job": base.to_dict(),
        "environment": {"gpus": {"devices": [{"name": "NVIDIA H100 80GB HBM3"}]}},
        "pace": {"warmup": 1, "steps": 1, "rounds": 2},
        "contenders": sides,
        "duels": [duel],
        "blocks": [asdict(block) for block in made],
        "differences": record.differences_of(made, sides, record.asked_pairs(sides)),
    }


def test_contenders_by_their_text() -> None:
    base = Job(global_batch=8)
    found = contenders_of("single@1,ddp,ddp,deepspeed:1+overlap_comm=true@2", 2, base, weak=True, mode="matched")
    assert [item.name for item in found] == ["single@1", "ddp@2", "ddp@2 #2", "deepspeed ZeRO-1 (overlap_comm=true)@2"]
    assert [item.global_batch for item in found] == [8, 16, 16, 16]
    for wrong in ("ddp", "ddp,horovod@no", "ddp,deepspeed:x"):
        with pytest.raises(JobError):
            contenders_of(wrong, 1, base, weak=False, mode="matched")


@pytest.mark.parametrize(("text", "value"), [("2%", 0.02), ("0.5 %", 0.005), ("0.02", 0.02)])
def test_shares(text: str, value: float) -> None:
    assert share(text) == pytest.approx(value)


def test_times_and_what_is_neither() -> None:
    assert (seconds("90"), seconds("90s"), seconds("10m"), seconds("1.5h")) == (90.0, 90.0, 600.0, 5400.0)
    for wrong in ("", "m", "-3m", "soon"):
        with pytest.raises(JobError):
            seconds(wrong)
    for wrong in ("", "%", "0", "200%", "two"):
        with pytest.raises(JobError):
            share(wrong)


def test_the_table_in_the_methodology_is_the_programs() -> None:
    text = (Path(__file__).resolve().parents[3] / "docs" / "methodology.md").read_text()
    for row in simulate.table():
        assert "| " + " | ".join(row) + " |" in text, "python -m harness.experiments.duels.simulate"
