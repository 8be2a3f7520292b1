"""Rotary position embedding (Su et al. 2021), half-split layout as in Llama."""

import jax
import jax.numpy as jnp


def rotate(x_BLNH: jax.Array, positions_BL: jax.Array, theta: float) -> jax.Array:
    """Rotates each pair (x[i], x[i + H/2]) by position * theta^(-2i/H).

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
