"""Uniform-state diffusion: noise is another token, and every token may be wrong."""

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp

from lmjax.config.schema import TimeSampling
from lmjax.core.types import LanguageModel
from lmjax.data.batch import Batch
from lmjax.diffusion.process import UniformProcess
from lmjax.diffusion.schedules import sigma
from lmjax.diffusion.times import draw_times
from lmjax.objectives.base import Loss
from lmjax.objectives.cross_entropy import TokenCosts
from lmjax.objectives.masked_diffusion import real_lengths

_MARGIN = 1e-6  # of alpha from 0 and 1, where it would divide by 0 and the limit is 0


class NoiseDraws(NamedTuple):
    """Times, and the texts with noise at them.

    Attributes:
      noised_BL: int32 [B, L].
      t_B: float32 [B], in (0, 1].
    """

    noised_BL: jax.Array
    t_B: jax.Array


@dataclasses.dataclass(frozen=True, kw_only=True)
class UniformDiffusion:
    """Bound of diffusion whose noise is a uniform token (UDLM, Schiff et al. 2024).

    For K predictable ids and alpha = 1 - m(t) let x_j = 1 + alpha (K 1[j = x_0] - 1),
    y_j = 1 + alpha (K p_j - 1), p the prediction, and i the token that is seen. Then a
    token costs at time t

      -alpha' / (K alpha) * sum_j r_j (d_j - 1 - log d_j),  r_j = x_j / x_i,
                                                            d_j = (y_j / y_i) / r_j,

    which is the integrand given there as a sum of terms that are never below 0. All
    tokens cost something, also those that are still right.

    Attributes:
      process: ids and schedule, shared with the sampler.
      time_sampling: how the times of a training batch hang together.
      chunk_tokens: tokens whose logits exist at once.
    """

    process: UniformProcess
    time_sampling: TimeSampling
    chunk_tokens: int
    causal: bool = False
    kind: str = "upper bound"
    estimator: str = "continuous time, stratified times"
    loss_is_bound: bool = True

    def draw(
        self, batch: Batch, key: jax.Array, progress: jax.Array | float = 0.0
    ) -> NoiseDraws:
        """Times over the global batch, then noise."""
        del progress
        time_key, noise_key = jax.random.split(key)
        t_B = draw_times(time_key, batch.tokens.shape[0], self.time_sampling)
        return self._noised(batch, noise_key, t_B)

    def draw_evaluation(
        self, batch: Batch, key: jax.Array, position_B: jax.Array
    ) -> NoiseDraws:
        """Noise at the times 1 - position_B."""
        return self._noised(batch, key, 1.0 - position_B)

    def _noised(self, batch: Batch, key: jax.Array, t_B: jax.Array) -> NoiseDraws:
        rate_B = self.process.schedule.mask_rate(t_B)
        noised_BL = self.process.replace(key, batch.tokens, rate_B)
        return NoiseDraws(jnp.where(batch.weights > 0, noised_BL, batch.tokens), t_B)

    def nll_B(
        self,
        model: LanguageModel,
        batch: Batch,
        draws: NoiseDraws,
        dropout_key: jax.Array | None = None,
    ) -> jax.Array:
        return self._costs(model, batch, draws, dropout_key).of_rows()

    def loss(
        self,
        model: LanguageModel,
        batch: Batch,
        draws: NoiseDraws,
        dropout_key: jax.Array | None,
    ) -> Loss:
        total = self._costs(model, batch, draws, dropout_key).total()
        counted = batch.weights > 0
        wrong = jnp.sum((draws.noised_BL != batch.tokens) & counted, dtype=jnp.float32)
        return Loss(total, jnp.sum(batch.weights), {"noise_rate": wrong})

    def _costs(
        self,
        model: LanguageModel,
        batch: Batch,
        draws: NoiseDraws,
        dropout_key: jax.Array | None,
    ) -> TokenCosts:
        schedule, shape = self.process.schedule, batch.tokens.shape
        rate_B = schedule.mask_rate(draws.t_B)
        hidden_BLD = model(
            draws.noised_BL,
            lengths_B=real_lengths(batch),
            segments_BL=batch.segments,
            positions_BL=batch.positions,
            sigma_B=sigma(rate_B),
            dropout_key=dropout_key,
        )
        kept_B = jnp.clip(1.0 - rate_B, _MARGIN, 1.0 - _MARGIN)
        steepness_B = schedule.derivative(draws.t_B) / kept_B
        weight_B = steepness_B / len(self.process.predictable)
        return TokenCosts(
            model=model,
            cost=self._cost,
            hidden_BLD=hidden_BLD,
            targets_BL=batch.tokens,
            counted_BL=batch.weights > 0,
            weights_BL=jnp.broadcast_to(weight_B[:, None], shape),
            further_BL=(draws.noised_BL, jnp.broadcast_to(kept_B[:, None], shape)),
            chunk_tokens=self.chunk_tokens,
        )

    def _cost(
        self, logits: jax.Array, targets: jax.Array, seen: jax.Array, kept: jax.Array
    ) -> jax.Array:
        """The sum over j: float32 [b, l] of logits [b, l, V]."""
        count = len(self.process.predictable)
        real_V = jnp.isin(jnp.arange(logits.shape[-1]), self.process.predictable)
        is_target = jnp.arange(logits.shape[-1]) == targets[..., None]
        kept = kept[..., None]
        log_x = jnp.log1p(kept * (count * is_target - 1.0))
        log_y = jnp.log1p(kept * (count * jax.nn.softmax(logits, axis=-1) - 1.0))
        log_r = log_x - _at(log_x, seen)
        log_d = log_y - _at(log_y, seen) - log_r
        # exp(z) - 1 - z loses all digits near 0, where its series is exact.
        small = jnp.abs(log_d) < 1e-2
        near = jnp.where(small, log_d, 0.0)
        series = jnp.square(near) * (0.5 + near / 6 + jnp.square(near) / 24)
        far = jnp.where(small, 1.0, log_d)
        terms = jnp.where(small, series, jnp.expm1(far) - far)
        return jnp.sum(jnp.where(real_V, jnp.exp(log_r) * terms, 0.0), axis=-1)


def _at(values: jax.Array, index: jax.Array) -> jax.Array:
    return jnp.take_along_axis(values, index[..., None], axis=-1)
