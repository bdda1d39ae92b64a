"""A study summarized: cells, efficiencies, pairs, and what must never be mixed."""

import json
import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

import harness
from harness.analysis.caveats import findings
from harness.analysis.comparison import summarize_runs, summarize_study
from harness.analysis.dataframes import KINDS
from harness.analysis.verdict import verdict
from harness.job.declaration import Job
from harness.records.record_files import RecordError, write_json
from harness.records.run_record import RecordedRun, label_of, load_runs
from harness.report.charts.data import ideal_lines
from harness.report.comparison_table import comparison_table, table_rows
from tests.harness.made_runs import write_run, write_study


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """2 engines x 1, 2 workers x 3 repeats, Horovod 4 % faster; one failed and one unlike run beside them."""
    folder = write_study(tmp_path_factory.mktemp("results") / "two", steps=60)
    write_run(folder, Job(backend="ddp", slots=2, preset="tiny"), fail="rank 1: RuntimeError: connection reset")
    write_run(folder, Job(backend="ddp", slots=2, preset="tiny", lr=5e-3, repeat=1))
    return folder


def test_one_cell_per_engine_and_workers(study: Path) -> None:
    main = summarize_study(study).main
    good = main[main["ok"] > 0]
    assert sorted(zip(good["label"], good["workers"], good["ok"], strict=True)) == [
        ("DeepSpeed ZeRO-1", 1, 3),
        ("DeepSpeed ZeRO-1", 2, 3),
        ("Horovod", 1, 3),
        ("Horovod", 2, 3),
    ]


def test_efficiency_is_against_the_same_repeat(study: Path) -> None:
    cells = summarize_study(study).main.set_index(["label", "workers"])
    assert np.isnan(cells.loc[("Horovod", 1), "own_efficiency"]), "a baseline is no share of itself"
    # 1 worker: s; 2 workers: 1.12 s / 2, the same samples: efficiency 1 / 1.12. The 2 % drift between repeats cancels.
    for end in ("own_efficiency_low", "own_efficiency", "own_efficiency_high"):
        assert cells.loc[("Horovod", 2), end] == pytest.approx(1 / 1.12, rel=0.02)
    assert cells["efficiency"].isna().all(), "plain torch did not run"
    assert {"no-common-baseline"} <= {finding.code for finding in findings(summarize_study(study))}


def test_engines_scale_against_one_baseline_where_plain_torch_ran(tmp_path: Path) -> None:
    """An engine whose one worker is slow looks best against itself: of the common baseline it is not."""
    folder = tmp_path / "s"
    for repeat in range(3):
        for backend, slots, step_s in (
            ("single", 1, 1.0), ("ddp", 1, 1.0), ("ddp", 2, 0.55), ("horovod", 1, 1.25), ("horovod", 2, 0.625),
        ):  # fmt: skip
            job = Job(backend=backend, slots=slots, preset="tiny", steps=40, repeat=repeat)
            write_run(folder, job, step_s=step_s, noise=0.002, images=6)
    comparison = summarize_study(folder)
    cells = comparison.main.set_index(["label", "workers"])
    assert cells.loc[("PyTorch DDP", 2), "efficiency"] == pytest.approx(1 / 1.1, rel=0.01)
    assert cells.loc[("Horovod", 2), "efficiency"] == pytest.approx(0.8, rel=0.01)
    assert cells.loc[("Horovod", 1), "efficiency"] == pytest.approx(0.8, rel=0.01)
    assert cells.loc[("Horovod", 2), "own_efficiency"] == pytest.approx(1.0, rel=0.01)
    (said,) = [sentence for sentence in verdict(comparison) if "caling efficiency" in sentence]
    assert "against plain torch on one" in said
    assert "own one worker" not in said
    rows = {(row["texts"]["engine"], row["texts"]["workers"]): row["texts"] for row in table_rows(comparison)}
    assert re.fullmatch(r"80 % \((79|80) to (80|81)\)", rows["Horovod", "2"]["efficiency"])
    assert not {"no-common-baseline"} & {finding.code for finding in findings(comparison)}
    (line,) = ideal_lines(comparison)
    assert line.common
    assert line.points[1][1] == pytest.approx(2 * cells.loc[("Single process", 1), "samples_per_s"])


