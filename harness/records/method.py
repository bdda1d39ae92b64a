"""The number of the way in which this program measures. It is raised with every change that makes figures measured
before and after unlike; `harness results check` tells by it which faults a record can have.

1  records without a number: before 2026-11-28
2  DeepSpeed's matched fp16 no longer waits for the device twice a step; each start-time setting of Horovod has
   processes of its own; a loader is asked for no batch beyond the last step
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

METHOD = 2


def method_of(environment: Mapping[str, Any]) -> int:
    """The method of a record, from its environment."""
    return int(environment.get("method") or 1)
