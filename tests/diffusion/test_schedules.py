"""Every schedule against its definition in float64, and against finite differences."""

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from lmjax.diffusion import schedules
from lmjax.diffusion.schedules import (
    MAX_SIGMA,
    BimodalGaussianSchedule,
    GeometricSchedule,
    HeavyCosineSchedule,
    ImportanceSchedule,
    LightCosineSchedule,
    LinearSchedule,
    LogRateSchedule,
    PolynomialSchedule,
    Schedule,
    SquaredCosineSchedule,
    sigma,
)

BIMODAL = dict(
    low_mean=0.12,
    low_std=0.02,
    low_share=0.6,
    high_mean_start=0.4,
    high_mean_end=0.85,
    high_std=0.08,
    uniform_share=0.01,
)
SIGMA_RATIO = 20.0 / 1e-4
# Name, schedule, m(t) in float64, mean rate.
CASES: list[tuple[str, Schedule, Callable[[np.ndarray], np.ndarray], float]] = [
    ("linear", LinearSchedule(), lambda t: t, 0.5),
    (
        "cosine light",
        LightCosineSchedule(),
        lambda t: 1 - np.cos(np.pi * t / 2),
        1 - 2 / math.pi,
    ),
    (
        "cosine heavy",
        HeavyCosineSchedule(),
        lambda t: np.sin(np.pi * t / 2),
        2 / math.pi,
    ),
    (
        "cosine squared",
        SquaredCosineSchedule(),
        lambda t: 1 - np.cos(np.pi * t / 2) ** 2,
        0.5,
    ),
    ("t^2", PolynomialSchedule(2.0), lambda t: t**2, 1 / 3),
    ("sqrt(t)", PolynomialSchedule(0.5), lambda t: np.sqrt(t), 2 / 3),
    (
        "geometric",
        GeometricSchedule(1e-4, 20.0),
        lambda t: 1 - np.exp(-(1e-4 ** (1 - t) * 20.0**t - 1e-4)),
        0.2926,
    ),
    ("log rate", LogRateSchedule(), None, 0.1264),
    ("importance", ImportanceSchedule(64), None, 0.4827),
    ("bimodal", BimodalGaussianSchedule(**BIMODAL), None, 0.4106),
]
NAMES = [case[0] for case in CASES]
SCHEDULES = {case[0]: case[1] for case in CASES}
GRID = np.linspace(0, 1, 201)


def _compute(schedule: Schedule, t: np.ndarray) -> dict[str, np.ndarray]:
    def run(t: jax.Array) -> dict[str, jax.Array]:
        rate = schedule.mask_rate(t)
        return {
            "rate": rate,
            "derivative": schedule.derivative(t),
            "weight": schedule.weight(t),
            "time": schedule.time(rate),
            "sigma": sigma(rate),
        }

    found = jax.jit(run)(jnp.asarray(t, jnp.float32))
    assert all(array.dtype == jnp.float32 for array in found.values())
    return {name: np.asarray(array, np.float64) for name, array in found.items()}


@pytest.mark.parametrize(
    ("schedule", "definition"),
    [(case[1], case[2]) for case in CASES if case[2]],
    ids=[case[0] for case in CASES if case[2]],
)
def test_the_rate_is_its_definition(
    schedule: Schedule, definition: Callable[[np.ndarray], np.ndarray]
) -> None:
    found = _compute(schedule, GRID)["rate"]
    exact = definition(GRID.astype(np.float32).astype(np.float64))
    np.testing.assert_allclose(found, exact, rtol=2e-5, atol=1e-7)


@pytest.mark.parametrize("name", NAMES)
def test_it_begins_clean_grows_and_ends_where_it_says(name: str) -> None:
    schedule = SCHEDULES[name]
    rate = _compute(schedule, GRID)["rate"]
    assert rate[0] == 0.0
    assert rate[-1] == pytest.approx(schedule.end, abs=1e-7)
    assert (np.diff(rate) >= 0).all()
    assert (np.diff(rate[rate < 0.999]) > 0).all()


@pytest.mark.parametrize("name", NAMES)
def test_derivative_and_weight_agree_with_finite_differences(name: str) -> None:
    """Central differences, of the rate or, where that is too steep, of its inverse."""
    schedule = SCHEDULES[name]
    t = np.linspace(0.02, 0.98, 97)
    step = 1e-3
    found = _compute(schedule, t)
    if name == "bimodal":
        ahead, behind = (
            np.asarray(schedule.time(jnp.asarray(found["rate"] + s, jnp.float32)))
            for s in (step, -step)
        )
        exact = 2 * step / (ahead - behind).astype(np.float64)
    else:
        ahead, behind = (_compute(schedule, t + s)["rate"] for s in (step, -step))
        exact = (ahead - behind) / (2 * step)
    # Float32 digits of what is subtracted, and the curvature of the sharpest.
    tolerance = {"bimodal": 0.02, "geometric": 0.01}.get(name, 0.005)
    np.testing.assert_allclose(found["derivative"], exact, rtol=tolerance, atol=4e-4)
    np.testing.assert_allclose(
        found["weight"], found["derivative"] / found["rate"], rtol=2e-5
    )


@pytest.mark.parametrize("name", NAMES)
def test_time_is_the_inverse_of_the_rate(name: str) -> None:
    found = _compute(SCHEDULES[name], GRID)
    inside = found["rate"] < 0.99  # beyond, a float32 rate no longer tells the time
    assert inside.sum() > 100
    np.testing.assert_allclose(found["time"][inside], GRID[inside], atol=2e-5)