def test_an_efficiency_needs_two_repeats_and_never_another_repeats_baseline(tmp_path: Path) -> None:
    folder = tmp_path / "s"
    for slots, repeat in ((1, 0), (2, 0), (2, 1), (2, 2)):  # one worker ran in the first repeat alone
        write_run(folder, Job(backend="ddp", slots=slots, preset="tiny", repeat=repeat), step_s=1 / slots, images=6)
    comparison = summarize_study(folder)
    (cell,) = comparison.main[comparison.main["workers"] == 2].to_dict("records")
    assert cell["own_efficiency_pairs"] == 1
    assert cell["own_efficiency"] is None or np.isnan(cell["own_efficiency"])
    assert [row["texts"]["own baseline"] for row in table_rows(comparison)][1] == "needs 2 repeats"
    assert not [sentence for sentence in verdict(comparison) if "efficiency" in sentence]


def test_throughput_is_total_samples_over_total_seconds(tmp_path: Path) -> None:
    """A third of the steps takes four times as long: the median step knows nothing of it."""
    run = write_run(tmp_path / "s", Job(backend="ddp", slots=2, preset="tiny", steps=60, timing_warmup=0), images=6)
    lines = [json.loads(line) for line in (run / "steps.jsonl").read_text().splitlines()]
    now = 0.0
    for number, row in enumerate(lines):
        row["step_s"] = 2.0 if number % 3 == 0 else 0.5
        now += row["step_s"] + 0.25  # logging lies between the steps
        row["t"] = now
    (run / "steps.jsonl").write_text("".join(json.dumps(row) + "\n" for row in lines))
    (row,) = summarize_study(tmp_path / "s").frame.to_dict("records")
    assert row["samples_per_s"] == pytest.approx(60 * 8 / (now - 0.25), rel=1e-3)
    assert row["typical_step_s"] == 0.5
    assert row["between_share"] == pytest.approx(0.2, abs=0.01)
    assert row["step_s_p95"] == 2.0
    assert row["step_s_p99"] is None, "60 steps do not bound a p99"
    assert "between-steps" in {finding.code for finding in findings(summarize_study(tmp_path / "s"))}


def test_failed_runs_are_counted_in_their_cell_and_never_averaged(study: Path) -> None:
    comparison = summarize_study(study)
    cell = comparison.main.set_index("label").loc["PyTorch DDP"]
    assert (cell["ok"], cell["failed"]) == (0, 1)
    assert pd.isna(cell["samples_per_s"])


def test_unlike_run_is_in_a_group_of_its_own_with_the_reason(study: Path) -> None:
    comparison = summarize_study(study)
    assert comparison.comparability.reasons[1] == ("learning rate is 0.001 in one and 0.005 in the other",)
    assert [run.job["lr"] for run in comparison.members(1)] == [5e-3]
    assert "PyTorch DDP" not in set(comparison.main[comparison.main["ok"] > 0]["label"])


def test_speed_difference_is_paired_and_the_verdict_says_it_first(study: Path) -> None:
    comparison = summarize_study(study)
    pair = next(pair for pair in comparison.speed if pair.workers == 2 and pair.group == 0)
    assert pair.difference.pairs == 3
    assert pair.difference.value == pytest.approx(0.04, abs=0.01)
    first = verdict(comparison)[0]
    assert first.startswith("Horovod is ")
    assert "faster than DeepSpeed ZeRO-1 at 2 workers (95 % CI " in first
    assert first.endswith("3 interleaved pairs).")


