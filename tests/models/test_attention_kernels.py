"""Every implementation of attention that XLA compiles is attention."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lmjax.models.attention_cpu import blockwise_attention
from lmjax.models.attention_kernels import (
    CHUNK,
    AttentionFunction,
    chunked_attention,
    library_attention,
)


def _reference(
    q: np.ndarray,
    k: np.ndarray,
    v: np.ndarray,
    causal: bool,
    lengths: list[int],
    segments: np.ndarray | None = None,
) -> np.ndarray:
    """Attention row by row and head by head, in float64."""
    q, k, v = (np.asarray(x, np.float64) for x in (q, k, v))
    batch_size, length, num_heads, head_width = q.shape
    queries_per_key = num_heads // k.shape[2]
    output = np.zeros_like(q)
    for b in range(batch_size):
        for n in range(num_heads):
            keys, values = (x[b, :, n // queries_per_key] for x in (k, v))
            scores = q[b, :, n] @ keys.T / np.sqrt(head_width)
            seen = np.arange(len(keys))[None] < lengths[b]
            if segments is not None:  # padding sees padding
                real = np.where(seen[0], segments[b], 0)
                seen = real[:, None] == real
            if causal:
                seen = seen & np.tri(length, dtype=bool)
            scores = np.where(seen, scores, -np.inf)
            weights = np.exp(scores - scores.max(axis=1, keepdims=True))
            output[b, :, n] = weights / weights.sum(axis=1, keepdims=True) @ values
    return output


def _inputs(length: int, kv_heads: int, head_width: int = 8) -> list[np.ndarray]:
    generator = np.random.default_rng(length)
    return [
        generator.normal(size=(2, length, heads, head_width)).astype(np.float32)
        for heads in (4, kv_heads, kv_heads)
    ]


@pytest.mark.parametrize("lengths", [None, [300, 37]])
@pytest.mark.parametrize(
    ("attend", "causal"),
    [
        (library_attention, True),
        (library_attention, False),
        (chunked_attention, True),
        (blockwise_attention, True),
        (blockwise_attention, False),
    ],
)
def test_attention_agrees_with_a_float64_reference(
    attend: AttentionFunction, causal: bool, lengths: list[int] | None
) -> None:
    q, k, v = _inputs(300, kv_heads=2)  # two whole chunks and a part of one
    output = jax.jit(attend, static_argnames="causal")(
        q, k, v, causal=causal, lengths_B=None if lengths is None else np.int32(lengths)
    )
    expected = _reference(q, k, v, causal, lengths or [300, 300])
    np.testing.assert_allclose(output, expected, atol=2e-6)


@pytest.mark.parametrize(
    ("attend", "causal"),
    [
        (library_attention, False),
        (chunked_attention, True),
        (blockwise_attention, True),
    ],
)
def test_attention_in_float16_is_near_the_exact_one(
    attend: AttentionFunction, causal: bool
) -> None:
    """Also its gradients, whose products are of other types."""
    q, k, v = (x.astype(np.float16) for x in _inputs(140, kv_heads=2))

    @functools.partial(jax.grad, argnums=(0, 1, 2), has_aux=True)
    def total(*inputs: jax.Array) -> tuple[jax.Array, jax.Array]:
        output = attend(*inputs, causal=causal)
        return jnp.sum(jnp.sin(output.astype(jnp.float32))), output

    gradients, output = jax.jit(total)(q, k, v)
    assert output.dtype == jnp.float16
    expected = _reference(q, k, v, causal, [140, 140])
    np.testing.assert_allclose(output, expected, atol=2e-3)
    exact, _ = jax.jit(total)(*(x.astype(np.float32) for x in (q, k, v)))
    for found, wanted in zip(gradients, exact, strict=True):
        assert found.dtype == jnp.float16
        np.testing.assert_allclose(found, wanted, rtol=2e-2, atol=2e-3)


# Three documents; one that fills no chunk, one that crosses chunks, and padding.
SEGMENTS = np.array(
    [[1] * 100 + [2] * 150 + [3] * 50, [1] * 7 + [2] * 125 + [0] * 168], np.int32
)


@pytest.mark.parametrize("lengths", [None, [300, 37]])
@pytest.mark.parametrize(
    ("attend", "causal"),
    [
        (library_attention, True),
        (library_attention, False),
        (chunked_attention, True),
        (chunked_attention, False),
        (blockwise_attention, True),
        (blockwise_attention, False),
    ],
)
def test_a_query_sees_the_keys_of_its_own_segment_alone(
    attend: AttentionFunction, causal: bool, lengths: list[int] | None
) -> None:
    q, k, v = _inputs(300, kv_heads=2)
    output = jax.jit(attend, static_argnames="causal")(
        q,
        k,
        v,
        causal=causal,
        lengths_B=None if lengths is None else np.int32(lengths),
        segments_BL=SEGMENTS,
    )
    expected = _reference(q, k, v, causal, lengths or [300, 300], SEGMENTS)
    np.testing.assert_allclose(output, expected, atol=2e-6)


@pytest.mark.parametrize("segments", [None, SEGMENTS])
@pytest.mark.parametrize("causal", [True, False])
def test_blocks_have_the_gradients_of_plain_attention(
    causal: bool, segments: np.ndarray | None
) -> None:
    """Which JAX derives from the formula; theirs are written by hand."""
    weights = np.random.default_rng(1).normal(size=(2, 300, 4, 8))
    weights[1, 37:] = 0.0  # padding, which sees other keys without segments

    def gradients(attend: AttentionFunction) -> list[jax.Array]:
        @jax.jit
        @functools.partial(jax.grad, argnums=(0, 1, 2))
        def run(*inputs: jax.Array) -> jax.Array:
            lengths_B = np.int32([300, 37])
            keywords = {"lengths_B": lengths_B, "segments_BL": segments}
            return jnp.sum(weights * attend(*inputs, causal=causal, **keywords))

        return run(*_inputs(300, kv_heads=2))

    pairs = zip(
        gradients(blockwise_attention), gradients(library_attention), strict=True
    )
    for found, expected in pairs:
        np.testing.assert_allclose(found, expected, atol=5e-6)


@pytest.mark.parametrize("length", [1, CHUNK, CHUNK + 1])
@pytest.mark.parametrize("kv_heads", [1, 4])
def test_chunks_fit_any_length_and_any_grouping(length: int, kv_heads: int) -> None:
    q, k, v = _inputs(length, kv_heads, head_width=2)
    output = jax.jit(chunked_attention, static_argnames="causal")(q, k, v, causal=True)
    expected = _reference(q, k, v, True, [length, length])
    np.testing.assert_allclose(output, expected, atol=2e-6)


def test_chunked_attention_without_a_causal_mask_sees_everything() -> None:
    q, k, v = _inputs(CHUNK + 1, kv_heads=1, head_width=2)
    output = jax.jit(chunked_attention, static_argnames="causal")(q, k, v, causal=False)
    expected = _reference(q, k, v, False, [CHUNK + 1] * 2)
    np.testing.assert_allclose(output, expected, atol=2e-6)
