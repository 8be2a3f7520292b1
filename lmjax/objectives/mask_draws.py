"""Which tokens are masked, and what each counts: draws of masked diffusion.

In continuous time every draw below has the same expectation: a set S of n tokens that
count, masked and summed with its weight, comes with (|S| - 1)! (n - |S|)! / n!
whichever way it is drawn. They differ in variance, and in what they need.
"""

import dataclasses
from typing import NamedTuple, Protocol

import jax
import jax.numpy as jnp
import numpy as np

from lmjax.config.schema import LossWeighting, TimeSampling
from lmjax.data.batch import Batch
from lmjax.diffusion.process import MaskProcess
from lmjax.diffusion.schedules import Schedule, sigma
from lmjax.diffusion.times import draw_times


class MaskDraws(NamedTuple):
    """Which tokens are masked, and what their cost counts.

    Attributes:
      masked_BL: bool [B, L].
      weight_B: float32 [B], weight of each masked token of the row.
      sigma_B: float32 [B], noise level for a model conditioned on time.
      prior_B: float32 [B], nats that the prior adds; None where it is all mask.
      tilt_B: float32 [B], how much earlier rare tokens were masked than frequent ones;
        None where all were masked at the same rate.
    """

    masked_BL: jax.Array
    weight_B: jax.Array
    sigma_B: jax.Array
    prior_B: jax.Array | None = None
    tilt_B: jax.Array | None = None


class DrawMasks(Protocol):
    """A way to draw masks of an unbiased bound; `position_B` in [0, 1) spreads them.

    Attributes:
      name: in reports.
    """

    @property
    def name(self) -> str: ...

    def __call__(
        self,
        process: MaskProcess,
        batch: Batch,
        key: jax.Array,
        position_B: jax.Array,
    ) -> MaskDraws: ...


@dataclasses.dataclass(frozen=True)
class CountMasks:
    """Masks an exact number of tokens: l of a row's n, each weighing n / l.

    With l uniform on 1..n and the positions uniform this is the any-order loss (LLaDA,
    Nie et al. 2025, equation 6), with less variance than times have. `position_B`,
    uniform for each row, picks l; spread over rows it stratifies.
    """

    name = "exact-count, stratified"

    def __call__(
        self,
        process: MaskProcess,
        batch: Batch,
        key: jax.Array,
        position_B: jax.Array,
    ) -> MaskDraws:
        del process
        counted_BL = batch.weights > 0
        total_B = jnp.sum(counted_BL, axis=1)
        count_B = jnp.clip(jnp.floor(position_B * total_B) + 1, 1, total_B)
        order_BL = jnp.where(
            counted_BL, jax.random.uniform(key, batch.tokens.shape), jnp.inf
        )
        rank_BL = jnp.argsort(jnp.argsort(order_BL, axis=1), axis=1)
        masked_BL = (rank_BL < count_B[:, None]) & counted_BL
        some_B = jnp.maximum(total_B, 1)  # rows of padding alone have no tokens
        rate_B = count_B / some_B
        weight_B = jnp.where(total_B > 0, some_B / jnp.maximum(count_B, 1), 0.0)
        return MaskDraws(masked_BL, weight_B, sigma(rate_B))


@dataclasses.dataclass(frozen=True)
class ContinuousMasks:
    """Times of continuous time: as the schedule, or each drawn for itself.

    Attributes:
      stratified: whether `position_B` spreads the times.
    """

    stratified: bool

    @property
    def name(self) -> str:
        kind = "stratified" if self.stratified else "independent"
        return f"continuous time, {kind} times"

    def __call__(
        self,
        process: MaskProcess,
        batch: Batch,
        key: jax.Array,
        position_B: jax.Array,
    ) -> MaskDraws:
        time_key, mask_key = jax.random.split(key)
        if not self.stratified:
            position_B = jax.random.uniform(time_key, position_B.shape)
        t_B = 1.0 - position_B  # (0, 1]
        schedule = process.schedule
        return mask_at(process, batch, mask_key, t_B, schedule, schedule.weight(t_B))