def test_four_engines_with_two_repeats_two_of_them_alike_and_one_far_behind(tmp_path: Path) -> None:
    speeds = {"ddp": 0.5, "horovod": 0.5, "deepspeed": 2.0, "fsdp2": 0.5}
    folder = write_study(tmp_path / "four", speeds=speeds, repeats=2, workers=(2,), steps=200)
    tie, behind = verdict(summarize_study(folder))[:2]
    assert tie.startswith("Alike in speed at 2 workers: ")
    assert "DeepSpeed" not in tie
    assert "2 interleaved repeats of 4 engines" in tie
    assert "times as many samples/s as DeepSpeed ZeRO-1 at 2 workers (95 % CI " in behind
    assert re.search(r"trains (3\.9|4\.0)\d times", behind)


def test_the_two_engines_are_compared_where_a_third_is_faster(tmp_path: Path) -> None:
    speeds = {"ddp": 0.5, "horovod": 0.8, "deepspeed": 1.0}
    folder = write_study(tmp_path / "three", speeds=speeds, repeats=3, workers=(2,), steps=60)
    told = [sentence for sentence in verdict(summarize_study(folder)) if "Horovod" in sentence and "faster" in sentence]
    assert any(re.match(r"Horovod is 2\d\.\d % faster than DeepSpeed ZeRO-1 at 2 workers", one) for one in told), told


def test_equal_engines_are_not_told_apart(tmp_path: Path) -> None:
    folder = write_study(tmp_path / "same", speeds={"ddp": 0.5, "horovod": 0.5}, repeats=4, steps=60)
    comparison = summarize_study(folder)
    assert not any(pair.difference.real and abs(pair.difference.value) > 0.01 for pair in comparison.speed)
    assert any("Alike in speed" in sentence for sentence in verdict(comparison))


def test_single_run_each_decides_nothing_and_says_so(tmp_path: Path) -> None:
    folder = write_study(tmp_path / "once", repeats=1, workers=(2,), steps=80)
    sentences = verdict(summarize_study(folder))
    assert sentences[0].startswith("Undecided at 2 workers: ")
    assert "no interval, one pair: an interval needs 2 repeats" in sentences[0]


def test_profiled_run_has_no_times(tmp_path: Path) -> None:
    write_run(tmp_path / "s", Job(backend="ddp", slots=2, preset="tiny"))
    write_run(tmp_path / "s", Job(backend="ddp", slots=2, preset="tiny", profile="torch", run="profiled"))
    frame = summarize_study(tmp_path / "s").frame.set_index("run")
    assert pd.isna(frame.loc["profiled", "samples_per_s"])
    assert frame.loc["ddp-w2-fp32-s0-r0", "samples_per_s"] > 0
    assert frame.loc["profiled", "group"] != frame.loc["ddp-w2-fp32-s0-r0", "group"]


def test_workers_that_shared_cores_have_no_times_and_the_verdict_says_why(tmp_path: Path) -> None:
    for backend in ("ddp", "horovod"):
        folder = write_run(tmp_path / "s", Job(backend=backend, slots=64, preset="tiny", oversubscribe=True))
        environment = folder / "environment.json"
        record = json.loads(environment.read_text())
        record["cpu"]["usable_cores"] = 2
        environment.write_text(json.dumps(record))
    comparison = summarize_study(tmp_path / "s")
    assert comparison.frame["samples_per_s"].isna().all()
    assert verdict(comparison)[0] == "Speed was not measured: there were more workers than cores."
    said = [finding.text for finding in findings(comparison) if finding.code == "crowded"]
    assert said[0] == "ddp-w64-fp32-s0-r0: 64 workers on 2 cores, its times are left out everywhere."


def test_table_names_groups_and_marks_failure(study: Path) -> None:
    table = comparison_table(summarize_study(study))
    text = "\n".join(" ".join(row) for row in table.rows)
    assert "1 failed" in text
    assert "[group 2]" in text
    assert table.strong


def test_csv_has_the_cells(study: Path, tmp_path: Path) -> None:
    comparison = summarize_study(study)
    (tmp_path / "c.csv").write_text(comparison.csv())
    again = pd.read_csv(tmp_path / "c.csv")
    assert list(again.columns) == list(comparison.cells.columns)
    assert again["samples_per_s"].sum() == pytest.approx(comparison.cells["samples_per_s"].sum())


