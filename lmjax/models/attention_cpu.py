"""Attention for CPUs: a row at a time, in blocks that the caches hold.

The weights [B, N, L, S] of a whole batch are more than a CPU's caches hold, and plain
attention waits for the memory. Here those of one block of queries of one row exist at
a time, and the backward pass computes them again from the log-sum-exp of their scores
(FlashAttention, Dao et al. 2022, arXiv 2205.14135, algorithms 1 and 4).
"""

import dataclasses
import functools
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp

from lmjax.models.attention_kernels import segments_with_padding

BLOCK = 128  # queries whose weights exist at once
MAX_BLOCKS = 16  # of a row: all stand in the program, which has to be compiled
_UNSEEN = -1e30  # score of weight 0; finite, so that no difference of two is NaN


def blockwise_attention(
    q_BLNH: jax.Array,
    k_BSKH: jax.Array,
    v_BSKH: jax.Array,
    *,
    causal: bool,
    lengths_B: jax.Array | None = None,
    segments_BL: jax.Array | None = None,
) -> jax.Array:
    """An `attention_kernels.AttentionFunction`, for rows that lie on one device.

    Computes in float32, whatever comes in.
    """
    labels_BS = segments_with_padding(k_BSKH, lengths_B, segments_BL)
    q, k, v = (
        jnp.swapaxes(x.astype(jnp.float32), 1, 2) for x in (q_BLNH, k_BSKH, v_BSKH)
    )
    batch_size, num_heads, length, width = q.shape
    num_kv_heads = k.shape[1]
    groups = (batch_size, num_kv_heads, num_heads // num_kv_heads, length, width)
    blocks = _Blocks(causal, within=segments_BL is not None)
    y_BKGLH = _attend(blocks, q.reshape(groups), k, v, labels_BS)
    return jnp.swapaxes(y_BKGLH.reshape(q.shape), 1, 2).astype(q_BLNH.dtype)


@dataclasses.dataclass(frozen=True)
class _Blocks:
    """The blocks of queries of a row, and what each of them sees.

    Attributes:
      causal: whether a query sees the keys up to its own alone.
      within: whether a query sees the keys of its own label alone, rather than all
        whose label is not 0.
    """

    causal: bool
    within: bool

    def of(self, length: int) -> Iterator[tuple[slice, slice]]:
        """Queries of each block, and the keys that any of them sees."""
        size = BLOCK if self.causal else 2 * BLOCK  # which saves no keys
        size = max(size, -(-length // MAX_BLOCKS))
        for start in range(0, length, size):
            end = min(start + size, length)
            yield slice(start, end), slice(0, end if self.causal else length)

    def scores(
        self,
        queries: slice,
        keys: slice,
        q_KGLH: jax.Array,
        k_KSH: jax.Array,
        labels_S: jax.Array | None,
    ) -> jax.Array:
        """[K, G, l, s] of one block."""
        q_KGlH, k_KsH = q_KGLH[:, :, queries], k_KSH[:, keys]
        scores = _product(q_KGlH * q_KGLH.shape[-1] ** -0.5, k_KsH, by_width=True)
        seen = None
        if self.causal:
            places = jnp.arange(k_KSH.shape[1])
            seen = places[keys] <= places[queries, None]
        if labels_S is not None:
            wanted = labels_S[queries, None] if self.within else 1
            alike = labels_S[keys] == wanted
            seen = alike if seen is None else seen & alike
        return scores if seen is None else jnp.where(seen, scores, _UNSEEN)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _attend(
    blocks: _Blocks,
    q_BKGLH: jax.Array,
    k_BKSH: jax.Array,
    v_BKSH: jax.Array,
    labels_BS: jax.Array | None,
) -> jax.Array:
    return _forward(blocks, q_BKGLH, k_BKSH, v_BKSH, labels_BS)[0]


def _forward(blocks: _Blocks, *arrays: Any) -> tuple[jax.Array, Any]:
    def row(inputs: Any) -> tuple[jax.Array, jax.Array]:
        q_KGLH, k_KSH, v_KSH, labels_S = inputs
        outputs, partitions = [], []
        for queries, keys in blocks.of(q_KGLH.shape[2]):
            scores = blocks.scores(queries, keys, q_KGLH, k_KSH, labels_S)
            largest = jnp.max(scores, axis=-1, keepdims=True)
            weights = jnp.exp(scores - largest)
            total = jnp.sum(weights, axis=-1, keepdims=True)
            outputs.append(_product(weights, v_KSH[:, keys]) / total)
            partitions.append(largest + jnp.log(total))
        return jnp.concatenate(outputs, axis=2), jnp.concatenate(partitions, axis=2)

    y_BKGLH, log_partition = jax.lax.map(row, arrays)
    return y_BKGLH, (*arrays, y_BKGLH, log_partition)


def _backward(
    blocks: _Blocks, saved: Any, dy_BKGLH: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array, None]:
    def row(inputs: Any) -> tuple[jax.Array, jax.Array, jax.Array]:
        (q_KGLH, k_KSH, v_KSH, labels_S, y_KGLH, log_partition), dy_KGLH = inputs
        scale = q_KGLH.shape[-1] ** -0.5
        along = jnp.sum(y_KGLH * dy_KGLH, axis=-1, keepdims=True)
        dq, dk_KSH, dv_KSH = [], jnp.zeros_like(k_KSH), jnp.zeros_like(v_KSH)
        for queries, keys in blocks.of(q_KGLH.shape[2]):
            scores = blocks.scores(queries, keys, q_KGLH, k_KSH, labels_S)
            weights = jnp.exp(scores - log_partition[:, :, queries])
            dy = dy_KGLH[:, :, queries]
            by_weights = _product(dy, v_KSH[:, keys], by_width=True)
            by_scores = weights * (by_weights - along[:, :, queries]) * scale
            dq.append(_product(by_scores, k_KSH[:, keys]))
            dk_KSH = dk_KSH.at[:, keys].add(_sum(by_scores, q_KGLH[:, :, queries]))
            dv_KSH = dv_KSH.at[:, keys].add(_sum(weights, dy))
        return jnp.concatenate(dq, axis=2), dk_KSH, dv_KSH

    return *jax.lax.map(row, (saved, dy_BKGLH)), None


_attend.defvjp(_forward, _backward)


def _product(x_KGlX: jax.Array, y: jax.Array, *, by_width: bool = False) -> jax.Array:
    """[K, G, l, X] times [K, X, Y], or [K, Y, X] with `by_width`: [K, G, l, Y]."""
    heads, groups, rows, _ = x_KGlX.shape
    contracted = ((2,), (2 if by_width else 1,))
    flat = x_KGlX.reshape(heads, groups * rows, -1)
    product = jax.lax.dot_general(flat, y, (contracted, ((0,), (0,))))
    return product.reshape(heads, groups, rows, -1)


def _sum(x_KGls: jax.Array, y_KGlH: jax.Array) -> jax.Array:
    """The sum over all queries of a head: [K, s, H]."""
    heads, groups, rows, _ = x_KGls.shape
    x, y = (z.reshape(heads, groups * rows, -1) for z in (x_KGls, y_KGlH))
    return jax.lax.dot_general(x, y, (((1,), (1,)), ((0,), (0,))))
