"""One call of the network, and tokens drawn where they are wanted.

Every draw has a key of its own: the key of its row, a stream, a visit (how often this
position was asked before) and the position. So what a row draws depends neither on the
rows beside it, nor on how logits are cut into chunks, nor on calls that are skipped.
"""

import dataclasses
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from lmjax.core.types import LanguageModel, PyTree
from lmjax.diffusion.process import MaskProcess, UniformProcess
from lmjax.diffusion.schedules import sigma
from lmjax.sampling.logits import TokenSampler

CHUNK_LOGITS = 2**26  # that exist at once: rows times vocabulary
_LEAST_CHUNK = 8  # rows

# Streams of a row's key.
PRIOR, LEVELS, COINS, TOKENS = range(4)

Visit = int | jax.Array
Measure = Callable[[jax.Array, jax.Array, jax.Array], PyTree]


class Filled(NamedTuple):
    """What a diffusion sampler made of a batch.

    Attributes:
      tokens_BL: int32.
      calls: int32, how often the network was called.
      states_SBL: int32, the canvas at S moments, evenly spread over the calls.
    """

    tokens_BL: jax.Array
    calls: jax.Array
    states_SBL: jax.Array


def row_keys(key: jax.Array, batch_size: int) -> jax.Array:
    """One key per row: those of `key` where it holds one per row already."""
    if key.ndim:
        return key
    return jax.vmap(jax.random.fold_in, (None, 0))(key, jnp.arange(batch_size))


def fold_rows(keys_B: jax.Array, data: Visit) -> jax.Array:
    """Folds a number, or one per row, into the keys of rows."""
    in_axes = (0, 0 if jnp.ndim(data) else None)
    return jax.vmap(jax.random.fold_in, in_axes)(keys_B, data)


def random_bits(keys_B: jax.Array, length: int) -> jax.Array:
    """uint32 [B, L]: 32 bits from the key of each position."""

    def draw(key: jax.Array, position: jax.Array) -> jax.Array:
        return jax.random.bits(jax.random.fold_in(key, position), (), jnp.uint32)

    positions_L = jnp.arange(length)
    return jax.vmap(lambda key: jax.vmap(lambda i: draw(key, i))(positions_L))(keys_B)


def unit_interval(bits: jax.Array) -> jax.Array:
    """Uniform in (0, 1], float32: fine where it is small, unlike `random.uniform`."""
    return (bits.astype(jnp.float32) + 0.5) * 2.0**-32


@dataclasses.dataclass(frozen=True, kw_only=True)
class Denoiser:
    """The model of one run of a sampler, with what all its calls share.

    Attributes:
      model: the network with its parameters.
      process: what is denoised.
      draw: how a token is picked from logits; it never sees that of the mask.
      keys_B: key of each row.
      given_BL: bool, positions that stay as they are.
      guidance: g of classifier-free guidance, l_u + (g + 1)(l_c - l_u): l_c are the
        logits, and l_u those where what is given is masked. 0 is off.
      lengths_B: positions of each row that there are, as far as the model sees; None:
        all.
    """

    model: LanguageModel
    process: MaskProcess | UniformProcess
    draw: TokenSampler
    keys_B: jax.Array
    given_BL: jax.Array
    guidance: float = 0.0
    lengths_B: jax.Array | None = None

    def __call__(self, tokens_BL: jax.Array, rate_B: jax.Array) -> "Predictions":
        """One call of the network; rows are at the noise rates `rate_B`."""
        sigma_B, lengths_B = sigma(rate_B), self.lengths_B
        if not self.guidance:
            hidden_BLD = self.model(tokens_BL, sigma_B=sigma_B, lengths_B=lengths_B)
            return Predictions(denoiser=self, hidden_NBLD=hidden_BLD[None])
        blind_BL = self.process.mask(tokens_BL, self.given_BL)
        hidden_BLD = self.model(
            jnp.concatenate([tokens_BL, blind_BL]),
            sigma_B=jnp.tile(sigma_B, 2),
            lengths_B=None if lengths_B is None else jnp.tile(lengths_B, 2),
        )
        hidden_NBLD = hidden_BLD.reshape(2, *tokens_BL.shape, -1)
        return Predictions(denoiser=self, hidden_NBLD=hidden_NBLD)

    def coins(self, visit: Visit) -> jax.Array:
        """Uniform in (0, 1], one per position; float32 [B, L]."""
        keys_B = fold_rows(fold_rows(self.keys_B, COINS), visit)
        return unit_interval(random_bits(keys_B, self.given_BL.shape[1]))

    def level_bits(self) -> jax.Array:
        """32 bits per position, the same whenever asked: when it is revealed."""
        keys_B = fold_rows(fold_rows(self.keys_B, LEVELS), 0)
        return random_bits(keys_B, self.given_BL.shape[1])


