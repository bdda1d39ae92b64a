"""What a try's traces say: only a lack of memory counts as one."""

from __future__ import annotations

from typing import Any

import pytest

from harness.experiments.max_model.attempt import judge
from harness.experiments.max_model.worker import is_out_of_memory

OK = {"status": "ok", "phase": "end", "seconds": {"train": 2.0}, "peak_mib": 100.0, "host_mib": 0.0}
SHORT = {**OK, "status": "oom", "phase": "prepare", "reason": "MemoryError: no room", "peak_mib": 180.0}
LOST = {**OK, "status": "failed", "phase": "train", "reason": "RuntimeError: Connection closed by peer"}


def told(ranks: list[Any], code: int = 0, reason: str = "", printed: str = "", killed: bool = False) -> dict[str, Any]:
    return judge(ranks, code, reason, printed, killed)


def test_all_ranks_trained() -> None:
    found = told([OK, {**OK, "peak_mib": 120.0}])
    assert (found["status"], found["peak_mib"]) == ("ok", 120.0)


@pytest.mark.parametrize("ranks", [[SHORT, LOST], [LOST, SHORT], [None, SHORT], [SHORT, SHORT]])
def test_one_rank_without_memory_is_out_of_memory_whatever_its_peers_say(ranks: list[Any]) -> None:
    found = told(ranks, 1, "rank lost")
    assert (found["status"], found["phase"]) == ("oom", "prepare")


def test_a_failure_is_no_lack_of_memory() -> None:
    found = told([LOST, OK], 1, "exit 1")
    assert found["status"] == "failed"
    assert "Connection closed" in found["reason"]


def test_a_lost_rank_is_out_of_memory_only_where_the_kernel_says_so() -> None:
    assert told([None, LOST], 137, "killed", killed=True)["status"] == "oom"
    assert told([None, LOST], 137, "killed", killed=False)["status"] == "failed"
    assert told([None, None], 1, "exit 1", printed="terminate called ... 'std::bad_alloc'")["status"] == "oom"


def test_a_try_that_takes_too_long_is_no_lack_of_memory() -> None:
    assert told([None, None], 124, "not finished after 5 s")["status"] == "timeout"


def test_the_words_of_torch_cuda_and_numpy_for_used_up_memory() -> None:
    torch_cpu = RuntimeError("[enforce fail at alloc_cpu.cpp:119] DefaultCPUAllocator: can't allocate memory: tried 4")
    cuda = RuntimeError("CUDA out of memory. Tried to allocate 2.00 GiB")
    assert is_out_of_memory(torch_cpu)
    assert is_out_of_memory(cuda)
    assert is_out_of_memory(MemoryError())
    assert not is_out_of_memory(ValueError("Parameter is shared with a parameter managed by another group"))


def test_the_cause_of_an_error_counts() -> None:
    error = RuntimeError("the hook failed")
    assert not is_out_of_memory(error)
    error.__cause__ = MemoryError()
    assert is_out_of_memory(error)
