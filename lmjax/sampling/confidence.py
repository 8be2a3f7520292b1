"""The surest tokens first: a decoder of high quality, not the law of the model."""

import dataclasses

import jax
import jax.numpy as jnp

from lmjax.core.types import PyTree
from lmjax.sampling.denoiser import Denoiser
from lmjax.sampling.reveal_rules import masked


@dataclasses.dataclass(frozen=True, kw_only=True)
class Confidence:
    """Low-confidence remasking (LLaDA, Nie et al. 2025), block after block.

    Each call draws a token for every masked position of the row's current block, and
    keeps those whose token has the highest probability, n / steps of the block at a
    time (the first n mod steps times one more); the others stay masked. Blocks go from
    left to right over the positions to be filled, of which each row has its own
    number. A row's steps are divided over its blocks, at least one for each.

    A time-conditioned model is told the share of these positions that is still masked.

    Attributes:
      steps: T, of a whole row.
      block_length: positions of a block; 0 makes one block of all.
    """

    steps: int
    block_length: int = 0
    revises = False
    from_prior = False

    def begin(self, denoiser: Denoiser, tokens_BL: jax.Array) -> jax.Array:
        """Block of each position, from 0; -1 where nothing is filled: int32 [B, L]."""
        masked_BL = masked(denoiser, tokens_BL)
        place_BL = jnp.cumsum(masked_BL, axis=1) - 1
        block_BL = place_BL // (self.block_length or tokens_BL.shape[1])
        return jnp.where(masked_BL, block_BL, -1).astype(jnp.int32)

    def num_calls(self, state: jax.Array) -> jax.Array:
        num_blocks_B, base_B, extra_B = self._divide(state)
        return jnp.max(num_blocks_B * base_B + extra_B)

    def step(
        self, denoiser: Denoiser, call: jax.Array, tokens_BL: jax.Array, state: PyTree
    ) -> tuple[jax.Array, PyTree]:
        block_BL = state
        now_B, count_B = self._turn(block_BL, call)
        masked_BL = masked(denoiser, tokens_BL)
        asked_BL = masked_BL & (block_BL == now_B[:, None])
        filled_B = jnp.sum(block_BL >= 0, axis=1)
        share_B = jnp.sum(masked_BL, axis=1) / jnp.maximum(filled_B, 1)
        batch_size, length = tokens_BL.shape
        drawn_BL, sure_BL = denoiser(
            tokens_BL, share_B * denoiser.process.schedule.end
        ).sure_tokens(
            asked_BL,
            visit=call,
            expected=batch_size * min(self.block_length or length, length),
        )
        order_BL = jnp.argsort(jnp.where(asked_BL, -sure_BL, jnp.inf), axis=1)
        rank_BL = jnp.argsort(order_BL, axis=1)
        reveal_BL = asked_BL & (rank_BL < count_B[:, None])
        return jnp.where(reveal_BL, drawn_BL, tokens_BL), state

    def _divide(self, block_BL: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
        """Blocks of each row, steps of each of them, and how many have one more."""
        num_blocks_B = jnp.max(block_BL, axis=1) + 1
        share_B = self.steps // jnp.maximum(num_blocks_B, 1)
        # More steps than positions would be calls that reveal nothing.
        most = self.block_length or block_BL.shape[1]
        extra_B = self.steps - share_B * num_blocks_B
        extra_B = jnp.where((share_B >= 1) & (share_B < most), extra_B, 0)
        return num_blocks_B, jnp.clip(share_B, 1, most), extra_B

    def _turn(
        self, block_BL: jax.Array, call: jax.Array
    ) -> tuple[jax.Array, jax.Array]:
        """The block of each row in this call, and how many positions it reveals."""
        num_blocks_B, base_B, extra_B = self._divide(block_BL)
        later_B = call - extra_B * (base_B + 1)  # calls after the longer blocks
        longer_B = later_B < 0
        steps_B = base_B + longer_B
        since_B = jnp.where(longer_B, call, later_B)
        now_B = since_B // steps_B + jnp.where(longer_B, 0, extra_B)
        size_B = jnp.sum(block_BL == now_B[:, None], axis=1)
        count_B = size_B // steps_B + (since_B % steps_B < size_B % steps_B)
        return jnp.where(now_B < num_blocks_B, now_B, -1), count_B
