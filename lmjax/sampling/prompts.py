"""Texts in, texts out: prompts on a canvas, and what a sampler made of them."""

import dataclasses
from collections.abc import Sequence

import jax
import numpy as np

from lmjax.core.errors import ConfigError
from lmjax.core.types import PyTree
from lmjax.data.tokenization.tokenizers import Tokenizer
from lmjax.sampling.autoregressive import AutoregressiveSampler
from lmjax.sampling.masked_diffusion import MaskedDiffusionSampler


@dataclasses.dataclass(frozen=True)
class Sample:
    """One generated text; `text` begins with the prompt."""

    prompt: str
    text: str


class Generator:
    """Writes texts with a sampler, compiled once per canvas size.

    Args:
      sampler: autoregressive or masked diffusion.
      tokenizer: that of the model.
      max_length: longest canvas the model takes, in tokens.
      opening: ids that stand before the text of a document, as in training.
    """

    def __init__(
        self,
        sampler: AutoregressiveSampler | MaskedDiffusionSampler,
        tokenizer: Tokenizer,
        *,
        max_length: int,
        opening: Sequence[int],
    ):
        self.tokenizer, self.max_length = tokenizer, max_length
        self.opening = tuple(opening)
        self._fill = jax.jit(sampler)
        self._wants_given = isinstance(sampler, MaskedDiffusionSampler)

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
          ConfigError: when a prompt leaves no room for a new token.
        """
        prompts = [p for p in (prompts or ("",)) for _ in range(num_samples)]
        if not prompts:
            return []
        ids = self._encode(prompts, max_new_tokens)
        lengths_B = np.array([len(row) for row in ids], np.int32)
        length = min(int(lengths_B.max()) + max_new_tokens, self.max_length)
        canvas_BL = np.full((len(ids), length), self.tokenizer.special.pad, np.int32)
        for row, tokens in zip(canvas_BL, ids, strict=True):
            row[: len(tokens)] = tokens
        given_BL = np.arange(length) < lengths_B[:, None]
        start = given_BL if self._wants_given else lengths_B
        skip = len(self.opening)
        filled_BL = np.asarray(self._fill(params, key, canvas_BL, start))
        return [
            Sample(prompt, self._text(tokens[skip:], len(given) - skip, max_new_tokens))
            for prompt, given, tokens in zip(prompts, ids, filled_BL, strict=True)
        ]

    def check(self, prompts: Sequence[str], max_new_tokens: int) -> None:
        """Raises ConfigError when a prompt leaves no room for the new tokens."""
        self._encode(prompts or ("",), max_new_tokens)

    def _encode(self, prompts: Sequence[str], max_new_tokens: int) -> list[list[int]]:
        """Tokens of each prompt behind the opening of a document, if they fit."""
        ids = [[*self.opening, *self.tokenizer.encode(prompt)] for prompt in prompts]
        for prompt, tokens in zip(prompts, ids, strict=True):
            room = self.max_length - len(tokens)
            if max_new_tokens > room:
                remedy = f", or lower generate.max_new_tokens to {room} or less"
                raise ConfigError(
                    f"a prompt of {len(tokens)} tokens and {max_new_tokens} new ones "
                    f"do not fit the model's context of {self.max_length} tokens",
                    where=f"generate.prompts: {prompt[:60]!r}",
                    remedy="shorten the prompt" + (remedy if room > 0 else ""),
                )
        return ids

    def _text(self, tokens: np.ndarray, prompt_length: int, max_new: int) -> str:
        """Prompt and continuation up to the end of the document."""
        tokens = tokens[: prompt_length + max_new]
        ends = np.flatnonzero(tokens[prompt_length:] == self.tokenizer.special.eos)
        if ends.size:
            tokens = tokens[: prompt_length + ends[0]]
        return self.tokenizer.decode([int(token) for token in tokens])
