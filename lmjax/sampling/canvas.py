"""Prompts as canvases: tokens where they are given, and what is to be filled."""

import dataclasses
import re
from collections.abc import Iterator, Sequence

import numpy as np

from lmjax.core.errors import ConfigError
from lmjax.data.tokenization.tokenizers import Tokenizer

GAP = re.compile(r"\[\[(\d+)\]\]")  # [[5]]: five tokens to be filled
MASK_SIGN = "_"  # in texts that are shown while they are written


@dataclasses.dataclass(frozen=True, kw_only=True)
class Draft:
    """A text to be written.

    Attributes:
      prompt: what was asked for.
      tokens_L: int32, the opening of a document, the prompt, and room; pad where
        nothing is given.
      given_L: bool.
      skip: tokens of the opening, which are not told.
      infilling: whether the prompt has gaps, and ends where its last piece does.
    """

    prompt: str
    tokens_L: np.ndarray
    given_L: np.ndarray
    skip: int
    infilling: bool

    @property
    def tail(self) -> int:
        """First position behind everything that is given."""
        return int(np.flatnonzero(self.given_L).max(initial=-1)) + 1

    def end(self, tokens: np.ndarray, eos: int) -> int:
        """Where the text of filled tokens ends: at an EOS in the tail, or with them."""
        tokens = tokens[: len(self.tokens_L)]
        ends = np.flatnonzero(tokens[self.tail :] == eos)
        return self.tail + int(ends[0]) if ends.size else len(tokens)


def make_draft(
    prompt: str,
    tokenizer: Tokenizer,
    opening: Sequence[int],
    max_new_tokens: int,
    *,
    may_infill: bool,
) -> Draft:
    """The draft of a prompt, whose pieces between gaps are encoded each by itself.

    Raises:
      ConfigError: it leaves nothing to fill, or has gaps that can't be filled.
    """
    pieces = GAP.split(prompt)  # text, size, text, ..., text
    infilling = len(pieces) > 1
    where = f"generate.prompts: {prompt[:60]!r}"
    if infilling and not may_infill:
        raise ConfigError(
            "a prompt has gaps, which a model that writes from left to right can't "
            "fill",
            where=where,
            remedy="use a diffusion model, or a prompt without [[...]]",
        )
    tokens, given = list(opening), [True] * len(opening)

    def leave(count: int) -> None:
        tokens.extend([tokenizer.special.pad] * count)
        given.extend([False] * count)

    for number, piece in enumerate(pieces):
        if number % 2:
            leave(int(piece))
        else:
            ids = tokenizer.encode(piece)
            tokens.extend(ids)
            given.extend([True] * len(ids))
    if not infilling:
        leave(max_new_tokens)
    if all(given):
        raise ConfigError(
            "a prompt leaves nothing to fill",
            where=where,
            remedy="ask for at least one token, by generate.max_new_tokens or in a "
            "gap [[...]]",
        )
    return Draft(
        prompt=prompt,
        tokens_L=np.array(tokens, np.int32),
        given_L=np.array(given),
        skip=len(opening),
        infilling=infilling,
    )


def check_length(draft: Draft, max_length: int, max_new_tokens: int) -> None:
    """Raises ConfigError when a draft is longer than the context of the model."""
    length = len(draft.tokens_L)
    if length <= max_length:
        return
    prompt_length = int(draft.given_L.sum())
    room = max_length - (length if draft.infilling else prompt_length)
    remedy = "shorten the prompt"
    if room > 0:
        remedy += f", or lower generate.max_new_tokens to {room} or less"
    raise ConfigError(
        f"a prompt of {prompt_length} tokens and {length - prompt_length} new ones "
        f"do not fit the model's context of {max_length} tokens",
        where=f"generate.prompts: {draft.prompt[:60]!r}",
        remedy=f"{remedy}, or write window by window with generate.stride",
    )


def bucket(size: int) -> int:
    """The size that stands for this one: next of multiples, four to an octave."""
    step = max(16, 1 << max(0, (size - 1).bit_length() - 3))
    return -(-size // step) * step


def windows(length: int, max_length: int, stride: int) -> list[slice]:
    """Parts of a text that are written one after another."""
    if length <= max_length:
        return [slice(0, length)]
    last = length - max_length
    starts = [*range(0, last, stride), last]
    return [slice(start, start + max_length) for start in starts]


def batches(
    drafts: Sequence[Draft], max_length: int, most_rows: int
) -> Iterator[tuple[int, list[int]]]:
    """Sizes of canvases, and the numbers of the drafts that one is filled for.

    A size depends on nothing but the draft, and so does what is written. Those beyond
    the context are written in windows, which have one size.
    """
    groups: dict[int, list[int]] = {}
    for number, draft in enumerate(drafts):
        length = len(draft.tokens_L)
        size = length if length > max_length else min(bucket(length), max_length)
        groups.setdefault(size, []).append(number)
    for size, numbers in groups.items():
        for start in range(0, len(numbers), most_rows):
            yield size, numbers[start : start + most_rows]


def show_tokens(tokens: np.ndarray, tokenizer: Tokenizer) -> str:
    """The text of a canvas that is not finished: masks are shown as signs."""
    pieces = [
        MASK_SIGN.encode() if i == tokenizer.special.mask else tokenizer.piece_bytes[i]
        for i in tokens.tolist()
    ]
    return b"".join(pieces).decode("utf-8", "replace")
