"""Faults that lie in what was measured: only another measurement mends them. Each rule looks at all runs of a study,
because a fault of the program shows in most of them, a disturbance in a few."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from harness.analysis.known_faults.fault import Fault
from harness.analysis.run_figures import untimed
from harness.common.formatting import is_number, joined, percent, plural
from harness.records import step_metrics
from harness.records.method import method_of
from harness.records.run_record import SHARED_LOG, RecordedRun

FEW = 5  # timed steps below which no step is out of line
LAST_WAIT = 10.0  # times the median wait for data: the last step's, where the loader was asked for one batch too many
LAST_SHARE = 0.05  # of the median step, above which that wait counts
CAPTURE_TIMES, CAPTURE_S = 3.0, 0.15  # a step that captured a CUDA graph: times the median step, and seconds above it
NO_ENERGY_S = 1.0  # seconds of training in which no counter stands still


def measured_faults(runs: Sequence[RecordedRun]) -> list[Fault]:
    """The faults of the runs of one study (failed ones are left out), one for each rule."""
    good = [run for run in runs if run.ok]
    return [fault for rule in _RULES for fault in rule(good)]


def _batch_too_many(runs: Sequence[RecordedRun]) -> Iterator[Fault]:
    """The last timed step waited for a batch that nobody would train."""
    timed = [run for run in runs if not untimed(run) and len(_rows(run)) >= FEW]
    found = [run for run in timed if _last_waits(_rows(run))]
    if found and 2 * len(found) >= len(timed):
        most = max(_rows(run)[-1]["step_s"] / _median_step(_rows(run)) for run in found)
        yield _fault(
            "batch-too-many",
            found,
            f"the last step waits for a batch too many and takes up to {most:.1f} times the median step",
        )


def _last_waits(rows: Sequence[Mapping[str, Any]]) -> bool:
    waits = np.array([row.get("data_s") or 0.0 for row in rows])
    last = float(waits[-1])
    return (
        last >= waits.max()
        and last > LAST_WAIT * float(np.median(waits))
        and last > LAST_SHARE * _median_step(rows)
        and rows[-1]["step_s"] > last
    )


def _graphs_captured(runs: Sequence[RecordedRun]) -> Iterator[Fault]:
    """Each new length of the text was captured as a CUDA graph in the step that met it first."""
    shares = {run: share for run in runs if (share := _captured_share(run)) > 0}
    if shares:
        yield _fault(
            "graphs-captured-while-timed",
            list(shares),
            f"CUDA graphs captured in timed steps take up to {percent(max(shares.values()))} of the timed seconds",
        )


def _captured_share(run: RecordedRun) -> float:
    """Share of the timed seconds that single steps of a run with CUDA graphs lie above the median; 0 where none does.
    A record that says how many graphs were captured before the first step, and of none after it, is free of the
    fault."""
    model = run.result.get("model") or {}
    if not model.get("cuda_graphs") or untimed(run) or not _on_gpu(run):
        return 0.0
    if "graphs_captured_before" in model and not model.get("graphs_captured_while_training"):
        return 0.0
    rows = _rows(run)
    if len(rows) < FEW:
        return 0.0
    median = _median_step(rows)
    work = [row["step_s"] - (row.get("data_s") or 0.0) for row in rows]
    above = [seconds - median for seconds in work if seconds > CAPTURE_TIMES * median and seconds - median > CAPTURE_S]
    return sum(above) / sum(row["step_s"] for row in rows)


def _other_devices(runs: Sequence[RecordedRun]) -> Iterator[Fault]:
    """More GPUs were counted than the ranks of their host use."""
    found = {}
    for run in runs:
        if machines := run.result.get("hosts"):  # by the devices' own numbers
            counted = {uuid for machine in machines for uuid in machine["gpus"]}
            used_by_ranks = {rank.get("gpu") for rank in run.environment.get("ranks") or ()}
            if counted - used_by_ranks:
                found[run] = (len(counted), len(counted & used_by_ranks))
            continue
        used: dict[Any, set[str]] = {}
        for rank in run.environment.get("ranks") or ():
            if str(rank.get("device")).startswith("cuda"):
                used.setdefault(rank.get("hostname"), set()).add(f"{rank.get('device')} {rank.get('gpu') or ''}")
        for host, indices in _counted(run).items():
            if host in used and len(indices) > len(used[host]):
                found[run] = (len(indices), len(used[host]))
    if found:
        most, used_there = max(found.values(), key=lambda pair: pair[0] - pair[1])
        yield _fault(
            "energy-of-other-devices",
            list(found),
            f"energy and use of {plural(most, 'GPU')} of a host were counted where the ranks used {used_there}",
        )


def _counted(run: RecordedRun) -> dict[Any, set[Any]]:
    """Host -> GPUs in the sampler's rows."""
    found: dict[Any, set[Any]] = {}
    for row in run.resources:
        for gpu in row.get("gpus") or ():
            found.setdefault(row.get("host"), set()).add(gpu.get("uuid") or gpu["index"])
    return found


