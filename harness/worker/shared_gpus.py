"""Do ranks share a GPU? NCCL refuses it; gloo and MPI would train on it, slower, without a word."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

from harness.common.formatting import joined


def sharing(ranks: Sequence[Mapping[str, Any]]) -> list[str]:
    """One line for each GPU that several ranks have. ranks: facts with ``rank``, ``hostname``, ``device``, ``gpu``."""
    users: dict[str, list[Mapping[str, Any]]] = defaultdict(list)
    for facts in ranks:
        if facts.get("gpu"):
            users[facts["gpu"]].append(facts)
    return [
        f"ranks {joined([str(facts['rank']) for facts in shared])} share one GPU ({shared[0]['device']} of "
        f"{shared[0]['hostname']}): give each its own by LOCAL_RANK or CUDA_VISIBLE_DEVICES"
        for shared in users.values()
        if len(shared) > 1
    ]
