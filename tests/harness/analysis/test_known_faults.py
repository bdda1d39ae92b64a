"""Every fault of measurement that this program once had is found in a record that has it, and only there."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from harness.analysis.check import check_runs
from harness.analysis.known_faults import marks
from harness.analysis.known_faults.fault import RULES
from harness.analysis.known_faults.measured import measured_faults
from harness.analysis.known_faults.written import written_faults
from harness.commands.results.check import check
from harness.job.declaration import Job
from harness.records.record_files import append_jsonl, read_json, read_jsonl, runs_of, write_json
from harness.records.run_record import RecordedRun
from harness.records.step_metrics import summarize
from tests.harness.made_runs import write_run, write_study

GPUS = [{"rank": rank, "world_size": 2, "device": f"cuda:{rank}", "hostname": "host-a"} for rank in range(2)]


def edit(path: Path, change: Callable[[dict[str, Any]], None]) -> None:
    value = read_json(path)
    change(value)
    path.write_text(json.dumps(value))


def change_rows(run: Path, file: str, change: Callable[[list[dict[str, Any]]], None]) -> None:
    """Changes rows of a run; where they are steps, its summary follows, so that only the fault is wrong."""
    rows = list(read_jsonl(run / file))
    change(rows)
    (run / file).unlink()
    append_jsonl(run / file, rows)
    if file == "steps.jsonl":
        warmup = read_json(run / "job.json")["timing_warmup"]
        edit(run / "result.json", lambda value: value.update(throughput=summarize(rows, warmup)))


def on_gpus(run: Path) -> None:
    edit(run / "environment.json", lambda value: value.update(ranks=GPUS))


def of_method_1(run: Path) -> None:
    edit(run / "environment.json", lambda value: value.pop("method"))


def last_waits(rows: list[dict[str, Any]]) -> None:
    rows[-1].update(data_s=3 * rows[-1]["step_s"], step_s=4 * rows[-1]["step_s"])


def one_step_of_a_second_more(rows: list[dict[str, Any]]) -> None:
    rows[20]["step_s"] += 1.5


def readings(
    *joules: tuple[float, ...], hosts: tuple[str, ...] = ("host-a",)
) -> Callable[[list[dict[str, Any]]], None]:
    """joules: a tuple for each row, a reading of each GPU in it."""

    def change(rows: list[dict[str, Any]]) -> None:
        template = {"util_percent": 90, "mem_mib": 1000.0, "power_w": 300.0, "temperature_c": 50}
        for number, row in enumerate(rows):
            values = joules[number] if number < len(joules) else ()
            row["gpus"] = [{"index": index, "energy_j": joule, **template} for index, joule in enumerate(values)]
            row["host"] = hosts[number % len(hosts)]

    return change


@pytest.fixture
def study(tmp_path: Path) -> Path:
    return write_study(tmp_path / "s", repeats=1, workers=(2,), steps=40, precision="fp32")


def plant_batch_too_many(study: Path) -> None:
    for run in runs_of(study):
        change_rows(run, "steps.jsonl", last_waits)


def plant_captured_graphs(study: Path) -> None:
    run = runs_of(study)[0]
    on_gpus(run)
    edit(run / "result.json", lambda value: value["model"].update(cuda_graphs=True))
    change_rows(run, "steps.jsonl", one_step_of_a_second_more)


def plant_other_devices(study: Path) -> None:
    run = runs_of(study)[0]
    on_gpus(run)
    change_rows(run, "resources.jsonl", readings((1.0, 1.0, 1.0, 1.0), (2.0, 2.0, 2.0, 2.0)))


def plant_one_host(study: Path) -> None:
    run = runs_of(study)[0]
    ranks = [GPUS[0], {**GPUS[1], "hostname": "host-b", "device": "cuda:0"}]
    edit(run / "environment.json", lambda value: value.update(ranks=ranks))
    change_rows(run, "resources.jsonl", readings((1.0,), (2.0,)))


def plant_wrapped_counter(study: Path) -> None:
    run = runs_of(study)[0]

    def wrap(rows: list[dict[str, Any]]) -> None:
        for row, joule in zip(rows, (10.0, 262_143.0, 5.0), strict=False):
            row["cpu_energy_j"] = joule

    change_rows(run, "resources.jsonl", wrap)


def plant_no_energy(study: Path) -> None:
    run = runs_of(study)[0]
    on_gpus(run)
    change_rows(run, "resources.jsonl", readings((7.0, 7.0)))


def plant_host_waits(study: Path) -> None:
    job = Job(backend="deepspeed", slots=2, preset="tiny", precision="fp16", engine={"zero_stage": 2}, steps=40)
    run = write_run(study, job)
    on_gpus(run)
    of_method_1(run)


def plant_second_horovod(study: Path) -> None:
    first = next(run for run in runs_of(study) if run.name.startswith("horovod"))
    job = Job(backend="horovod", slots=2, preset="tiny", engine={"cycle_time_ms": 0.5}, steps=40, run="second")
    run = write_run(study, job)
    of_method_1(run)
    (run / "log.txt").write_text(f"the processes' output is in ../{first.name}/log.txt\n")


MEASURED = {
    "batch-too-many": (plant_batch_too_many, "up to 4"),
    "graphs-captured-while-timed": (plant_captured_graphs, "of the timed seconds"),
    "energy-of-other-devices": (plant_other_devices, "energy and use of 4 GPUs of a host were counted"),
    "energy-of-one-host": (plant_one_host, "other hosts trained too"),
    "energy-counter-fault": (plant_wrapped_counter, "wrapped around"),
    "energy-counter-fault, no energy": (plant_no_energy, "0 J were recorded"),
    "fp16-host-waits": (plant_host_waits, "twice a step"),
    "settings-of-first-horovod": (plant_second_horovod, "start-time settings of an earlier engine"),
}


@pytest.mark.parametrize("name", MEASURED)
def test_fault_of_measurement_is_refused_marked_and_then_noted(study: Path, name: str) -> None:
    plant, expected = MEASURED[name]
    assert check_runs([study]) == []
    plant(study)
    (problem,) = check_runs([study])
    assert expected in problem.text
    assert f"[{name.split(',')[0]}]" in problem.text
    done = CliRunner().invoke(check, [str(study)])
    assert done.exit_code == 1
    assert "--mark" in done.output

    marked = CliRunner().invoke(check, [str(study), "--mark"])
    assert marked.exit_code == 0, marked.output
    assert "note: s: " in marked.output
    assert expected in marked.output
    assert marks.is_superseded(study) is ("speed" in RULES[name.split(",")[0]].figures)


def test_a_mark_is_the_programs_own(study: Path) -> None:
    plant_no_energy(study)
    marks.write_mark(study)
    edit(study / marks.NAME, lambda value: value["faults"][0].update(rule="batch-too-many"))
    texts = [problem.text for problem in check_runs([study])]
    assert any("the records do not show batch-too-many" in text for text in texts)
    assert any("[energy-counter-fault]" in text for text in texts)


def test_mark_goes_with_its_fault(study: Path) -> None:
    plant_no_energy(study)
    assert marks.write_mark(study) is not None
    change_rows(runs_of(study)[0], "resources.jsonl", readings((7.0, 7.0), (9.0, 9.0)))
    assert marks.write_mark(study) is None
    assert not (study / marks.NAME).exists()
    assert check_runs([study]) == []


def test_mark_names_the_study_that_measured_it_again(study: Path) -> None:
    again = write_study(study.parent / "again", repeats=1, workers=(2,), steps=40)
    other = write_study(study.parent / "other", repeats=1, workers=(1,), steps=40)
    plant_batch_too_many(study)
    mark = marks.write_mark(study, [again, other, study])
    assert mark is not None
    assert mark.by == ("again",)
    assert "Measured again in again." in mark.sentence


def test_disturbance_of_one_run_is_no_fault_of_the_program(tmp_path: Path) -> None:
    study = write_study(tmp_path / "s", repeats=3, workers=(2,), steps=40)
    change_rows(runs_of(study)[0], "steps.jsonl", last_waits)
    assert measured_faults([RecordedRun(run) for run in runs_of(study)]) == []


def test_newer_method_and_early_capture_are_free(study: Path) -> None:
    plant_captured_graphs(study)
    run = runs_of(study)[0]
    edit(run / "result.json", lambda value: value["model"].update(graphs_captured_before=5))
    plant_host_waits(study)
    for each in runs_of(study):
        edit(each / "environment.json", lambda value: value.update(method=2))
    assert check_runs([study]) == []


def test_graphs_captured_while_training_are_not_excused_by_those_before(study: Path) -> None:
    plant_captured_graphs(study)
    counts = {"graphs_captured_before": 5, "graphs_captured_while_training": 2}
    for run in runs_of(study):
        edit(run / "result.json", lambda value: value["model"].update(counts))
    assert "graphs-captured-while-timed" in {
        fault.rule for fault in measured_faults([RecordedRun(r) for r in runs_of(study)])
    }


def csv_of(study: Path, **columns: Any) -> None:
    """comparison.csv of one row for the study's Horovod runs at 2 workers."""
    row = {"group": 0, "label": "Horovod", "workers": 2, "scaling": "strong", "precision": "fp32", **columns}
    (study / "comparison.csv").write_text(f"{','.join(row)}\n{','.join(map(str, row.values()))}\n")