def test_only_failed_runs_have_a_verdict_too(tmp_path: Path) -> None:
    write_run(tmp_path / "s", Job(backend="ddp", preset="tiny"), fail="rank 0: killed")
    comparison = summarize_study(tmp_path / "s")
    assert verdict(comparison) == [
        "No run ended well (1 failed): there is nothing to compare. The reasons are listed below."
    ]


def test_killed_run_without_a_result_counts_as_failed(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "s", Job(backend="ddp", preset="tiny"))
    (folder / "result.json").unlink()
    run = RecordedRun(folder)
    assert not run.ok
    assert "killed" in run.reason


@pytest.mark.parametrize("what", KINDS)
def test_load_gives_frames(study: Path, what: str) -> None:
    frame = harness.load(study, what)
    assert len(frame) > 0
    if what != "cells":
        assert {"run", "label", "workers", "seed"} <= set(frame.columns)


def test_load_takes_runs_and_lists_and_refuses_other_folders(study: Path, tmp_path: Path) -> None:
    run = next(study.glob("horovod-*"))
    assert len(harness.load(run)) == 1
    assert len(harness.load([run, study])) == 14  # a run named twice is there once
    with pytest.raises(RecordError, match="neither a run nor a study"):
        harness.load(tmp_path)
    with pytest.raises(ValueError, match="choose one of"):
        harness.load(study, "nothing")


def test_labels_tell_settings_apart() -> None:
    jobs = [
        {"backend": "deepspeed", "engine": {"zero_stage": 1}},
        {"backend": "deepspeed", "engine": {"zero_stage": 2}},
        {"backend": "deepspeed", "engine": {"zero_stage": 2, "overlap_comm": True}},
        {"backend": "horovod", "engine": {}},
        {"backend": "horovod", "engine": {"compression": "fp16"}},
        {"backend": "horovod", "engine": {}, "precision": "bf16", "precision_mode": "native"},
    ]
    labels = [label_of(job) for job in jobs]
    assert len(set(labels)) == len(labels)
    assert labels[0] == "DeepSpeed ZeRO-1"
    assert label_of({"backend": "deepspeed", "engine": {}}, zero_stage=2) == labels[1]


def test_runs_of_two_studies_stand_together(study: Path, tmp_path: Path) -> None:
    other = write_study(tmp_path / "other", speeds={"ddp": 0.5}, workers=(2,), repeats=1, steps=60)
    comparison = summarize_runs(load_runs([study, other]), title="both")
    assert len(comparison.frame) == 15


def test_speeds_of_two_studies_are_not_paired_and_efficiencies_not_mixed(tmp_path: Path) -> None:
    monday = write_study(tmp_path / "monday", speeds={"ddp": 0.5}, workers=(1, 2), repeats=3, steps=40)
    friday = write_study(tmp_path / "friday", speeds={"horovod": 0.25}, workers=(2,), repeats=3, steps=40)
    apart = summarize_runs(load_runs([monday, friday]), title="both")
    assert list(apart.speed) == []
    assert verdict(apart)[0].endswith("samples/s at 2 workers; no other engine ran in the same repeat.")
    pair = write_study(tmp_path / "pair", speeds={"horovod": 0.3, "fsdp2": 0.4}, workers=(2,), repeats=3, steps=40)
    both = write_study(tmp_path / "both", speeds={"ddp": 0.5, "horovod": 0.25}, workers=(2,), repeats=3, steps=40)
    found = summarize_runs(load_runs([pair, both]), title="through a third").speed
    assert {frozenset((each.difference.a, each.difference.b)) for each in found} == {
        frozenset(("PyTorch DDP", "Horovod")),
        frozenset(("Horovod", "PyTorch FSDP2")),
    }
    slow = write_study(tmp_path / "slow", speeds={"ddp": 1.0, "horovod": 0.5}, workers=(1, 2), repeats=3, steps=40)
    fast = write_study(tmp_path / "fast", speeds={"ddp": 0.5, "horovod": 0.25}, workers=(1, 2), repeats=3, steps=40)
    both = summarize_runs(load_runs([slow, fast]), title="both")
    for found in both.speed:
        assert found.difference.pairs == 6
        assert found.difference.value == pytest.approx(1.0, abs=0.02)
    alone = {(row.label, row.workers): row.own_efficiency for row in summarize_study(slow).main.itertuples()}
    for row in both.main[both.main["workers"] > 1].itertuples():
        assert row.own_efficiency == pytest.approx(alone[row.label, row.workers], rel=0.02)


