"""Rotary positions: the formula, and what it is for."""

import jax
import numpy as np

from lmjax.models.positions import rotate


def _reference(x: np.ndarray, positions: np.ndarray, theta: float) -> np.ndarray:
    """Each pair (x[i], x[i + H/2]) as a complex number, turned by its angle."""
    half = x.shape[-1] // 2
    pairs = x[..., :half].astype(np.float64) + 1j * x[..., half:]
    angles = positions[:, :, None, None] * theta ** (-np.arange(half) / half)
    turned = pairs * np.exp(1j * angles)
    return np.concatenate([turned.real, turned.imag], axis=-1)


def test_rotation_agrees_with_a_float64_reference() -> None:
    x = np.random.default_rng(0).normal(size=(2, 5, 3, 8)).astype(np.float32)
    positions = np.array([[0, 1, 2, 3, 4], [7, 7, 0, 100, 1000]], np.int32)
    output = jax.jit(rotate, static_argnames="theta")(x, positions, theta=10_000.0)
    np.testing.assert_allclose(output, _reference(x, positions, 10_000.0), atol=2e-4)
    near = np.array([[0, 1, 2, 3, 4]] * 2, np.int32)
    output = jax.jit(rotate, static_argnames="theta")(x, near, theta=500.0)
    np.testing.assert_allclose(output, _reference(x, near, 500.0), atol=1e-6)


def test_scores_depend_on_the_distance_alone() -> None:
    q, k = np.random.default_rng(1).normal(size=(2, 1, 4, 2, 8)).astype(np.float32)

    def scores(shift: int) -> np.ndarray:
        positions = np.arange(4, dtype=np.int32)[None] + shift
        turned = jax.jit(rotate, static_argnames="theta")
        q_turned, k_turned = (turned(x, positions, theta=10_000.0) for x in (q, k))
        return np.einsum("blnh,bsnh->bnls", q_turned, k_turned)

    np.testing.assert_allclose(scores(0), scores(37), atol=1e-4)
    assert not np.allclose(scores(0), np.einsum("blnh,bsnh->bnls", q, k), atol=0.1)


def test_position_zero_is_left_alone() -> None:
    x = np.random.default_rng(2).normal(size=(1, 1, 2, 6)).astype(np.float32)
    np.testing.assert_array_equal(rotate(x, np.zeros((1, 1), np.int32), 10_000.0), x)
