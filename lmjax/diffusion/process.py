"""Forward processes: how noise comes in, the same object for loss and sampler."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np

from lmjax.diffusion.schedules import Schedule


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class MaskProcess:
    """Independently per token: masked with probability m(t), otherwise kept.

    Attributes:
      mask_id: the absorbing token.
      schedule: mask rate over time.
      predictable: int32, sorted: ids that the model can predict.
    """

    mask_id: int
    schedule: Schedule
    predictable: np.ndarray

    def choose(self, key: jax.Array, rate: jax.Array, length: int) -> jax.Array:
        """Draws which tokens are masked at rates [B] or [B, L]: bool [B, L]."""
        rate_BL = rate if rate.ndim == 2 else rate[:, None]
        return jax.random.uniform(key, (rate.shape[0], length)) < rate_BL

    def mask(self, tokens_BL: jax.Array, masked_BL: jax.Array) -> jax.Array:
        """x_t: tokens with the chosen ones replaced by the mask."""
        return jnp.where(masked_BL, self.mask_id, tokens_BL)

    def reveal_probability(self, t: jax.Array, s: jax.Array) -> jax.Array:
        """Chance that a token masked at t is revealed by the earlier time s < t.

        (m(t) - m(s)) / m(t); exactly 1 at s = 0.
        """
        return 1.0 - self.schedule.mask_rate(s) / self.schedule.mask_rate(t)

    @property
    def prior_nats(self) -> float:
        """What a token costs because m(1) < 1: (1 - m(1)) ln V.

        The divergence from a prior that masks with probability m(1) and is uniform
        otherwise, for V predictable ids.
        """
        return (1.0 - self.schedule.end) * math.log(len(self.predictable))

    def draw_prior(self, key: jax.Array, shape: tuple[int, ...]) -> jax.Array:
        """x_1: all mask, but for a share 1 - m(1) of uniform tokens; int32."""
        masks = jnp.full(shape, self.mask_id, jnp.int32)
        if self.schedule.end == 1.0:
            return masks
        clean_key, token_key = jax.random.split(key)
        clean = jax.random.uniform(clean_key, shape) >= self.schedule.end
        index = jax.random.randint(token_key, shape, 0, len(self.predictable))
        return jnp.where(clean, jnp.asarray(self.predictable)[index], masks)


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class UniformProcess:
    """Independently per token: replaced with probability m(t) by a uniform token.

    The new token may be the old one (UDLM, Schiff et al. 2024).

    Attributes:
      schedule: rate of replacement over time; must end at 1.
      predictable: int32, sorted: the ids that noise is made of.
    """

    schedule: Schedule
    predictable: np.ndarray

    def __post_init__(self) -> None:
        if self.schedule.end != 1.0:
            raise ValueError(
                f"the process must end in pure noise, but m(1)={self.schedule.end}"
            )

    def draw_noise(self, key: jax.Array, shape: tuple[int, ...]) -> jax.Array:
        """Uniform tokens: x_1; int32."""
        index = jax.random.randint(key, shape, 0, len(self.predictable))
        return jnp.asarray(self.predictable)[index]

    def replace(
        self, key: jax.Array, tokens_BL: jax.Array, rate_B: jax.Array
    ) -> jax.Array:
        """x_t of tokens whose row is at the rate m(t)."""
        chosen_key, token_key = jax.random.split(key)
        chosen_BL = jax.random.uniform(chosen_key, tokens_BL.shape) < rate_B[:, None]
        noise_BL = self.draw_noise(token_key, tokens_BL.shape)
        return jnp.where(chosen_BL, noise_BL, tokens_BL)
