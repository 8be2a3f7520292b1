"""A text while its tokens come: what of it can be shown, and where it ends."""

import enum
from collections.abc import Sequence

import numpy as np

from lmjax.data.tokenization.tokenizers import Tokenizer
from lmjax.sampling.canvas import Draft

_BROKEN = "\ufffd"  # what bytes decode to that are no character, or not yet


class Ending(enum.Enum):
    """Why a text goes no further."""

    EOS = "eos"  # the model ended it
    STOP = "stop"  # it came to a stop string
    LENGTH = "length"  # it is as long as was asked for


class GrowingText:
    """The text of a draft, to which tokens are added until it ends.

    Attributes:
      ending: why it has ended; None while it goes on.
      num_tokens: new tokens up to the end, which an EOS, or the token that completes a
        stop string, is one of. They are the same however the tokens come in parts.
    """

    def __init__(self, draft: Draft, tokenizer: Tokenizer, stops: Sequence[str] = ()):
        """`stops` end a text where one stands behind its prompt, and are cut off."""
        self.ending: Ending | None = None
        self.num_tokens = 0
        self._tokenizer, self._stops = tokenizer, tuple(stops)
        self._opening = draft.tokens_L[draft.skip : draft.tail].tolist()
        self._room = len(draft.tokens_L) - draft.tail
        self._start_text = tokenizer.decode(self._opening)
        self._new: list[int] = []
        self._shown = 0
        self._final: str | None = None

    @property
    def beginning(self) -> str:
        """The prompt, as its tokens spell it."""
        return self._start_text

    @property
    def ids(self) -> list[int]:
        """Those of the prompt and of what is written behind it."""
        return self._opening + self._new

    @property
    def text(self) -> str:
        """The prompt and what is written behind it."""
        if self._final is None:
            return self._decode(len(self._new))
        return self._final

    @property
    def continuation(self) -> str:
        """What is written behind the prompt."""
        text = self.text
        return text[self._start(text) :]

    def add(self, tokens: Sequence[int] | np.ndarray) -> None:
        """Adds tokens, those behind the end left out."""
        if self.ending is not None:
            return
        before = len(self._new)
        for token in np.asarray(tokens).tolist():
            if self.ending is not None:
                break
            self.num_tokens += 1
            if token == self._tokenizer.special.eos:
                self.ending = Ending.EOS
                break
            self._new.append(token)
            if self.num_tokens >= self._room:
                self.ending = Ending.LENGTH
        if self._stops and self._stop_at(len(self._new)) is not None:
            self._cut(before)

    def piece(self) -> str:
        """What can be shown since the last call: whole characters, no begun stop."""
        text = self.text
        text = text[self._start(text) :]
        if self.ending is None:
            text = text.rstrip(_BROKEN)
            text = text[: len(text) - self._begun_stop(text)]
        piece, self._shown = text[self._shown :], max(self._shown, len(text))
        return piece

    def _decode(self, count: int) -> str:
        return self._tokenizer.decode(self._opening + self._new[:count])

    def _start(self, text: str) -> int:
        """Where what is new begins; a lossy tokenizer may spell a prompt anew."""
        start = self._start_text
        if text.startswith(start):
            return len(start)
        pairs = enumerate(zip(text, start, strict=False))
        return next((i for i, (a, b) in pairs if a != b), min(len(text), len(start)))

    def _stop_at(self, count: int) -> int | None:
        """Where the first stop string stands among so many new tokens, if one does."""
        text = self._decode(count)
        start = self._start(text)
        found = [place for s in self._stops if (place := text.find(s, start)) >= 0]
        return min(found, default=None)

    def _cut(self, before: int) -> None:
        """Ends the text at the stop string that was complete first."""
        count = before + 1
        while (place := self._stop_at(count)) is None:
            count += 1
        self._final = self._decode(count)[:place]
        self.ending, self.num_tokens = Ending.STOP, count

    def _begun_stop(self, text: str) -> int:
        """Length of the end of a text that may be the beginning of a stop string."""
        return max(
            (
                size
                for stop in self._stops
                for size in range(1, len(stop))
                if text.endswith(stop[:size])
            ),
            default=0,
        )
