"""A second Horovod engine of one process has its own settings, or is refused."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from typing import Any

import pytest

import backends
from backends.base import BackendError
from backends.horovod import start
from backends.horovod.settings import HorovodSettings
from backends.process.rank import ProcessFacts

pytest.importorskip("horovod")
CYCLE_MS = 120.0


@pytest.fixture
def engine() -> Iterator[Any]:
    """settings -> an engine, alone in this process."""
    made: list[Any] = []

    def make(**settings: Any) -> Any:
        made.append(backends.load("horovod")(backends.settings_from("horovod", settings), ProcessFacts(), device="cpu"))
        return made[-1]

    yield make
    made[-1].close()


def seconds(backend: Any) -> float:
    """What an exchange takes: the core looks for one once a cycle."""
    backend.barrier()
    begin = time.perf_counter()
    backend.barrier()
    return time.perf_counter() - begin


def test_a_second_engine_with_other_settings_is_refused(engine: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """It trained with the first one's cycle and described its own."""
    first = engine(num_groups=2)
    assert seconds(first) < CYCLE_MS / 2e3
    with pytest.raises(BackendError, match=r"HOROVOD_CYCLE_TIME=unset, .*; this engine wants 120\.0: give") as caught:
        engine(cycle_time_ms=CYCLE_MS)
    assert "\n" not in str(caught.value)
    assert "HOROVOD_CYCLE_TIME" not in os.environ
    assert engine(compression="fp16")._hvd is first._hvd  # settings that are not read at start


PROBE = """
import sys, time
import backends
from backends.base import BackendError
from backends.process.rank import ProcessFacts
for settings in {given}:
    try:
        made = backends.load("horovod")(backends.settings_from("horovod", settings), ProcessFacts(), device="cpu")
    except BackendError as error:
        print("refused" if "cannot be started in it again" in str(error) else error)
        continue
    made.barrier()
    begin = time.perf_counter()
    made.barrier()
    print("slow" if time.perf_counter() - begin > 0.06 else "quick")
    made.close()
"""


@pytest.mark.slow  # processes of their own
@pytest.mark.parametrize(
    ("given", "seen"),
    [
        ([{}, {"cycle_time_ms": 120.0}, {}], ["quick", "slow", "refused"]),
        ([{"cycle_time_ms": 120.0}, {"cycle_time_ms": 120.0}, {"fusion_threshold_mb": 1}], ["slow", "slow", "refused"]),
        ([{"cycle_time_ms": 120.0, "fusion_threshold_mb": 1}] * 2, ["slow", "refused"]),
        (
            [{"fusion_threshold_mb": 1}, {"fusion_threshold_mb": 1}, {"cycle_time_ms": 9.0}],
            ["quick", "quick", "refused"],
        ),
    ],
)
def test_an_engine_after_one_that_left_has_its_own_settings_or_is_refused(given: list[Any], seen: list[str]) -> None:
    """The cycle shows in the time of an exchange. What is refused went on with the old cycle, or ended the process by a
    segmentation fault."""
    ended = subprocess.run(
        [sys.executable, "-c", PROBE.format(given=given)], capture_output=True, text=True, timeout=60, check=False
    )
    assert (ended.stdout.split(), ended.returncode) == (seen, 0), ended.stderr


def test_the_environment_is_as_it_was_when_the_next_one_starts(engine: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(start, "_fixed", {})
    monkeypatch.setenv("HOROVOD_STALL_CHECK_DISABLE", "1")
    engine(extra={"HOROVOD_STALL_CHECK_DISABLE": 0, "HOROVOD_LOG_LEVEL": "error"}).close()
    assert os.environ["HOROVOD_LOG_LEVEL"] == "error"
    engine()
    assert os.environ["HOROVOD_STALL_CHECK_DISABLE"] == "1"
    assert "HOROVOD_LOG_LEVEL" not in os.environ


def test_where_horovod_ended_mpi_a_second_start_is_refused(engine: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    engine().close()
    monkeypatch.setattr(start, "_owns_mpi", True)
    with pytest.raises(BackendError, match="has left this process and cannot be started in it again: give each"):
        engine()


def test_groups_with_what_they_would_drop_are_refused() -> None:
    """horovod/torch/optimizer.py: _grouped_allreduce_grad_async passes no scale; Adasum's optimizer takes no groups."""
    import inspect

    from horovod.torch import optimizer

    assert "scale" not in inspect.getsource(optimizer._DistributedOptimizer._grouped_allreduce_grad_async)
    assert "groups" not in inspect.signature(optimizer._DistributedAdasumOptimizer.__init__).parameters
    with pytest.raises(BackendError, match="num_groups ignores gradient_predivide_factor"):
        HorovodSettings(num_groups=2, gradient_predivide_factor=2.0)
    with pytest.raises(BackendError, match="num_groups ignores op 'adasum'"):
        HorovodSettings(num_groups=2, op="adasum")
    HorovodSettings(num_groups=2)
