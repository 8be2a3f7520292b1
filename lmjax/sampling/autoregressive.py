"""Left-to-right generation with a key-value cache in static shapes.

A batch is begun by one program and gone on with by another, a chunk of tokens at a
time: between them the host can show what is written and end rows, without a round trip
for every token.
"""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from lmjax.core.types import KeyValueCache, PyTree
from lmjax.models.decoder import Decoder, take_apart
from lmjax.sampling.denoiser import row_keys
from lmjax.sampling.logits import TokenSampler, penalize


class Prompts(NamedTuple):
    """What a batch of texts begins with, and how far each goes on.

    Attributes:
      inputs_BL: int32, what the model reads: the first input and the tokens of the
        text, with padding in front.
      pads_B: int32, ids of padding in each row.
      room_B: int32, new tokens of each row; 0 for a row that nobody wants.
      first_B: int32, number of the first new token, which tells apart its draws from
        those of an earlier window of the same text.
      keys_B: randomness of each row.
      seen_BV: bool, tokens that a repetition penalty counts; V may be 0 without one.
    """

    inputs_BL: jax.Array
    pads_B: jax.Array
    room_B: jax.Array
    first_B: jax.Array
    keys_B: jax.Array
    seen_BV: jax.Array


class Writing(NamedTuple):
    """Texts that are being written.

    Attributes:
      caches: keys and values of each layer.
      slot: int32, where in the cache the token drawn last belongs.
      count: int32, tokens drawn so far.
      token_B: int32, those drawn last.
      done_B: bool, rows that have ended.
      prompts: what was asked for, of which `inputs_BL` is empty now, and `seen_BV`
        holds what was drawn too.
    """

    caches: tuple[KeyValueCache, ...]
    slot: jax.Array
    count: jax.Array
    token_B: jax.Array
    done_B: jax.Array
    prompts: Prompts