@pytest.mark.parametrize(("name", "mean"), [(case[0], case[3]) for case in CASES])
def test_the_mean_rate_tells_the_cosines_apart(name: str, mean: float) -> None:
    """Bug 17: 0.363 is MDLM's cosine, 0.637 that of MD4 and Duo."""
    t = (np.arange(4000) + 0.5) / 4000
    assert _compute(SCHEDULES[name], t)["rate"].mean() == pytest.approx(mean, abs=5e-4)


@pytest.mark.parametrize("name", NAMES)
def test_the_weight_stays_finite_near_both_ends(name: str) -> None:
    t = np.array([2.0**-24, 1e-6, 1 - 2.0**-24, 1.0])
    found = _compute(SCHEDULES[name], t)
    assert np.isfinite(found["weight"]).all()
    assert (found["weight"] >= 0).all()
    assert np.isfinite(found["sigma"]).all()


@pytest.mark.parametrize("name", ["bimodal", "log rate", "importance"])
def test_uniform_times_give_rates_of_the_stated_density(name: str) -> None:
    """The density of rates is 1 / m'(t): by Kolmogorov and Smirnov on a fixed draw."""
    schedule = SCHEDULES[name]
    t = np.random.default_rng(0).random(20_000)
    rates = _compute(schedule, t)["rate"]
    if name == "bimodal":
        cut = [stats.truncnorm((0 - m) / s, (1 - m) / s, m, s) for m, s in MODES]
        law = lambda m: (  # noqa: E731
            0.01 * m + 0.99 * (0.6 * cut[0].cdf(m) + 0.4 * cut[1].cdf(m))
        )
    elif name == "log rate":
        total = 1 + math.log(1000)
        law = lambda m: (  # noqa: E731
            np.where(m < 1e-3, 1000 * m, 1 + np.log(np.maximum(m, 1e-3) * 1000)) / total
        )
    else:
        grid = np.linspace(0, 1, 200_001)[1:]
        density = np.sqrt(1 + 1 / (63 * grid))
        mass = np.cumsum(density)
        law = lambda m: np.interp(m, grid, mass / mass[-1])  # noqa: E731
    assert stats.kstest(rates, law).pvalue > 1e-3


MODES = ((0.12, 0.02), (0.85, 0.08))


def test_the_upper_mode_moves_in_the_course_of_training() -> None:
    schedule = BimodalGaussianSchedule(**BIMODAL)
    t = (np.arange(1000) + 0.5) / 1000
    for progress, mean in ((0.0, 0.4), (0.5, 0.625), (1.0, 0.85)):
        rates = _compute(schedule.at(jnp.float32(progress)), t)["rate"]
        assert np.median(rates[rates > 0.25]) == pytest.approx(mean, abs=0.01)
        assert np.median(rates[rates < 0.25]) == pytest.approx(0.12, abs=0.002)


def test_other_schedules_stay_as_they_are() -> None:
    for name, schedule in SCHEDULES.items():
        if name != "bimodal":
            assert schedule.at(0.3) is schedule


def test_importance_has_the_least_variance_for_a_constant_loss() -> None:
    """n / (m p(m)) of n ~ Binomial(64, m): below uniform, linear and log rates."""
    deviations = {}
    for name in ("importance", "linear", "log rate", "cosine light"):
        t = (np.arange(200_000) + 0.5) / 200_000
        found = _compute(SCHEDULES[name], t)
        m, w = found["rate"], found["weight"]
        second = (w**2 * (64 * m * (1 - m) + (64 * m) ** 2)).mean()
        assert (w * 64 * m).mean() == pytest.approx(64, rel=1e-3)
        deviations[name] = math.sqrt(second - 64**2)
    assert deviations["importance"] == min(deviations.values())


def test_what_lies_outside_a_domain_is_refused() -> None:
    """Bug 20: sigma_max = 1 would begin sampling with a third of the text visible."""
    with pytest.raises(ValueError, match="prior is not all mask"):
        GeometricSchedule(1e-4, 1.0)
    with pytest.raises(ValueError, match="sigma_min"):
        GeometricSchedule(0.0, 20.0)
    with pytest.raises(ValueError, match="power"):
        PolynomialSchedule(0.0)
    with pytest.raises(ValueError, match="uniform_share"):
        BimodalGaussianSchedule(**BIMODAL | dict(uniform_share=0.0))
    with pytest.raises(ValueError, match="deviations"):
        BimodalGaussianSchedule(**BIMODAL | dict(low_std=0.0))


def test_sigma_is_the_total_noise_and_has_a_ceiling() -> None:
    rates = np.array([0.0, 1e-6, 0.5, 0.999, 1.0], np.float32)
    noise = np.asarray(jax.jit(sigma)(rates))
    exact = -np.log1p(-rates[:-1].astype(np.float64))
    np.testing.assert_allclose(noise[:-1], exact, rtol=1e-5)
    assert noise[-1] == MAX_SIGMA


def test_the_shipped_schedules_are_all_tried_here() -> None:
    found = {
        value
        for value in vars(schedules).values()
        if isinstance(value, type) and value.__name__.endswith("Schedule")
    }
    assert found - {Schedule} <= {type(schedule) for schedule in SCHEDULES.values()}
