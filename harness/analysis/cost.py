"""What a run costs: device hours by a price file, energy by the sampler's counters, both also per epoch."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from harness.common.formatting import is_number
from harness.job.declaration import JobError
from harness.records.run_record import RecordedRun

DEFAULT = Path(__file__).with_name("prices.toml")


@dataclass(frozen=True, kw_only=True)
class Prices:
    """machines: ``name`` (whole words of a device's), ``per_device_hour`` or ``per_core_hour``, ``source``."""

    currency: str = "$"
    machines: Sequence[Mapping[str, Any]] = ()
    per_kwh: float | None = None

    @classmethod
    def load(cls, path: Path | None = None) -> Prices:
        """From a TOML file, by default the project's. Raises JobError that names what is wrong in it."""
        path = path or DEFAULT
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
class Cost:
    """Of one run's training (evaluation and set-up left out, as in DeepSpeed-Chat's tables). Hours and money None where
    they cannot be known; energy in kWh, of the GPUs and, where the kernel tells, the processors of rank 0's host."""

    train_s: float | None
    epochs: float | None
    energy_kwh: float | None
    money: float | None
    currency: str

    @property
    def per_epoch_s(self) -> float | None:
        return self.train_s / self.epochs if self.train_s is not None and self.epochs else None

    @property
    def money_per_epoch(self) -> float | None:
        return self.money / self.epochs if self.money is not None and self.epochs else None

    @property
    def energy_per_epoch_kwh(self) -> float | None:
        return self.energy_kwh / self.epochs if self.energy_kwh is not None and self.epochs else None


def cost_of(run: RecordedRun, prices: Prices) -> Cost:
    """Time, energy and money of `run`."""
    profiled = bool(run.job.get("profile"))  # its times and energy are the profiler's too
    train_s = None if profiled else (run.result.get("phases") or {}).get("train_s")
    energy = None if profiled else energy_kwh(run.resources)
    if run.result.get("resumed_at") and not profiled:  # the phase is of its last life, the counters went on between
        train_s, energy = (run.steps[-1].get("t") if run.steps else None), None
    money = _machine_money(run, prices, train_s)
    if energy is not None and prices.per_kwh is not None:
        money = (money or 0.0) + energy * prices.per_kwh
    return Cost(train_s=train_s, epochs=epochs_of(run), energy_kwh=energy, money=money, currency=prices.currency)


def epochs_of(run: RecordedRun) -> float | None:
    """Passes over the training set that the run made, from the last row's epoch."""
    rows = run.steps
    if len(rows) < 2 or not is_number(rows[-1].get("epoch")) or not is_number(rows[0].get("epoch")):
        return None
    per_step = (rows[-1]["epoch"] - rows[0]["epoch"]) / (len(rows) - 1)
    return len(rows) * per_step or None


def energy_kwh(rows: Sequence[Mapping[str, Any]]) -> float | None:
    """Energy between the first and the last sample, summed over the GPUs of each host and its processors; None where
    no counter was readable."""
    first: dict[tuple[Any, ...], float] = {}
    last: dict[tuple[Any, ...], float] = {}
    for row in rows:
        counters = {(row.get("host"), gpu["index"]): gpu.get("energy_j") for gpu in row.get("gpus") or ()}
        counters[(row.get("host"), "cpu")] = row.get("cpu_energy_j")
        for key, joule in counters.items():
            if is_number(joule) and joule is not None:
                first.setdefault(key, joule)
                last[key] = joule
    if not last:
        return None
    return sum(last[key] - first[key] for key in last) / 3.6e6


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
