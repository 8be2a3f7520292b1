"""The absorbing-state process: one mask id, one schedule, for loss and sampler."""

import dataclasses

import jax
import jax.numpy as jnp

from lmjax.diffusion.schedules import MaskSchedule


@dataclasses.dataclass(frozen=True, kw_only=True)
class MaskProcess:
    """Independently per token: masked with probability m(t), otherwise kept.

    Attributes:
      mask_id: the absorbing token.
      schedule: mask rate over time.
    """

    mask_id: int
    schedule: MaskSchedule

    def choose(self, key: jax.Array, t_B: jax.Array, length: int) -> jax.Array:
        """Draws which tokens are masked at time t: bool [B, L]."""
        draws_BL = jax.random.uniform(key, (t_B.shape[0], length))
        return draws_BL < self.schedule.mask_rate(t_B)[:, None]

    def mask(self, tokens_BL: jax.Array, masked_BL: jax.Array) -> jax.Array:
        """x_t: tokens with the chosen ones replaced by the mask."""
        return jnp.where(masked_BL, self.mask_id, tokens_BL)

    def reveal_probability(self, t: jax.Array, s: jax.Array) -> jax.Array:
        """Chance that a token masked at t is revealed by the earlier time s < t.

        (m(t) - m(s)) / m(t); exactly 1 at s = 0.
        """
        return 1.0 - self.schedule.mask_rate(s) / self.schedule.mask_rate(t)
