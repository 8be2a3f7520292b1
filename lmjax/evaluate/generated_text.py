"""Generated texts: how varied they are, and how likely another model finds them.

Generative perplexity alone can be gamed: text that repeats itself is likely. So it is
never reported without the entropy of the texts and the share of them that repeat.
"""

import collections
import dataclasses
import math
from collections.abc import Iterator, Sequence
from typing import Any, Protocol

import numpy as np

from lmjax.core.errors import UserError
from lmjax.data.tokenization.words import count_words
from lmjax.evaluate import figures
from lmjax.evaluate.figures import Figure, named

# What counts as a text that repeats itself, see `repeats`.
MIN_UNITS = 16  # tokens, or words; a shorter text is not judged
MIN_ENTROPY = 1.5  # nats: as of 4.5 tokens equally often; English letters have 2.9
MAX_TRIGRAM_SHARE = 0.1
MIN_TRIGRAM_COUNT = 4
MAX_SEEN_WORD_TRIGRAMS = 0.5


@dataclasses.dataclass(frozen=True)
class TextStatistics:
    """How varied a list of texts is.

    Attributes:
      texts: how many.
      tokens, words: of all together; words as `wc -w` counts them.
      entropy: nats of a token under the text's own unigram frequencies; mean over
        texts. That of a text of n tokens is ln n at most.
      entropy_error: standard error of this mean.
      pooled_entropy: nats under the frequencies of all texts together.
      distinct: for n = 1, 2, 3 the number of different n-grams of tokens over the
        number of n-grams, of all texts together (Li et al. 2016); NaN without any. It
        falls with the number of tokens: compare samples of one size.
      tokens_error, words_error: standard errors of the mean lengths.
      repeating: share of texts that repeat themselves, see `repeats`.
    """

    texts: int
    tokens: int
    words: int
    entropy: float
    entropy_error: float
    pooled_entropy: float
    distinct: tuple[float, float, float]
    tokens_error: float
    words_error: float
    repeating: float

    def figures(self, prefix: str = "") -> list[Figure]:
        """Means over texts with their errors, and what is pooled without."""
        share = self.repeating
        values = {
            "entropy": (self.entropy, self.entropy_error),
            "pooled_entropy": (self.pooled_entropy, math.nan),
            **{
                f"distinct_{n}": (value, math.nan)
                for n, value in enumerate(self.distinct, 1)
            },
            "mean_tokens": (self.tokens / self.texts, self.tokens_error),
            "mean_words": (self.words / self.texts, self.words_error),
            "repeating": (share, math.sqrt(share * (1 - share) / self.texts)),
        }
        kinds = collections.defaultdict(lambda: "statistic")
        kinds |= {
            "entropy": "statistic (nats, mean over texts)",
            "pooled_entropy": "statistic (nats, all texts together)",
            "repeating": "statistic (share of texts)",
        }
        return [
            Figure(named(prefix, name), kinds[name], value, error)
            for name, (value, error) in values.items()
        ]

    def to_json(self) -> dict[str, Any]:
        """All figures; null where one is not known."""
        fields = dataclasses.asdict(self)
        distinct = {
            f"distinct_{n}": figures.finite(value)
            for n, value in enumerate(fields.pop("distinct"), 1)
        }
        return {k: figures.finite(v) for k, v in fields.items()} | distinct


class Judge(Protocol):
    """A model of text that was not trained on these texts.

    Attributes:
      name: in reports.
      counted: which tokens are counted, in words.
    """

    name: str
    counted: str

    def nll(self, texts: Sequence[str]) -> list[tuple[float, int]]:
        """Nats of each text, and tokens that they are counted over, maybe 0."""
        ...


@dataclasses.dataclass(frozen=True)
class GenerativePerplexity:
    """How likely a judge finds generated texts, and how varied they are.

    Attributes:
      judge: its name.
      counted: which of the judge's tokens are counted.
      value: exp(nats per token of the judge, all texts together).
      standard_error: over texts, by the delta method.
      tokens: of the judge, counted.
      unjudged: texts without a counted token.
      statistics: of the same texts, in the tokens of the model that wrote them.
    """

    judge: str
    counted: str
    value: float
    standard_error: float
    tokens: int
    unjudged: int
    statistics: TextStatistics
    name: str = "generative_perplexity"

    @property
    def kind(self) -> str:
        return f"generative perplexity under {self.judge}"

    def figures(self, prefix: str = "") -> list[Figure]:
        """The perplexity, then all that qualifies it."""
        kind = f"{self.kind} ({self.counted})"
        figure = Figure(named(prefix, self.name), kind, self.value, self.standard_error)
        return [figure, *self.statistics.figures(prefix)]

    def to_json(self) -> dict[str, Any]:
        """All figures; null where one is not known."""
        fields = {
            field.name: getattr(self, field.name)
            for field in dataclasses.fields(self)
            if field.name != "statistics"
        }
        numbers = {
            name: figures.finite(fields[name]) for name in ("value", "standard_error")
        }
        statistics = self.statistics.to_json()
        return {"kind": self.kind} | fields | numbers | {"statistics": statistics}


