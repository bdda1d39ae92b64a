"""Figures of a run: what is dropped, what is divided by what."""

import math

import pytest

from harness.records import step_metrics


def rows(times, samples=8, workers=2):
    now = 0.0
    made = []
    for step, seconds in enumerate(times):
        now += seconds
        made.append(
            {"step": step, "step_s": seconds, "data_s": 0.1 * seconds, "samples": samples, "t": now, "loss": 1.0,
             "skipped": False, "rank_step_s": [seconds] * workers}
        )  # fmt: skip
    return made


def test_warmup_is_dropped_and_nothing_else() -> None:
    figures = step_metrics.summarize(rows([9.0, 9.0, 1.0, 2.0, 3.0, 100.0]), warmup=2)
    assert figures["step_s"]["n"] == 4
    assert figures["step_s"]["median"] == 2.5
    assert figures["step_s"]["p99"] > 90  # the outlier stays
    assert figures["warmup_steps"] == 2


def test_throughput_is_samples_over_whole_steps_and_per_worker_divides_by_ranks() -> None:
    figures = step_metrics.summarize(rows([0.5] * 10, samples=16, workers=4), warmup=0)
    assert figures["samples_per_s"]["median"] == pytest.approx(32.0)
    assert figures["samples_per_s_per_worker"]["median"] == pytest.approx(8.0)
    assert figures["data_share"] == pytest.approx(0.1)


def test_no_row_left_gives_none_not_an_error() -> None:
    figures = step_metrics.summarize(rows([1.0]), warmup=10)
    assert figures["step_s"] == {"median": None, "q1": None, "q3": None, "p90": None, "p99": None, "n": 0}
    assert figures["drift"] is None
    assert figures["data_share"] is None


@pytest.mark.parametrize(("times", "expected"), [([1.0] * 10 + [1.2] * 10, 0.2), ([1.5] * 10 + [1.0] * 10, -1 / 3)])
def test_drift_has_the_sign_of_the_change(times: list[float], expected: float) -> None:
    assert step_metrics.summarize(rows(times), warmup=0)["drift"] == pytest.approx(expected)


def test_efficiency_and_its_warning() -> None:
    assert step_metrics.efficiency(10.0, 17.0, 2) == pytest.approx(0.85)
    assert step_metrics.efficiency_warning(0.99, 2, "strong") is None
    strong = step_metrics.efficiency_warning(1.2, 2, "strong")
    weak = step_metrics.efficiency_warning(1.2, 2, "weak")
    assert "120%" in strong
    assert "share of the fixed global batch" in strong
    assert "share of the fixed global batch" not in weak


def test_time_to_target_is_the_first_time_it_is_reached() -> None:
    points = [(1.0, 0.9), (2.0, 0.5), (3.0, 0.6), (4.0, 0.4)]
    assert step_metrics.time_to_target(points, 0.5, higher_is_better=False) == 2.0
    assert step_metrics.time_to_target(points, 0.95, higher_is_better=True) is None
    assert step_metrics.time_to_target(points, 0.9, higher_is_better=True) == 1.0


def test_smoothed_loss_begins_when_its_window_is_full() -> None:
    made = rows([1.0] * 12)
    for index, row in enumerate(made):
        row["loss"] = float(index)
    curve = step_metrics.smooth_loss(made, window=10)
    assert [time for time, _ in curve] == [10.0, 11.0, 12.0]
    assert [loss for _, loss in curve] == pytest.approx([4.5, 5.5, 6.5])


def test_straggler_is_found_by_own_work_and_named_once() -> None:
    steady = [0.100, 0.101, 0.099]
    assert step_metrics.stragglers({0: steady, 1: steady, 2: [0.104]}) == []
    (found,) = step_metrics.stragglers({0: steady, 1: [0.15, 0.152], 2: steady})
    assert found["rank"] == 1
    assert math.isclose(found["excess"], 0.51, abs_tol=0.02)


def test_single_rank_has_no_straggler() -> None:
    assert step_metrics.stragglers({0: [1.0, 2.0]}) == []


def test_totals_count_what_lies_between_steps_and_not_the_time_between_two_starts() -> None:
    made = rows([9.0, 1.0, 1.0, 1.0, 9.0, 2.0, 2.0])
    for row in made[2:]:
        row["t"] += 0.5  # a checkpoint before the third step
    for row in made[4:]:
        row["t"] += 100.0  # the workers were started again: the next step is a warm-up step too
    made[4]["restarted"] = True
    whole = step_metrics.totals(made, warmup=1)
    assert (whole.steps, whole.samples) == (5, 40)
    assert whole.seconds == pytest.approx(3.5 + 4.0)
    assert whole.between_s == pytest.approx(0.5)
    assert whole.samples_per_s == pytest.approx(40 / 7.5)
    assert step_metrics.summarize(made, warmup=1)["total"] == whole.record()


def test_totals_without_warm_up_begin_with_the_first_step_and_need_no_clock() -> None:
    made = rows([1.0, 2.0, 3.0])
    assert step_metrics.totals(made, warmup=0).seconds == pytest.approx(6.0)
    for row in made:
        del row["t"]  # a record that holds no clock counts by its steps
    assert step_metrics.totals(made, warmup=1).seconds == pytest.approx(5.0)
    assert step_metrics.totals(made, warmup=3) is None


def test_a_percentile_needs_steps_enough_to_bound_it() -> None:
    assert [step_metrics.steps_for_percentile(percent) for percent in (90, 95, 99)] == [29, 59, 299]
    for percent, fewest in ((90, 29), (95, 59), (99, 299)):
        assert (percent / 100) ** fewest <= 0.05 < (percent / 100) ** (fewest - 1)
        assert step_metrics.tail([1.0] * (fewest - 1), percent) is None
        assert step_metrics.tail([1.0] * fewest, percent) == 1.0


def timed(step: int, step_s: float, t: float, **changes: object) -> dict[str, object]:
    return {"step": step, "step_s": step_s, "t": t, "samples": 8, **changes}


def test_rate_of_a_window_is_all_samples_over_all_seconds() -> None:
    """One short step at the end does not make a fast run: 24 samples in 6 s, waits between steps among them."""
    rows = [timed(0, 1.0, 1.0), timed(1, 1.0, 3.0), timed(2, 2.5, 6.5), timed(3, 0.1, 7.0)]
    assert step_metrics.window_rate(rows) == pytest.approx(24 / 6.0)
    assert step_metrics.window_rate(rows[:1]) == pytest.approx(8.0), "a single step by itself"
    assert step_metrics.window_rate([]) is None
    again = [*rows, timed(4, 1.0, 100.0, restarted=True), timed(5, 1.0, 102.0)]
    assert step_metrics.window_rate(again) == pytest.approx(4.0), "what lies between two starts is nobody's"
    clockless = [{key: value for key, value in row.items() if key != "t"} for row in rows]
    assert step_metrics.window_rate(clockless) == pytest.approx(24 / 3.6)
