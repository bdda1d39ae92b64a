"""The resource sampler: its rows, its end, its cost."""

import sys
import threading
import time
import types
from collections.abc import Callable

import psutil
import pytest

from harness.instruments.resource_sampler import ResourceSampler
from harness.records.soundness import schema_errors


def wait_for(condition: Callable[[], bool], limit_s: float = 20.0) -> None:
    end = time.monotonic() + limit_s
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)


def test_rows_follow_the_schema_and_come_at_the_rate_asked_for() -> None:
    rows: list[dict] = []
    with ResourceSampler(rows.append, rank=3, hz=10, host="h") as sampler:
        wait_for(lambda: len(rows) >= 6)
    assert len(rows) - 1 <= rows[-1]["t"] * 10 + 1, "late samples are dropped, not caught up"
    assert sampler.samples == len(rows)
    assert sampler.error is None
    assert all(schema_errors("resources", row) == [] for row in rows)
    assert rows[0]["rank"] == 3
    assert rows[0]["host"] == "h"
    assert rows[-1]["rss_mib"] == pytest.approx(sampler.peaks()["rss_mib"], rel=0.2)


def test_processor_use_is_that_of_this_process() -> None:
    rows: list[dict] = []
    with ResourceSampler(rows.append, hz=10):
        end = time.process_time() + 0.3  # CPU time, so that other load on the machine does not matter
        while time.process_time() < end:
            pass
    assert max(row["cpu_percent"] for row in rows) > 20


def test_cost_is_measured_and_small() -> None:
    """Less than six times what the two readings that it cannot do without cost here and now (psutil's `cpu_percent`
    alone is some forty), so neither load nor a slow core counts."""
    with ResourceSampler(lambda row: None, hz=2, devices=()) as sampler:
        own = psutil.Process()
        bare = []
        for _ in range(8):
            time.sleep(0.2)  # as cold as the sampler's
            began = time.thread_time()
            own.memory_info()
            psutil.net_io_counters()
            bare.append(time.thread_time() - began)
    per_sample = sampler._cpu_s / sampler.samples
    assert 0 < per_sample < 6 * sum(bare) / len(bare)


def test_thread_ends_with_the_run_and_stop_may_come_twice() -> None:
    before = threading.active_count()
    sampler = ResourceSampler(lambda row: None, hz=10).start()
    sampler.stop()
    sampler.stop()
    assert threading.active_count() == before


def test_failing_callback_never_ends_the_run() -> None:
    def broken(row: dict) -> None:
        raise OSError("disk full")

    with ResourceSampler(broken, hz=10) as sampler:
        time.sleep(0.2)
    assert sampler.error == "OSError: disk full"


def test_rate_is_limited() -> None:
    with pytest.raises(ValueError, match="at most 10"):
        ResourceSampler(lambda row: None, hz=100)


class FakeNvml:
    """Two devices as NVML shows them; the second one has no energy counter. (No GPU here; the real one is used where
    there is.)"""

    NVML_TEMPERATURE_GPU = 0
    NVML_CLOCK_SM = 1
    NVML_NVLINK_MAX_LINKS = 2

    def __init__(self) -> None:
        self.energy_mj = 1_000_000

    def nvmlInit(self) -> None: ...  # noqa: N802

    def nvmlShutdown(self) -> None: ...  # noqa: N802

    def nvmlDeviceGetCount(self) -> int:  # noqa: N802
        return 2

    def nvmlDeviceGetHandleByIndex(self, index: int) -> int:  # noqa: N802
        return index

    def nvmlDeviceGetName(self, handle: int) -> bytes:  # noqa: N802
        return b"NVIDIA H100 80GB HBM3"

    def nvmlDeviceGetPowerUsage(self, handle: int) -> int:  # noqa: N802
        return 500_000

    def nvmlDeviceGetMemoryInfo(self, handle: int) -> object:  # noqa: N802
        return types.SimpleNamespace(used=(3 + handle) * 2**30, total=80 * 2**30)

    def nvmlDeviceGetUtilizationRates(self, handle: int) -> object:  # noqa: N802
        return types.SimpleNamespace(gpu=90)

    def nvmlDeviceGetTemperature(self, handle: int, sensor: int) -> int:  # noqa: N802
        return 55

    def nvmlDeviceGetTotalEnergyConsumption(self, handle: int) -> int:  # noqa: N802
        if handle == 1:
            raise RuntimeError("Not Supported")
        self.energy_mj += 50_000
        return self.energy_mj

    def nvmlDeviceGetNvLinkState(self, handle: int, link: int) -> int:  # noqa: N802
        return 1

    def nvmlSystemGetDriverVersion(self) -> str:  # noqa: N802
        return "580.1"

    def nvmlSystemGetCudaDriverVersion_v2(self) -> int:  # noqa: N802
        return 13000


