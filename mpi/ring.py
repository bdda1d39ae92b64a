"""What a rank sends in a collective by ring algorithms: the one place where 2(n-1)/n stands.

Sources: Patarasuk and Yuan, Journal of Parallel and Distributed Computing 69 (2009); Thakur, Rabenseifner and Gropp,
International Journal of High Performance Computing Applications 19 (2005). This module imports nothing, so that all may
use it.
"""

from __future__ import annotations

_TIMES = {
    "all_reduce": 2,
    "reduce_scatter": 1,
    "all_gather": 1,
    "broadcast": 1,  # mean over the ranks of a pipelined broadcast
    "reduce": 1,
    "all_to_all": 1,
}


def sent_share(operation: str, ranks: int) -> float:
    """Share of the whole buffer that each of `ranks` ranks sends: 2(n-1)/n for an all-reduce, (n-1)/n for the others.

    Raises KeyError for an operation that is none.
    """
    return _TIMES[operation] * (ranks - 1) / ranks
