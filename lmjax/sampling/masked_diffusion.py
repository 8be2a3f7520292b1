"""Ancestral sampling of masked diffusion, in two stages per step."""

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp

from lmjax.core.types import LanguageModel, PyTree
from lmjax.diffusion.process import MaskProcess
from lmjax.diffusion.schedules import sigma
from lmjax.sampling.logits import TokenSampler

CHUNK_TOKENS = 8192  # rows of logits that exist at once


@dataclasses.dataclass(frozen=True, kw_only=True)
class MaskedDiffusionSampler:
    """Reveals an all-masked canvas over `steps` equal steps of time.

    In each step a masked token is revealed with the probability that the process
    gives (stage one), and its value is then drawn from the model (stage two). One
    categorical over tokens and "stay masked" together would be the same law, but its
    float32 noise loses rare tokens the more steps there are.

    Attributes:
      bind: parameters -> model.
      process: mask id and schedule, shared with the objective.
      steps: T; the grid runs over t = T/T, ..., 1/T, 0.
      draw: how a token is picked from logits.
    """

    bind: Callable[[PyTree], LanguageModel]
    process: MaskProcess
    steps: int
    draw: TokenSampler

    def __call__(
        self, params: PyTree, key: jax.Array, canvas_BL: jax.Array, given_BL: jax.Array
    ) -> jax.Array:
        """Fills every position that is not given; returns tokens [B, L].

        Args:
          params: parameters of the model.
          key: randomness of the whole run.
          canvas_BL: tokens, read where they are given.
          given_BL: bool, positions that stay as they are (a prompt anywhere).
        """
        model = self.bind(params)
        batch_size = canvas_BL.shape[0]
        schedule = self.process.schedule

        def step(j: jax.Array, tokens_BL: jax.Array) -> jax.Array:
            reveal_key, token_key = jax.random.split(jax.random.fold_in(key, j))
            t = (self.steps - j) / self.steps
            s = (self.steps - j - 1) / self.steps
            masked_BL = tokens_BL == self.process.mask_id
            reveal_BL = masked_BL & jax.random.bernoulli(
                reveal_key, self.process.reveal_probability(t, s), tokens_BL.shape
            )
            noise_B = jnp.full(batch_size, sigma(schedule.mask_rate(t)))
            hidden_BLD = model(tokens_BL, sigma_B=noise_B)
            drawn_BL = self._draw_tokens(model, token_key, hidden_BLD)
            return jnp.where(reveal_BL, drawn_BL, tokens_BL)

        start_BL = self.process.mask(canvas_BL, ~given_BL)
        return jax.lax.fori_loop(0, self.steps, step, start_BL)

    def _draw_tokens(
        self, model: LanguageModel, key: jax.Array, hidden_BLD: jax.Array
    ) -> jax.Array:
        """A token for every position, a slice of the length at a time."""
        batch_size, length, width = hidden_BLD.shape
        slice_length = max(1, min(length, CHUNK_TOKENS // batch_size))
        num_slices = -(-length // slice_length)
        padding = num_slices * slice_length - length
        padded = jnp.pad(hidden_BLD, ((0, 0), (0, padding), (0, 0)))
        shape = (batch_size, num_slices, slice_length, width)
        slices = jnp.swapaxes(padded.reshape(shape), 0, 1)
        keys = jax.random.split(key, num_slices)
        tokens = jax.lax.map(
            lambda inputs: self.draw(inputs[0], model.logits(inputs[1])), (keys, slices)
        )
        return jnp.swapaxes(tokens, 0, 1).reshape(batch_size, -1)[:, :length]