def _one_host(runs: Sequence[RecordedRun]) -> Iterator[Fault]:
    """Energy was counted on fewer hosts than trained."""
    found = []
    for run in runs:
        ranks, machines = run.environment.get("ranks") or (), run.result.get("hosts")
        place = "machine" if machines else "hostname"
        hosts = {rank.get(place) for rank in ranks}
        counted = {each[place] for each in machines} if machines else {host for host, _ in _counters(run)}
        if counted and hosts - counted - {None}:
            found.append(run)
    if found:
        yield _fault("energy-of-one-host", found, "energy was counted on one host only, other hosts trained too")


def _counter_fault(runs: Sequence[RecordedRun]) -> Iterator[Fault]:
    """A counter that wrapped around, or that stood still while the run trained."""
    wrapped, still = [], []
    for run in runs:
        counters = _counters(run)
        if any(later < earlier for values in counters.values() for earlier, later in itertools.pairwise(values)):
            wrapped.append(run)
        trained = (run.result.get("phases") or {}).get("train_s") or 0.0
        if run.result.get("hosts"):  # says itself what was not measured, and why
            continue
        if counters and trained > NO_ENERGY_S and all(values[-1] == values[0] for values in counters.values()):
            still.append(run)
    if wrapped:
        yield _fault("energy-counter-fault", wrapped, "an energy counter wrapped around and was not corrected")
    if still:
        yield _fault("energy-counter-fault", still, "0 J were recorded for a training: nothing was measured")


def _counters(run: RecordedRun) -> dict[tuple[Any, Any], list[float]]:
    """(host, device) -> its energy readings in joules, in the order of time."""
    found: dict[tuple[Any, Any], list[float]] = {}
    for row in run.resources:
        readings = [((row.get("host"), gpu["index"]), gpu.get("energy_j")) for gpu in row.get("gpus") or ()]
        readings.append(((row.get("host"), "cpu"), row.get("cpu_energy_j")))
        for key, joule in readings:
            if is_number(joule) and joule is not None:
                found.setdefault(key, []).append(float(joule))
    return found


def _host_waits(runs: Sequence[RecordedRun]) -> Iterator[Fault]:
    """Before method 2, DeepSpeed's matched fp16 waited for the device twice a step, which no other engine did."""
    found = [
        run
        for run in runs
        if run.backend == "deepspeed"
        and run.job.get("precision") == "fp16"
        and run.job.get("precision_mode") == "matched"
        and method_of(run.environment) < 2
        and _on_gpu(run)
    ]
    if found:
        yield _fault("fp16-host-waits", found, "DeepSpeed's matched fp16 waited for the device twice a step")


def _first_horovod(runs: Sequence[RecordedRun]) -> Iterator[Fault]:
    """Before method 2, a later Horovod engine of a process kept the start-time settings of the first one."""
    found = []
    for run in runs:
        first = _leader(run) if run.backend == "horovod" and method_of(run.environment) < 2 else None
        if first is not None and starts_with(first.job.get("engine")) != starts_with(run.job.get("engine")):
            found.append(run)
    if found:
        text = "Horovod kept the start-time settings of an earlier engine in its processes and described other ones"
        yield _fault("settings-of-first-horovod", found, text)


def starts_with(settings: Mapping[str, Any] | None) -> dict[str, str]:
    """The environment that Horovod's core reads once a process, of an engine with `settings`."""
    from backends.horovod.settings import variables

    return variables(dict(settings or {}))


def _leader(run: RecordedRun) -> RecordedRun | None:
    """The run whose processes `run` used; None where it had its own."""
    if not run.came_later:
        return None
    with (run.folder / "log.txt").open(errors="replace") as log:
        named = log.readline().removeprefix(SHARED_LOG).strip()
    folder = (run.folder / named).parent
    return RecordedRun(folder) if (folder / "job.json").is_file() else None


def _rows(run: RecordedRun) -> list[Mapping[str, Any]]:
    return step_metrics.timed_rows(run.steps, int(run.job.get("timing_warmup", 0)))


def _median_step(rows: Sequence[Mapping[str, Any]]) -> float:
    return float(np.median([row["step_s"] for row in rows]))


def _on_gpu(run: RecordedRun) -> bool:
    return any(str(rank.get("device")).startswith("cuda") for rank in run.environment.get("ranks") or ())


def _fault(rule: str, runs: Sequence[RecordedRun], text: str) -> Fault:
    """One fault of several runs of a study: where it lies, then which runs."""
    if len(runs) == 1:
        return Fault(rule=rule, where=f"{runs[0].study}/{runs[0].name}", text=text)
    names = joined([run.name for run in runs[:2]]) if len(runs) == 2 else f"{runs[0].name} and {len(runs) - 1} more"
    return Fault(rule=rule, where=runs[0].study, text=f"{text} ({plural(len(runs), 'run')}: {names})")


_RULES: tuple[Callable[[Sequence[RecordedRun]], Iterator[Fault]], ...] = (
    _batch_too_many,
    _graphs_captured,
    _other_devices,
    _one_host,
    _counter_fault,
    _host_waits,
    _first_horovod,
)
