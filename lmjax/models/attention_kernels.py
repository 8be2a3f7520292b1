"""Attention: the signature of all implementations, and those that XLA compiles.

Every implementation has the signature of `AttentionFunction`: queries
[B, L, N, H], keys and values [B, S, K, H] with N a multiple of K, scaled by
1/sqrt(H), softmax in float32. `lengths_B` counts the keys that exist in each row.

`segments_BL` (where L = S) numbers the documents side by side in a row, from 1 and 0 on
padding: a query sees the keys of its own segment alone. What lies behind `lengths_B`
joins segment 0 then, so that every query, of padding too, has at least itself to see.
"""

import functools
from typing import Any, Protocol

import jax
import jax.numpy as jnp

CHUNK = 128  # queries per block of the chunked causal attention


class AttentionFunction(Protocol):
    """Attention as the models call it; returns [B, L, N, H] in the queries' dtype."""

    def __call__(
        self,
        q_BLNH: jax.Array,
        k_BSKH: jax.Array,
        v_BSKH: jax.Array,
        *,
        causal: bool,
        lengths_B: jax.Array | None = None,
        segments_BL: jax.Array | None = None,
    ) -> jax.Array: ...


def library_attention(
    q_BLNH: jax.Array,
    k_BSKH: jax.Array,
    v_BSKH: jax.Array,
    *,
    causal: bool,
    lengths_B: jax.Array | None = None,
    segments_BL: jax.Array | None = None,
    implementation: str = "xla",
) -> jax.Array:
    """`jax.nn.dot_product_attention`: plain XLA, or cuDNN's fused kernel on GPU.

    cuDNN runs without segments alone; `attention_choice` sees to that.
    """
    mask = None
    if segments_BL is not None:
        segments_BL = with_padding(segments_BL, lengths_B)
        mask = _same_segment(segments_BL, segments_BL)
        lengths_B = None
    return _dot_product_attention(
        q_BLNH,
        k_BSKH,
        v_BSKH,
        mask=mask,
        is_causal=causal,
        key_value_seq_lengths=lengths_B,
        implementation=implementation,
    )


def chunked_attention(
    q_BLNH: jax.Array,
    k_BSKH: jax.Array,
    v_BSKH: jax.Array,
    *,
    causal: bool,
    lengths_B: jax.Array | None = None,
    segments_BL: jax.Array | None = None,
) -> jax.Array:
    """Causal attention in blocks of queries that see only the keys before them.

    Skips the half of the score matrix that a mask would throw away, which is most of
    what XLA on CPU can save. Bidirectional attention has no such half: one block.
    """
    length = q_BLNH.shape[1]
    if not causal or length <= CHUNK:
        return library_attention(
            q_BLNH,
            k_BSKH,
            v_BSKH,
            causal=causal,
            lengths_B=lengths_B,
            segments_BL=segments_BL,
        )
    if segments_BL is not None:
        segments_BL, lengths_B = with_padding(segments_BL, lengths_B), None
    blocks = []
    for start in range(0, length, CHUNK):
        end = min(start + CHUNK, length)
        seen = jnp.arange(end)[None, :] <= jnp.arange(start, end)[:, None]
        mask = seen[None, None]
        if lengths_B is not None:
            mask = mask & (jnp.arange(end) < lengths_B[:, None, None, None])
        if segments_BL is not None:
            mask = mask & _same_segment(segments_BL[:, start:end], segments_BL[:, :end])
        blocks.append(
            _dot_product_attention(
                q_BLNH[:, start:end],
                k_BSKH[:, :end],
                v_BSKH[:, :end],
                mask=mask,
                implementation="xla",
            )
        )
    return jnp.concatenate(blocks, axis=1)


def _dot_product_attention(
    q_BLNH: jax.Array,
    k_BSKH: jax.Array,
    v_BSKH: jax.Array,
    *,
    implementation: str,
    **keywords: Any,
) -> jax.Array:
    """`jax.nn.dot_product_attention`, on CPU in float16 too.

    It asks for products of float16 that are summed in float32, which XLA has for all
    GPUs and not for CPU.
    """
    attend = functools.partial(
        jax.nn.dot_product_attention, implementation=implementation, **keywords
    )
    if q_BLNH.dtype != jnp.float16 or implementation != "xla":
        return attend(q_BLNH, k_BSKH, v_BSKH)

    def widened(*arrays: jax.Array) -> jax.Array:
        y_BLNH = attend(*(array.astype(jnp.float32) for array in arrays))
        return y_BLNH.astype(jnp.float16)

    return jax.lax.platform_dependent(
        q_BLNH, k_BSKH, v_BSKH, cpu=widened, default=attend
    )


def segments_with_padding(
    k_BSKH: jax.Array, lengths_B: jax.Array | None, segments_BL: jax.Array | None
) -> jax.Array | None:
    """Numbers of the documents, 0 on padding; without segments a row is one, 1.

    None where there is nothing to tell apart.
    """
    if segments_BL is not None:
        return with_padding(segments_BL, lengths_B)
    if lengths_B is not None:
        ones_BL = jnp.ones(k_BSKH.shape[:2], jnp.int32)
        return with_padding(ones_BL, lengths_B)
    return None


def with_padding(segments_BL: jax.Array, lengths_B: jax.Array | None) -> jax.Array:
    """The segments, with all that is behind the lengths in segment 0."""
    if lengths_B is None:
        return segments_BL
    real_BL = jnp.arange(segments_BL.shape[1]) < lengths_B[:, None]
    return jnp.where(real_BL, segments_BL, 0)


def _same_segment(queries_BL: jax.Array, keys_BS: jax.Array) -> jax.Array:
    """Which keys are of a query's segment: bool [B, 1, L, S], alike for all heads."""
    return queries_BL[:, None, :, None] == keys_BS[:, None, None, :]
