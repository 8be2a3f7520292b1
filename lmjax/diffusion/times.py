"""Diffusion times for a batch."""

import jax
import jax.numpy as jnp


def stratified_times(key: jax.Array, batch_size: int) -> jax.Array:
    """One time per row in (0, 1], exactly one in each of `batch_size` equal bins.

    Stratified over the global batch (Kingma et al. 2021, appendix): each time alone is
    uniform, together they cover the interval, which lowers the variance of the loss.
    Rows are assigned to bins at random, so that the order of rows carries nothing.
    """
    offset_key, order_key = jax.random.split(key)
    offsets_B = 1.0 - jax.random.uniform(offset_key, (batch_size,))  # (0, 1]
    times_B = (jnp.arange(batch_size) + offsets_B) / batch_size
    return jax.random.permutation(order_key, times_B)
