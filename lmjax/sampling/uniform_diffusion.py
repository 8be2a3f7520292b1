"""Uniform-state diffusion: every token may change until the last step (UDLM)."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from lmjax.core.types import LanguageModel, PyTree
from lmjax.diffusion.process import UniformProcess
from lmjax.sampling.denoiser import (
    PRIOR,
    Denoiser,
    Filled,
    Predictions,
    expected_per_call,
    fold_rows,
    row_keys,
)
from lmjax.sampling.logits import TokenSampler
from lmjax.sampling.masked_diffusion import keep_state
from lmjax.sampling.reveal_rules import time_grid


# Compiled as it is, so it must have a hash, which the arrays of a process have not.
@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class UniformDiffusionSampler:
    """Denoises uniform tokens over `steps` equal steps of time.

    The posterior of a token i over a step from t to s is a mixture of three (Schiff et
    al. 2024, for K ids and the model's law p of the clean token): i stays with weight
    K alpha_t p(i) + alpha_ts - alpha_t, is drawn from p with alpha_s - alpha_t, and
    becomes a uniform token with (1 - alpha_ts)(1 - alpha_s), where alpha_ts is
    alpha_t / alpha_s; the weights sum to K alpha_t p(i) + 1 - alpha_t. Tokens are
    drawn only where the second is chosen. p is the law that `draw` draws from.

    Attributes:
      bind: parameters -> time-conditioned model.
      process: schedule and ids, shared with the objective.
      steps: T; the grid runs over t = T/T, ..., 1/T to s = t - 1/T.
      draw: what temperature, top-k and top-p make of the model's law.
    """

    bind: Callable[[PyTree], LanguageModel]
    process: UniformProcess
    steps: int
    draw: TokenSampler

    def __call__(
        self,
        params: PyTree,
        key: jax.Array,
        canvas_BL: jax.Array,
        given_BL: jax.Array,
        lengths_B: jax.Array | None = None,
        *,
        show: int = 0,
    ) -> Filled:
        """Fills every position that is not given; see `MaskedDiffusionSampler`."""
        batch_size, length = canvas_BL.shape
        keys_B = row_keys(key, batch_size)
        denoiser = Denoiser(
            model=self.bind(params),
            process=self.process,
            draw=self.draw,
            keys_B=keys_B,
            given_BL=given_BL,
            lengths_B=lengths_B,
        )
        noise_BL = self._noise(keys_B, 0, length)
        start_BL = jnp.where(given_BL, canvas_BL, noise_BL)
        rates = jnp.asarray(time_grid(self.process.schedule, self.steps), jnp.float32)
        weights = jnp.asarray(self.weights(), jnp.float32)

        def step(call: jax.Array, carry: tuple[Any, ...]) -> tuple[Any, ...]:
            tokens_BL, states_SBL = carry
            now = self.steps - call
            predictions = denoiser(tokens_BL, jnp.full(batch_size, rates[now]))
            likely_BL = self._likely(predictions, tokens_BL)
            likely, kept, drawn, noise = weights[now]
            total_BL = likely * likely_BL + kept + drawn + noise
            point_BL = denoiser.coins(call) * total_BL
            draw_BL = ~given_BL & (point_BL <= drawn)
            replace_BL = ~given_BL & ~draw_BL & (point_BL <= drawn + noise)
            expected = expected_per_call(tokens_BL.shape, self.steps)
            drawn_BL = predictions.tokens(draw_BL, visit=call, expected=expected)
            noise_BL = self._noise(keys_B, call + 1, length)
            tokens_BL = jnp.where(replace_BL, noise_BL, tokens_BL)
            tokens_BL = jnp.where(draw_BL, drawn_BL, tokens_BL)
            states_SBL = keep_state(states_SBL, call, self.steps, tokens_BL)
            return tokens_BL, states_SBL

        states_SBL = jnp.broadcast_to(start_BL, (show, *start_BL.shape))
        tokens_BL, states_SBL = jax.lax.fori_loop(
            0, self.steps, step, (start_BL, states_SBL)
        )
        return Filled(tokens_BL, jnp.int32(self.steps), states_SBL)

    def weights(self) -> np.ndarray:
        """Of the mixture from j to j - 1, at [j]: float64 [T + 1, 4].

        K alpha_t (times p(i)), alpha_ts - alpha_t, alpha_s - alpha_t and
        (1 - alpha_ts)(1 - alpha_s).
        """
        rates = time_grid(self.process.schedule, self.steps)
        m_t, m_s = rates[1:], rates[:-1]
        alpha_t, alpha_s = 1.0 - m_t, 1.0 - m_s
        # So many steps that float32 rates of both are 1: nothing is kept of nothing.
        nothing = np.zeros_like(alpha_t)
        ratio = np.divide(alpha_t, alpha_s, out=nothing, where=alpha_s > 0)
        num_ids = len(self.process.predictable)
        columns = (
            num_ids * alpha_t,
            ratio * m_s,  # alpha_ts - alpha_t
            m_t - m_s,
            (1.0 - ratio) * m_s,
        )
        return np.concatenate([np.zeros((1, 4)), np.stack(columns, axis=1)])

    def _likely(self, predictions: Predictions, tokens_BL: jax.Array) -> jax.Array:
        """Probability of the token that stands at each position not given."""
        flat_T = tokens_BL.reshape(-1)

        def measure(
            _: jax.Array, logits_CV: jax.Array, index_C: jax.Array
        ) -> jax.Array:
            tokens_C = jnp.take(flat_T, index_C, mode="clip")
            log_p_CV = self.draw.law(logits_CV)
            log_p_C = jnp.take_along_axis(log_p_CV, tokens_C[:, None], axis=-1)[:, 0]
            return jnp.exp(log_p_C)

        free_BL = ~predictions.denoiser.given_BL
        return predictions.measure(free_BL, measure, expected=free_BL.size)

    def _noise(
        self, keys_B: jax.Array, visit: int | jax.Array, length: int
    ) -> jax.Array:
        """Uniform tokens, one from the key of each position; int32 [B, L]."""
        keys_B = fold_rows(fold_rows(keys_B, PRIOR), visit)

        def draw(key: jax.Array, position: jax.Array) -> jax.Array:
            return self.process.draw_noise(jax.random.fold_in(key, position), ())

        positions_L = jnp.arange(length)
        return jax.vmap(lambda key: jax.vmap(lambda i: draw(key, i))(positions_L))(
            keys_B
        )
