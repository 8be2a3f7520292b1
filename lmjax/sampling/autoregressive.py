"""Left-to-right generation with a key-value cache in static shapes."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from lmjax.core.types import PyTree
from lmjax.sampling.logits import TokenSampler


@dataclasses.dataclass(frozen=True, kw_only=True)
class AutoregressiveSampler:
    """Continues prompts token by token until EOS or the end of the canvas.

    Attributes:
      bind: parameters -> causal model with a cache.
      bos_id: goes before every canvas, as BOS does before every training window.
      eos_id: ends a row; what follows it is EOS too.
      draw: how a token is picked from logits.
    """

    bind: Callable[[PyTree], Any]
    bos_id: int
    eos_id: int
    draw: TokenSampler

    def __call__(
        self,
        params: PyTree,
        key: jax.Array,
        canvas_BL: jax.Array,
        prompt_lengths_B: jax.Array,
    ) -> jax.Array:
        """Fills each row of the canvas after its prompt; returns tokens [B, L].

        Args:
          params: parameters of the model.
          key: randomness; row r and position i have draws of their own.
          canvas_BL: prompts at the start of each row, anything behind them.
          prompt_lengths_B: tokens of each prompt, 0 to L.
        """
        model = self.bind(params)
        batch_size, length = canvas_BL.shape
        inputs_BL = jnp.roll(canvas_BL, 1, axis=1).at[:, 0].set(self.bos_id)
        positions_BL = jnp.broadcast_to(jnp.arange(length), (batch_size, length))
        cache = model.empty_cache(batch_size, length)
        # Reads all prompts at once. What stands behind a prompt is read too, and is
        # overwritten in the cache before any token sees it.
        hidden_BLD, cache = model.extend(inputs_BL, positions_BL, cache)
        hidden_BD = jnp.take_along_axis(
            hidden_BLD, jnp.minimum(prompt_lengths_B, length - 1)[:, None, None], axis=1
        )[:, 0]
        start = jnp.min(prompt_lengths_B)

        def unfinished(carry: tuple[Any, ...]) -> jax.Array:
            i, _, _, _, done_B = carry
            return (i < length) & ~jnp.all(done_B)

        def step(carry: tuple[Any, ...]) -> tuple[Any, ...]:
            """Fills position i of the rows whose prompt ends before it."""
            i, tokens_BL, hidden_BD, cache, done_B = carry
            logits_BV = model.logits(model.finish(hidden_BD))
            drawn_B = self.draw(jax.random.fold_in(key, i), logits_BV)
            drawn_B = jnp.where(done_B, self.eos_id, drawn_B)
            begun_B = i >= prompt_lengths_B
            token_B = jnp.where(begun_B, drawn_B, tokens_BL[:, i])
            tokens_BL = tokens_BL.at[:, i].set(token_B)
            done_B = done_B | (begun_B & (token_B == self.eos_id))
            next_BLD, cache = model.extend(
                token_B[:, None], jnp.full((batch_size, 1), i + 1), cache
            )
            # A row whose prompt goes on keeps the state at its prompt's end.
            following_B = i + 1 > prompt_lengths_B
            hidden_BD = jnp.where(following_B[:, None], next_BLD[:, 0], hidden_BD)
            return i + 1, tokens_BL, hidden_BD, cache, done_B

        done_B = prompt_lengths_B >= length
        carry = (start, canvas_BL, hidden_BD, cache, done_B)
        _, tokens_BL, _, _, done_B = jax.lax.while_loop(unfinished, step, carry)
        ended_BL = jnp.cumsum(
            (tokens_BL == self.eos_id)
            & (jnp.arange(length) >= prompt_lengths_B[:, None]),
            axis=1,
        )
        return jnp.where(ended_BL > 0, self.eos_id, tokens_BL)
