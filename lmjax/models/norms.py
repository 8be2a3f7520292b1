"""Normalisation layers; statistics in float32, a learned gain, mostly no bias."""

import jax
import jax.numpy as jnp
from flax import nnx

from lmjax.config.schema import ModelConfig, NormKind


def rms_normalize(x: jax.Array, epsilon: float) -> jax.Array:
    """x / rms(x) over the last dimension (Zhang and Sennrich 2019), in x's dtype."""
    x32 = x.astype(jnp.float32)
    scale = jax.lax.rsqrt(jnp.mean(x32 * x32, axis=-1, keepdims=True) + epsilon)
    return (x32 * scale).astype(x.dtype)


def layer_normalize(x: jax.Array, epsilon: float) -> jax.Array:
    """(x - mean) / deviation over the last dimension (Ba et al. 2016), in x's dtype."""
    x32 = x.astype(jnp.float32)
    centred = x32 - jnp.mean(x32, axis=-1, keepdims=True)
    return rms_normalize(centred, epsilon).astype(x.dtype)


class RMSNorm(nnx.Module):
    """RMS normalisation with a learned gain, one per feature."""

    def __init__(self, width: int, *, epsilon: float, name: str | None = "embed"):
        self.scale = nnx.Param(jnp.ones(width, jnp.float32), names=(name,))
        self.epsilon = epsilon

    def __call__(self, x: jax.Array) -> jax.Array:
        return rms_normalize(x, self.epsilon) * self.scale[...].astype(x.dtype)


class LayerNorm(nnx.Module):
    """Layer normalisation with a learned gain, one per feature, and maybe a bias."""

    def __init__(self, width: int, *, epsilon: float, use_bias: bool = False):
        self.scale = nnx.Param(jnp.ones(width, jnp.float32), names=("embed",))
        bias = nnx.Param(jnp.zeros(width, jnp.float32), names=("embed",))
        self.bias = bias if use_bias else None
        self.epsilon = epsilon

    def __call__(self, x: jax.Array) -> jax.Array:
        y = layer_normalize(x, self.epsilon) * self.scale[...].astype(x.dtype)
        return y if self.bias is None else y + self.bias[...].astype(x.dtype)


Norm = RMSNorm | LayerNorm


def make_norm(config: ModelConfig) -> Norm:
    """A norm of the residual stream."""
    match config.norm:
        case NormKind.RMS:
            return RMSNorm(config.width, epsilon=config.norm_epsilon)
        case NormKind.LAYER:
            return LayerNorm(
                config.width, epsilon=config.norm_epsilon, use_bias=config.norm_bias
            )