@dataclasses.dataclass(frozen=True)
class DiscreteMasks:
    """Steps of discrete time: sum over j of E[(m_t - m_s) / m_t sum of costs].

    t = j / T and s = (j - 1) / T. The bound is of the model in T steps, whose masks may
    be revealed together; with T = 1 it is exact.

    Attributes:
      steps: T.
    """

    steps: int

    @property
    def name(self) -> str:
        return f"discrete time, T={self.steps}, stratified steps"

    def __call__(
        self,
        process: MaskProcess,
        batch: Batch,
        key: jax.Array,
        position_B: jax.Array,
    ) -> MaskDraws:
        step_B = jnp.minimum(jnp.floor(position_B * self.steps) + 1, self.steps)
        t_B = step_B / self.steps
        s_B = (step_B - 1) / self.steps
        weight_B = self.steps * process.reveal_probability(t_B, s_B)
        return mask_at(process, batch, key, t_B, process.schedule, weight_B)


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class TrainingMasks:
    """Masks of a training batch: four named choices, and only some give a bound.

    Attributes:
      density: how densely each rate is visited; None is as the process's schedule does
        at uniform times, `CountMasks` an exact number of tokens instead of a rate.
      sampling: how the times of a batch hang together.
      steps: T of discrete time; 0 is continuous.
      weighting: what a masked token's cost counts.
      softening: exponent of the softened weighting.
      rarity: float32 [V] in [-1, 1], 1 for the rarest token; None masks all alike.
      tilt: at the end of training the rate of a token is m^exp(-tilt * rarity).
    """

    density: Schedule | CountMasks | None = None
    sampling: TimeSampling = TimeSampling.STRATIFIED
    steps: int = 0
    weighting: LossWeighting = LossWeighting.BOUND
    softening: float = 1.0
    rarity: np.ndarray | None = None
    tilt: float = 0.0

    @property
    def is_bound(self) -> bool:
        """Whether the training loss bounds the negative log-likelihood."""
        return self.weighting is LossWeighting.BOUND

    def __call__(
        self,
        process: MaskProcess,
        batch: Batch,
        key: jax.Array,
        progress: jax.Array | float,
    ) -> MaskDraws:
        time_key, mask_key = jax.random.split(key)
        t_B = draw_times(time_key, batch.tokens.shape[0], self.sampling)
        if isinstance(self.density, CountMasks):
            return self.density(process, batch, mask_key, 1.0 - t_B)
        if self.steps:
            return DiscreteMasks(self.steps)(process, batch, mask_key, 1.0 - t_B)
        density = (self.density or process.schedule).at(progress)
        weight_B = self._weight(density, t_B)
        tilt_B = None
        if self.rarity is not None:
            tilt_B = jnp.full(t_B.shape, self.tilt * jnp.asarray(progress, jnp.float32))
        return mask_at(
            process, batch, mask_key, t_B, density, weight_B, self.rarity, tilt_B
        )

    def _weight(self, density: Schedule, t_B: jax.Array) -> jax.Array:
        match self.weighting:
            case LossWeighting.BOUND:
                return density.weight(t_B)
            case LossWeighting.SOFTENED:
                steepness = jnp.power(density.derivative(t_B), self.softening)
                return steepness / density.mask_rate(t_B)
            case LossWeighting.FLAT:
                # A loss of ln V before training, as the bound has.
                grid = (jnp.arange(1000, dtype=jnp.float32) + 0.5) / 1000
                return jnp.full_like(t_B, 1 / jnp.mean(density.mask_rate(grid)))


def mask_at(
    process: MaskProcess,
    batch: Batch,
    key: jax.Array,
    t_B: jax.Array,
    schedule: Schedule,
    weight_B: jax.Array,
    rarity: np.ndarray | None = None,
    tilt_B: jax.Array | None = None,
) -> MaskDraws:
    """Masks each token that counts with probability m(t), or its own rate.

    Args:
      schedule: gives the rates; the process's own or another that visits them.
      rarity, tilt_B: a token v is masked with probability m(t)^exp(-tilt * rarity_v).
    """
    counted_BL = batch.weights > 0
    rate_B = schedule.mask_rate(t_B)
    rate = rate_B
    if rarity is not None:
        rate = rate_B[:, None] ** token_rates(
            jnp.asarray(rarity)[batch.tokens], tilt_B[:, None]
        )
    masked_BL = process.choose(key, rate, batch.tokens.shape[1]) & counted_BL
    prior_B = None
    if schedule.end < 1.0:  # only the process's own schedule can
        prior_B = process.prior_nats * jnp.sum(counted_BL, axis=1)
    return MaskDraws(masked_BL, weight_B, sigma(rate_B), prior_B, tilt_B)


def token_rates(rarity: jax.Array, tilt: jax.Array) -> jax.Array:
    """Exponent k of m(t)^k, above 1 for frequent tokens and below for rare ones."""
    return jnp.exp(-tilt * rarity)
