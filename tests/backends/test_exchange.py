"""Bytes by theory, and the counter's arithmetic."""

from __future__ import annotations

import pytest

from backends.checks.traffic import Exchange, expected_bytes


def test_ring_all_reduce() -> None:
    for n in (2, 4, 8):
        expected = 2 * (n - 1) / n * 1000
        assert expected_bytes(
            {"engine": "horovod"}, world_size=n, gradient_bytes=1000, weight_bytes=1000
        ) == pytest.approx(expected)
    assert expected_bytes({"engine": "horovod"}, world_size=1, gradient_bytes=1000, weight_bytes=1000) == 0


@pytest.mark.parametrize(
    ("stage", "accumulation", "shares"),
    [(1, 1, 2), (1, 4, 2), (2, 1, 2), (2, 4, 5), (3, 1, 3), (3, 4, 12)],
)
def test_zero(stage: int, accumulation: int, shares: int) -> None:
    facts = {"engine": "deepspeed", "zero_stage": stage, "accumulation": accumulation}
    assert expected_bytes(facts, world_size=4, gradient_bytes=1000, weight_bytes=1000) == pytest.approx(
        0.75 * 1000 * shares
    )


def test_counter() -> None:
    exchange = Exchange()
    exchange.add("all_reduce", 100)
    exchange.add("all_reduce", 100)
    exchange.add("all_gather", 40)
    assert exchange.calls == {"all_reduce": 2, "all_gather": 1}
    assert exchange.wire_bytes(2) == pytest.approx(200 + 20)
    assert exchange.wire_bytes(1) == 0
