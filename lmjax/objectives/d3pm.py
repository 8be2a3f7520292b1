"""D3PM with an absorbing state: discrete time, and a mask that may be predicted."""

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp

from lmjax.config.schema import TimeSampling
from lmjax.core.types import LanguageModel
from lmjax.data.batch import Batch
from lmjax.diffusion.process import MaskProcess
from lmjax.diffusion.schedules import sigma
from lmjax.diffusion.times import draw_times
from lmjax.objectives.base import Loss
from lmjax.objectives.cross_entropy import TokenCosts
from lmjax.objectives.masked_diffusion import real_lengths

# Share of rows that the reconstruction gets: were it one of T + 1 equal terms, it would
# come seldom, with a weight of T + 1, and the loss of a batch would be noise.
_READ_OFF_SHARE = 0.125


class StepDraws(NamedTuple):
    """One of the T + 1 terms of the bound for each row.

    Attributes:
      masked_BL: bool [B, L]; nothing in the rows of the reconstruction term.
      step_B: float32 [B], j in 1..T for the step from j / T to (j - 1) / T; 0 for the
        reconstruction of the text from itself.
    """

    masked_BL: jax.Array
    step_B: jax.Array


@dataclasses.dataclass(frozen=True, kw_only=True)
class D3PM:
    """Sum of the T steps' divergences and of the reconstruction (Austin et al. 2021).

    The network predicts a distribution over tokens and the mask; what it gives to the
    mask stays masked. With s < t and a = (m_t - m_s) / m_t, a masked token costs

      log(1 + alpha_t x_m / m_t) - a log p(x_0) - (1 - a) log(1 + alpha_s x_m / m_s)

    in nats, x_m being the mask's probability (the last term is 0 at s = 0). At the end
    every token is read off the network once more, from the text it then sees: the
    reconstruction term, -log p(x_0 | x_0) without the mask, at every token. Of these
    T + 1 terms a row has one: the reconstruction with probability 1/8, and else one of
    the steps, each over its probability.

    Attributes:
      process: mask id and schedule, shared with the sampler.
      steps: T.
      time_sampling: how the terms of a training batch hang together.
      chunk_tokens: tokens whose logits exist at once.
    """

    process: MaskProcess
    steps: int
    time_sampling: TimeSampling
    chunk_tokens: int
    causal: bool = False
    kind: str = "upper bound"
    loss_is_bound: bool = True

    @property
    def estimator(self) -> str:
        return f"discrete time, T={self.steps}, stratified steps"

    def draw(
        self, batch: Batch, key: jax.Array, progress: jax.Array | float = 0.0
    ) -> StepDraws:
        """Terms spread over the global batch."""
        del progress
        time_key, mask_key = jax.random.split(key)
        t_B = draw_times(time_key, batch.tokens.shape[0], self.time_sampling)
        return self.draw_evaluation(batch, mask_key, 1.0 - t_B)

    def draw_evaluation(
        self, batch: Batch, key: jax.Array, position_B: jax.Array
    ) -> StepDraws:
        """The term at `position_B` in [0, 1), which runs from the reconstruction on."""
        beyond_B = (position_B - _READ_OFF_SHARE) / (1 - _READ_OFF_SHARE)
        step_B = jnp.minimum(1 + jnp.floor(beyond_B * self.steps), self.steps)
        step_B = jnp.where(beyond_B < 0, 0.0, step_B)
        rate_B = self.process.schedule.mask_rate(step_B / self.steps)
        masked_BL = self.process.choose(key, rate_B, batch.tokens.shape[1])
        masked_BL &= (batch.weights > 0) & (step_B > 0)[:, None]
        return StepDraws(masked_BL, step_B)

    def nll_B(
        self,
        model: LanguageModel,
        batch: Batch,
        draws: StepDraws,
        dropout_key: jax.Array | None = None,
    ) -> jax.Array:
        nll_B = self._costs(model, batch, draws, dropout_key).of_rows()
        return nll_B + self._prior_B(batch)

    def loss(
        self,
        model: LanguageModel,
        batch: Batch,
        draws: StepDraws,
        dropout_key: jax.Array | None,
    ) -> Loss:
        total = self._costs(model, batch, draws, dropout_key).total()
        total = total + jnp.sum(self._prior_B(batch))
        masked = jnp.sum(draws.masked_BL, dtype=jnp.float32)
        return Loss(total, jnp.sum(batch.weights), {"mask_rate": masked})

    def _prior_B(self, batch: Batch) -> jax.Array:
        """What it costs that not all is masked at the end: nats, float32 [B]."""
        return self.process.prior_nats * jnp.sum(batch.weights > 0, axis=1)

    def _costs(
        self,
        model: LanguageModel,
        batch: Batch,
        draws: StepDraws,
        dropout_key: jax.Array | None,
    ) -> TokenCosts:
        schedule, shape = self.process.schedule, batch.tokens.shape
        rate_B = schedule.mask_rate(draws.step_B / self.steps)
        hidden_BLD = model(
            self.process.mask(batch.tokens, draws.masked_BL),
            lengths_B=real_lengths(batch),
            segments_BL=batch.segments,
            positions_BL=batch.positions,
            sigma_B=sigma(rate_B),
            dropout_key=dropout_key,
        )
        reads_off_BL = (draws.step_B == 0)[:, None] & (batch.weights > 0)
        weight_B = jnp.where(
            draws.step_B == 0, 1 / _READ_OFF_SHARE, self.steps / (1 - _READ_OFF_SHARE)
        )
        return TokenCosts(
            model=model,
            cost=self._cost,
            hidden_BLD=hidden_BLD,
            targets_BL=batch.tokens,
            counted_BL=draws.masked_BL | reads_off_BL,
            weights_BL=jnp.broadcast_to(weight_B[:, None], shape),
            further_BL=(jnp.broadcast_to(draws.step_B[:, None], shape),),
            chunk_tokens=self.chunk_tokens,
        )

    def _cost(
        self, logits: jax.Array, targets: jax.Array, step: jax.Array
    ) -> jax.Array:
        schedule, mask = self.process.schedule, self.process.mask_id
        target = jnp.take_along_axis(logits, targets[..., None], axis=-1)[..., 0]
        with_mask = jax.nn.logsumexp(logits, axis=-1)
        tokens = jax.nn.logsumexp(logits.at[..., mask].set(-jnp.inf), axis=-1)
        mask_probability = jnp.exp(logits[..., mask] - with_mask)
        # Whole numbers over T: nothing is lost at t = 1 / T, where s = 0 exactly. The
        # rows that are read off have no step; 1 stands in, and its value is not used.
        j = jnp.maximum(step, 1.0)
        m_t = schedule.mask_rate(j / self.steps)
        m_s = schedule.mask_rate((j - 1) / self.steps)
        last = j == 1
        safe_m_s = jnp.where(last, 1.0, m_s)
        reveals = jnp.where(last, 1.0, (m_t - m_s) / m_t)
        stays = jnp.log1p((1 - m_s) * mask_probability / safe_m_s)
        divergence = (
            jnp.log1p((1 - m_t) * mask_probability / m_t)
            + reveals * (with_mask - target)
            - jnp.where(last, 0.0, (1 - reveals) * stays)
        )
        return jnp.where(step == 0, tokens - target, divergence)
