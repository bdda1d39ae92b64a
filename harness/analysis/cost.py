"""What a run costs: energy by the machines' own counters, money by prices that the user gives; both also per epoch.

There is no price list: prices of one year printed the next are figures that nobody measured. A price file (TOML):

    currency = "$"
    [[machine]]                      # the first whose name is in the GPU's or processor's name as whole words
    name = "H100"
    per_device_hour = 2.5            # or per_core_hour, for runs on processors
    [electricity]                    # optional
    per_kwh = 0.3
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

from harness.common.formatting import is_number
from harness.instruments.foreign_load import NOTED
from harness.job.declaration import JobError
from harness.records.run_record import RecordedRun


@dataclass(frozen=True, kw_only=True)
class Prices:
    """machines: ``name`` (whole words of a device's), ``per_device_hour`` or ``per_core_hour``. Without any, nothing
    costs money."""

    currency: str = "$"
    machines: Sequence[Mapping[str, Any]] = ()
    per_kwh: float | None = None

    @classmethod
    def load(cls, path: Path | None = None) -> Prices:
        """From the user's TOML file; none without one. Raises JobError that names what is wrong in it."""
        if path is None:
            return cls()
        try:
            value = tomllib.loads(path.read_text())
        except (OSError, tomllib.TOMLDecodeError) as error:
            raise JobError(f"{path}: not a readable price file ({error})") from None
        machines = value.get("machine", [])
        for machine in machines:
            prices = [machine.get(key) for key in ("per_device_hour", "per_core_hour") if key in machine]
            if not isinstance(machine.get("name"), str) or not prices or not all(map(is_number, prices)):
                raise JobError(f"{path}: each [[machine]] needs a name and per_device_hour or per_core_hour, a number")
        return cls(
            currency=str(value.get("currency", "$")),
            machines=tuple(machines),
            per_kwh=(value.get("electricity") or {}).get("per_kwh"),
        )


@dataclass(frozen=True, kw_only=True)
class Energy:
    """Of a run's training. kwh: None where it was not measured, then `why` says why. of: the parts that are counted.
    shared: other programs worked on the machine, whose energy is in the processors' too."""

    kwh: float | None = None
    of: str = ""
    why: str = ""
    shared: bool = False


@dataclass(frozen=True, kw_only=True)
class Cost:
    """Of one run's training (evaluation and set-up left out, as in DeepSpeed-Chat's tables). Hours and money None where
    they cannot be known."""

    train_s: float | None
    epochs: float | None
    energy: Energy
    money: float | None
    currency: str

    @property
    def energy_kwh(self) -> float | None:
        """kWh, None where it was not measured."""
        return self.energy.kwh

    @property
    def per_epoch_s(self) -> float | None:
        """Seconds of training for one pass over the training set."""
        return self.train_s / self.epochs if self.train_s is not None and self.epochs else None

    @property
    def money_per_epoch(self) -> float | None:
        """Money for one pass over the training set."""
        return self.money / self.epochs if self.money is not None and self.epochs else None


def cost_of(run: RecordedRun, prices: Prices) -> Cost:
    """Time, energy and money of `run`."""
    profiled = bool(run.job.get("profile"))  # its times are the profiler's too
    train_s = None if profiled else (run.result.get("phases") or {}).get("train_s")
    if run.result.get("resumed_at") and not profiled:  # the phase is of its last life
        train_s = run.steps[-1].get("t") if run.steps else None
    energy = energy_of(run)
    money = _machine_money(run, prices, train_s)
    if energy.kwh is not None and prices.per_kwh is not None:
        money = (money or 0.0) + energy.kwh * prices.per_kwh
    return Cost(train_s=train_s, epochs=epochs_of(run), energy=energy, money=money, currency=prices.currency)


def epochs_of(run: RecordedRun) -> float | None:
    """Passes over the training set that the run made, from the last row's epoch."""
    rows = run.steps
    if len(rows) < 2 or not is_number(rows[-1].get("epoch")) or not is_number(rows[0].get("epoch")):
        return None
    per_step = (rows[-1]["epoch"] - rows[0]["epoch"]) / (len(rows) - 1)
    return len(rows) * per_step or None


def energy_of(run: RecordedRun) -> Energy:
    """The energy of the run's training, by the counters of the devices that its ranks used and, where they may be read,
    of the processors of their machines; not measured where one of these devices did not tell."""
    if run.job.get("profile"):
        return Energy(why="a profiler ran")
    if run.result.get("resumed_at"):
        return Energy(why="the counters went on between its lives")
    if run.result.get("elastic"):
        return Energy(why="the hosts of an elastic job come and go")
    if "hosts" in run.result:
        return _of_machines(run.result["hosts"] or ())
    return _of_rows(run)


def _of_machines(machines: Sequence[Mapping[str, Any]]) -> Energy:
    """From a result's ``hosts``. Containers of one machine each see all of its processors' energy."""
    used = [uuid for machine in machines for uuid in machine["gpus"]]
    lacks = [f"{machine['host']}: {line}" for machine in machines for line in machine["lacks"]]
    gpu = [machine["gpu_j"] for machine in machines if machine["gpus"]]
    packages: dict[str, list[float | None]] = {}
    for machine in machines:
        packages.setdefault(machine["machine"], []).append(machine["cpu_j"])
    cpu = [None if None in seen else max(joule for joule in seen if joule) for seen in packages.values()]
    if not machines or (used and (None in gpu or len(set(used)) < len(used))) or (not used and None in cpu):
        return Energy(why="; ".join(lacks) or "no machine was watched")
    with_cpu = None not in cpu
    joules = sum(value for value in [*gpu, *(cpu if with_cpu else ())] if value is not None)
    parts = (["GPUs"] if used else []) + (["processors"] if with_cpu else [])
    return Energy(kwh=joules / 3.6e6, of=" and ".join(parts), shared=with_cpu and any(map(_is_shared, machines)))


def _is_shared(machine: Mapping[str, Any]) -> bool:
    load = machine.get("load") or {}
    return (load.get("foreign_cores") or 0.0) > NOTED * (load.get("cores") or 0.0)


def _of_rows(run: RecordedRun) -> Energy:
    """Of a record from before machines were watched: rank 0's host alone, with all GPUs that its process could see."""
    counters: dict[Any, list[float]] = {}
    for row in run.resources:
        readings = {gpu["index"]: gpu.get("energy_j") for gpu in row.get("gpus") or ()}
        for key, joule in (readings | {"cpu": row.get("cpu_energy_j")}).items():
            if is_number(joule) and joule is not None:
                counters.setdefault(key, []).append(joule)
    gpus = [key for key in counters if key != "cpu"]
    if not counters:
        return Energy(why="no counter could be read")
    if int(run.job.get("nodes") or 1) > 1:
        return Energy(why="withdrawn: only the first host was counted")
    if gpus and len(gpus) != run.workers:
        return Energy(why=f"withdrawn: {len(gpus)} GPUs were counted, the run used {run.workers}")
    if any(later < earlier for values in counters.values() for earlier, later in pairwise(values)):
        return Energy(why="withdrawn: a counter began anew")
    used = {key: values[-1] - values[0] for key, values in counters.items()}
    if not all(used.values()):
        return Energy(why="withdrawn: a counter stood still")
    parts = (["GPUs"] if gpus else []) + (["processors"] if "cpu" in used else [])
    return Energy(kwh=sum(used.values()) / 3.6e6, of=" and ".join(parts))


def _machine_money(run: RecordedRun, prices: Prices, train_s: float | None) -> float | None:
    if train_s is None:
        return None
    devices = (run.environment.get("gpus") or {}).get("devices") or []
    on_gpu = bool(devices) and run.job.get("device") != "cpu"
    cpu = run.environment.get("cpu") or {}
    name = str(devices[0].get("name")) if on_gpu else str(cpu.get("model"))
    for machine in prices.machines:
        if not re.search(rf"(?<!\w){re.escape(machine['name'])}(?!\w)", name):  # whole words: an L40 is no L4
            continue
        if on_gpu and "per_device_hour" in machine:
            return machine["per_device_hour"] * run.workers * train_s / 3600
        if not on_gpu and "per_core_hour" in machine:
            cores = run.workers * int(run.job.get("threads", 1))
            return machine["per_core_hour"] * cores * train_s / 3600
    return None