def found_in(study: Path) -> list[str]:
    return [fault.rule for fault in written_faults(study, [RecordedRun(run) for run in runs_of(study)])]


def horovod(study: Path) -> list[RecordedRun]:
    return [run for run in map(RecordedRun, runs_of(study)) if run.backend == "horovod" and run.workers == 2]


def test_median_of_rates_is_no_throughput(study: Path) -> None:
    (run,) = horovod(study)
    csv_of(study, samples_per_s=run.result["throughput"]["samples_per_s"]["median"])
    assert found_in(study) == ["median-of-rates"]
    before, *rows = run.steps[run.job["timing_warmup"] - 1 :]
    csv_of(study, samples_per_s=sum(row["samples"] for row in rows) / (rows[-1]["t"] - before["t"]))
    assert found_in(study) == []


@pytest.mark.parametrize(("steps", "found"), [(60, ["tail-of-few-steps"]), (320, [])])
def test_tail_needs_steps(tmp_path: Path, steps: int, found: list[str]) -> None:
    study = write_study(tmp_path / "s", repeats=1, workers=(2,), steps=steps)
    csv_of(study, step_ms_p99=600)
    assert found_in(study) == found


def test_efficiency_needs_an_interval_and_a_baseline_of_each_repeat(tmp_path: Path) -> None:
    study = write_study(tmp_path / "s", repeats=2, workers=(1, 2), steps=40)
    csv_of(study, efficiency=0.9, efficiency_low=0.85, efficiency_high=0.95)
    assert found_in(study) == []
    csv_of(study, efficiency=0.9, efficiency_low="", efficiency_high="")
    assert found_in(study) == ["unlike-baseline"]
    write_run(study, Job(backend="horovod", slots=2, seed=2, repeat=2, preset="tiny", steps=40))
    csv_of(study, efficiency=0.9, efficiency_low=0.85, efficiency_high=0.95)
    (fault,) = written_faults(study, [RecordedRun(run) for run in runs_of(study)])
    assert "takes the one-worker run of another repeat" in fault.text


