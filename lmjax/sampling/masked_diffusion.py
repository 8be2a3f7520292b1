"""Masked diffusion: one loop around the network, whatever rule reveals the tokens."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from lmjax.core.types import LanguageModel, PyTree
from lmjax.diffusion.process import MaskProcess
from lmjax.sampling.denoiser import PRIOR, Denoiser, Filled, fold_rows, row_keys
from lmjax.sampling.logits import TokenSampler
from lmjax.sampling.reveal_rules import Rule


# Compiled as it is, so it must have a hash, which the arrays of a process have not.
@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class MaskedDiffusionSampler:
    """Fills a canvas with one call of the network per iteration.

    Attributes:
      bind: parameters -> model.
      process: mask id and schedule, shared with the objective.
      rule: which positions each call reveals.
      draw: how a token is picked from logits.
      guidance: how far from what the model writes without what is given; 0 is off.
      eos_id: ends a text: a row is finished once one stands behind its last given
        position with no mask before it, and becomes EOS from there on; when all rows
        are finished, so is the work. None stops for nothing. A rule that revises
        tokens is never stopped.
    """

    bind: Callable[[PyTree], LanguageModel]
    process: MaskProcess
    rule: Rule
    draw: TokenSampler
    guidance: float = 0.0
    eos_id: int | None = None

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
        """Fills every position that is not given.

        Args:
          params: parameters of the model.
          key: randomness of the whole run, or one key for each row.
          canvas_BL: tokens, read where they are given.
          given_BL: bool, positions that stay as they are (a prompt anywhere).
          lengths_B: int32, positions of each row that the model sees; None: all. What
            stands behind them must be given.
          show: number of intermediate states to keep.
        """
        keys_B = row_keys(key, canvas_BL.shape[0])
        denoiser = Denoiser(
            model=self.bind(params),
            process=self.process,
            draw=self.draw,
            keys_B=keys_B,
            given_BL=given_BL,
            guidance=self.guidance,
            lengths_B=lengths_B,
        )
        start_BL = jnp.where(given_BL, canvas_BL, self._start(keys_B, canvas_BL.shape))
        start_BL = self._close(start_BL, given_BL, lengths_B)
        state = self.rule.begin(denoiser, start_BL)
        num_calls = self.rule.num_calls(state)

        def unfinished(carry: tuple[Any, ...]) -> jax.Array:
            call, tokens_BL, _, _ = carry
            going = call < num_calls
            if self.rule.revises:
                return going
            return going & jnp.any(tokens_BL == self.process.mask_id)

        def step(carry: tuple[Any, ...]) -> tuple[Any, ...]:
            call, tokens_BL, state, states_SBL = carry
            tokens_BL, state = self.rule.step(denoiser, call, tokens_BL, state)
            tokens_BL = self._close(tokens_BL, given_BL, lengths_B)
            states_SBL = keep_state(states_SBL, call, num_calls, tokens_BL)
            return call + 1, tokens_BL, state, states_SBL

        states_SBL = jnp.broadcast_to(start_BL, (show, *start_BL.shape))
        carry = (jnp.int32(0), start_BL, state, states_SBL)
        calls, tokens_BL, _, states_SBL = jax.lax.while_loop(unfinished, step, carry)
        return Filled(tokens_BL, calls, states_SBL)

    def _start(self, keys_B: jax.Array, shape: tuple[int, int]) -> jax.Array:
        """The canvas before the first call, int32 [B, L]."""
        if not self.rule.from_prior:
            return jnp.full(shape, self.process.mask_id, jnp.int32)
        return jax.vmap(lambda key: self.process.draw_prior(key, shape[1:]))(
            fold_rows(keys_B, PRIOR)
        )

    def _close(
        self, tokens_BL: jax.Array, given_BL: jax.Array, lengths_B: jax.Array | None
    ) -> jax.Array:
        """Rows that are finished, with EOS behind their end."""
        if self.eos_id is None or self.rule.revises:
            return tokens_BL
        position_L = jnp.arange(tokens_BL.shape[1])
        if lengths_B is not None:
            given_BL = given_BL & (position_L < lengths_B[:, None])
        last_B = jnp.max(jnp.where(given_BL, position_L, -1), axis=1)
        end_BL = (tokens_BL == self.eos_id) & (position_L > last_B[:, None])
        ended_BL = jnp.cumsum(end_BL, axis=1) > 0
        masked_BL = tokens_BL == self.process.mask_id
        finished_B = ~jnp.any(masked_BL & ~ended_BL, axis=1)
        return jnp.where(finished_B[:, None] & ended_BL, self.eos_id, tokens_BL)


def keep_state(
    states_SBL: jax.Array,
    call: jax.Array,
    num_calls: int | jax.Array,
    tokens_BL: jax.Array,
) -> jax.Array:
    """Writes the canvas to every state whose moment has not passed.

    State i of S is that after (i + 1) / (S + 1) of the calls, or the last one where
    the work ended before.
    """
    count = states_SBL.shape[0]
    moment_S = jnp.maximum((jnp.arange(count) + 1) * num_calls // (count + 1), 1)
    due_S = call + 1 <= moment_S
    return jnp.where(due_S[:, None, None], tokens_BL, states_SBL)
