"""The absorbing process masks at its rate and reveals at the reverse one."""

import jax
import numpy as np
import pytest

from lmjax.diffusion.process import MaskProcess, UniformProcess
from lmjax.diffusion.schedules import (
    GeometricSchedule,
    LightCosineSchedule,
    LinearSchedule,
    Schedule,
)

SCHEDULES = pytest.mark.parametrize(
    "schedule",
    [LinearSchedule(), LightCosineSchedule()],
    ids=lambda schedule: type(schedule).__name__,
)


def _process(schedule: Schedule) -> MaskProcess:
    return MaskProcess(mask_id=9, schedule=schedule, predictable=np.arange(3, 9))


@SCHEDULES
def test_tokens_are_masked_at_the_rate_of_their_row(schedule: Schedule) -> None:
    process = _process(schedule)
    t = np.float32([0.1, 0.4, 0.8])
    length = 20_000
    masked = process.choose(jax.random.key(0), schedule.mask_rate(t), length)
    rates = np.asarray(schedule.mask_rate(t))
    deviations = np.sqrt(rates * (1 - rates) / length)
    assert (np.abs(np.mean(masked, axis=1) - rates) < 4 * deviations).all()


@SCHEDULES
def test_no_token_is_masked_at_time_0_and_all_are_at_time_1(
    schedule: Schedule,
) -> None:
    process = _process(schedule)
    masked = np.asarray(
        process.choose(jax.random.key(0), schedule.mask_rate(np.float32([0, 1])), 1000)
    )
    assert not masked[0].any()
    assert masked[1].all()


def test_tokens_are_masked_independently_of_each_other() -> None:
    process = _process(LinearSchedule())
    t = np.full(4000, 0.5, np.float32)
    masked = np.asarray(process.choose(jax.random.key(1), t, 4), np.float64)
    correlation = np.corrcoef(masked.T) - np.eye(4)
    assert np.abs(correlation).max() < 4 / np.sqrt(4000)


def test_masking_replaces_the_chosen_tokens_alone() -> None:
    process = _process(LinearSchedule())
    tokens = np.int32([[3, 4, 5]])
    noised = process.mask(tokens, np.array([[True, False, True]]))
    np.testing.assert_array_equal(noised, [[9, 4, 9]])


@SCHEDULES
def test_a_step_to_time_0_reveals_everything(schedule: Schedule) -> None:
    process = _process(schedule)
    t = np.float32([1e-6, 1e-3, 0.3, 1.0])
    np.testing.assert_array_equal(process.reveal_probability(t, np.float32(0)), 1.0)


@SCHEDULES
def test_many_small_steps_leave_as_many_masked_as_one_large_step(
    schedule: Schedule,
) -> None:
    process = _process(schedule)
    grid = np.linspace(1.0, 0.2, 9).astype(np.float32)
    steps = 1 - np.asarray(process.reveal_probability(grid[:-1], grid[1:]))
    assert ((steps > 0) & (steps < 1)).all()
    expected = 1 - process.reveal_probability(grid[0], grid[-1])
    assert np.prod(steps) == pytest.approx(float(expected), rel=1e-5)
    assert float(expected) == pytest.approx(
        float(schedule.mask_rate(grid[-1])), rel=1e-5
    )


def test_a_rate_of_its_own_for_every_token() -> None:
    rates = np.array([[0.0, 1.0, 0.5]] * 4000, np.float32)
    masked = _process(LinearSchedule()).choose(jax.random.key(0), rates, 3)
    assert np.asarray(masked).mean(axis=0) == pytest.approx([0, 1, 0.5], abs=0.03)


def test_a_prior_that_is_all_mask_costs_nothing() -> None:
    process = _process(LinearSchedule())
    assert process.prior_nats == 0.0
    assert (np.asarray(process.draw_prior(jax.random.key(0), (4, 5))) == 9).all()


def test_a_prior_that_is_not_pays_its_divergence_and_is_drawn_as_such() -> None:
    """KL of q(x_1 | x_0) from the prior, written out over 6 tokens and the mask."""
    process = _process(GeometricSchedule(1e-4, 5.0))
    end = 1 - np.exp(-(5.0 - 1e-4))
    q = np.array([1 - end, 0, 0, 0, 0, 0, end])
    prior = np.append(np.full(6, (1 - end) / 6), end)
    divergence = np.sum(q[q > 0] * np.log(q[q > 0] / prior[q > 0]))
    assert process.prior_nats == pytest.approx(divergence, rel=1e-6)
    drawn = np.asarray(process.draw_prior(jax.random.key(0), (300, 1000)))
    shares = np.array([(drawn == token).mean() for token in (*range(3, 9), 9)])
    assert shares == pytest.approx(prior, rel=0.1)


def test_uniform_noise_keeps_a_token_as_often_as_it_says() -> None:
    process = UniformProcess(schedule=LinearSchedule(), predictable=np.array([3, 5, 8]))
    tokens = np.full((2, 30_000), 5, np.int32)
    found = np.asarray(
        process.replace(jax.random.key(0), tokens, np.float32([0.3, 1.0]))
    )
    assert set(np.unique(found)) == {3, 5, 8}
    assert (found[0] == 5).mean() == pytest.approx(0.7 + 0.3 / 3, abs=0.01)
    assert (found[1] == 5).mean() == pytest.approx(1 / 3, abs=0.01)
