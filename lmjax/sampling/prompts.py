"""Texts in, texts out: prompts, and what a sampler made of them."""

import dataclasses
import functools
import itertools
from collections.abc import Iterator, Sequence

import jax
import numpy as np

from lmjax.core.errors import ConfigError
from lmjax.core.types import PyTree
from lmjax.data.tokenization.tokenizers import Tokenizer
from lmjax.sampling import canvas
from lmjax.sampling.autoregressive import AutoregressiveSampler
from lmjax.sampling.canvas import Draft
from lmjax.sampling.denoising import Canvas, Denoising, DiffusionSampler
from lmjax.sampling.left_to_right import LeftToRight, Row, Watch
from lmjax.sampling.texts import Ending, GrowingText

_PORTION = 1024  # texts that are sorted by size together, and told together


@dataclasses.dataclass(frozen=True)
class Sample:
    """One generated text.

    Attributes:
      prompt: what was asked for.
      text: it begins with the prompt, or fills its gaps.
      states: the text at moments while it was written, `canvas.MASK_SIGN` where it was
        still masked.
      continuation: what stands behind the prompt; all of it where there are gaps.
      number: which of the prompt's samples it is, from 0.
      num_tokens: new tokens up to its end, see `GrowingText`.
      ending: why it goes no further.
    """

    prompt: str
    text: str
    states: tuple[str, ...] = ()
    continuation: str = ""
    number: int = 0
    num_tokens: int = 0
    ending: Ending = Ending.LENGTH


class Generator:
    """Writes texts with a sampler.

    A prompt is continued, unless it has gaps: `The [[3]] sat.` is a text with three
    tokens to be filled, behind which nothing is written. Only diffusion fills gaps.

    Each text has random numbers of its own, those of the prompt's and its own number,
    and depends on nothing that is written beside it.

    Args:
      sampler: autoregressive or diffusion.
      tokenizer: that of the model.
      max_length: longest canvas the model takes, in tokens.
      opening: ids that stand before the text of a document, as in training.
      stride: longer texts are written window by window: each begins with the last
        `max_length - stride` tokens of what is written. 0 refuses them.
      show_steps: intermediate states that a diffusion sampler tells of each window.
      stops: a text ends where one of these stands behind its prompt; see `Ending`.
        Texts with gaps do not.
      batch_size: texts that are written together; 0 takes 64, or fewer where memory
        is short.
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
        stops: Sequence[str] = (),
        batch_size: int = 0,
    ):
        if not 0 <= stride < max_length:
            raise ConfigError(
                f"a window of {max_length} tokens can't move by {stride}: the next one "
                "must begin with some of its tokens",
                where="generate.stride",
                remedy=f"choose 1 to {max_length - 1}, or 0 for texts that fit",
            )
        self.tokenizer, self.max_length = tokenizer, max_length
        self.opening, self.stride, self.stops = tuple(opening), stride, tuple(stops)
        sizes = {"max_length": max_length, "stride": stride, "batch_size": batch_size}
        if isinstance(sampler, AutoregressiveSampler):
            self._writer: LeftToRight | Denoising = LeftToRight(
                sampler, vocab_size=tokenizer.vocab_size, **sizes
            )
        else:
            self._writer = Denoising(sampler, tokenizer, show_steps=show_steps, **sizes)

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
        return list(
            self.write(
                params,
                key,
                prompts,
                num_samples=num_samples,
                max_new_tokens=max_new_tokens,
            )
        )

    def write(
        self,
        params: PyTree,
        key: jax.Array,
        prompts: Sequence[str],
        *,
        num_samples: int,
        max_new_tokens: int,
        watch: Watch | None = None,
    ) -> Iterator[Sample]:
        """The same texts in the same order, as they are finished.

        Args:
          watch: is told what is new of each text, while it is written from left to
            right.
        """
        drafts = self._drafts(prompts, max_new_tokens)
        numbers = itertools.product(range(len(drafts)), range(num_samples))
        for start in itertools.count(0, _PORTION):
            portion = list(itertools.islice(numbers, _PORTION))
            if not portion:
                return
            keys = _fold(key, np.array(portion, np.uint32))
            chosen = [drafts[prompt] for prompt, _ in portion]
            if isinstance(self._writer, LeftToRight):
                told = watch and functools.partial(_tell, watch, start)
                samples = self._from_left(params, keys, chosen, told)
            else:
                samples = self._by_diffusion(params, keys, chosen)
            for sample, (_, number) in zip(samples, portion, strict=True):
                yield dataclasses.replace(sample, number=number)

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
                may_infill=not isinstance(self._writer, LeftToRight),
            )
            for prompt in (prompts or ("",))
        ]
        for draft in drafts:
            if not self.stride:
                canvas.check_length(draft, self.max_length, max_new_tokens)
        return drafts

    def _from_left(
        self,
        params: PyTree,
        keys: jax.Array,
        drafts: Sequence[Draft],
        watch: Watch | None,
    ) -> list[Sample]:
        texts = [GrowingText(draft, self.tokenizer, self.stops) for draft in drafts]
        rows = [
            Row(
                number=number,
                tokens=draft.tokens_L[: draft.tail].tolist(),
                length=len(draft.tokens_L),
                first=draft.tail,
                text=text,
            )
            for number, (draft, text) in enumerate(zip(drafts, texts, strict=True))
        ]
        self._writer(params, keys, rows, watch=watch, stops=bool(self.stops))
        return [
            _continued(draft.prompt, text)
            for draft, text in zip(drafts, texts, strict=True)
        ]

    def _by_diffusion(
        self, params: PyTree, keys: jax.Array, drafts: Sequence[Draft]
    ) -> list[Sample]:
        samples: list[Sample] = [Sample("", "")] * len(drafts)
        for number, filled in self._writer(params, drafts, keys):
            draft = drafts[number]
            if draft.infilling:
                samples[number] = self._filled(draft, filled)
                continue
            text = GrowingText(draft, self.tokenizer, self.stops)
            text.add(filled.tokens_L[draft.tail :])
            samples[number] = _continued(draft.prompt, text, filled.states)
        return samples

    def _filled(self, draft: Draft, filled: Canvas) -> Sample:
        """A text whose gaps are filled."""
        # A gap may hold the end of a document, which is no text.
        eos = self.tokenizer.special.eos
        told = filled.tokens_L[draft.skip : draft.end(filled.tokens_L, eos)]
        text = self.tokenizer.decode(told[told != eos])
        new = int((~draft.given_L).sum())
        return Sample(draft.prompt, text, filled.states, text, num_tokens=new)


def _continued(prompt: str, text: GrowingText, states: tuple[str, ...] = ()) -> Sample:
    assert text.ending is not None, "an unfinished text"
    return Sample(
        prompt,
        text.text,
        states,
        text.continuation,
        num_tokens=text.num_tokens,
        ending=text.ending,
    )


def _tell(watch: Watch, start: int, number: int, piece: str, ended: bool) -> None:
    watch(start + number, piece, ended)


def _fold(key: jax.Array, numbers: np.ndarray) -> jax.Array:
    """A key for each pair of numbers, of a prompt and of a sample; [n, 2] to [n]."""
    fold = jax.vmap(jax.random.fold_in, (None, 0))
    keys = fold(key, numbers[:, 0])
    return jax.vmap(jax.random.fold_in)(keys, numbers[:, 1])
