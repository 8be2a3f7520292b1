"""Batches of texts written by diffusion, each on a canvas of its own length."""

import dataclasses
import functools
from collections.abc import Iterator, Sequence

import jax
import numpy as np

from lmjax.core.types import PyTree
from lmjax.data.tokenization.tokenizers import Tokenizer
from lmjax.sampling import canvas
from lmjax.sampling.canvas import Draft
from lmjax.sampling.masked_diffusion import MaskedDiffusionSampler
from lmjax.sampling.uniform_diffusion import UniformDiffusionSampler

DiffusionSampler = MaskedDiffusionSampler | UniformDiffusionSampler
_MOST_ROWS = 64


@dataclasses.dataclass(frozen=True)
class Canvas:
    """A canvas that is filled, int32 [L], and its text at moments before that."""

    tokens_L: np.ndarray
    states: tuple[str, ...]


class Denoising:
    """Fills the canvases of drafts, in a bounded number of programs.

    A canvas is padded to one of a few sizes. The model does not look at the padding, so
    a text depends on neither its neighbours nor on that size.

    Args:
      sampler: fills canvases.
      tokenizer: that of the model.
      max_length, stride, show_steps: see `Generator`.
      batch_size: rows at most; 0 takes 64.
    """

    def __init__(
        self,
        sampler: DiffusionSampler,
        tokenizer: Tokenizer,
        *,
        max_length: int,
        stride: int,
        batch_size: int,
        show_steps: int,
    ):
        self._tokenizer, self._most_rows = tokenizer, batch_size or _MOST_ROWS
        self._max_length, self._stride = max_length, stride
        self._fill = jax.jit(functools.partial(sampler, show=show_steps))

    def __call__(
        self, params: PyTree, drafts: Sequence[Draft], keys: jax.Array
    ) -> Iterator[tuple[int, Canvas]]:
        """Number and canvas of each draft, in the order in which they are filled."""
        for size, numbers in canvas.batches(drafts, self._max_length, self._most_rows):
            rows = [drafts[number] for number in numbers]
            count = min(1 << (len(rows) - 1).bit_length(), self._most_rows)
            chosen_B = np.resize(np.array(numbers), count)
            filled = self._write(params, keys[chosen_B], rows, size)
            yield from zip(numbers, filled, strict=True)

    def _write(
        self, params: PyTree, keys_B: jax.Array, drafts: Sequence[Draft], size: int
    ) -> list[Canvas]:
        """Fills one batch, window by window."""
        eos = self._tokenizer.special.eos
        shape = (len(keys_B), size)
        tokens_BL = np.full(shape, self._tokenizer.special.pad, np.int32)
        known_BL = np.ones(shape, bool)  # also behind drafts, and in idle rows
        lengths_B = np.full(len(keys_B), size, np.int32)
        for r, draft in enumerate(drafts):
            lengths_B[r] = len(draft.tokens_L)
            tokens_BL[r, : lengths_B[r]] = draft.tokens_L
            known_BL[r, : lengths_B[r]] = draft.given_L
        states: list[list[str]] = [[] for _ in drafts]
        parts = canvas.windows(size, self._max_length, self._stride)
        for number, part in enumerate(parts):
            busy_B = ~known_BL[: len(drafts), part].all(axis=1)
            if not busy_B.any():
                continue
            filled = self._fill(
                params,
                jax.vmap(jax.random.fold_in, (0, None))(keys_B, number),
                tokens_BL[:, part],
                known_BL[:, part],
                np.minimum(lengths_B, part.stop - part.start),
            )
            states_SBL = np.asarray(filled.states_SBL)
            for r in np.flatnonzero(busy_B):
                for state_L in states_SBL[:, r]:
                    whole = np.concatenate([tokens_BL[r, : part.start], state_L])
                    shown = whole[drafts[r].skip : drafts[r].end(whole, eos)]
                    states[r].append(canvas.show_tokens(shown, self._tokenizer))
            tokens_BL[:, part], known_BL[:, part] = np.asarray(filled.tokens_BL), True
            for r, draft in enumerate(drafts):
                end = draft.end(tokens_BL[r, : part.stop], eos)
                if end < min(part.stop, lengths_B[r]) or lengths_B[r] <= part.stop:
                    # Written: later windows are for the other rows.
                    tokens_BL[r, part.stop :], known_BL[r] = eos, True
        return [
            Canvas(tokens_L[: len(draft.tokens_L)], tuple(shown))
            for draft, tokens_L, shown in zip(drafts, tokens_BL, states, strict=False)
        ]
