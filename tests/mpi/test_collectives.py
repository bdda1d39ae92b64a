"""The definitions, the sizes and the correctness check of the collectives' benchmark."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from mpi import collectives, hostfile
from mpi.launch import command, missing_program
from mpi.process import supervise
from mpi.ring import sent_share
from mpi.transports import TRANSPORTS
from mpi.transports.base import OPERATIONS, Transport, UnsupportedError, expected, pattern, source


def test_a_rank_alone_sends_nothing_and_an_all_reduce_is_a_scatter_and_a_gather() -> None:
    for name in ("all_reduce", "reduce_scatter", "all_gather", "broadcast", "reduce", "all_to_all"):
        assert sent_share(name, 1) == 0.0
    assert sent_share("all_reduce", 4) == sent_share("reduce_scatter", 4) + sent_share("all_gather", 4) == 1.5
    with pytest.raises(KeyError):
        sent_share("all-reduce", 4)


@pytest.mark.parametrize(
    ("operation", "ranks", "factor"),
    [
        ("all_reduce", 2, 1.0),
        ("all_reduce", 8, 1.75),
        ("all_gather", 8, 0.875),
        ("reduce_scatter", 4, 0.75),
        ("broadcast", 8, 1.0),
    ],
)
def test_bus_bandwidth_is_that_of_nccl_tests(operation, ranks, factor):
    """nccl-tests doc/PERFORMANCE.md: S/t times 2(n-1)/n, (n-1)/n, (n-1)/n, 1."""
    assert collectives.bandwidths(operation, ranks, 1 << 20, 0.5) == ((1 << 20) / 0.5, (1 << 20) / 0.5 * factor)


def test_a_ring_that_fills_its_link_shows_the_links_rate_whatever_the_ranks():
    link, size = 125e6, 1 << 24
    for ranks in (2, 3, 8):
        ring_time = 2 * (ranks - 1) * (size / ranks) / link
        assert collectives.bandwidths("all_reduce", ranks, size, ring_time)[1] == pytest.approx(link)


def test_sizes_are_whole_shares_of_every_rank():
    found = collectives.sizes(1000, 100_000, 4, 3)
    assert found == [996, 3996, 15996, 63996]
    assert all(size % 12 == 0 for size in found)
    assert collectives.sizes(1, 1, 4, 2) == [8]


class Alone(Transport):
    """Two ranks in one process: this is rank 0, the other's part is computed. `spoil` changes the results."""

    rank, size = 0, 2

    def __init__(self, spoil: Callable[[np.ndarray], np.ndarray] = lambda values: values) -> None:
        self.spoil = spoil

    def describe(self) -> dict[str, Any]:
        return {}

    def make(self, values: np.ndarray) -> np.ndarray:
        return values

    def read(self, buffer: np.ndarray) -> np.ndarray:
        return buffer

    def operation(self, name: str, source: np.ndarray, target: np.ndarray) -> Callable[[], np.ndarray]:
        if name == "broadcast":
            raise UnsupportedError("not here")
        if name == "all_gather" and len(target) != 2 * len(pattern(0, 0, 128)):
            return lambda: np.tile(source, 2)  # the gathering of times
        count = 2 * len(source) if name == "all_gather" else len(source)
        return lambda: self.spoil(expected(name, 0, 2, count))

    def close(self) -> None:
        pass


def test_right_results_pass_and_one_wrong_element_does_not(capsys):
    (row,) = collectives.measure(Alone(), ["all_reduce"], [1024], budget_s=0.01)
    assert row["correct"] is True
    assert row["repeats"] >= 5
    assert row["seconds_q1"] <= row["seconds_median"] <= row["seconds_q3"]
    printed = capsys.readouterr().out.removeprefix("COMM ")
    assert json.loads(printed) == row

    def one_off(values: np.ndarray) -> np.ndarray:
        return values + (np.arange(len(values)) == 100)

    (row,) = collectives.measure(Alone(one_off), ["all_reduce"], [1024], budget_s=0.01)
    assert row["correct"] is False


def test_an_operation_that_is_missing_is_one_row_with_the_reason():
    rows = collectives.measure(Alone(), ["broadcast"], [1024, 4096], budget_s=0.01)
    assert rows == [{"operation": "broadcast", "bytes": 1024, "unsupported": "not here"}]


@pytest.mark.parametrize("operation", OPERATIONS)
def test_the_expected_values_are_what_numpy_computes(operation):
    ranks, count = 3, 12
    given = [source(operation, rank, ranks, count) for rank in range(ranks)]
    for rank in range(ranks):
        want = {
            "all_reduce": np.sum(given, axis=0) if operation != "all_gather" else None,
            "all_gather": np.concatenate(given),
            "reduce_scatter": np.split(np.sum(given, axis=0), ranks)[rank] if operation != "all_gather" else None,
            "broadcast": given[0],
        }[operation]
        assert np.array_equal(expected(operation, rank, ranks, count), want)


def test_workers_keep_the_callers_module_path(monkeypatch):
    """Where the engines lie in a folder of PYTHONPATH (a prepared GPU machine), the workers find them too."""
    from click.testing import CliRunner

    from harness.commands.experiment.collectives import collectives

    monkeypatch.setenv("PYTHONPATH", "/engines/here")
    shown = CliRunner().invoke(collectives, ["--dry-run", "--via", "gloo"])
    assert shown.exit_code == 0, shown.output
    assert ":/engines/here" in shown.output


@pytest.mark.parallel
@pytest.mark.slow
@pytest.mark.parametrize("via", [name for name in TRANSPORTS if name != "nccl"])
def test_every_library_gives_right_results_on_two_workers(tmp_path, via):
    pytest.importorskip({"horovod-mpi": "horovod", "gloo": "torch"}.get(via, via))
    argv = [sys.executable, "-m", "mpi.collectives", "--via", via, "--largest", "16384", "--budget", "0.01"]
    launch = command(TRANSPORTS[via][1], argv, hostfile.local(2), scratch=tmp_path / "job", env={"PYTHONPATH": "."})
    if missing := missing_program(launch):
        pytest.skip(missing)
    outcome = supervise(launch, log_path=tmp_path / "log.txt", timeout=90)
    log = (tmp_path / "log.txt").read_text()
    assert outcome.ok, log[-2000:]
    rows = [json.loads(line.split("COMM ", 1)[1]) for line in log.splitlines() if "COMM {" in line]
    assert rows[0]["ranks"] == 2
    assert [row["operation"] for row in rows[1:]] == 3 * list(OPERATIONS)  # small sizes of all first
    assert all(row["correct"] and row["busbw"] > 0 for row in rows[1:])
