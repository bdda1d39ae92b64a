"""Counts what one rank puts on the wire in a step: ``python -m harness.experiments.wire.worker CELLS OUT``, under a
launcher.

Trains a cell as parity does. After some steps every rank reads its node's network counters, waits a second (what an
engine sends while nothing is trained: Horovod's background thread never rests), reads them again before and after ten
steps, and then counts one more step at the engine's own hooks. One rank a node, or the counters hold several.
"""

from __future__ import annotations

import sys
import time
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import torch

from backends.base import Backend
from backends.process.exit import run_and_leave
from backends.process.rank import detect
from harness.experiments.parity.worker import train
from harness.experiments.trainings.cells import unpack, write_told
from mpi import private
from mpi.network import bytes_of_this_host

WARM, STEPS, IDLE_S = 3, 10, 1.0
TOTAL = WARM + STEPS + 2  # one step at the hooks, and one whose beginning ends that


def main(packed: str, out: str) -> None:
    """Rank 0 writes OUT/NAME.json: what every rank sent and received a step, and what the engine says it exchanged."""
    private.take()
    facts = detect()
    base, cells = unpack(packed)
    torch.set_num_threads(base.threads)
    count = Counter()
    for cell, outcome in zip(cells, train(cells, base, facts, count.before_step), strict=True):
        if facts.rank == 0:
            told = {"refused": outcome.error} if outcome.error else count.found | {"engine": outcome.description}
            write_told(Path(out), cell, told)


class Counter:
    """The hook before each step of one training after another; `found` is complete on rank 0 after the last step."""

    def __init__(self) -> None:
        self.found: dict[str, Any] = {}
        self._began: tuple[float, int, int] = (0.0, 0, 0)
        self._idle: dict[str, Any] = {}
        self._counting: AbstractContextManager[Any] | None = None
        self._counted: Any = None

    def before_step(self, backend: Backend, step: int) -> None:
        """Called on every rank with the number of the step to come."""
        if step == 0:
            self.found = {}
        elif step == WARM:
            backend.barrier()
            idle = _now()
            time.sleep(IDLE_S)
            self._began = _now()
            idle_rate = (self._began[2] - idle[2]) / (self._began[0] - idle[0])
            self._idle = {"idle_bytes_per_s": idle_rate, "hostname": backend.facts.hostname}
            backend.barrier()
            self._began = _now()
        elif step == WARM + STEPS:
            backend.barrier()
            ended = _now()
            mine = {
                "step_s": (ended[0] - self._began[0]) / STEPS,
                "received_bytes": (ended[1] - self._began[1]) / STEPS,
                "sent_bytes": (ended[2] - self._began[2]) / STEPS,
            }
            self.found["ranks"] = backend.gather(mine | self._idle)
            self.found |= _sizes(backend)
            self._counting = backend.counting_exchange()
            self._counted = self._counting.__enter__()
        elif step == WARM + STEPS + 1 and self._counting is not None:
            self._counting.__exit__(None, None, None)
            self.found["exchange"] = self._counted.to_dict(backend.world_size)


def _now() -> tuple[float, int, int]:
    """(seconds, bytes received, bytes sent) of this node's interfaces but for the loopback."""
    return (time.monotonic(), *bytes_of_this_host())


def _sizes(backend: Backend) -> dict[str, int]:
    """Numbers and bytes of the trainable parameters, and bytes of those (frozen ones too) that ZeRO-3 gathers before
    use."""
    elements = trainable = gathered = 0
    for parameter in backend.model.parameters():
        count = getattr(parameter, "ds_numel", parameter.numel())
        size = count * parameter.element_size()
        elements += count if parameter.requires_grad else 0
        trainable += size if parameter.requires_grad else 0
        # Below stage3_param_persistence_threshold a parameter stays whole on every rank.
        gathered += size if not getattr(parameter, "ds_persist", True) else 0
    return {
        "trainable_elements": elements,
        "trainable_bytes": trainable,
        "gathered_bytes": gathered or trainable,
    }


if __name__ == "__main__":
    run_and_leave(lambda: main(sys.argv[1], sys.argv[2]))
