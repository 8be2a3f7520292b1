"""Mask schedules: endpoints, weights, inverses, and one bound for all of them."""

import itertools
import math

import jax
import numpy as np
import pytest

from lmjax.diffusion.schedules import (
    MAX_SIGMA,
    CosineSchedule,
    LinearSchedule,
    MaskSchedule,
    sigma,
)

SCHEDULES = [LinearSchedule(), CosineSchedule()]
EVERY_SCHEDULE = pytest.mark.parametrize(
    "schedule", SCHEDULES, ids=lambda schedule: type(schedule).__name__
)

# The definitions in float64, apart from the code under test.
EXACT = {
    "LinearSchedule": lambda t: t,
    "CosineSchedule": lambda t: 1 - np.cos(np.pi * t / 2),
}


def _exact(schedule: MaskSchedule, t: np.ndarray) -> np.ndarray:
    return EXACT[type(schedule).__name__](np.asarray(t, np.float64))


def _midpoints(count: int) -> np.ndarray:
    return ((np.arange(count) + 0.5) / count).astype(np.float32)


@EVERY_SCHEDULE
def test_nothing_is_masked_at_the_start_and_everything_at_the_end(
    schedule: MaskSchedule,
) -> None:
    assert float(schedule.mask_rate(np.float32(0))) == 0.0
    assert float(schedule.mask_rate(np.float32(1))) == pytest.approx(1.0, abs=1e-7)
    assert float(schedule.mask_rate(np.float32(1))) <= 1.0


@EVERY_SCHEDULE
def test_the_mask_rate_is_its_definition_and_grows(schedule: MaskSchedule) -> None:
    t = np.concatenate([np.float32([1e-6, 1e-4]), _midpoints(200)])
    rates = np.asarray(schedule.mask_rate(t))
    assert rates.dtype == np.float32
    np.testing.assert_allclose(rates[2:], _exact(schedule, t)[2:], rtol=2e-6)
    assert (np.diff(rates) > 0).all()
    # Close to 0 the cosine keeps its digits: 1 - cos(x) = x^2 / 2 there.
    if isinstance(schedule, CosineSchedule):
        np.testing.assert_allclose(rates[:2], (np.pi * t[:2]) ** 2 / 8, rtol=1e-5)


@EVERY_SCHEDULE
def test_the_weight_is_the_derivative_over_the_rate(schedule: MaskSchedule) -> None:
    t, h = _midpoints(50), 1e-5
    t64 = t.astype(np.float64)
    difference = (_exact(schedule, t64 + h) - _exact(schedule, t64 - h)) / (2 * h)
    expected = difference / _exact(schedule, t64)
    np.testing.assert_allclose(schedule.weight(t), expected, rtol=5e-6)


@EVERY_SCHEDULE
def test_weights_stay_finite_at_the_smallest_time_that_is_drawn(
    schedule: MaskSchedule,
) -> None:
    t = np.float32([2.0**-23 / 4096, 1.0])
    weights = np.asarray(schedule.weight(t))
    assert np.isfinite(weights).all()
    assert weights[1] > 0


@EVERY_SCHEDULE
def test_time_is_the_inverse_of_the_rate(schedule: MaskSchedule) -> None:
    t = np.concatenate([np.float32([0.0, 1e-5]), _midpoints(100), np.float32([1.0])])
    np.testing.assert_allclose(schedule.time(schedule.mask_rate(t)), t, atol=3e-6)


@pytest.mark.parametrize(
    ("schedule", "mean"), [(LinearSchedule(), 0.5), (CosineSchedule(), 0.3634)]
)
def test_the_mean_mask_rate_tells_the_schedule_from_its_namesakes(
    schedule: MaskSchedule, mean: float
) -> None:
    rates = np.asarray(schedule.mask_rate(_midpoints(4096)), np.float64)
    assert rates.mean() == pytest.approx(mean, abs=5e-5)


def test_the_bound_does_not_depend_on_the_schedule() -> None:
    """E_t[w(t) * masked cross-entropy] on a toy whose subset sum is known exactly.

    Each subset S of L = 4 tokens costs an arbitrary c(S); under rate m it is masked
    with m^|S| (1-m)^(L-|S|), and the integral over m of that over m is a beta function.
    """
    length = 4
    generator = np.random.default_rng(0)
    subsets = [
        subset
        for size in range(1, length + 1)
        for subset in itertools.combinations(range(length), size)
    ]
    sizes = np.array([len(subset) for subset in subsets])
    costs = generator.uniform(0, 3, len(subsets)) * sizes
    exact = sum(
        cost * math.factorial(size - 1) * math.factorial(length - size)
        for size, cost in zip(sizes, costs, strict=True)
    ) / math.factorial(length)
    t = _midpoints(20_000)
    for schedule in SCHEDULES:
        rates = np.asarray(schedule.mask_rate(t), np.float64)[:, None]
        weights = np.asarray(schedule.weight(t), np.float64)
        expected_cost = (rates**sizes * (1 - rates) ** (length - sizes)) @ costs
        assert np.mean(weights * expected_cost) == pytest.approx(exact, rel=1e-5)


def test_sigma_is_the_total_noise_and_has_a_ceiling() -> None:
    rates = np.float32([0.0, 0.25, 0.5, 0.9, 1.0])
    noise = np.asarray(jax.jit(sigma)(rates))
    np.testing.assert_allclose(noise[:4], -np.log1p(-rates[:4]), rtol=1e-5)
    assert noise[0] == 0.0
    assert noise[4] == pytest.approx(MAX_SIGMA, rel=1e-6)