@dataclasses.dataclass(frozen=True, kw_only=True)
class Predictions:
    """Hidden states of a whole batch, of which logits exist in chunks only.

    Attributes:
      hidden_NBLD: N is 1, or 2 with guidance: as it is, and without what is given.
    """

    denoiser: Denoiser
    hidden_NBLD: jax.Array

    def tokens(
        self, where_BL: jax.Array, *, visit: Visit = 0, expected: int
    ) -> jax.Array:
        """Draws a token where it is wanted, 0 elsewhere; int32 [B, L]."""

        def measure(keys_C: jax.Array, logits_CV: jax.Array, _: jax.Array) -> PyTree:
            return jax.vmap(self.denoiser.draw)(keys_C, self.without_mask(logits_CV))

        return self.measure(where_BL, measure, visit=visit, expected=expected)

    def sure_tokens(
        self, where_BL: jax.Array, *, visit: Visit, expected: int
    ) -> tuple[jax.Array, jax.Array]:
        """Draws tokens as `tokens` does; also their probabilities, float32 [B, L].

        Those of the model, whatever temperature, top-k and top-p made of them.
        """

        def measure(keys_C: jax.Array, logits_CV: jax.Array, _: jax.Array) -> PyTree:
            logits_CV = self.without_mask(logits_CV)
            drawn_C = jax.vmap(self.denoiser.draw)(keys_C, logits_CV)
            log_p_CV = jax.nn.log_softmax(logits_CV, axis=-1)
            log_p_C = jnp.take_along_axis(log_p_CV, drawn_C[:, None], axis=-1)[:, 0]
            return drawn_C, jnp.exp(log_p_C)

        return self.measure(where_BL, measure, visit=visit, expected=expected)

    def measure(
        self, where_BL: jax.Array, function: Measure, *, visit: Visit = 0, expected: int
    ) -> PyTree:
        """Applies a function of logits where it is wanted, a chunk at a time.

        Args:
          where_BL: bool, positions to look at.
          function: (keys [C], logits [C, V], index [C] into the flat batch) to a tree
            of arrays [C].
          visit: tells apart the draws of one position.
          expected: how many positions are usually wanted, which sizes the chunks.

        Returns:
          The same tree of arrays [B, L], 0 where nothing is wanted.
        """
        num_variants, batch_size, length, width = self.hidden_NBLD.shape
        size = batch_size * length
        hidden_NTD = self.hidden_NBLD.reshape(num_variants, size, width)
        keys_B = fold_rows(fold_rows(self.denoiser.keys_B, TOKENS), visit)
        chunk = self._chunk_rows(expected)

        def run(index_C: jax.Array) -> PyTree:
            # Behind the last one wanted stands `size`: what is made of it is dropped.
            rows_C = jnp.minimum(index_C // length, batch_size - 1)
            keys_C = fold_rows(keys_B[rows_C], index_C % length)
            hidden_NCD = jnp.take(hidden_NTD, index_C, axis=1, mode="clip")
            return function(keys_C, self._logits(hidden_NCD), index_C)

        padded = -(-size // chunk) * chunk
        where_T = where_BL.reshape(size)
        index_T = jnp.nonzero(where_T, size=padded, fill_value=size)[0]
        count = jnp.sum(where_T)
        shapes = jax.eval_shape(run, index_T[:chunk])
        empty = jax.tree.map(lambda leaf: jnp.zeros(size, leaf.dtype), shapes)

        def unfinished(carry: tuple[jax.Array, PyTree]) -> jax.Array:
            return carry[0] < count

        def step(carry: tuple[jax.Array, PyTree]) -> tuple[jax.Array, PyTree]:
            start, found = carry
            index_C = jax.lax.dynamic_slice(index_T, (start,), (chunk,))
            found = jax.tree.map(
                lambda all_T, part_C: all_T.at[index_C].set(part_C, mode="drop"),
                found,
                run(index_C),
            )
            return start + chunk, found

        start = jnp.zeros((), index_T.dtype)
        _, found = jax.lax.while_loop(unfinished, step, (start, empty))
        return jax.tree.map(lambda leaf: leaf.reshape(batch_size, length), found)

    def without_mask(self, logits_CV: jax.Array) -> jax.Array:
        """Logits of real tokens: that of the mask, which some models have, at -inf."""
        process = self.denoiser.process
        if isinstance(process, UniformProcess):
            return logits_CV
        return logits_CV.at[:, process.mask_id].set(-jnp.inf)

    def _logits(self, hidden_NCD: jax.Array) -> jax.Array:
        logits_NCV = self.denoiser.model.logits(hidden_NCD)
        if logits_NCV.shape[0] == 1:
            return logits_NCV[0]
        seen_CV, blind_CV = logits_NCV
        guided_CV = blind_CV + (self.denoiser.guidance + 1) * (seen_CV - blind_CV)
        return jnp.where(jnp.isfinite(seen_CV), guided_CV, seen_CV)  # not -inf + inf

    def _chunk_rows(self, expected: int) -> int:
        """Rows of a chunk: about as many as are wanted, if so many logits may exist."""
        _, batch_size, length, _ = self.hidden_NBLD.shape
        row = jax.eval_shape(self._logits, self.hidden_NBLD[:, 0, :1])
        most = max(1, min(batch_size * length, CHUNK_LOGITS // row.shape[-1]))
        wanted = max(_LEAST_CHUNK, expected)
        return min(most, 1 << (wanted - 1).bit_length())


def expected_per_call(shape: tuple[int, int], calls: int) -> int:
    """Positions of a batch of this shape that are revealed in one of so many calls."""
    return -(-shape[0] * shape[1] // calls)