def test_gpus_are_watched_with_energy_by_counter_or_by_power(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", FakeNvml())
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setattr("harness.instruments.resource_sampler.BUDGET", 1.0)  # every row has them
    rows: list[dict] = []
    with ResourceSampler(rows.append, hz=10) as sampler:
        wait_for(lambda: len(rows) >= 4)
    assert all(schema_errors("resources", row) == [] for row in rows)
    first, second = rows[-1]["gpus"]
    assert (first["util_percent"], first["power_w"], first["temperature_c"]) == (90, 500.0, 55)
    begun, begun_by_power = rows[0]["gpus"]
    assert first["energy_j"] - begun["energy_j"] == pytest.approx(50.0 * (len(rows) - 1))
    passed = rows[-1]["t"] - rows[0]["t"]
    assert second["energy_j"] - begun_by_power["energy_j"] == pytest.approx(500.0 * passed, rel=0.2)
    assert sampler.peaks()["gpu_mem_mib"] == {0: 3072.0, 1: 4096.0}


class DearNvml(FakeNvml):
    """As on the H100 machine of results/h100-x2-small, where a reading took more than 10 ms."""

    def nvmlDeviceGetPowerUsage(self, handle: int) -> int:  # noqa: N802
        end = time.thread_time() + 0.004
        while time.thread_time() < end:
            pass
        return super().nvmlDeviceGetPowerUsage(handle)


def test_dear_gpus_are_read_less_often_but_first_and_last(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", DearNvml())
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    rows: list[dict] = []
    with ResourceSampler(rows.append, hz=10):
        wait_for(lambda: len(rows) >= 10)
    read = [index for index, row in enumerate(rows) if row["gpus"]]
    assert read[0] == 0
    assert read[-1] == len(rows) - 1
    assert len(read) <= 2 + rows[-1]["t"] / 2.6  # 8 ms a reading: the next is due after 2.7 s


def test_the_last_row_has_the_gpus_though_they_were_due_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", DearNvml())
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setattr(
        "harness.instruments.resource_sampler.BUDGET", 0.008 / 0.15
    )  # due 0.15 s after a reading of 8 ms
    rows: list[dict] = []
    with ResourceSampler(rows.append, hz=10):
        wait_for(lambda: len(rows) >= 2 and not rows[-1]["gpus"])
        time.sleep(0.09)
    assert rows[-1]["gpus"]


def test_only_visible_gpus_are_watched(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", FakeNvml())
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1")
    rows: list[dict] = []
    with ResourceSampler(rows.append, hz=10):
        time.sleep(0.05)
    assert [gpu["index"] for gpu in rows[0]["gpus"]] == [1]
    with ResourceSampler(rows.append, hz=10, devices=()):
        time.sleep(0.05)
    assert rows[-1]["gpus"] == []


def test_environment_names_the_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    from harness.records import environment

    monkeypatch.setitem(sys.modules, "pynvml", FakeNvml())
    found = environment.gpus()
    assert found["driver"] == "580.1"
    assert found["cuda_driver"] == "13.0"
    assert [device["name"] for device in found["devices"]] == ["NVIDIA H100 80GB HBM3"] * 2
    assert found["devices"][0]["nvlinks"] == 2
    record = {"schema": 1, **environment.environment()}
    assert schema_errors("environment", record) == []
