"""Exponential moving average of the parameters."""

import jax
import jax.numpy as jnp

from lmjax.core.types import PyTree


def update_ema(ema: PyTree, params: PyTree, step: jax.Array, decay: float) -> PyTree:
    """d * ema + (1 - d) * params with d = min(decay, (1 + n) / (10 + n)).

    n is the number of updates so far: a short run is averaged over a shorter past.
    """
    d = jnp.minimum(decay, (1.0 + step) / (10.0 + step))
    return jax.tree.map(lambda e, p: d * e + (1.0 - d) * p, ema, params)
