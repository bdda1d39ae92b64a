"""The comparison harness: what is asked, how it is run, and what is recorded.

In a notebook: ``import harness; runs = harness.load("results/STUDY")``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["load"]


def load(path: Any, what: str = "runs") -> pd.DataFrame:
    """A run or a study (or a list of them) as a pandas frame, see `harness.analysis.dataframes.load`."""
    from harness.analysis import dataframes  # here, so that `harness --help` needs no pandas

    return dataframes.load(path, what)
