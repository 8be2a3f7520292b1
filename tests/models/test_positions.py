"""Rotary positions: the formula, and what it is for."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from lmjax.config.schema import ModelConfig
from lmjax.models.attention import Attention, Rows
from lmjax.models.attention_kernels import library_attention
from lmjax.models.positions import LearnedPositions, Rotation, rotate


def _rotate(x: np.ndarray, positions: np.ndarray, theta: float) -> jax.Array:
    """As a model turns queries and keys."""

    def turn(x: jax.Array, positions: jax.Array) -> jax.Array:
        return rotate(x, Rotation.at(positions, head_width=x.shape[-1], theta=theta))

    return jax.jit(turn)(x, positions)


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
    output = _rotate(x, positions, theta=10_000.0)
    np.testing.assert_allclose(output, _reference(x, positions, 10_000.0), atol=2e-4)
    near = np.array([[0, 1, 2, 3, 4]] * 2, np.int32)
    output = _rotate(x, near, theta=500.0)
    np.testing.assert_allclose(output, _reference(x, near, 500.0), atol=1e-6)


def test_scores_depend_on_the_distance_alone() -> None:
    q, k = np.random.default_rng(1).normal(size=(2, 1, 4, 2, 8)).astype(np.float32)

    def scores(shift: int) -> np.ndarray:
        positions = np.arange(4, dtype=np.int32)[None] + shift
        q_turned, k_turned = (_rotate(x, positions, theta=10_000.0) for x in (q, k))
        return np.einsum("blnh,bsnh->bnls", q_turned, k_turned)

    np.testing.assert_allclose(scores(0), scores(37), atol=1e-4)
    assert not np.allclose(scores(0), np.einsum("blnh,bsnh->bnls", q, k), atol=0.1)


def test_queries_and_keys_alone_are_turned_and_over_their_whole_width() -> None:
    """What attention is handed, against projections turned here."""
    handed = {}

    def attend(q_BLNH, k_BLKH, v_BLKH, **_: Any) -> jax.Array:
        handed.update(query=q_BLNH, key=k_BLKH, value=v_BLKH)
        return q_BLNH

    attention = Attention(
        width=32,
        num_heads=4,
        num_kv_heads=2,
        head_width=8,
        causal=False,
        attend=attend,
        qk_norm=False,
        norm_epsilon=1e-5,
        use_bias=False,
        output_scale=1.0,
        dtype=jnp.dtype("float32"),
        rngs=nnx.Rngs(0),
    )
    x = np.random.default_rng(3).normal(size=(2, 5, 32)).astype(np.float32)
    rotation = Rotation.at(np.arange(5)[None], head_width=8, theta=50.0)
    attention(x, Rows(rotation=rotation))
    positions = np.tile(np.arange(5), (2, 1))
    for name, found in handed.items():
        kernel = np.asarray(getattr(attention, name).kernel[...], np.float64)
        expected = np.einsum("bld,dnh->blnh", x, kernel)
        if name != "value":
            plain, expected = expected, _reference(expected, positions, 50.0)
            gap = np.abs(expected - plain)[:, 1:].max(axis=(0, 1, 2))
            assert gap.shape == (8,) and gap.min() > 0.1  # every number is turned
        np.testing.assert_allclose(found, expected, atol=1e-5)


def test_position_zero_is_left_alone() -> None:
    x = np.random.default_rng(2).normal(size=(1, 1, 2, 6)).astype(np.float32)
    np.testing.assert_array_equal(_rotate(x, np.zeros((1, 1), np.int32), 10_000.0), x)


def test_learned_positions_are_added_by_place_or_by_number() -> None:
    config = ModelConfig(width=8, max_length=5)
    positions = LearnedPositions(config, jnp.dtype("float32"), nnx.Rngs(0))
    table = np.asarray(positions.table[...])
    x = np.random.default_rng(4).normal(size=(2, 3, 8)).astype(np.float32)
    np.testing.assert_array_equal(positions(x, None), x + table[:3])
    numbers = np.array([[4, 0, 1], [0, 0, 3]], np.int32)
    np.testing.assert_array_equal(positions(x, numbers), x + table[numbers])


def test_learned_positions_start_at_half_the_size_of_the_embedding() -> None:
    config = ModelConfig(width=64, max_length=256)
    positions = LearnedPositions(config, jnp.dtype("float32"), nnx.Rngs(0))
    assert np.std(positions.table[...]) == pytest.approx(1 / 16, rel=0.03)


def test_attention_with_learned_positions_turns_nothing() -> None:
    """Then it does not know where a token stands: permuting the row permutes it."""
    attention = Attention(
        width=16,
        num_heads=2,
        num_kv_heads=2,
        head_width=8,
        causal=False,
        attend=library_attention,
        qk_norm=False,
        norm_epsilon=1e-5,
        use_bias=False,
        output_scale=1.0,
        dtype=jnp.dtype("float32"),
        rngs=nnx.Rngs(0),
    )
    x = np.random.default_rng(3).normal(size=(1, 5, 16)).astype(np.float32)
    order = [3, 0, 4, 2, 1]
    found = np.asarray(attention(x, Rows()))
    assert np.isfinite(found).all()
    np.testing.assert_allclose(
        attention(x[:, order], Rows()), found[:, order], atol=1e-5
    )
