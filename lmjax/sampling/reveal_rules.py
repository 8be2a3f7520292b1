"""Which masked positions a sampler reveals in each call of the network.

A rule holds no arrays. It makes its state at the start, says how many calls it will
need at most, and turns one canvas into the next by one call of the denoiser. Times run
over the grid t = T/T, ..., 1/T to s = t - 1/T; m is the mask rate, alpha = 1 - m.
"""

import dataclasses
from typing import Protocol

import jax
import jax.numpy as jnp
import numpy as np

from lmjax.config.choices import NoiseRemoval
from lmjax.core.types import PyTree
from lmjax.diffusion.parameterizations import Parameterization
from lmjax.diffusion.schedules import Schedule
from lmjax.sampling.denoiser import Denoiser, expected_per_call, unit_interval


class Rule(Protocol):
    """A way to reveal a canvas.

    Attributes:
      revises: whether tokens may change once they are revealed.
      from_prior: whether it starts from the prior of the process, which may hold some
        tokens already, or else from masks alone.
    """

    revises: bool
    from_prior: bool

    def begin(self, denoiser: Denoiser, tokens_BL: jax.Array) -> PyTree:
        """The state of a run that starts from these tokens."""
        ...

    def num_calls(self, state: PyTree) -> int | jax.Array:
        """Calls of the network after which no mask is left."""
        ...

    def step(
        self, denoiser: Denoiser, call: jax.Array, tokens_BL: jax.Array, state: PyTree
    ) -> tuple[jax.Array, PyTree]:
        """The canvas and the state after one call, the first of which is number 0."""
        ...


def time_grid(schedule: Schedule, steps: int) -> np.ndarray:
    """m(j / T) for j = 0, ..., T: float64 [T + 1], from exactly 0 to exactly m(1)."""
    with jax.ensure_compile_time_eval():
        rates = schedule.mask_rate(jnp.arange(steps + 1, dtype=jnp.float32) / steps)
        rates = np.array(jax.device_get(rates), np.float64)
    rates[0], rates[-1] = 0.0, schedule.end
    return np.clip(rates, 0.0, 1.0)


def reveal_probabilities(rates: np.ndarray) -> np.ndarray:
    """(m_t - m_s) / m_t of the step from j to j - 1, at [j]; 0 at [0]."""
    before, after = rates[1:], rates[:-1]
    ratio = np.divide(after, before, out=np.zeros_like(before), where=before > 0)
    return np.concatenate([[0.0], 1.0 - ratio])


def masked(denoiser: Denoiser, tokens_BL: jax.Array) -> jax.Array:
    """Which positions are masked, bool [B, L]; what is given never is."""
    return (tokens_BL == denoiser.process.mask_id) & ~denoiser.given_BL


def levels(denoiser: Denoiser) -> jax.Array:
    """The mask rate at which each position is revealed: uniform in (0, m(1)].

    m^-1 of it is the position's hitting time. The chance of a level in (m_s, m_t],
    for a position that is still masked at t, is (m_t - m_s) / m_t.
    """
    return unit_interval(denoiser.level_bits()) * denoiser.process.schedule.end


@dataclasses.dataclass(frozen=True, kw_only=True)
class Ancestral:
    """Reveals in steps of time, as ancestral sampling does.

    Each masked position draws its hitting time once, and is revealed in the step that
    holds it. That is exactly the law of T-step ancestral sampling, in which every
    step reveals a masked position with probability (m_t - m_s) / m_t, and tokens are
    drawn only where they are revealed: a stage of its own, since one categorical over
    tokens and "stay masked" together loses rare tokens in float32.

    Attributes:
      steps: T.
      cached: whether each row goes straight to its next step in which something is
        revealed. The tokens are the same for the same keys, and no more calls are
        made than T, or than a row has positions to fill.
    """

    steps: int
    cached: bool = False
    revises = False
    from_prior = True

    def begin(self, denoiser: Denoiser, tokens_BL: jax.Array) -> jax.Array:
        """The step j of T, ..., 1 that reveals each position, 0 where nothing is."""
        rates = jnp.asarray(time_grid(denoiser.process.schedule, self.steps)[1:])
        step_BL = 1 + jnp.searchsorted(rates.astype(jnp.float32), levels(denoiser))
        step_BL = jnp.minimum(step_BL, self.steps).astype(jnp.int32)
        return jnp.where(masked(denoiser, tokens_BL), step_BL, 0)

    def num_calls(self, state: jax.Array) -> int | jax.Array:
        if not self.cached:
            return self.steps
        ordered_BL = jnp.sort(state, axis=1)
        changes_B = jnp.sum(jnp.diff(ordered_BL, axis=1) > 0, axis=1)
        return jnp.max(changes_B + (ordered_BL[:, 0] > 0))

    def step(
        self, denoiser: Denoiser, call: jax.Array, tokens_BL: jax.Array, state: PyTree
    ) -> tuple[jax.Array, PyTree]:
        step_BL, masked_BL = state, masked(denoiser, tokens_BL)
        if self.cached:
            now_B = jnp.max(jnp.where(masked_BL, step_BL, 0), axis=1)
        else:
            now_B = jnp.full(tokens_BL.shape[0], self.steps - call)
        rates = time_grid(denoiser.process.schedule, self.steps)
        reveal_BL = masked_BL & (step_BL == now_B[:, None])
        predictions = denoiser(tokens_BL, jnp.asarray(rates, jnp.float32)[now_B])
        length = tokens_BL.shape[1]
        calls = min(self.steps, length) if self.cached else self.steps
        expected = expected_per_call(tokens_BL.shape, calls)
        drawn_BL = predictions.tokens(reveal_BL, expected=expected)
        return jnp.where(reveal_BL, drawn_BL, tokens_BL), state


