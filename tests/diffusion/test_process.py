"""The absorbing process masks at its rate and reveals at the reverse one."""

import jax
import numpy as np
import pytest

from lmjax.diffusion.process import MaskProcess
from lmjax.diffusion.schedules import CosineSchedule, LinearSchedule, MaskSchedule

SCHEDULES = pytest.mark.parametrize(
    "schedule",
    [LinearSchedule(), CosineSchedule()],
    ids=lambda schedule: type(schedule).__name__,
)


@SCHEDULES
def test_tokens_are_masked_at_the_rate_of_their_row(schedule: MaskSchedule) -> None:
    process = MaskProcess(mask_id=9, schedule=schedule)
    t = np.float32([0.1, 0.4, 0.8])
    length = 20_000
    masked = process.choose(jax.random.key(0), t, length)
    rates = np.asarray(schedule.mask_rate(t))
    deviations = np.sqrt(rates * (1 - rates) / length)
    assert (np.abs(np.mean(masked, axis=1) - rates) < 4 * deviations).all()


@SCHEDULES
def test_no_token_is_masked_at_time_0_and_all_are_at_time_1(
    schedule: MaskSchedule,
) -> None:
    process = MaskProcess(mask_id=9, schedule=schedule)
    masked = np.asarray(process.choose(jax.random.key(0), np.float32([0, 1]), 1000))
    assert not masked[0].any()
    assert masked[1].all()


def test_tokens_are_masked_independently_of_each_other() -> None:
    process = MaskProcess(mask_id=9, schedule=LinearSchedule())
    t = np.full(4000, 0.5, np.float32)
    masked = np.asarray(process.choose(jax.random.key(1), t, 4), np.float64)
    correlation = np.corrcoef(masked.T) - np.eye(4)
    assert np.abs(correlation).max() < 4 / np.sqrt(4000)


def test_masking_replaces_the_chosen_tokens_alone() -> None:
    process = MaskProcess(mask_id=9, schedule=LinearSchedule())
    tokens = np.int32([[3, 4, 5]])
    noised = process.mask(tokens, np.array([[True, False, True]]))
    np.testing.assert_array_equal(noised, [[9, 4, 9]])


@SCHEDULES
def test_a_step_to_time_0_reveals_everything(schedule: MaskSchedule) -> None:
    process = MaskProcess(mask_id=9, schedule=schedule)
    t = np.float32([1e-6, 1e-3, 0.3, 1.0])
    np.testing.assert_array_equal(process.reveal_probability(t, np.float32(0)), 1.0)


@SCHEDULES
def test_many_small_steps_leave_as_many_masked_as_one_large_step(
    schedule: MaskSchedule,
) -> None:
    process = MaskProcess(mask_id=9, schedule=schedule)
    grid = np.linspace(1.0, 0.2, 9).astype(np.float32)
    steps = 1 - np.asarray(process.reveal_probability(grid[:-1], grid[1:]))
    assert ((steps > 0) & (steps < 1)).all()
    expected = 1 - process.reveal_probability(grid[0], grid[-1])
    assert np.prod(steps) == pytest.approx(float(expected), rel=1e-5)
    assert float(expected) == pytest.approx(
        float(schedule.mask_rate(grid[-1])), rel=1e-5
    )
