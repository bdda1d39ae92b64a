"""The step model finds the constants that made its data, holds cells back honestly, and its parts are of a size."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from harness.experiments.prediction.step_time_formula import (
    Model,
    Point,
    bootstrap,
    errors,
    fit,
    leave_one_out,
    slowest,
)

TRUE = Model(overhead=0.004, update=0.0, alpha=2e-4, host=1e-9, inefficiency=1.1, overlap=0.6, straggler=0.003)
CELLS = [(n, rate, wait) for n in (1, 2, 4) for rate in (None, 125e6, 12.5e6) for wait in (0.1, 0.1 / n)]


def made(noise: float = 0.0, model: Model = TRUE) -> list[Point]:
    generator = np.random.default_rng(1)
    points = []
    for ranks, rate, wait in CELLS:
        point = Point(ranks=ranks, wait_s=wait, parameter_bytes=6.5e6, link_bytes_per_s=rate)
        step = model.step(point) * (1 + noise * generator.standard_normal())
        points.append(Point(**{**point.__dict__, "step_s": step}))
    return points


def test_one_rank_exchanges_nothing():
    alone = Point(ranks=1, wait_s=0.1, parameter_bytes=1e9, link_bytes_per_s=1.0)
    assert alone.volume == 0
    assert TRUE.step(alone) == pytest.approx(0.104)


@pytest.mark.parametrize(
    ("ranks", "mean"),  # Teichroew 1956, expected values of order statistics; Harter 1961 for 100 and 400
    [(1, 0.0), (2, 0.5641896), (3, 0.8462844), (4, 1.0293754), (8, 1.4236003), (10, 1.5387527), (20, 1.8674751),
     (100, 2.5075936), (400, 2.9681785)],
)  # fmt: skip
def test_the_slowest_of_some_ranks_is_their_exact_mean_maximum(ranks: int, mean: float) -> None:
    assert slowest(ranks) == pytest.approx(mean, abs=2e-6)


def test_the_slowest_grows_as_drawn_values_do() -> None:
    drawn = np.random.default_rng(0).standard_normal((20_000, 64)).max(axis=1).mean()
    assert slowest(64) == pytest.approx(drawn, rel=0.01)
    assert slowest(8) / slowest(2) == pytest.approx(2.523, abs=0.001)
    assert slowest(100_000) < slowest(1_000_000)


def test_a_ring_sends_twice_the_gradients_in_the_limit():
    assert Point(ranks=512, wait_s=0, parameter_bytes=1.0, link_bytes_per_s=None).volume == pytest.approx(2, rel=0.01)


def test_noiseless_data_are_fitted_exactly():
    model = fit(made())
    assert np.abs(errors(model, made())).max() < 1e-3
    far = Point(ranks=64, wait_s=0.1, parameter_bytes=6.5e6, link_bytes_per_s=125e6)
    assert model.step(far) == pytest.approx(TRUE.step(far), rel=0.05)


def test_held_back_cells_are_predicted_within_noise():
    points = made(noise=0.03)
    held = leave_one_out(points, [(n, rate) for n, rate, _ in CELLS])
    assert np.median(np.abs([error for _, error in held])) < 0.1


def test_a_cell_that_breaks_the_model_shows_in_its_error():
    points = made()
    odd = len(points) - 1
    points[odd] = Point(**{**points[odd].__dict__, "step_s": points[odd].step_s * 3})
    held = leave_one_out(points, list(range(len(points))))
    assert abs(held[odd][1]) > 0.5


def test_uncertainty_grows_with_noise_and_with_distance():
    far = Point(ranks=512, wait_s=0.1, parameter_bytes=6.5e6, link_bytes_per_s=125e6)
    near = Point(ranks=4, wait_s=0.1, parameter_bytes=6.5e6, link_bytes_per_s=125e6)

    def width(noise: float, point: Point) -> float:
        steps = [model.step(point) for model in bootstrap(made(noise), 12)]
        return float(np.ptp(steps) / np.mean(steps))

    assert width(0.05, far) > width(0.001, far)
    assert width(0.05, far) > width(0.05, near)


def test_two_sizes_tell_shared_cores_from_dear_messages() -> None:
    true = replace(TRUE, update=2e-9)
    points = [
        replace(point, crowd=max(1.0, point.ranks / 2), parameter_bytes=size)
        for point in made()
        for size in (4e5, 6.5e6)
    ]
    points = [replace(point, step_s=true.step(point)) for point in points]
    model = fit(points)
    for name in ("overhead", "update", "alpha", "host", "inefficiency"):
        assert getattr(model, name) == pytest.approx(getattr(true, name), rel=0.05), name
    blind = fit([replace(point, crowd=1.0) for point in points])
    far = Point(ranks=512, wait_s=0.1, parameter_bytes=6.5e6, link_bytes_per_s=125e6)
    assert blind.step(far) > 1.2 * model.step(far)
