"""How often ZeRO-3 gathers its weights in a step: what `harness experiment wire` says of it is so."""

from __future__ import annotations

import pytest

pytestmark = [pytest.mark.timeout(600), pytest.mark.slow]

SHARDED = {"zero_stage": 3, "stage3_param_persistence_threshold": 0}
NOTHING_KEPT = {
    **SHARDED,
    "stage3_prefetch_bucket_size": 0,
    "extra": {"zero_optimization": {"stage3_max_reuse_distance": 0}},
}


def test_weights_stay_gathered_unless_told_otherwise(train) -> None:
    cells = train(
        "torchrun",
        2,
        [
            {"label": "default", "engine": "deepspeed", "settings": SHARDED, "steps": 3},
            {"label": "nothing kept", "engine": "deepspeed", "settings": NOTHING_KEPT, "steps": 3},
        ],
    )
    gathered = {name: cells.outcome(name)["exchange"]["payload_bytes"]["all_gather"] for name in cells.rows}
    trainable = cells.outcome("default")["description"]["trainable_parameters"] * 4
    frozen = (16 * 32 + 32) * 4  # used in the forward pass only
    assert gathered["default"] == trainable + frozen
    assert gathered["nothing kept"] == 2 * trainable + frozen
