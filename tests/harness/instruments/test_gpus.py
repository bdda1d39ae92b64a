"""The GPUs of a job by their UUIDs: which are watched, what they tell, whose energy is not known."""

from __future__ import annotations

import os
import time

import pynvml
import pytest

from harness.instruments.gpus import Gpus
from harness.records.soundness import schema_errors
from tests.harness.instruments.conftest import Nvml


def test_only_the_devices_named_are_read(nvml: Nvml) -> None:
    gpus = Gpus(["aaaa"])
    (row,) = gpus.read()
    assert row == {
        "index": 5, "uuid": "aaaa", "util_percent": 90, "mem_mib": 3072.0, "power_w": 500.0, "temperature_c": 55,
        "energy_j": 1050.0,
    }  # fmt: skip
    assert gpus.joules() is None, "one reading is no energy"
    gpus.read()
    gpus.read()
    assert gpus.joules() == pytest.approx(100.0)
    assert gpus.lacks() == []
    row |= {"t": 0, "rank": 0, "host": "a", "cpu_percent": 1, "rss_mib": 1, "net_sent_bytes": 1, "net_recv_bytes": 1}
    assert schema_errors("resources", row | {"gpus": [row]}) == []


def test_a_device_is_read_once_though_ranks_share_it_and_prefixes_do_not_matter(nvml: Nvml) -> None:
    assert [row["index"] for row in Gpus(["aaaa", "aaaa"]).read()] == [5]
    assert [row["index"] for row in Gpus(["GPU-bbbb"]).read()] == [6]


def test_power_stands_in_for_a_counter_that_is_missing(nvml: Nvml) -> None:
    gpus = Gpus(["bbbb"])
    gpus.read()
    began = time.monotonic()
    time.sleep(0.2)
    gpus.read()
    assert gpus.joules() == pytest.approx(500.0 * (time.monotonic() - began), rel=0.1)


def test_a_slice_has_memory_but_no_energy_of_its_own(nvml: Nvml) -> None:
    gpus = Gpus(["cccc"])
    (row,) = [gpus.read() for _ in range(2)][-1]
    assert (row["index"], row["mem_mib"], row["energy_j"], row["power_w"]) == (5, 5120.0, None, None)
    assert gpus.joules() is None
    assert gpus.lacks() == ["GPU cccc is a slice of a card, whose energy others share"]


def test_a_counter_that_stood_still_is_not_measured(nvml: Nvml) -> None:
    nvml.set(step_mj=0)
    gpus = Gpus(["aaaa"])
    gpus.read(), gpus.read()
    assert gpus.joules() is None
    assert "no energy counter that moved" in gpus.lacks()[0]


def test_one_device_that_does_not_tell_makes_the_sum_unknown(nvml: Nvml) -> None:
    gpus = Gpus(["aaaa", "cccc"])
    gpus.read(), gpus.read()
    assert gpus.joules() is None
    gpus = Gpus(["aaaa", "zzzz"])
    gpus.read(), gpus.read()
    assert gpus.joules() is None
    assert gpus.lacks() == ["NVML does not know GPU zzzz"]


def test_no_driver_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    """The real pynvml of a machine that has no NVIDIA driver."""
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError:
        pass
    else:
        pytest.skip("this machine has NVML")
    gpus = Gpus(["aaaa"])
    assert not gpus.watched
    assert gpus.read() == []
    assert gpus.joules() is None
    assert gpus.lacks()[0].startswith("NVML cannot be used")
    assert Gpus([]).lacks() == []


def test_processes_that_are_not_ours_are_named(nvml: Nvml) -> None:
    gpus = Gpus(["aaaa"])
    nvml.set_processes(os.getpid(), os.getppid())
    assert gpus.foreign_processes(lambda: {os.getpid(), os.getppid()}) == []
    (other,) = gpus.foreign_processes(lambda: {os.getpid()})
    assert (other["uuid"], other["pid"]) == ("aaaa", os.getppid())
    assert other["name"] not in ("", "unknown")


def test_a_container_with_other_process_ids_accuses_nobody(nvml: Nvml) -> None:
    """NVML says the host's ids there: our own rank is not among them either."""
    nvml.set_processes(4_000_001, 4_000_002)
    assert Gpus(["aaaa"]).foreign_processes(lambda: {os.getpid()}) == []
