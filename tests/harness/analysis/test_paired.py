"""Is a difference real? The intervals must cover the truth as often as they claim."""

import numpy as np
import pytest

from harness.analysis import intervals


def test_three_per_cent_is_found_although_the_machine_drifts_by_twenty() -> None:
    rng = np.random.default_rng(1)
    rates = []
    for repeat in range(5):
        machine = 1 - 0.05 * repeat  # hits both engines of a repeat alike
        rates.append((100 * machine * (1 + rng.normal(0, 0.003)), 103 * machine * (1 + rng.normal(0, 0.003))))
    difference = intervals.relative_difference("a", "b", rates)
    assert difference.real
    assert difference.value == pytest.approx(0.03, abs=0.01)
    assert difference.low < 0.03 < difference.high


def test_no_difference_is_not_called_real_more_often_than_it_should_be() -> None:
    rng = np.random.default_rng(2)
    called = 0
    for _ in range(400):
        called += intervals.relative_difference("a", "b", list(rng.normal(100, 1, (3, 2)))).real
    assert called / 400 < 0.09  # 5 % by construction


def test_step_bootstrap_finds_a_slowdown_of_these_two_runs_but_is_never_real() -> None:
    rng = np.random.default_rng(3)
    base = rng.lognormal(0, 0.02, 200)
    slowed = intervals.step_difference("a", "b", base, 1.03 * rng.lognormal(0, 0.02, 200))
    assert slowed.high < 0
    assert slowed.value == pytest.approx(-0.03, abs=0.01)
    assert not slowed.real
    same = intervals.step_difference("a", "b", base, rng.lognormal(0, 0.02, 200))
    assert same.low < 0 < same.high
    assert not same.alike


def test_one_pair_is_never_real_nor_alike() -> None:
    one = intervals.Speeds({"a": {0: 100.0}, "b": {0: 130.0}}, 1).difference("a", "b")
    assert (one.low, one.high, one.word) == (None, None, "undecided")
    planted = intervals.Difference(a="a", b="b", value=0.3, low=0.29, high=0.31, pairs=1)
    assert planted.undecided


def test_mean_ratios_of_the_same_repeats_are_the_paired_difference() -> None:
    first, second = [100.0, 90.0, 97.0], [104.0, 96.0, 99.0]
    means = [intervals.mean_ratio(rates)[0] for rates in (first, second)]
    paired = intervals.relative_difference("a", "b", list(zip(first, second, strict=True)))
    assert means[1] / means[0] - 1 == pytest.approx(paired.value, rel=1e-12)
    mean, low, high = intervals.mean_ratio(first)
    assert low < 90.0 < mean < 100.0 < high
    assert intervals.mean_ratio([100.0])[1:] == (None, None)


def test_two_pairs_are_wide_and_one_pair_has_no_interval() -> None:
    two = intervals.relative_difference("a", "b", [(100, 104), (100, 106)])
    assert two.low < 0 < two.high  # Student's t with one degree of freedom
    many = intervals.relative_difference("a", "b", [(100, 104), (100, 120)], comparisons=100)
    assert many.interval() == "no interval", "it reached from nothing to many times as fast"
    one = intervals.plain_difference("a", "b", [(0.5, 0.6)])
    assert one.low is None
    assert not one.real
    assert one.interval() == "no interval"


def test_one_answer_more_in_each_of_two_seeds_is_no_certainty() -> None:
    same = intervals.plain_difference("a", "b", [(0.778, 0.783), (0.758, 0.763)])
    assert same.value == pytest.approx(0.005)
    assert same.low is None
    assert not same.real
    assert intervals.plain_difference("a", "b", [(0.7, 0.7), (0.8, 0.8)]).interval() == "95 % CI 0.0 to 0.0"


def test_relative_difference_is_symmetric() -> None:
    rates = [(10, 11), (10, 11.2), (9, 9.8)]
    there = intervals.relative_difference("a", "b", rates)
    back = intervals.relative_difference("b", "a", [(b, a) for a, b in rates])
    assert (1 + there.value) * (1 + back.value) == pytest.approx(1)
    assert (1 + there.low) * (1 + back.high) == pytest.approx(1)


def test_mean_interval_is_students() -> None:
    from scipy import stats

    values = [0.81, 0.84, 0.86, 0.80]
    mean, half = intervals.mean_interval(values)
    low, high = stats.t.interval(0.95, len(values) - 1, loc=np.mean(values), scale=stats.sem(values))
    assert mean - half == pytest.approx(low)
    assert mean + half == pytest.approx(high)


def test_many_comparisons_widen_the_interval_so_that_all_hold_together() -> None:
    rng = np.random.default_rng(4)
    wrong = 0
    for _ in range(300):  # six pairs of equal engines: any "real" one is a false alarm
        engines = rng.normal(100, 1, (5, 4))
        pairs = [(i, j) for i in range(4) for j in range(i)]
        wrong += any(
            intervals.relative_difference("a", "b", list(engines[:, [i, j]]), comparisons=6).real for i, j in pairs
        )
    assert wrong / 300 < 0.08  # without the widening about 20 %
    rates = [(10, 11), (10, 11.2), (9, 9.8)]
    one, six = (intervals.relative_difference("a", "b", rates, comparisons=count) for count in (1, 6))
    assert six.low < one.low < one.high < six.high
    assert six.value == one.value


def test_few_steps_give_no_interval() -> None:
    assert intervals.step_difference("a", "b", [1.0] * 5, [1.1] * 5).low is None


