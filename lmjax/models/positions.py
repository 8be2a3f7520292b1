"""Where a token stands: by rotation of queries and keys, or a learned vector."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from lmjax.config.schema import ModelConfig, PositionKind


class Rotation(NamedTuple):
    """By how much the pairs of a head are turned at each position.

    Attributes:
      cos: float32 [B or 1, L, 1, H/2].
      sin: as `cos`.
    """

    cos: jax.Array
    sin: jax.Array

    @classmethod
    def at(
        cls, positions_BL: jax.Array | np.ndarray, *, head_width: int, theta: float
    ) -> "Rotation":
        """The angles position * theta^(-2i/H).

        Args:
          positions_BL: int32 [B, L] or [1, L]. Those of numpy are known when a program
            is compiled, and their angles are constants in it: XLA on CPU would compute
            them anew for each number that is turned, in each layer.
          head_width: H; must be even.
          theta: base of the wavelengths.
        """
        half = head_width // 2
        frequencies = (theta ** (-np.arange(half) / half)).astype(np.float32)
        angles = positions_BL[:, :, None, None].astype(np.float32) * frequencies
        if isinstance(positions_BL, np.ndarray):
            angles = angles.astype(np.float64)
            tables = np.cos(angles), np.sin(angles)
        else:
            tables = jnp.cos(angles), jnp.sin(angles)
        return cls(*(jnp.asarray(table, jnp.float32) for table in tables))


def rotate(x_BLNH: jax.Array, rotation: Rotation) -> jax.Array:
    """Queries or keys with each pair (x[i], x[i + H/2]) turned by its angle.

    Rotary position embedding (Su et al. 2021), in the half-split layout of Llama.
    """
    cos, sin = rotation
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