def test_common_efficiency_needs_plain_torch_in_its_repeats(tmp_path: Path) -> None:
    study = write_study(tmp_path / "s", repeats=2, workers=(1, 2), steps=40)
    columns = {"efficiency": 0.9, "efficiency_low": 0.85, "efficiency_high": 0.95, "efficiency_pairs": 2}
    csv_of(study, **columns)
    (fault,) = written_faults(study, [RecordedRun(run) for run in runs_of(study)])
    assert "no one-worker run of plain torch" in fault.text
    for repeat in range(2):
        write_run(study, Job(backend="single", seed=repeat, repeat=repeat, preset="tiny", steps=40))
    assert found_in(study) == []
    csv_of(study, **{f"own_{name}": value for name, value in columns.items()})
    assert found_in(study) == []
    csv_of(study, **{**columns, "efficiency_pairs": 3})
    assert found_in(study) == ["unlike-baseline"]


def test_record_that_does_not_sum_up_its_steps(study: Path) -> None:
    (run,) = horovod(study)
    edit(run.folder / "result.json", lambda value: value["throughput"].pop("total"))
    assert any("total.samples_per_s is None" in problem.text for problem in check_runs([study]))
    of_method_1(run.folder)
    assert check_runs([study]) == []


def test_energy_by_the_devices_own_numbers(study: Path) -> None:
    run = runs_of(study)[0]
    ranks = [{**rank, "gpu": f"GPU-{rank['rank']}", "machine": "m"} for rank in GPUS]
    edit(run / "environment.json", lambda value: value.update(ranks=ranks))
    host = {"host": "host-a", "machine": "m", "gpus": ["GPU-0", "GPU-1"], "gpu_j": 10.0, "cpu_j": None}
    host |= {"lacks": [], "load": None, "gpu_processes": []}
    edit(run / "result.json", lambda value: value.update(hosts=[host]))
    assert check_runs([study]) == []
    edit(run / "result.json", lambda value: value["hosts"][0]["gpus"].append("GPU-7"))
    assert ["[energy-of-other-devices]" in problem.text for problem in check_runs([study])] == [True]
    edit(run / "result.json", lambda value: value["hosts"][0]["gpus"].pop())
    edit(run / "environment.json", lambda value: value["ranks"][1].update(machine="n"))
    assert ["[energy-of-one-host]" in problem.text for problem in check_runs([study])] == [True]


