"""Texts in, texts out: prompts on a canvas, and what a sampler made of them."""

import dataclasses
import functools
from collections.abc import Sequence

import jax
import numpy as np

from lmjax.core.errors import ConfigError
from lmjax.core.types import PyTree
from lmjax.data.tokenization.tokenizers import Tokenizer
from lmjax.sampling import canvas
from lmjax.sampling.autoregressive import AutoregressiveSampler
from lmjax.sampling.canvas import Draft
from lmjax.sampling.masked_diffusion import MaskedDiffusionSampler
from lmjax.sampling.uniform_diffusion import UniformDiffusionSampler

DiffusionSampler = MaskedDiffusionSampler | UniformDiffusionSampler


@dataclasses.dataclass(frozen=True)
class Sample:
    """One generated text; `text` begins with the prompt, or fills its gaps.

    `states` are the text at moments while it was written, `canvas.MASK_SIGN` where it
    was still masked.
    """

    prompt: str
    text: str
    states: tuple[str, ...] = ()


class Generator:
    """Writes texts with a sampler, compiled once per canvas size.

    A prompt is continued, unless it has gaps: `The [[3]] sat.` is a text with three
    tokens to be filled, behind which nothing is written. Only diffusion fills gaps.

    Args:
      sampler: autoregressive or diffusion.
      tokenizer: that of the model.
      max_length: longest canvas the model takes, in tokens.
      opening: ids that stand before the text of a document, as in training.
      stride: longer texts are written window by window: each begins with the last
        `max_length - stride` tokens of what is written. 0 refuses them.
      show_steps: intermediate states that a diffusion sampler tells of each window.
    """

    def __init__(
        self,
        sampler: AutoregressiveSampler | DiffusionSampler,
        tokenizer: Tokenizer,
        *,
        max_length: int,
        opening: Sequence[int],
        stride: int = 0,
        show_steps: int = 0,
    ):
        if not 0 <= stride < max_length:
            raise ConfigError(
                f"a window of {max_length} tokens can't move by {stride}: the next one "
                "must begin with some of its tokens",
                where="generate.stride",
                remedy=f"choose 1 to {max_length - 1}, or 0 for texts that fit",
            )
        self.tokenizer, self.max_length = tokenizer, max_length
        self.opening, self.stride = tuple(opening), stride
        self._from_left = isinstance(sampler, AutoregressiveSampler)
        if show_steps and not self._from_left:
            self._fill = jax.jit(functools.partial(sampler, show=show_steps))
        else:
            self._fill = jax.jit(sampler)

    def __call__(
        self,
        params: PyTree,
        key: jax.Array,
        prompts: Sequence[str],
        *,
        num_samples: int,
        max_new_tokens: int,
    ) -> list[Sample]:
        """`num_samples` texts for each prompt; no prompts means one empty prompt.

        Raises:
          ConfigError: when a prompt leaves nothing to fill, no room for what is asked,
            or gaps to a model that can't fill them.
        """
        drafts = [
            draft
            for draft in self._drafts(prompts, max_new_tokens)
            for _ in range(num_samples)
        ]
        samples: list[Sample] = [Sample("", "")] * len(drafts)
        for numbers, given_BL in canvas.batches(drafts):
            rows = [drafts[number] for number in numbers]
            texts = self._write(params, key, np.array(numbers), rows, given_BL)
            for number, sample in zip(numbers, texts, strict=True):
                samples[number] = sample
        return samples

    def check(self, prompts: Sequence[str], max_new_tokens: int) -> None:
        """Raises ConfigError when a prompt can't be written from; needs no device."""
        self._drafts(prompts, max_new_tokens)

    def _drafts(self, prompts: Sequence[str], max_new_tokens: int) -> list[Draft]:
        drafts = [
            canvas.make_draft(
                prompt,
                self.tokenizer,
                self.opening,
                max_new_tokens,
                may_infill=not self._from_left,
            )
            for prompt in (prompts or ("",))
        ]
        for draft in drafts:
            if not self.stride:
                canvas.check_length(draft, self.max_length, max_new_tokens)
        return drafts

    def _write(
        self,
        params: PyTree,
        key: jax.Array,
        numbers: np.ndarray,
        drafts: Sequence[Draft],
        given_BL: np.ndarray,
    ) -> list[Sample]:
        """Fills one batch of drafts, window by window."""
        eos = self.tokenizer.special.eos
        known_BL = given_BL.copy()
        tokens_BL = np.full(given_BL.shape, self.tokenizer.special.pad, np.int32)
        for row, draft in zip(tokens_BL, drafts, strict=True):
            row[: len(draft.tokens_L)] = draft.tokens_L
        states: list[list[str]] = [[] for _ in drafts]
        for number, part in enumerate(self._windows(given_BL.shape[1])):
            busy_B = ~known_BL[:, part].all(axis=1)
            if not busy_B.any():
                continue
            window_key = jax.random.fold_in(key, number)
            filled_BL, states_SBL = self._fill_window(
                params, window_key, numbers, tokens_BL[:, part], known_BL[:, part]
            )
            for r in np.flatnonzero(busy_B):
                for state_L in states_SBL[:, r]:
                    whole = np.concatenate([tokens_BL[r, : part.start], state_L])
                    shown = whole[drafts[r].skip : drafts[r].end(whole, eos)]
                    states[r].append(canvas.show_tokens(shown, self.tokenizer))
            tokens_BL[:, part], known_BL[:, part] = filled_BL, True
            for r, draft in enumerate(drafts):
                end = draft.end(tokens_BL[r, : part.stop], eos)
                if end < part.stop or len(draft.tokens_L) == part.stop:
                    # Written: later windows are for the other rows.
                    tokens_BL[r, part.stop :], known_BL[r] = eos, True
        return [
            Sample(draft.prompt, self._text(draft, row), tuple(shown))
            for draft, row, shown in zip(drafts, tokens_BL, states, strict=True)
        ]

    def _windows(self, length: int) -> list[slice]:
        """Parts of a canvas that are filled one after another."""
        if length <= self.max_length:
            return [slice(0, length)]
        last = length - self.max_length
        starts = [*range(0, last, self.stride), last]
        return [slice(start, start + self.max_length) for start in starts]

    def _fill_window(
        self,
        params: PyTree,
        key: jax.Array,
        numbers: np.ndarray,
        tokens_BL: np.ndarray,
        known_BL: np.ndarray,
    ) -> tuple[np.ndarray, np.ndarray]:
        """Tokens [B, L] of a window, and its intermediate states [S, B, L]."""
        if self._from_left:
            lengths_B = known_BL.sum(axis=1).astype(np.int32)
            filled_BL = np.asarray(self._fill(params, key, tokens_BL, lengths_B))
            return filled_BL, np.zeros((0, *filled_BL.shape), np.int32)
        keys_B = jax.vmap(jax.random.fold_in, (None, 0))(key, numbers)
        filled = self._fill(params, keys_B, tokens_BL, known_BL)
        return np.asarray(filled.tokens_BL), np.asarray(filled.states_SBL)

    def _text(self, draft: Draft, tokens_L: np.ndarray) -> str:
        """The text up to the end of the document, or of what was asked for."""
        eos = self.tokenizer.special.eos
        told = tokens_L[draft.skip : draft.end(tokens_L, eos)]
        # A gap in the middle may hold the end of a document, which is no text.
        return self.tokenizer.decode([int(token) for token in told if token != eos])
