"""A worker that is told to end says so, whatever its code makes of the interruption."""

from __future__ import annotations

import signal
from collections.abc import Iterator

import pytest

from harness.protocol import terminated


@pytest.fixture(autouse=True)
def _forget() -> Iterator[None]:
    yield
    terminated._signals.clear()


def test_exception_that_a_signal_turned_into_another_is_still_the_signal() -> None:
    with pytest.raises(terminated.TerminatedError):
        terminated._on_signal(signal.SIGTERM, None)
    found = terminated.as_ended(RecursionError("maximum recursion depth exceeded"))
    assert isinstance(found, terminated.TerminatedError)
    assert str(found) == "ended by signal 15"


def test_exception_without_a_signal_is_the_cause() -> None:
    error = RuntimeError("out of memory")
    assert terminated.as_ended(error) is error
