"""Schedules of masked diffusion: the mask rate m(t), and what follows from it.

t runs from 0 (clean) to 1 (all masked); m(0) = 0 and m(1) = 1 exactly, so the prior
is all mask and the bound has no further terms. Everything is float32. In continuous
time the bound does not depend on the schedule, only its variance and the training
signal do: a schedule is a choice of how densely each mask rate is visited.
"""

import dataclasses
from typing import Protocol

import jax
import jax.numpy as jnp

MAX_SIGMA = 20.0  # -log(1 - m) of an all-masked row is infinite; this stands for it


class MaskSchedule(Protocol):
    """A mask rate m(t), increasing from 0 to 1."""

    def mask_rate(self, t: jax.Array) -> jax.Array:
        """m(t): the probability that a token is masked at time t."""
        ...

    def weight(self, t: jax.Array) -> jax.Array:
        """m'(t) / m(t): weight of a masked token's cross-entropy in the bound."""
        ...

    def time(self, mask_rate: jax.Array) -> jax.Array:
        """The inverse of `mask_rate`."""
        ...


@dataclasses.dataclass(frozen=True)
class LinearSchedule:
    """m(t) = t, called log-linear in MDLM (Sahoo et al. 2024); mean mask rate 1/2."""

    def mask_rate(self, t: jax.Array) -> jax.Array:
        return t

    def weight(self, t: jax.Array) -> jax.Array:
        return 1.0 / t

    def time(self, mask_rate: jax.Array) -> jax.Array:
        return mask_rate


@dataclasses.dataclass(frozen=True)
class CosineSchedule:
    """m(t) = 1 - cos(pi t / 2), MDLM's cosine; mean mask rate 1 - 2/pi = 0.363.

    MD4 and Duo give the same name to its mirror image, whose mean rate is 0.637.
    """

    def mask_rate(self, t: jax.Array) -> jax.Array:
        # 1 - cos(x) = 2 sin^2(x/2), which keeps its digits near 0.
        return 2.0 * jnp.square(jnp.sin(jnp.pi / 4 * t))

    def weight(self, t: jax.Array) -> jax.Array:
        # (pi/2) sin(x) / (1 - cos(x)) = (pi/2) cot(x/2).
        return jnp.pi / 2 / jnp.tan(jnp.pi / 4 * t)

    def time(self, mask_rate: jax.Array) -> jax.Array:
        return 4 / jnp.pi * jnp.arcsin(jnp.sqrt(mask_rate / 2.0))


def sigma(mask_rate: jax.Array) -> jax.Array:
    """Total noise -log(1 - m), at most `MAX_SIGMA`: what a DiT is conditioned on."""
    clean = jnp.maximum(1.0 - mask_rate, jnp.exp(-MAX_SIGMA))
    return -jnp.log(clean)
