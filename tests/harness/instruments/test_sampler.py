"""The resource sampler: its rows, its end, its cost."""

import os
import sys
import threading
import time
import types
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from harness.instruments.rapl import Rapl
from harness.instruments.resource_sampler import MachineWatch, ResourceSampler, place_of_process, watch_of
from harness.records.soundness import schema_errors
from tests.harness.instruments.conftest import Nvml


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
    assert rows[-1]["rss_mib"] == pytest.approx(psutil.Process().memory_info().rss / 2**20, rel=0.2)


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
    with ResourceSampler(lambda row: None, hz=2) as sampler:
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


def watch(*gpus: str) -> MachineWatch:
    return MachineWatch(host="h", machine="m", gpus=gpus, pids=[os.getpid()], cores=sorted(os.sched_getaffinity(0)))


def test_gpus_and_processors_of_the_machine(nvml: Nvml, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("harness.instruments.resource_sampler.BUDGET", 1.0)  # every row has the GPUs
    package = tmp_path / "intel-rapl:0"
    package.mkdir()
    (package / "name").write_text("package-0")
    (package / "max_energy_range_uj").write_text("1000000000")
    (package / "energy_uj").write_text("999000000")
    rows: list[dict] = []
    with ResourceSampler(rows.append, hz=10, watch=watch("aaaa", "bbbb"), rapl=lambda: Rapl(tmp_path)) as sampler:
        wait_for(lambda: len(rows) >= 4)
        (package / "energy_uj").write_text("4000000")
        wait_for(lambda: len(rows) >= 6)
    assert all(schema_errors("resources", row) == [] for row in rows)
    assert [gpu["uuid"] for gpu in rows[0]["gpus"]] == ["aaaa", "bbbb"]
    assert rows[-1]["cpu_energy_j"] == pytest.approx(5.0)
    found = sampler.machine()
    assert found is not None
    assert found["cpu_j"] == pytest.approx(5.0)
    counted = rows[-1]["gpus"][0]["energy_j"] - 1050.0  # since the reading at the start
    assert found["gpu_j"] == pytest.approx(counted + 500.0 * rows[-1]["t"], rel=0.1)
    assert found["lacks"] == []
    assert found["load"]["cores"] == len(os.sched_getaffinity(0))
    assert "foreign_cores" in rows[-1]


def test_what_is_not_measured_is_none_and_says_why(nvml: Nvml, tmp_path: Path) -> None:
    with ResourceSampler(lambda row: None, hz=10, watch=watch("cccc"), rapl=lambda: Rapl(tmp_path)) as sampler:
        time.sleep(0.2)
    found = sampler.machine()
    assert found is not None
    assert (found["gpu_j"], found["cpu_j"]) == (None, None)
    assert [line.split(" ")[0] for line in found["lacks"]] == ["GPU", "processors:"]


def test_a_rank_without_a_machine_to_watch_reads_no_devices(nvml: Nvml) -> None:
    rows: list[dict] = []
    with ResourceSampler(rows.append, hz=10) as sampler:
        wait_for(lambda: len(rows) >= 2)
    assert rows[-1]["gpus"] == []
    assert "foreign_cores" not in rows[-1]
    assert sampler.machine() is None


def test_other_programs_on_the_gpus_are_in_the_record(nvml: Nvml) -> None:
    nvml.set_processes(os.getpid(), 1)
    with ResourceSampler(lambda row: None, hz=10, watch=watch("aaaa")) as sampler:
        time.sleep(0.15)
    found = sampler.machine()
    assert found is not None
    # process 1 is above this test, as a launcher is above its ranks
    assert found["gpu_processes"] == []
    nvml.set_processes(os.getpid(), 4_000_001)
    with ResourceSampler(lambda row: None, hz=10, watch=watch("aaaa")) as sampler:
        time.sleep(0.15)
    found = sampler.machine()
    assert found is not None
    assert found["gpu_processes"] == [{"uuid": "aaaa", "pid": 4_000_001, "name": "unknown"}]


def test_dear_gpus_are_read_less_often_but_first_and_last(nvml: Nvml) -> None:
    """As on the H100 machine of results/h100-x2-small, where a reading took more than 10 ms."""
    nvml.set(work_us=8000)
    rows: list[dict] = []
    with ResourceSampler(rows.append, hz=10, watch=watch("aaaa")):
        wait_for(lambda: len(rows) >= 10)
    read = [index for index, row in enumerate(rows) if row["gpus"]]
    assert read[0] == 0
    assert read[-1] == len(rows) - 1
    assert len(read) <= 2 + rows[-1]["t"] / 2.6  # 8 ms a reading: the next is due after 5.3 s


def place(host: str, pid: int, gpu: str | None, machine: str = "m", cores: tuple[int, ...] = (0, 1)) -> dict:
    return {"hostname": host, "machine": machine, "namespace": "n", "pid": pid, "gpu": gpu, "cores": list(cores)}


def test_the_first_rank_of_each_machine_watches_the_devices_of_its_ranks() -> None:
    places = [
        place("a", 10, "u0", "one", (0, 1)),
        place("a", 11, "u1", "one", (2, 3)),
        place("b", 10, "u2", "two"),
        place("b", 11, "u2", "two"),  # shares a GPU
    ]
    first, second, third, fourth = (watch_of(places, rank, [99]) for rank in range(4))
    assert first == MachineWatch(host="a", machine="one", gpus=["u0", "u1"], pids=[10, 11, 99], cores=[0, 1, 2, 3])
    assert third == MachineWatch(host="b", machine="two", gpus=["u2"], pids=[10, 11, 99], cores=[0, 1])
    assert second is None
    assert fourth is None


def test_virtual_nodes_are_one_machine_and_containers_watch_their_own_processes() -> None:
    """Nodes made by network namespaces share processor and process ids; containers do not share the latter."""
    nodes = [place("node1", 10, None), place("node2", 11, None)]
    assert watch_of(nodes, 1) is None
    containers = [place("c1", 10, None), place("c2", 10, None) | {"namespace": "other"}]
    seen = watch_of(containers, 1)
    assert seen is not None
    assert seen.pids == [10]


def test_the_place_of_this_process() -> None:
    found = place_of_process(None)
    assert found["pid"] == os.getpid()
    assert len(found["machine"]) == 12
    assert found["cores"] == sorted(os.sched_getaffinity(0))


class FakeNvml:
    """What `harness.records.environment` asks, for two devices."""

    NVML_CLOCK_SM = 1
    NVML_NVLINK_MAX_LINKS = 2

    def nvmlInit(self) -> None: ...  # noqa: N802

    def nvmlShutdown(self) -> None: ...  # noqa: N802

    def nvmlDeviceGetCount(self) -> int:  # noqa: N802
        return 2

    def nvmlDeviceGetHandleByIndex(self, index: int) -> int:  # noqa: N802
        return index

    def nvmlDeviceGetName(self, handle: int) -> bytes:  # noqa: N802
        return b"NVIDIA H100 80GB HBM3"

    def nvmlDeviceGetMemoryInfo(self, handle: int) -> object:  # noqa: N802
        return types.SimpleNamespace(used=(3 + handle) * 2**30, total=80 * 2**30)

    def nvmlDeviceGetNvLinkState(self, handle: int, link: int) -> int:  # noqa: N802
        return 1

    def nvmlSystemGetDriverVersion(self) -> str:  # noqa: N802
        return "580.1"

    def nvmlSystemGetCudaDriverVersion_v2(self) -> int:  # noqa: N802
        return 13000


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