def describe(
    texts: Sequence[str], ids: Sequence[Sequence[int] | np.ndarray]
) -> TextStatistics:
    """Statistics of texts and of the tokens they were written in, prompts left out.

    Args:
      ids: tokens of each text, without special ids.

    Raises:
      ValueError: when there are no texts, or not as many ids.
    """
    if not texts or len(texts) != len(ids):
        raise ValueError(
            f"{len(texts)} texts and {len(ids)} lists of ids, want n and n"
        )
    ids = [tuple(np.asarray(row).tolist()) for row in ids]
    entropies = [unigram_entropy(row) for row in ids]
    num_tokens = [len(row) for row in ids]
    num_words = [count_words(text) for text in texts]
    flags = [repeats(text, row) for text, row in zip(texts, ids, strict=True)]
    return TextStatistics(
        texts=len(texts),
        tokens=sum(num_tokens),
        words=sum(num_words),
        entropy=float(np.mean(entropies)),
        entropy_error=figures.mean_error(entropies),
        pooled_entropy=unigram_entropy([token for row in ids for token in row]),
        distinct=tuple(_distinct(ids, n) for n in (1, 2, 3)),
        tokens_error=figures.mean_error(num_tokens),
        words_error=figures.mean_error(num_words),
        repeating=float(np.mean(flags)),
    )


def evaluate_texts(
    judge: Judge, texts: Sequence[str], ids: Sequence[Sequence[int] | np.ndarray]
) -> GenerativePerplexity:
    """Has a judge read texts; see `describe` for the arguments.

    Raises:
      UserError: the judge finds nothing to count.
    """
    statistics = describe(texts, ids)
    found = judge.nll(texts)
    nats = np.array([nll for nll, _ in found], np.float64)
    counts = np.array([count for _, count in found], np.int64)
    judged = counts > 0
    if not judged.any():
        raise UserError(
            f"{judge.name} counts no token of these {len(texts)} texts",
            where="evaluate.judge",
            remedy="look at what the model writes with --mode generate.",
        )
    nats, counts = nats[judged], counts[judged]
    value = figures.perplexity(float(nats.sum() / counts.sum()))
    return GenerativePerplexity(
        judge=judge.name,
        counted=judge.counted,
        value=value,
        standard_error=value * figures.ratio_error(nats, counts),
        tokens=int(counts.sum()),
        unjudged=int((~judged).sum()),
        statistics=statistics,
    )


def unigram_entropy(ids: Sequence[int]) -> float:
    """Entropy of the frequencies of the ids, in nats; 0 for none."""
    counts = np.array(list(collections.Counter(ids).values()), np.float64)
    share = counts / counts.sum()
    return float(max(0.0, -np.sum(share * np.log(share))))


def repeats(text: str, ids: Sequence[int]) -> bool:
    """Whether a text repeats itself, which flags samples that degenerate.

    Of 16 tokens or more, the entropy of its tokens is below 1.5 nats, or one trigram
    makes up over a tenth of all and comes four times; or, of 16 words or more, over
    half of the trigrams of words were there before.
    """
    if len(ids) >= MIN_UNITS:
        if unigram_entropy(ids) < MIN_ENTROPY:
            return True
        most = max(collections.Counter(_ngrams(ids, 3)).values())
        if most >= max(MIN_TRIGRAM_COUNT, MAX_TRIGRAM_SHARE * (len(ids) - 2)):
            return True
    words = text.split()
    if len(words) < MIN_UNITS:
        return False
    return 1 - _distinct([words], 3) > MAX_SEEN_WORD_TRIGRAMS


def _ngrams(items: Sequence[Any], n: int) -> Iterator[tuple[Any, ...]]:
    return zip(*(items[i:] for i in range(n)), strict=False)


def _distinct(rows: Sequence[Sequence[Any]], n: int) -> float:
    total = sum(max(0, len(row) - n + 1) for row in rows)
    different = {gram for row in rows for gram in _ngrams(row, n)}
    return len(different) / total if total else math.nan
