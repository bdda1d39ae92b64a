"""Whose energy is counted, and when it is said that it was not measured."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from harness.analysis.comparison import summarize_study
from harness.analysis.cost import Prices, energy_of
from harness.job.declaration import Job
from harness.records.record_files import RESOURCES, RESULT, append_jsonl, read_json, write_json
from harness.records.run_record import RecordedRun
from harness.report.cost_tables import cost_table
from tests.harness.made_runs import machine, write_run

KWH = 3.6e6


def made(folder: Path, hosts: list[dict[str, Any]], **job: Any) -> RecordedRun:
    return RecordedRun(write_run(folder / "s", Job(backend="ddp", slots=2, preset="tiny", **job), hosts=hosts))


def test_machines_are_added_up(tmp_path: Path) -> None:
    hosts = [
        machine(host="a", machine="1", gpus=["u0", "u1"], gpu_j=2 * KWH, cpu_j=KWH),
        machine(host="b", machine="2", gpus=["u2"], gpu_j=KWH, cpu_j=3 * KWH),
    ]
    energy = energy_of(made(tmp_path, hosts))
    assert energy.kwh == pytest.approx(7.0)
    assert energy.of == "GPUs and processors"
    assert not energy.shared


def test_two_containers_of_one_machine_see_the_same_processors(tmp_path: Path) -> None:
    hosts = [machine(host="a", cpu_j=2.0 * KWH), machine(host="b", cpu_j=2.1 * KWH)]
    assert energy_of(made(tmp_path, hosts)).kwh == pytest.approx(2.1)


def test_a_gpu_that_does_not_tell_leaves_no_half_of_a_sum(tmp_path: Path) -> None:
    hosts = [
        machine(host="a", machine="1", gpus=["u0"], gpu_j=KWH, cpu_j=KWH),
        machine(host="b", machine="2", gpus=["u1"], cpu_j=KWH, lacks=["GPU u1 is a slice of a card"]),
    ]
    energy = energy_of(made(tmp_path, hosts))
    assert energy.kwh is None
    assert energy.why == "b: GPU u1 is a slice of a card"


def test_gpus_without_the_processors_are_called_so(tmp_path: Path) -> None:
    energy = energy_of(made(tmp_path, [machine(gpus=["u0"], gpu_j=KWH, lacks=["processors: it has no RAPL counter"])]))
    assert (energy.kwh, energy.of) == (pytest.approx(1.0), "GPUs")


def test_a_run_without_a_sensor_is_not_measured_in_the_table(tmp_path: Path) -> None:
    made(tmp_path, [machine(lacks=["processors: it has no RAPL counter"])])
    table = cost_table(summarize_study(tmp_path / "s"), Prices())
    assert table is not None
    assert table.rows[0][table.columns.index("energy of training")] == "not measured"
    assert "Not measured: host-a: processors: it has no RAPL counter." in str(table.note)


def test_other_work_on_the_machine_is_said_with_its_energy(tmp_path: Path) -> None:
    busy = {"cores": 2.0, "foreign_cores": 0.9, "steal_cores": 0.0, "worst_cores": 1.0}
    made(tmp_path, [machine(cpu_j=0.001 * KWH, load=busy)])
    table = cost_table(summarize_study(tmp_path / "s"), Prices())
    assert table is not None
    assert table.rows[0][table.columns.index("energy of training")] == "1.00 Wh (processors, beside other work)"


@pytest.mark.parametrize(
    ("last", "nodes", "why"),
    [
        ({0: 1e6, 1: 1e6}, 1, ""),
        ({0: 1e6, 1: 1e6, 2: 1e3, 3: 1e3}, 1, "4 GPUs were counted, the run used 2"),
        ({0: 1e6, 1: 1e6}, 2, "only the first host"),
        ({0: 1e6, 1: 100.0}, 1, "stood still"),
        ({0: 1e6, 1: 50.0}, 1, "began anew"),
        ({"cpu": 50.0}, 1, "began anew"),
        ({"cpu": 1e6}, 1, ""),
        ({}, 1, "no counter could be read"),
    ],
)
def test_an_old_record_counts_where_it_counted_the_right_devices(
    tmp_path: Path, last: dict[Any, float], nodes: int, why: str
) -> None:
    folder = write_run(tmp_path / "s", Job(backend="ddp", slots=2 // nodes, nodes=nodes, preset="tiny"))
    result = {key: value for key, value in read_json(folder / RESULT).items() if key not in ("hosts", "schema")}
    write_json(folder / RESULT, result)
    (folder / RESOURCES).unlink()
    for share in (0.0, 1.0):
        values = {key: 100.0 + share * (end - 100.0) for key, end in last.items()}
        gpus = [{"index": key, "energy_j": value} for key, value in values.items() if key != "cpu"]
        cpu = {"cpu_energy_j": values["cpu"]} if "cpu" in values else {}
        append_jsonl(folder / RESOURCES, [{"host": "a", "gpus": gpus, **cpu}])
    energy = energy_of(RecordedRun(folder))
    assert (energy.kwh is not None) == (why == "")
    assert why in energy.why


def test_a_resumed_or_profiled_run_has_none(tmp_path: Path) -> None:
    run = made(tmp_path, [machine(cpu_j=KWH)])
    run.result["resumed_at"] = [3]
    assert energy_of(run).kwh is None
    run = made(tmp_path / "p", [machine(cpu_j=KWH)], profile="torch")
    assert energy_of(run).why == "a profiler ran"