@dataclasses.dataclass(frozen=True, kw_only=True)
class AutoregressiveSampler:
    """Continues prompts token by token until EOS, or as far as is asked for.

    Draws depend on the row's key and the number of the new token, not on the rows
    beside it, on padding or on chunks.

    Attributes:
      bind: parameters -> causal transformer.
      bos_id: goes before every text, as in training before every window.
      eos_id: ends a row; what follows it is EOS too.
      draw: how a token is picked from logits.
      repetition_penalty: of tokens that the prompt holds or that were drawn before;
        see `logits.penalize`. 1 is off.
    """

    bind: Callable[[PyTree], Any]
    bos_id: int
    eos_id: int
    draw: TokenSampler
    repetition_penalty: float = 1.0

    def prepare(self, params: PyTree) -> PyTree:
        """Parameters as `begin` and `go_on` take them."""
        return take_apart(params)

    def begin(
        self, params: PyTree, prompts: Prompts, *, new_tokens: int
    ) -> tuple[Writing, jax.Array]:
        """Reads prompts and draws the first token of each row, int32 [B].

        Args:
          params: what `prepare` made of those of the model.
          new_tokens: room in the cache, for the longest row.
        """
        decoder = Decoder(self.bind, params)
        length = prompts.inputs_BL.shape[1]
        hidden_BLD, caches = decoder.read(
            prompts.inputs_BL, prompts.pads_B, length + new_tokens - 1
        )
        writing = Writing(
            caches=caches,
            slot=jnp.int32(length - 1),
            count=jnp.int32(0),
            token_B=jnp.full(prompts.pads_B.shape, self.eos_id, jnp.int32),
            done_B=prompts.room_B <= 0,
            prompts=prompts._replace(inputs_BL=prompts.inputs_BL[:, :0]),
        )
        writing = self._draw(decoder, writing, hidden_BLD[:, -1])
        return writing, writing.token_B

    def go_on(
        self,
        params: PyTree,
        writing: Writing,
        ended_B: jax.Array,
        steps: jax.Array,
        *,
        chunk: int,
    ) -> tuple[Writing, jax.Array]:
        """Draws up to `steps` more tokens of each row, of at most `chunk`.

        Args:
          params: see `begin`.
          ended_B: bool, rows to end now.
          steps: int32; fewer are made where all rows end.

        Returns:
          The texts, and tokens int32 [B, chunk] of which the first `steps` count.
        """
        decoder = Decoder(self.bind, params)
        writing = writing._replace(done_B=writing.done_B | ended_B)
        batch_size = writing.token_B.shape[0]
        tokens_BC = jnp.full((batch_size, chunk), self.eos_id, jnp.int32)

        def unfinished(carry: tuple[Any, ...]) -> jax.Array:
            i, writing, _ = carry
            return (i < steps) & ~jnp.all(writing.done_B)

        def step(carry: tuple[Any, ...]) -> tuple[Any, ...]:
            i, writing, tokens_BC = carry
            hidden_BD, caches = decoder.extend(
                writing.token_B, writing.slot, writing.prompts.pads_B, writing.caches
            )
            writing = self._draw(decoder, writing._replace(caches=caches), hidden_BD)
            tokens_BC = jax.lax.dynamic_update_slice_in_dim(
                tokens_BC, writing.token_B[:, None], i, axis=1
            )
            return i + 1, writing, tokens_BC

        _, writing, tokens_BC = jax.lax.while_loop(
            unfinished, step, (jnp.int32(0), writing, tokens_BC)
        )
        return writing, tokens_BC

    def __call__(
        self,
        params: PyTree,
        key: jax.Array,
        canvas_BL: jax.Array,
        prompt_lengths_B: jax.Array,
    ) -> jax.Array:
        """Fills each row of a canvas after its prompt, at once; tokens int32 [B, L].

        Args:
          params: parameters of the model.
          key: randomness of the whole canvas, or one key for each row.
          canvas_BL: prompts at the start of each row, anything behind them.
          prompt_lengths_B: tokens of each prompt, 0 to L.
        """
        batch_size, length = canvas_BL.shape
        columns_L, rows_B1 = jnp.arange(length), jnp.arange(batch_size)[:, None]
        pads_B = jnp.maximum(length - 1 - prompt_lengths_B, 0)
        read_BL = jnp.roll(canvas_BL, 1, axis=1).at[:, 0].set(self.bos_id)
        prompts = Prompts(
            inputs_BL=read_BL[rows_B1, jnp.maximum(columns_L - pads_B[:, None], 0)],
            pads_B=pads_B,
            room_B=length - prompt_lengths_B,
            first_B=jnp.zeros(batch_size, jnp.int32),
            keys_B=row_keys(key, batch_size),
            seen_BV=self._seen(
                params, canvas_BL, columns_L < prompt_lengths_B[:, None]
            ),
        )
        params = self.prepare(params)
        writing, first_B = self.begin(params, prompts, new_tokens=length)
        _, others_BL = self.go_on(
            params, writing, jnp.zeros(batch_size, bool), length - 1, chunk=length
        )
        written_BL = jnp.concatenate([first_B[:, None], others_BL[:, :-1]], axis=1)
        new_BL = columns_L - prompt_lengths_B[:, None]
        return jnp.where(
            new_BL < 0, canvas_BL, written_BL[rows_B1, jnp.maximum(new_BL, 0)]
        )

    def _seen(
        self, params: PyTree, tokens_BL: jax.Array, prompt_lengths_B: jax.Array
    ) -> jax.Array:
        """`Prompts.seen_BV` of prompts on a canvas."""
        (batch_size, length), num_ids = tokens_BL.shape, 0
        if self.repetition_penalty != 1.0:
            num_ids = self.bind(params).vocabulary.table.shape[0]
        counted_BL = jnp.arange(length) < prompt_lengths_B[:, None]
        ids_BL = jnp.where(counted_BL, tokens_BL, num_ids)
        none_BV = jnp.zeros((batch_size, num_ids), bool)
        return none_BV.at[jnp.arange(batch_size)[:, None], ids_BL].set(
            True, mode="drop"
        )

    def _draw(
        self, decoder: Decoder, writing: Writing, hidden_BD: jax.Array
    ) -> Writing:
        """Draws the next token of each row."""
        prompts, count = writing.prompts, writing.count
        logits_BV = decoder.logits(hidden_BD)
        seen_BV, penalty = prompts.seen_BV, self.repetition_penalty
        if penalty != 1.0:
            missing = logits_BV.shape[1] - seen_BV.shape[1]
            seen_BV = jnp.pad(seen_BV, ((0, 0), (0, missing)))
            logits_BV = penalize(logits_BV, seen_BV, penalty)
        fold = jax.vmap(jax.random.fold_in)
        keys_B = fold(prompts.keys_B, prompts.first_B + count)
        drawn_B = jax.vmap(self.draw)(keys_B, logits_BV)
        token_B = jnp.where(writing.done_B, self.eos_id, drawn_B)
        if penalty != 1.0:
            seen_BV = seen_BV.at[jnp.arange(len(token_B)), token_B].set(True)
        return Writing(
            caches=writing.caches,
            slot=writing.slot + 1,
            count=count + 1,
            token_B=token_B,
            done_B=writing.done_B
            | (token_B == self.eos_id)
            | (count + 1 >= prompts.room_B),
            prompts=prompts._replace(seen_BV=seen_BV),
        )
