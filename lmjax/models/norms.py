"""Normalisation layers; statistics in float32."""

import jax
import jax.numpy as jnp
from flax import nnx


def rms_normalize(x: jax.Array, epsilon: float) -> jax.Array:
    """x / rms(x) over the last dimension (Zhang and Sennrich 2019), in x's dtype."""
    x32 = x.astype(jnp.float32)
    scale = jax.lax.rsqrt(jnp.mean(x32 * x32, axis=-1, keepdims=True) + epsilon)
    return (x32 * scale).astype(x.dtype)


class RMSNorm(nnx.Module):
    """RMS normalisation with a learned gain, one per feature."""

    def __init__(self, width: int, *, epsilon: float, name: str | None = "embed"):
        self.scale = nnx.Param(jnp.ones(width, jnp.float32), names=(name,))
        self.epsilon = epsilon

    def __call__(self, x: jax.Array) -> jax.Array:
        return rms_normalize(x, self.epsilon) * self.scale[...].astype(x.dtype)
