"""A word read after a text, id by id: what BabyLM's reading task asks a model.

After the official pipeline of 2025 and 2026, which runs one row at a time: the word is
encoded on its own, away from the text before it; each of its ids is asked for, spelled
and added to the text, which is then encoded again. A masked model sees three masks in
place of what follows.
"""

import dataclasses
from collections.abc import Callable, Sequence

import numpy as np

from lmjax.config.schema import EvaluateConfig, LongItems
from lmjax.core.errors import ConfigError, UserError
from lmjax.core.types import PyTree
from lmjax.data.tokenization.tokenizers import Tokenizer
from lmjax.evaluate.probes import Probe
from lmjax.evaluate.zero_shot.backends import build_backend, noise_level

# (params, probes) -> log p of the targets of each, in nats; see `probes.Prober`.
ProbeFunction = Callable[[PyTree, Sequence[Probe]], list[np.ndarray]]
MASKS = 3  # in place of what follows, as officially


@dataclasses.dataclass(frozen=True, kw_only=True)
class NextWord:
    """Makes the probes whose log-probabilities sum to that of a word after a text.

    Attributes:
      backend: name of the way to ask, as in reports.
      opening: ids that stand before a text, as in training; read, never scored.
      max_length: most tokens of a row that the model takes.
      mask_id: that a masked model predicts from; None: the model is causal.
      shift: places by which a masked model predicts too early: 1 for MNTP, else 0.
      timed: whether a masked model is told the noise level of the masks in its row.
      shorten: whether a text that is too long loses its beginning, or is an error.
    """

    backend: str
    tokenizer: Tokenizer
    opening: tuple[int, ...]
    max_length: int
    mask_id: int | None = None
    shift: int = 0
    timed: bool = False
    shorten: bool = False

    def __call__(self, context: str, word: str) -> list[Probe]:
        """How `word` is read after `context`: a probe for each of its ids.

        An id behind the first is replaced by what its own spelling begins with when it
        is encoded, as officially: with a tokenizer that puts a space before every text
        that is another one.

        Raises:
          UserError: there is nothing to score, or the text is too long.
        """
        probes, text = [], context
        for number, token in enumerate(self.tokenizer.encode(word)):
            spelled = self.tokenizer.decode([token])
            again = self.tokenizer.encode(spelled) if number and spelled else []
            probes.append(self._after(text, (again or [token])[0], word))
            text += spelled
        if not probes:
            raise UserError(
                "Nothing is left to score of a word.", where=f"{context!r}, {word!r}"
            )
        return probes

    def _after(self, text: str, target: int, word: str) -> Probe:
        """Asks whether `target` follows a text."""
        masks = [] if self.mask_id is None else [self.mask_id] * MASKS
        ids = self.tokenizer.encode(text)
        room = self.max_length - len(self.opening) - len(masks)
        where = f"{text!r}, before {word!r}"
        if len(ids) > room and not (self.shorten and room > 0):
            raise UserError(
                f"A text of {len(ids)} tokens is longer than the {max(room, 0)} that "
                "the model takes.",
                where=where,
                remedy="cut texts from their beginnings with "
                "--config.evaluate.long_items=truncate, or train with a larger "
                "model.max_length.",
            )
        ids = ids[max(len(ids) - room, 0) :]
        row = np.array([*self.opening, *ids, *masks], np.int32)
        place = len(row) - (len(masks) + self.shift if masks else 1)
        if place < 0:
            raise UserError(
                "Nothing stands before a word: no prediction can be read.", where=where
            )
        sigma = noise_level(len(masks), len(row)) if self.timed else 0.0
        return Probe(row, [place], [target], sigma)


def build_next_word(
    config: EvaluateConfig,
    tokenizer: Tokenizer,
    *,
    opening: Sequence[int],
    max_length: int,
    causal: bool,
    mask_id: int,
) -> NextWord:
    """The way of a config to ask for words, with the arguments of `ZeroShot`.

    Under `chain` and `mlm` a diffusion model is asked alike: what follows is masked in
    both.

    Raises:
      ConfigError: the model can't be asked this way.
    """
    backend = build_backend(config, causal=causal, mask_id=mask_id)
    if backend.name == "elbo":
        raise ConfigError(
            "reading times need the probability of a next word, not a bound",
            where=f"evaluate.backend={backend.name}",
            remedy="--config.evaluate.backend=mlm asks for the next word",
        )
    return NextWord(
        backend=backend.name,
        tokenizer=tokenizer,
        opening=tuple(opening),
        max_length=max_length,
        mask_id=None if causal else mask_id,
        shift=int(backend.name == "mntp"),
        timed=backend.name in ("mlm", "chain", "mntp"),
        shorten=config.long_items is LongItems.TRUNCATE,
    )


def surprisals(
    ask: ProbeFunction, params: PyTree, words: Sequence[Sequence[Probe]]
) -> np.ndarray:
    """-log p of each word in nats, float64 [W]: the sum over its probes."""
    values = ask(params, [probe for probes in words for probe in probes])
    sums = np.array([np.sum(each, dtype=np.float64) for each in values])
    owners = np.repeat(np.arange(len(words)), [len(probes) for probes in words])
    return -np.bincount(owners, weights=sums, minlength=len(words))
