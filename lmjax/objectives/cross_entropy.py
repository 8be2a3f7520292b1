"""Costs of tokens in float32, whose logits never exist for the whole batch."""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from lmjax.core.types import LanguageModel


def token_costs(
    model: LanguageModel,
    hidden_BLD: jax.Array,
    cost: Callable[..., jax.Array],
    targets_BL: jax.Array,
    counted_BL: jax.Array,
    *further_BL: jax.Array,
    chunk_tokens: int,
) -> jax.Array:
    """cost(logits, targets, *further) of each token, float32 [B, L]; 0 if not counted.

    Runs over slices of the length, so that at most about `chunk_tokens` rows of logits
    live at once; the backward pass computes them again. Where a token is not counted
    its target may be any id, also one that is never predicted.

    Args:
      cost: from logits [b, l, V] and arrays [b, l], nats [b, l].
      further_BL: what else the cost depends on.
    """
    batch_size, length = targets_BL.shape
    slice_length = max(1, min(length, chunk_tokens // batch_size))
    num_slices = -(-length // slice_length)

    @jax.checkpoint
    def slice_costs(
        hidden: jax.Array, targets: jax.Array, counted: jax.Array, *further: jax.Array
    ) -> jax.Array:
        logits = model.logits(hidden)
        # The target of a token that is not counted may have logit -inf, whose
        # gradient is NaN even when multiplied by 0: aim at the likeliest id instead.
        safe = jnp.where(counted, targets, jnp.argmax(logits, axis=-1))
        return jnp.where(counted, cost(logits, safe, *further), 0.0)

    arrays = (hidden_BLD, targets_BL, counted_BL, *further_BL)
    if num_slices == 1:
        return slice_costs(*arrays)

    def to_slices(x: jax.Array) -> jax.Array:
        padding = num_slices * slice_length - length
        x = jnp.pad(x, ((0, 0), (0, padding)) + ((0, 0),) * (x.ndim - 2))
        shape = (batch_size, num_slices, slice_length, *x.shape[2:])
        return jnp.swapaxes(x.reshape(shape), 0, 1)

    slices = tuple(to_slices(array) for array in arrays)
    costs = jax.lax.map(lambda arguments: slice_costs(*arguments), slices)
    return jnp.swapaxes(costs, 0, 1).reshape(batch_size, -1)[:, :length]


def token_nll(
    model: LanguageModel,
    hidden_BLD: jax.Array,
    targets_BL: jax.Array,
    counted_BL: jax.Array,
    *,
    chunk_tokens: int,
) -> jax.Array:
    """-log softmax(logits)[target] in nats, float32 [B, L]; 0 where not counted."""
    return token_costs(
        model,
        hidden_BLD,
        cross_entropy,
        targets_BL,
        counted_BL,
        chunk_tokens=chunk_tokens,
    )


def cross_entropy(logits: jax.Array, targets: jax.Array) -> jax.Array:
    """-log softmax(logits)[target] in nats, float32 [...]."""
    target_logits = jnp.take_along_axis(logits, targets[..., None], axis=-1)[..., 0]
    return jax.nn.logsumexp(logits, axis=-1) - target_logits
