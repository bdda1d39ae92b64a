"""The resource sampler: its rows, its end, its cost."""

import threading
import time

import pytest

from harness.check import schema_errors
from harness.sampler import ResourceSampler


def test_rows_follow_the_schema_and_come_at_the_rate_asked_for() -> None:
    rows: list[dict] = []
    with ResourceSampler(rows.append, rank=3, hz=10, host="h") as sampler:
        time.sleep(0.65)
    assert 4 <= len(rows) <= 9
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
    """Half a per cent of a core at 2 Hz, the rate of the worker; CPU time of the thread, so load does not count."""
    with ResourceSampler(lambda row: None, hz=2) as sampler:
        time.sleep(1.6)
    assert 0 < sampler.cost < 0.005


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