def _blocks(rng: np.random.Generator, engines: dict[str, float], repeats: int, scatter: float) -> dict:
    """Throughputs by engine and repeat on a machine that slows down by a tenth from repeat to repeat."""
    return {
        name: {repeat: speed * 0.9**repeat * rng.lognormal(0, scatter) for repeat in range(repeats)}
        for name, speed in engines.items()
    }


def test_six_engines_with_two_repeats_tell_what_two_pairs_cannot() -> None:
    rng = np.random.default_rng(5)
    rates = _blocks(rng, {"a": 100, "b": 101, "c": 100, "d": 99, "e": 100, "slow": 40}, 2, 0.03)
    found = {(d.a, d.b): d for d in intervals.block_differences(rates)}
    assert len(found) == 15
    slow = found["a", "slow"]
    assert slow.real
    assert slow.low < -0.6 < slow.high
    assert slow.basis() == "2 interleaved repeats of 6 engines"
    assert not any(d.real for names, d in found.items() if "slow" not in names)
    alone = list(zip(rates["a"].values(), rates["slow"].values(), strict=True))
    assert not intervals.relative_difference("a", "slow", alone, comparisons=15).real, "one degree of freedom"


def test_blocks_of_equal_engines_are_called_real_as_rarely_as_they_claim() -> None:
    rng = np.random.default_rng(6)
    wrong = sum(
        any(d.real for d in intervals.block_differences(_blocks(rng, dict.fromkeys("abcd", 100.0), 3, 0.02)))
        for _ in range(200)
    )
    assert wrong / 200 < 0.09  # 5 % by construction


def test_blocks_agree_with_the_textbook_and_survive_a_missing_run() -> None:
    from scipy import stats

    rng = np.random.default_rng(7)
    rates = _blocks(rng, {"a": 100, "b": 110, "c": 121}, 4, 0.02)
    first = intervals.block_differences(rates)[0]
    logs = np.log([[rates[name][repeat] for repeat in range(4)] for name in "abc"])
    rest = logs - logs.mean(0, keepdims=True) - logs.mean(1, keepdims=True) + logs.mean()
    half = stats.studentized_range.ppf(0.95, 3, 6) * np.sqrt((rest**2).sum() / 6 / 4)
    assert np.log1p(first.value) == pytest.approx(logs[1].mean() - logs[0].mean())
    assert np.log1p(first.high) - np.log1p(first.value) == pytest.approx(half)
    del rates["c"][3]  # the slowest repeat: its mean alone would look faster
    third = {(d.a, d.b): d for d in intervals.block_differences(rates)}["a", "c"]
    assert third.value == pytest.approx(0.21, abs=0.05)
    assert third.pairs == 3


def test_blocks_need_three_engines_repeats_and_a_shared_repeat() -> None:
    assert intervals.block_differences({"a": {0: 1.0, 1: 1.1}, "b": {0: 2.0, 1: 2.1}}) == []
    assert intervals.block_differences({name: {0: 1.0} for name in "abc"}) == []
    apart = {"a": {0: 1.0, 1: 1.1}, "b": {2: 1.0, 3: 1.2}, "c": {4: 1.0, 5: 1.0}}
    assert intervals.block_differences(apart) == []
    assert intervals.block_differences({}) == []


def test_engine_that_jumps_does_not_hide_what_steady_ones_show() -> None:
    rng = np.random.default_rng(8)
    kept = 0
    for _ in range(40):
        rates = _blocks(rng, dict.fromkeys("abcd", 100.0), 3, 0.001)
        rates["jumps"] = {repeat: 30 * float(rng.lognormal(0, 0.3)) for repeat in range(3)}
        kept += bool(intervals.block_differences(rates))
    assert kept <= 4, "its scatter would widen the interval of every other two"


def test_engines_of_equal_scatter_keep_the_one_model() -> None:
    rng = np.random.default_rng(9)
    for engines in ("abc", "abcdef"):
        kept = sum(
            bool(intervals.block_differences(_blocks(rng, dict.fromkeys(engines, 100.0), 3, 0.03))) for _ in range(200)
        )
        assert kept >= 194, engines  # 99 % by construction


def test_an_interval_is_as_undecided_from_either_side() -> None:
    """-23.5 to +3.5 % is -3.4 to +31 % the other way round."""
    one = intervals.Difference(a="a", b="b", value=-0.11, low=-0.235, high=0.035, pairs=3)
    other = intervals.Difference(a="b", b="a", value=1 / 0.89 - 1, low=1 / 1.035 - 1, high=1 / 0.765 - 1, pairs=3)
    assert one.undecided
    assert other.undecided
    assert intervals.Difference(a="a", b="b", value=0.0, low=-0.1, high=0.1, pairs=3).undecided, "wider than 5 %"
    assert intervals.Difference(a="a", b="b", value=0.0, low=None, high=None, pairs=1).undecided
    share = intervals.Difference(a="a", b="b", value=0.0, low=-0.01, high=0.01, pairs=3, relative=False)
    assert share.alike


def test_alike_is_the_same_from_either_side() -> None:
    def told(low: float, high: float) -> bool:
        return intervals.Difference(a="a", b="b", value=0.0, low=low, high=high, pairs=3).alike

    assert told(-0.04, 0.04)
    assert told(-0.04, 0.03) == told(1 / 1.03 - 1, 1 / 0.96 - 1) is True
    assert told(-0.049, 0.03) == told(1 / 1.03 - 1, 1 / 0.951 - 1) is False
    assert not told(-0.06, 0.01)
    assert not told(0.01, 0.02), "a real difference, however small, is none"
