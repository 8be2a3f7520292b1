"""Samplers that may mask again what they have revealed (ReMDM, Wang et al. 2025)."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from lmjax.config.choices import Remasking
from lmjax.core.types import PyTree
from lmjax.diffusion.schedules import Schedule
from lmjax.sampling.denoiser import Denoiser, expected_per_call
from lmjax.sampling.reveal_rules import masked, time_grid

# The loop's times, and the share of tokens that is revealed meanwhile.
LOOP_ON, LOOP_OFF, LOOP_REVEALED = 0.55, 0.05, 0.9


@dataclasses.dataclass(frozen=True, kw_only=True)
class Remask:
    """Masks a revealed token again with chance sigma, and reveals the more for it.

    From t to s a masked position is revealed with probability
    (alpha_s - (1 - sigma) alpha_t) / (1 - alpha_t), so that masks keep the rate m(s)
    for any sigma up to min(1, (1 - alpha_s) / alpha_t), "the most" below. What is
    given is never masked.

    CAP: sigma is `strength`, or the most. RESCALE: `strength` times the most.
    CONFIDENCE: the most, shared out in each row by a softmax of -p, p the probability
    a token had when it was revealed; `strength` plays no part. There sigma depends on
    the canvas: masked positions take its mean over the row, which keeps the expected
    number of masks, and the marginal but roughly. LOOP: reveals 0.9 of the tokens by
    t = 0.55, stays there until t = 0.05 with sigma as in CAP, and then finishes; its
    rates are linear in t between, whatever the schedule.

    Attributes:
      kind: which sigma.
      strength: see above, in [0, 1].
      steps: T.
    """

    kind: Remasking
    strength: float
    steps: int
    revises = True

    @property
    def from_prior(self) -> bool:
        return self.kind is not Remasking.LOOP

    def grid(self, schedule: Schedule) -> tuple[np.ndarray, np.ndarray]:
        """m at the times j / T, and sigma (the most, for CONFIDENCE) from j to j - 1.

        Both float64 [T + 1]; sigma at [0] is 0.
        """
        if self.kind is Remasking.LOOP:
            times = np.arange(self.steps + 1) / self.steps
            hidden = 1.0 - LOOP_REVEALED
            rates = np.interp(times, [0, LOOP_OFF, LOOP_ON, 1], [0, hidden, hidden, 1])
        else:
            rates = time_grid(schedule, self.steps)
        before, after = rates[1:], rates[:-1]
        revealed = 1.0 - before
        most = np.divide(
            after, revealed, out=np.ones_like(after), where=after < revealed
        )
        match self.kind:
            case Remasking.CAP:
                chances = np.minimum(self.strength, most)
            case Remasking.RESCALE:
                chances = self.strength * most
            case Remasking.CONFIDENCE:
                chances = most
            case Remasking.LOOP:
                held = np.isclose(before, after, rtol=1e-12)
                chances = np.where(held, np.minimum(self.strength, most), 0.0)
        return rates, np.concatenate([[0.0], chances])

    def begin(self, denoiser: Denoiser, tokens_BL: jax.Array) -> jax.Array:
        """The probability each token had when it was revealed, float32 [B, L].

        1 for tokens of the prior, which nobody chose.
        """
        del denoiser
        return jnp.ones(tokens_BL.shape, jnp.float32)

    def num_calls(self, state: PyTree) -> int:
        del state
        return self.steps

    def step(
        self, denoiser: Denoiser, call: jax.Array, tokens_BL: jax.Array, state: PyTree
    ) -> tuple[jax.Array, PyTree]:
        sure_BL, now = state, self.steps - call
        masked_BL = masked(denoiser, tokens_BL)
        free_BL = ~masked_BL & ~denoiser.given_BL
        rates, chances = self.grid(denoiser.process.schedule)
        chance_BL = jnp.asarray(chances, jnp.float32)[now]
        if self.kind is Remasking.CONFIDENCE:
            chance_BL = chance_BL * _shares(sure_BL, free_BL)
        rate = jnp.asarray(rates, jnp.float32)[now]
        fresh = jnp.asarray(_differences(rates), jnp.float32)[now]
        # As a product, since times near 1 leave few digits to a quotient.
        coins_BL = denoiser.coins(call)
        revealed_BL = coins_BL * rate <= fresh + chance_BL * (1.0 - rate)
        reveal_BL = masked_BL & revealed_BL
        back_BL = free_BL & (coins_BL <= chance_BL)
        predictions = denoiser(tokens_BL, jnp.full(tokens_BL.shape[0], rate))
        expected = expected_per_call(tokens_BL.shape, self.steps)
        if self.kind is Remasking.CONFIDENCE:
            drawn_BL, sure = predictions.sure_tokens(
                reveal_BL, visit=call, expected=expected
            )
            sure_BL = jnp.where(reveal_BL, sure, sure_BL)
        else:
            drawn_BL = predictions.tokens(reveal_BL, visit=call, expected=expected)
        tokens_BL = denoiser.process.mask(tokens_BL, back_BL)
        return jnp.where(reveal_BL, drawn_BL, tokens_BL), sure_BL


def _shares(sure_BL: jax.Array, free_BL: jax.Array) -> jax.Array:
    """Softmax of -p over the revealed tokens of a row, and its mean elsewhere."""
    weight_BL = jnp.where(free_BL, jnp.exp(-sure_BL), 0.0)
    count_B = jnp.maximum(jnp.sum(free_BL, axis=1), 1)
    # A row with nothing revealed has nothing to share: then 0 / 1.
    total_B = jnp.where(free_BL.any(axis=1), jnp.sum(weight_BL, axis=1), 1.0)
    mean_B = free_BL.any(axis=1) / count_B
    return jnp.where(free_BL, weight_BL / total_B[:, None], mean_B[:, None])


def _differences(rates: np.ndarray) -> np.ndarray:
    """m_t - m_s of the step from j to j - 1, at [j]; 0 at [0]."""
    return np.concatenate([[0.0], np.diff(rates)])