@dataclasses.dataclass(frozen=True, kw_only=True)
class FirstHitting:
    """Reveals one token after another, in the order of their hitting times.

    The law of the process in continuous time, exactly, from masks alone (Zheng et al.
    2024): every order has the same chance, and a time-conditioned model is told the
    rate at which the row is when the token is revealed. More than one token per call
    is no longer exact: those are drawn as if alone.
    """

    tokens_per_call: int = 1
    revises = False
    from_prior = False

    def begin(self, denoiser: Denoiser, tokens_BL: jax.Array) -> PyTree:
        """Place in the order, and hitting level, of each position to be filled."""
        masked_BL, bits_BL = masked(denoiser, tokens_BL), denoiser.level_bits()
        order_BL = jnp.lexsort((~bits_BL, ~masked_BL), axis=-1)
        rank_BL = jnp.argsort(order_BL, axis=-1).astype(jnp.int32)
        never = tokens_BL.shape[1]
        return jnp.where(masked_BL, rank_BL, never), levels(denoiser)

    def num_calls(self, state: PyTree) -> jax.Array:
        rank_BL, _ = state
        wanted_B = jnp.sum(rank_BL < rank_BL.shape[1], axis=1)
        return -(-jnp.max(wanted_B) // self.tokens_per_call)

    def step(
        self, denoiser: Denoiser, call: jax.Array, tokens_BL: jax.Array, state: PyTree
    ) -> tuple[jax.Array, PyTree]:
        rank_BL, level_BL = state
        masked_BL = masked(denoiser, tokens_BL)
        reveal_BL = masked_BL & (rank_BL // self.tokens_per_call == call)
        rate_B = jnp.max(jnp.where(masked_BL, level_BL, 0.0), axis=1)
        drawn_BL = denoiser(tokens_BL, rate_B).tokens(
            reveal_BL, expected=tokens_BL.shape[0] * self.tokens_per_call
        )
        return jnp.where(reveal_BL, drawn_BL, tokens_BL), state


@dataclasses.dataclass(frozen=True, kw_only=True)
class Analytic:
    """Reveals by scores, as the Tweedie sampler of SEDD (Lou et al. 2024).

    With scores s and their sum Z, a position is revealed with probability
    min(1, Z (m_t - m_s) / m_t), as a token of law s / Z. Where Z is 1 that is
    ancestral sampling. Otherwise masks may be left at the end, which one more call
    replaces, at the rate of the last step.

    Attributes:
      steps: T.
      parameterization: what the logits stand for.
      noise_removal: how masks that are left become tokens.
    """

    steps: int
    parameterization: Parameterization
    noise_removal: NoiseRemoval = NoiseRemoval.DRAW
    revises = False
    from_prior = True

    def begin(self, denoiser: Denoiser, tokens_BL: jax.Array) -> PyTree:
        del denoiser, tokens_BL
        return ()

    def num_calls(self, state: PyTree) -> int:
        del state
        return self.steps + 1

    def step(
        self, denoiser: Denoiser, call: jax.Array, tokens_BL: jax.Array, state: PyTree
    ) -> tuple[jax.Array, PyTree]:
        rates = time_grid(denoiser.process.schedule, self.steps)
        last = call == self.steps
        now = jnp.maximum(self.steps - call, 1)
        masked_BL = masked(denoiser, tokens_BL)
        rate_B = jnp.full(tokens_BL.shape[0], jnp.asarray(rates, jnp.float32)[now])
        predictions = denoiser(tokens_BL, rate_B)
        chance = jnp.asarray(reveal_probabilities(rates), jnp.float32)[now]
        total_BL = 1.0
        if not self.parameterization.normalized:
            total_BL = self._totals(predictions, masked_BL)
        coins_BL = denoiser.coins(call)
        reveal_BL = masked_BL & (last | (coins_BL <= total_BL * chance))
        expected = expected_per_call(tokens_BL.shape, self.steps)
        drawn_BL = predictions.tokens(reveal_BL, expected=expected)
        if self.noise_removal is NoiseRemoval.GREEDY:
            best_BL = greedy(predictions, reveal_BL & last, expected)
            drawn_BL = jnp.where(last, best_BL, drawn_BL)
        return jnp.where(reveal_BL, drawn_BL, tokens_BL), state

    def _totals(self, predictions: PyTree, masked_BL: jax.Array) -> jax.Array:
        """Z of every masked position."""

        def measure(_: jax.Array, logits_CV: jax.Array, __: jax.Array) -> jax.Array:
            logits_CV = predictions.without_mask(logits_CV)
            log_scores_CV = self.parameterization.log_scores(logits_CV)
            return jnp.sum(jnp.exp(log_scores_CV), axis=-1)

        return predictions.measure(masked_BL, measure, expected=masked_BL.size)


@dataclasses.dataclass(frozen=True, kw_only=True)
class D3PM:
    """Reveals by a model whose logits include the mask (D3PM, Austin et al. 2021).

    With x_m the probability that it gives the mask, a position is revealed with
    probability (alpha_s - alpha_t)(1 - x_m) / (alpha_t x_m + m_t). After the last
    step, at time 0, every position that is not given is decoded once more, for nothing
    carries tokens over there: from the probabilities of the real tokens, made to sum
    to 1 without that of the mask.

    Attributes:
      steps: T.
      noise_removal: how that last decoding picks tokens.
    """

    steps: int
    noise_removal: NoiseRemoval = NoiseRemoval.DRAW
    revises = True
    from_prior = True

    def begin(self, denoiser: Denoiser, tokens_BL: jax.Array) -> PyTree:
        del denoiser, tokens_BL
        return ()

    def num_calls(self, state: PyTree) -> int:
        del state
        return self.steps + 1

    def step(
        self, denoiser: Denoiser, call: jax.Array, tokens_BL: jax.Array, state: PyTree
    ) -> tuple[jax.Array, PyTree]:
        rates = jnp.asarray(
            time_grid(denoiser.process.schedule, self.steps), jnp.float32
        )
        last = call == self.steps
        now = self.steps - call
        rate, after = rates[now], rates[jnp.maximum(now - 1, 0)]
        masked_BL = masked(denoiser, tokens_BL)
        predictions = denoiser(tokens_BL, jnp.full(tokens_BL.shape[0], rate))
        mask_id = denoiser.process.mask_id

        def measure(_: jax.Array, logits_CV: jax.Array, __: jax.Array) -> jax.Array:
            return jax.nn.softmax(logits_CV, axis=-1)[:, mask_id]

        stays_BL = predictions.measure(
            masked_BL & ~last, measure, expected=masked_BL.size
        )
        above_BL = (rate - after) * (1.0 - stays_BL)
        below_BL = (1.0 - rate) * stays_BL + rate
        # Not as a quotient: at time 0 that would be 0 / 0.
        chosen_BL = denoiser.coins(call) * below_BL <= above_BL
        reveal_BL = jnp.where(last, ~denoiser.given_BL, masked_BL & chosen_BL)
        expected = expected_per_call(tokens_BL.shape, self.steps)
        drawn_BL = predictions.tokens(reveal_BL, visit=call, expected=expected)
        if self.noise_removal is NoiseRemoval.GREEDY:
            best_BL = greedy(predictions, reveal_BL & last, expected)
            drawn_BL = jnp.where(last, best_BL, drawn_BL)
        return jnp.where(reveal_BL, drawn_BL, tokens_BL), state


def greedy(predictions: PyTree, where_BL: jax.Array, expected: int) -> jax.Array:
    """The most probable token where it is wanted; int32 [B, L]."""

    def measure(_: jax.Array, logits_CV: jax.Array, __: jax.Array) -> jax.Array:
        best_C = jnp.argmax(predictions.without_mask(logits_CV), axis=-1)
        return best_C.astype(jnp.int32)

    return predictions.measure(where_BL, measure, expected=expected)