def test_mfu_of_the_longest_sample(study: Path) -> None:
    (run,) = horovod(study)
    edit(run.folder / "result.json", lambda value: value["model"].update(flops_per_sample={"total": 1e9}))
    csv_of(study, mfu=0.31)
    assert found_in(study) == ["mfu-of-longest-sample"]
    edit(run.folder / "result.json", lambda value: value.update(flops={"useful": 1e9, "done": 2e9}))
    assert found_in(study) == []


STATEMENTS = {
    "Horovod is 4.0 % faster than DeepSpeed ZeRO-1 at 2 workers (95 % CI 2.0 to 6.1 %, steps of one run each: repeat "
    "it to be sure).": "one-pair-verdict",
    "horovod@2 against ddp@2: -3.1 % samples/s (no interval: one duel, 1 duel): slower.": "one-pair-verdict",
    "No difference in speed shown at 4 workers: Horovod against DeepSpeed ZeRO-2 +4.5 % (95 % CI -7.0 to 17.4 %, 3 "
    "interleaved pairs).": "equal-without-margin",
    "a@2 against b@2: -0.1 % samples/s (95 % CI -6.0 to 1.4 %, 3 duels): alike.": "equal-without-margin",
    "DeepSpeed's best setting is ZeRO-2.": "best-without-tuning",
    "Each engine at its best.": "best-without-tuning",
    "Horovod is 4.0 % faster than DeepSpeed ZeRO-1 at 2 workers (95 % CI 2.0 to 6.1 %, 3 interleaved pairs).": "",
    "Alike in speed at 2 workers: Horovod against DeepSpeed +0.5 % (95 % CI -1.0 to 2.0 %, 3 interleaved pairs).": "",
    "a@2 against b@2: -0.1 % samples/s (95 % CI -1.6 to 1.4 %, 3 duels): alike.": "",
    "a against b: -6 % samples/s (95 % CI -8.0 to -4.0 %, 3 duels): slower.": "",
}


@pytest.mark.parametrize("text", STATEMENTS)
@pytest.mark.parametrize("form", ["report.html", "table.md"])
def test_statements_of_a_report(study: Path, text: str, form: str) -> None:
    expected = [STATEMENTS[text]] if STATEMENTS[text] else []
    (study / form).write_text(f"<p><b>x</b> {text}</p>" if form.endswith("html") else f"- {text}\n")
    assert found_in(study) == expected


def test_best_setting_with_its_tuning_record(study: Path) -> None:
    (study / "notes.md").write_text("The best setting was found by tuning.\n")
    (study / "tuned.toml").write_text("")
    assert found_in(study) == []


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        ({"verdict": "faster", "duels": 1, "low": None, "high": None}, ["one-pair-verdict"]),
        ({"verdict": "alike", "duels": 3, "low": -0.07, "high": 0.01}, ["equal-without-margin"]),
        ({"verdict": "alike", "duels": 3, "low": -0.02, "high": 0.01}, []),
        ({"verdict": "undecided", "duels": 1, "low": None, "high": None}, []),
        ({"verdict": "slower, by less than 5 %", "duels": 3, "low": -0.02, "high": -0.01}, []),
    ],
)
def test_verdicts_of_duels(tmp_path: Path, row: dict[str, Any], expected: list[str]) -> None:
    (tmp_path / "d").mkdir()
    write_json(tmp_path / "d" / "duel.json", {"differences": [{"a": "x", "b": "y", **row}]})
    assert found_in(tmp_path / "d") == expected
    problems = check_runs([tmp_path / "d"])
    assert [rule for rule in expected if any(f"[{rule}]" in problem.text for problem in problems)] == expected


@pytest.mark.parametrize(("method", "settings", "expected"), [(1, 0.5, True), (2, 0.5, False), (1, None, False)])
def test_parity_of_horovods_settings(tmp_path: Path, method: int, settings: float | None, expected: bool) -> None:
    folder = tmp_path / "p"
    folder.mkdir()
    cells = [
        {"backend": "horovod", "workers": 2, "settings": {}},
        {"backend": "horovod", "workers": 2, "settings": {"cycle_time_ms": settings} if settings else {}},
    ]
    write_json(folder / "parity.json", {"environment": {"method": method} if method > 1 else {}, "cells": cells})
    assert bool(check_runs([folder])) is expected
    marks.write_mark(folder)
    assert check_runs([folder]) == []
    assert (folder / marks.NAME).exists() is expected


def test_every_rule_is_planted_here() -> None:
    planted = {name.split(",")[0] for name in MEASURED} | {rule for rule in STATEMENTS.values() if rule}
    planted |= {"median-of-rates", "tail-of-few-steps", "unlike-baseline", "mfu-of-longest-sample"}
    assert planted == set(RULES)
