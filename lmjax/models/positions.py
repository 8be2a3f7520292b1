"""Where a token stands: by rotation of queries and keys, or a learned vector."""

import jax
import jax.numpy as jnp
from flax import nnx

from lmjax.config.schema import ModelConfig, PositionKind


def rotate(x_BLNH: jax.Array, positions_BL: jax.Array, theta: float) -> jax.Array:
    """Rotates each pair (x[i], x[i + H/2]) by position * theta^(-2i/H).

    Rotary position embedding (Su et al. 2021), in the half-split layout of Llama.

    Args:
      x_BLNH: queries or keys; H must be even.
      positions_BL: int32 [B, L] or [1, L].
      theta: base of the wavelengths.
    """
    half = x_BLNH.shape[-1] // 2
    frequencies = theta ** (-jnp.arange(half, dtype=jnp.float32) / half)
    angles = positions_BL[:, :, None, None].astype(jnp.float32) * frequencies
    cos, sin = jnp.cos(angles), jnp.sin(angles)
    first, second = jnp.split(x_BLNH.astype(jnp.float32), 2, axis=-1)
    rotated = (first * cos - second * sin, second * cos + first * sin)
    return jnp.concatenate(rotated, axis=-1).astype(x_BLNH.dtype)


class LearnedPositions(nnx.Module):
    """One vector for each position up to `max_length`, added to the embedding.

    They start with half the deviation of the embedding, as in GPT-2 (Radford et al.
    2019).
    """

    def __init__(self, config: ModelConfig, dtype: jnp.dtype, rngs: nnx.Rngs):
        shape = (config.max_length, config.width)
        table = jax.random.normal(rngs.params(), shape, jnp.float32)
        self.table = nnx.Param(0.5 * config.width**-0.5 * table, names=(None, "embed"))
        self.dtype = dtype

    def __call__(self, x_BLD: jax.Array, positions_BL: jax.Array | None) -> jax.Array:
        """x + the vectors of the positions, by default 0 to L - 1."""
        # Cast after the look-up, see `Vocabulary.embed`.
        table = self.table[...]
        rows = slice(x_BLD.shape[1]) if positions_BL is None else positions_BL
        return x_BLD + table[rows].astype(self.dtype)


def make_positions(
    config: ModelConfig, dtype: jnp.dtype, rngs: nnx.Rngs
) -> LearnedPositions | None:
    """What is added to the embedding; None where queries and keys are rotated."""
    match config.positions:
        case PositionKind.ROPE:
            return None
        case PositionKind.LEARNED:
            return LearnedPositions(config, dtype, rngs)
