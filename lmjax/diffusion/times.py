"""Diffusion times for a batch, drawn over the global batch."""

import jax
import jax.numpy as jnp

from lmjax.config.schema import TimeSampling


def draw_times(key: jax.Array, batch_size: int, sampling: TimeSampling) -> jax.Array:
    """One time per row in (0, 1], each uniform by itself; float32 [B].

    Stratified times lie one in each of `batch_size` equal bins, which lowers the
    variance of the loss (Kingma et al. 2021, appendix I.1); antithetic ones come in
    pairs u, 1 - u. Rows are assigned at random, so that their order carries nothing.
    """
    offset_key, order_key = jax.random.split(key)
    match sampling:
        case TimeSampling.STRATIFIED:
            offsets_B = _uniform(offset_key, batch_size)
            times_B = (jnp.arange(batch_size) + offsets_B) / batch_size
        case TimeSampling.ANTITHETIC:
            half = _uniform(offset_key, -(-batch_size // 2))
            # 1 - u of u = 1 would be 0, where there is no noise to learn from.
            mirrored = jnp.where(half < 1, 1.0 - half, 1.0)
            times_B = jnp.concatenate([half, mirrored])[:batch_size]
        case TimeSampling.UNIFORM:
            return _uniform(offset_key, batch_size)
    return jax.random.permutation(order_key, times_B)


def _uniform(key: jax.Array, count: int) -> jax.Array:
    return 1.0 - jax.random.uniform(key, (count,))  # (0, 1]
