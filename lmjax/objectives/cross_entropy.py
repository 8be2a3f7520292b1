"""Cross-entropy in float32 whose logits never exist for the whole batch."""

import jax
import jax.numpy as jnp

from lmjax.core.types import LanguageModel


def token_nll(
    model: LanguageModel,
    hidden_BLD: jax.Array,
    targets_BL: jax.Array,
    counted_BL: jax.Array,
    *,
    chunk_tokens: int,
) -> jax.Array:
    """-log softmax(logits)[target] in nats, float32 [B, L]; 0 where not counted.

    Runs over slices of the length, so that at most about `chunk_tokens` rows of logits
    live at once; the backward pass computes them again. Where a token is not counted
    its target may be any id, also one that is never predicted.
    """
    batch_size, length = targets_BL.shape
    slice_length = max(1, min(length, chunk_tokens // batch_size))
    num_slices = -(-length // slice_length)

    @jax.checkpoint
    def slice_nll(hidden: jax.Array, targets: jax.Array, counted: jax.Array):
        logits = model.logits(hidden)
        # The target of a token that is not counted may have logit -inf, whose
        # gradient is NaN even when multiplied by 0: aim at the likeliest id instead.
        safe = jnp.where(counted, targets, jnp.argmax(logits, axis=-1))
        log_partition = jax.nn.logsumexp(logits, axis=-1)
        target_logits = jnp.take_along_axis(logits, safe[..., None], axis=-1)[..., 0]
        return jnp.where(counted, log_partition - target_logits, 0.0)

    if num_slices == 1:
        return slice_nll(hidden_BLD, targets_BL, counted_BL)

    def to_slices(x: jax.Array) -> jax.Array:
        padding = num_slices * slice_length - length
        x = jnp.pad(x, ((0, 0), (0, padding)) + ((0, 0),) * (x.ndim - 2))
        shape = (batch_size, num_slices, slice_length, *x.shape[2:])
        return jnp.swapaxes(x.reshape(shape), 0, 1)

    slices = (to_slices(hidden_BLD), to_slices(targets_BL), to_slices(counted_BL))
    nll = jax.lax.map(lambda arguments: slice_nll(*arguments), slices)
    return jnp.swapaxes(nll, 0, 1).reshape(batch_size, -1)[:, :length]
