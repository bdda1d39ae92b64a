"""Marks in time that cost no synchronization: device events on CUDA, a monotonic clock elsewhere."""

from __future__ import annotations

import time
from typing import Any

import torch


class Clock:
    """``mark()`` is cheap and asynchronous; ``seconds(a, b)`` is valid once ``settle()`` has been called after b."""

    def __init__(self, device: torch.device) -> None:
        self._cuda = device.type == "cuda"
        self._device = device

    def mark(self) -> Any:
        """A point in the device's stream of work (CUDA) or of wall time."""
        if not self._cuda:
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record(torch.cuda.current_stream(self._device))
        return event

    def settle(self) -> None:
        """Waits until all marks so far have happened."""
        if self._cuda:
            torch.cuda.synchronize(self._device)

    def seconds(self, start: Any, end: Any) -> float:
        """Seconds from mark `start` to mark `end`."""
        return start.elapsed_time(end) / 1000.0 if self._cuda else end - start
