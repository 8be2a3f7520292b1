"""Times of a batch: one per bin, each of them uniform, in an order without meaning."""

import jax
import numpy as np
import pytest
from scipy import stats

from lmjax.diffusion.times import stratified_times


def _draw(num_keys: int, batch_size: int, seed: int = 0) -> np.ndarray:
    keys = jax.random.split(jax.random.key(seed), num_keys)
    draw = jax.vmap(stratified_times, in_axes=(0, None))
    return np.asarray(jax.jit(draw, static_argnums=1)(keys, batch_size))


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
