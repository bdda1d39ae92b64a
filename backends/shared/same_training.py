"""What a checkpoint and the job that resumes it must share, whatever the engine: all that decides the arithmetic.

Resumed with another precision, optimizer or schedule, a run would go on unnoticed as a mixture that no record
describes. What decides speed and memory alone (buckets, offload, recomputation, compiling) may change.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from backends.base import Optimization

TRAINING = "training"  # where an engine's state says what decides its training
REMEDY = "resume with what it was saved with, or start another run: leave resume out"


def of_training(optimization: Optimization) -> dict[str, Any]:
    """The part of the optimization that decides the arithmetic.

    Returns:
        Field -> value, JSON types. Of a constant schedule, neither warm-up nor the number of steps is part of it; of
        another precision than fp16, the rule of the loss scale is not.
    """
    facts = asdict(optimization)
    left_out = set()
    if optimization.precision != "fp16":
        left_out.add("loss_scale")
    if optimization.schedule == "constant":
        left_out |= {"warmup_steps", "total_steps"}
    kept = {name: value for name, value in facts.items() if name not in left_out}
    return json.loads(json.dumps(kept))  # tuples as lists, as they come back from a file


def difference(saved: Mapping[str, Any], mine: Mapping[str, Any]) -> str | None:
    """The first thing in which a checkpoint's training is not this job's, in words; None where they are alike."""
    for name in dict.fromkeys([*mine, *saved]):
        theirs, own = saved.get(name), mine.get(name)
        if theirs != own:
            return f"it was saved with {name} {_said(theirs)}, this job has {_said(own)}"
    return None


def _said(value: Any) -> str:
    return "none" if value is None or value == "" else str(value)