def test_weak_and_strong_scaling_of_two_engines_have_a_verdict(tmp_path: Path) -> None:
    for repeat in range(2):
        for engine, step_s in (("ddp", 0.5), ("horovod", 0.4)):
            for slots in (1, 2):
                job = Job(preset="tiny", backend=engine, slots=slots, steps=40, repeat=repeat)
                write_run(tmp_path / "s", job, step_s=step_s / slots, images=6)
                weak = job.with_(scaling="weak", global_batch=8 * slots, run=f"weak-{engine}-{slots}-{repeat}")
                write_run(tmp_path / "s", weak, step_s=step_s, images=6)
    told = verdict(summarize_study(tmp_path / "s"))
    assert any(sentence.startswith("Weak scaling: Horovod is 2") for sentence in told), told


def test_the_fastest_may_have_taken_turns_with_nobody(tmp_path: Path) -> None:
    alone = write_study(tmp_path / "alone", speeds={"ddp": 0.1}, workers=(1, 2), repeats=2, steps=40)
    pair = write_study(tmp_path / "pair", speeds={"deepspeed": 0.5, "horovod": 0.4}, repeats=2, steps=40)
    told = verdict(summarize_runs(load_runs([alone, pair]), title="both"))
    assert told[0].startswith(
        "PyTorch DDP trained the most samples/s at 2 workers, but no other engine ran in its repeats"
    )
    assert any(sentence.startswith("Horovod is 24.8 % faster than DeepSpeed ZeRO-1 at 2") for sentence in told)


def test_memory_is_left_out_where_an_earlier_run_of_the_processes_still_held_some(tmp_path: Path) -> None:
    folder = write_study(tmp_path / "shared", steps=40)
    runs = {run.name: run for run in load_runs([folder])}
    deepspeed = next(run for run in runs.values() if run.backend == "deepspeed" and run.workers == 2)
    peaks = {"peak_rss_mib": [900.0, 900.0], "peak_device_mib": [4000.0, 4100.0]}
    for held, log, kept in (
        ({}, "the engine said something", True),
        ({}, "the processes' output is in ../other/log.txt", False),
        ({"held_before_mib": [0.0, 3.0]}, "the processes' output is in ../other/log.txt", True),
        ({"held_before_mib": [0.0, 700.0]}, "the engine said something", False),
    ):
        (deepspeed.folder / "log.txt").write_text(log + "\n")
        write_json(deepspeed.folder / "result.json", {**deepspeed.result, "memory": {**peaks, **held}})
        again = RecordedRun(deepspeed.folder)
        assert bool(again.memory) is kept, (held, log)
        found = [one for one in findings(summarize_study(folder)) if one.code == "memory-held"]
        assert bool(found) is not kept


def test_verdict_of_a_profile_says_where_the_step_goes(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "s", Job(backend="ddp", slots=2, preset="tiny", profile="torch", run="profiled"))
    kinds = {"matrix products": 6.0, "attention": 1.0, "element-wise": 2.5, "copies": 0.5}
    write_json(folder / "profile.json", {"ranks": [{"rank": 0, "steps": 3, "kinds_ms": kinds, "top": []}]})
    sentence = verdict(summarize_study(tmp_path / "s"))[0]
    assert "10.0 ms a step" in sentence
    assert sentence.endswith("matrix products (60 %), element-wise (25 %) and attention (10 %).")
