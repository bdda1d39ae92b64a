"""What `harness tune` may try: each engine names its own settings here, most promising first, with reason and source.

Tuning never changes what is computed: a candidate keeps the ZeRO stage, the type on the wire and the arithmetic, unless
it says that it rounds elsewhere (`Candidate.exact`), and then it is tried only where the user allows that.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

MIB = 2**20


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """Settings to try on top of what the job asks for.

    Args:
        settings: engine setting -> value. ``tune_steps`` asks Horovod's own tuner for the values.
        why: what may be gained, one sentence.
        source: where that is from.
        exact: False where results differ by more than the order of sums.
    """

    settings: Mapping[str, Any]
    why: str
    source: str
    exact: bool = True

    @property
    def name(self) -> str:
        """``overlap_comm=true+reduce_bucket_size=5000000``, as behind an engine's name in ``--backends``."""
        return spelled(self.settings)


@dataclass(frozen=True, kw_only=True)
class Situation:
    """What candidates depend on.

    Args:
        workers: processes of the job.
        nodes: hosts of the job.
        device: ``cpu`` or ``cuda``.
        precision: of the job: ``fp32``, ``bf16`` or ``fp16``.
        gradient_elements: trained parameters, so that buckets are cut to the model.
    """

    workers: int
    nodes: int
    device: str
    precision: str
    gradient_elements: int

    @property
    def gradient_mib(self) -> float:
        """MiB of all gradients in fp32."""
        return self.gradient_elements * 4 / MIB


def spelled(settings: Mapping[str, Any]) -> str:
    """Settings as they are written behind an engine's name: ``KEY=VALUE+KEY=VALUE``; "" for none."""
    words = {True: "true", False: "false"}
    return "+".join(
        f"{key}={words[value] if isinstance(value, bool) else f'{value:g}' if isinstance(value, float) else value}"
        for key, value in settings.items()
    )
