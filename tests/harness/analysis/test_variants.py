"""What a setting changes inside an engine, from runs with planted times."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from harness.analysis.comparison import Comparison, summarize_study
from harness.analysis.setting_effects import sentences
from harness.analysis.verdict import verdict
from harness.job.declaration import Job
from harness.report.comparison_table import group_names
from harness.report.formats import to_json
from harness.report.speed_tables import variant_table
from tests.harness.made_runs import write_run

PLAIN = Job(preset="tiny", steps=40, device="cpu", slots=2, global_batch=8, timing_warmup=4, precision="bf16")


def study(folder: Path, times: dict[str, tuple[Job, float]], *, repeats: int = 3, noise: float = 0.002) -> Comparison:
    """Runs of each named job with a step time (s), every repeat on a machine a tenth slower than the one before."""
    for repeat in range(repeats):
        for name, (job, step_s) in times.items():
            job = job.with_(repeat=repeat, run=f"{name}-r{repeat}")
            write_run(folder, job, step_s=step_s * 1.1**repeat, noise=noise, images=6)
    return summarize_study(folder)


def test_an_engine_is_compared_with_itself_across_curves(tmp_path: Path) -> None:
    ddp, horovod = PLAIN.with_(backend="ddp"), PLAIN.with_(backend="horovod")
    found = study(
        tmp_path / "s",
        {
            "a": (ddp, 0.5),
            "b": (ddp.with_(compile=True), 0.4),
            "c": (horovod.with_(compile=True), 0.5),
            "d": (horovod, 0.5),
        },
    )
    assert [(one.engine, one.title, one.across) for one in found.variants] == [
        ("PyTorch DDP", "compile=true", True),
        ("Horovod", "compile=true", True),
    ]
    first, second = (one.speed for one in found.variants)
    assert first.value == pytest.approx(0.25, abs=0.01)
    assert first.real
    assert second.value == pytest.approx(0.0, abs=0.01)
    assert not second.real
    (said,) = sentences(found.variants)
    assert said.startswith("compile=true at 2 workers: PyTorch DDP +2")
    assert said.endswith("memory +0 %); 3 interleaved repeats.")
    assert said in verdict(found)
    assert group_names(found) == {1: " [compile=true]"}
    table = variant_table(found)
    assert table is not None
    assert [(row[0], row[-1]) for row in table.rows] == [
        ("PyTorch DDP: compile=true", "real"),
        ("Horovod: compile=true", "alike"),
    ]


def test_programs_can_read_it(tmp_path: Path) -> None:
    ddp = PLAIN.with_(backend="ddp")
    found = study(tmp_path / "s", {"a": (ddp, 0.5), "b": (ddp.with_(compile=True), 0.4)})
    (told,) = json.loads(to_json(found))["variants"]
    assert (told["engine"], told["workers"], told["setting"], told["against"]) == ("PyTorch DDP", 2, "compile=true", "")
    assert told["speed"]["value"] == pytest.approx(0.25, abs=0.01)
    assert told["speed"]["real"] is True


def test_a_setting_stands_beside_the_plainer_one_that_it_differs_least_from(tmp_path: Path) -> None:
    horovod = PLAIN.with_(backend="horovod")
    half = horovod.with_(precision="fp16")
    found = study(
        tmp_path / "s",
        {
            "a": (half.with_(engine={"compression": "fp16"}), 0.5),
            "b": (horovod.with_(engine={"compression": "fp16"}), 0.5),
            "c": (horovod, 0.5),
            "d": (half, 0.5),
        },
    )
    first, second, both = (one.title for one in found.variants)
    assert {first, second} == {"precision=fp16 against precision=bf16", "compression=fp16"}
    assert both in (
        "precision=fp16, compression=fp16 against precision=fp16",
        "precision=fp16, compression=fp16 against compression=fp16",
    )


def test_another_job_or_a_seed_is_no_setting(tmp_path: Path) -> None:
    ddp = PLAIN.with_(backend="ddp")
    found = study(
        tmp_path / "s",
        {"a": (ddp, 0.5), "b": (ddp.with_(global_batch=16), 0.9), "c": (ddp.with_(seed=1), 0.5)},
        repeats=1,
    )
    assert list(found.variants) == []
    assert variant_table(found) is None


def test_runs_on_one_node_and_on_two_are_never_compared(tmp_path: Path) -> None:
    ddp = PLAIN.with_(backend="ddp", hostfile="hosts")
    spread = ddp.with_(nodes=2, slots=1)
    runs = {
        "a": (ddp, 0.5), "b": (ddp.with_(compile=True), 0.4),
        "c": (spread, 1.0), "d": (spread.with_(compile=True), 0.5),
    }  # fmt: skip
    found = study(tmp_path / "s", runs).variants
    assert [(variant.nodes, variant.speed.value) for variant in found] == [
        (1, pytest.approx(0.25, abs=0.01)),
        (2, pytest.approx(1.0, abs=0.02)),
    ]
    one, two = sentences(found)
    assert one.startswith("compile=true on 1 node at 2 workers: PyTorch DDP +25.")
    assert two.startswith("compile=true on 2 nodes at 2 workers: PyTorch DDP +100.0 %")


def test_what_scatters_too_much_is_said_to_be_unknown(tmp_path: Path) -> None:
    ddp = PLAIN.with_(backend="ddp")
    for repeat, (plain, compiled) in enumerate([(0.5, 0.2), (0.5, 0.9)]):
        write_run(tmp_path / "s", ddp.with_(repeat=repeat, run=f"p{repeat}"), step_s=plain, images=6)
        write_run(tmp_path / "s", ddp.with_(repeat=repeat, run=f"c{repeat}", compile=True), step_s=compiled, images=6)
    (said,) = sentences(summarize_study(tmp_path / "s").variants)
    assert said.startswith("compile=true at 2 workers: undecided what it changes (PyTorch DDP +")
    assert said.endswith("; 2 interleaved repeats).")


def test_one_run_of_each_says_what_it_stands_on(tmp_path: Path) -> None:
    ddp = PLAIN.with_(backend="ddp")
    found = study(tmp_path / "s", {"a": (ddp, 0.5), "b": (ddp.with_(compile=True), 0.4)}, repeats=1)
    (said,) = sentences(found.variants)
    assert said.endswith("(PyTorch DDP +25.0 %, no interval; one pair: an interval needs 2 repeats).")
