"""The search of `harness experiment max-model`: how many tries it needs, and what it makes of odd ones."""

from __future__ import annotations

from dataclasses import dataclass

import pytest

from harness.experiments.max_model.search import state


@dataclass(frozen=True)
class Try:
    status: str


def search(truth: int, guess: int, lowest: int = -100, hint: int | None = None) -> tuple[int | None, int]:
    """(what is found, tries) where every point up to `truth` fits. hint: given as soon as one try has fitted."""
    tries: dict[int, Try] = {}
    for _ in range(60):
        now = state(tries, guess, lowest=lowest, hint=hint if any(t.status == "ok" for t in tries.values()) else None)
        if now.next is None:
            return (now.low if now.found else None), len(tries)
        assert now.next not in tries
        tries[now.next] = Try("ok" if now.next <= truth else "oom")
    raise AssertionError("the search does not end")


@pytest.mark.parametrize("offset", range(-40, 41))
def test_finds_the_truth_from_any_guess(offset: int) -> None:
    found, tries = search(100, 100 + offset)
    assert found == 100
    assert tries <= 2 + 2 * max(1, abs(offset)).bit_length()


def test_a_right_prediction_needs_two_tries() -> None:
    assert search(100, 100) == (100, 2)
    assert search(100, 101) == (100, 2)


def test_a_right_hint_saves_tries() -> None:
    assert search(100, 80, hint=100) == (100, 3)
    assert search(100, 80)[1] > 5


@pytest.mark.parametrize("hint", [-50, 60, 99, 101, 130, 500])
def test_a_wrong_hint_costs_little(hint: int) -> None:
    found, tries = search(100, 90, hint=hint)
    assert found == 100
    assert tries <= 14


def test_nothing_fits() -> None:
    found, tries = search(-200, 5, lowest=-10)
    assert found is None
    assert tries < 8


def test_a_failure_of_another_kind_stops_and_is_no_limit() -> None:
    tries = {5: Try("ok"), 6: Try("failed")}
    now = state(tries, 5, lowest=0)
    assert now.spoiled
    assert now.next is None
    assert (now.low, now.high, now.found) == (5, None, False)


def test_the_order_of_tries_does_not_matter() -> None:
    one = state({5: Try("ok"), 9: Try("oom")}, 5, lowest=0)
    other = state({9: Try("oom"), 5: Try("ok")}, 5, lowest=0)
    assert one == other
    assert one.next == 7


def test_a_fit_above_a_failure_is_trusted() -> None:
    """Fragmentation can make a smaller model fail: the largest that trained counts."""
    now = state({5: Try("oom"), 7: Try("ok"), 8: Try("oom")}, 6, lowest=0)
    assert now.found
    assert now.low == 7
