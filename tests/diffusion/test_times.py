"""Times of a batch: one per bin, each of them uniform, in an order without meaning."""

import jax
import numpy as np
import pytest
from scipy import stats

from lmjax.config.schema import TimeSampling
from lmjax.diffusion.times import draw_times


def _draw(
    num_keys: int,
    batch_size: int,
    seed: int = 0,
    sampling: TimeSampling = TimeSampling.STRATIFIED,
) -> np.ndarray:
    keys = jax.random.split(jax.random.key(seed), num_keys)
    draw = jax.vmap(lambda key: draw_times(key, batch_size, sampling))
    return np.asarray(jax.jit(draw)(keys))


@pytest.mark.parametrize("batch_size", [1, 2, 7, 256])
def test_each_bin_holds_exactly_one_time(batch_size: int) -> None:
    times = np.sort(_draw(20, batch_size), axis=1)
    assert times.dtype == np.float32
    assert (times > 0).all()
    assert (times <= 1).all()
    edges = np.arange(batch_size + 1) / batch_size
    assert (times >= edges[:-1] - 1e-6).all()
    assert (times <= edges[1:] + 1e-6).all()


def test_the_time_of_every_row_is_uniform() -> None:
    """Chi-square per row over 20 bins that do not line up with the strata."""
    times = _draw(4000, 6, seed=1)
    for row in times.T:
        counts, _ = np.histogram(row, bins=20, range=(0, 1))
        assert stats.chisquare(counts).pvalue > 1e-3


def test_the_rows_of_a_batch_take_bins_in_any_order() -> None:
    """Each of the 3! orders is equally likely."""
    order = np.argsort(_draw(3000, 3, seed=2), axis=1) @ np.array([9, 3, 1])
    _, counts = np.unique(order, return_counts=True)
    assert len(counts) == 6
    assert stats.chisquare(counts).pvalue > 1e-3


def test_the_mean_over_a_batch_is_nearly_a_half() -> None:
    """The deviation of the mean is 1 / (sqrt(12) B^1.5), not 1 / sqrt(12 B)."""
    means = _draw(500, 64, seed=3).mean(axis=1)
    deviation = 1 / (np.sqrt(12) * 64**1.5)
    assert np.std(means) == pytest.approx(deviation, rel=0.15)
    assert np.mean(means) == pytest.approx(0.5, abs=4 * deviation / np.sqrt(500))


def test_other_keys_give_other_times() -> None:
    one, other = _draw(2, 8)
    assert not np.array_equal(one, other)


@pytest.mark.parametrize("sampling", list(TimeSampling))
def test_every_kind_of_time_is_uniform_and_above_0(sampling: TimeSampling) -> None:
    times = _draw(3000, 7, seed=4, sampling=sampling)
    assert times.shape == (3000, 7)
    assert (times > 0).all()
    assert (times <= 1).all()
    for place in (0, 6):
        assert stats.kstest(times[:, place], "uniform").pvalue > 1e-3


def test_antithetic_times_come_in_pairs_at_random_places() -> None:
    times = _draw(500, 8, seed=5, sampling=TimeSampling.ANTITHETIC)
    ordered = np.sort(times, axis=1)
    np.testing.assert_allclose(ordered + ordered[:, ::-1], 1.0, atol=1e-6)
    # The partner of the first row stands in no fixed place.
    partner = np.argmin(np.abs(times[:, 1:] - (1 - times[:, :1])), axis=1)
    assert len(np.unique(partner)) == 7


def test_uniform_times_leave_some_bins_empty() -> None:
    times = _draw(50, 64, seed=6, sampling=TimeSampling.UNIFORM)
    filled = [len(np.unique(np.floor(row * 64 - 1e-6))) for row in times]
    assert max(filled) < 60
