"""Ages of acquisition: does a model learn words in the order in which children do?

A word's surprisal at each checkpoint makes a curve, and where it falls tells when the
model acquired the word; this is correlated with the age at which half of the children
say it (MacArthur-Bates inventories, from Wordbank). `AcquisitionEdition` has the two
formulas of BabyLM's evaluation. That of 2025 asks for every word alone, behind BOS:
its contexts repeat one and the same number.
"""

import collections
import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from scipy import special

from lmjax.config.choices import AcquisitionEdition
from lmjax.core.errors import UserError
from lmjax.evaluate.figures import Figure, finite
from lmjax.evaluate.human import acquisition_curves as curves
from lmjax.evaluate.human.acquisition_curves import Acquisition, Outcome
from lmjax.evaluate.human.acquisition_data import AcquisitionData, Milestone

MIN_WORDS = 3  # with both ages; fewer are no correlation
MAX_P_2026 = 0.1
RESAMPLES, COVERAGE = 1_000, 0.95


@dataclasses.dataclass(frozen=True, kw_only=True)
class WordAges:
    """What was found of a word.

    Attributes:
      model: log10(1 + words seen) when the model acquires it.
      children: months when half of the children say it.
      nats: mean surprisal over the contexts at each milestone.
    """

    model: Acquisition
    children: Acquisition
    nats: tuple[float, ...]

    @property
    def complete(self) -> bool:
        """Whether both ages are known."""
        return not (math.isnan(self.model.age) or math.isnan(self.children.age))


@dataclasses.dataclass(frozen=True, kw_only=True)
class AcquisitionResult:
    """How the ages agree.

    Attributes:
      edition: whose formula.
      score: as that edition reports it; 0 where it finds no correlation.
      correlation: Pearson's over the words with both ages; NaN for fewer than 3.
      p: of the correlation, two-sided.
      standard_error, low, high: of the correlation, from resamples of the words.
      words: by word, those without contexts left out.
      milestones: in order of the words seen.
      notes: what a reader has to know of the figures.
    """

    edition: AcquisitionEdition
    score: float
    correlation: float
    p: float
    standard_error: float
    low: float
    high: float
    words: dict[str, WordAges]
    milestones: tuple[Milestone, ...]
    notes: tuple[str, ...]

    @property
    def num_valid(self) -> int:
        """Words with both ages: what is correlated."""
        return sum(word.complete for word in self.words.values())

    def outcomes(self) -> dict[str, int]:
        """What became of the words in the model, counted; most first."""
        counted = collections.Counter(
            word.model.outcome.value for word in self.words.values()
        )
        return dict(counted.most_common())

    def figures(self, prefix: str = "age of acquisition") -> list[Figure]:
        """The score, the correlation behind it, and over how many words it is."""
        kind = f"statistic (Pearson, {self.edition.value})"
        count = f"statistic (of {len(self.words)} words)"
        return [
            Figure(f"{prefix}/score", kind, self.score),
            Figure(
                f"{prefix}/correlation", kind, self.correlation, self.standard_error
            ),
            Figure(f"{prefix}/words", count, self.num_valid),
        ]

    def to_json(self) -> dict[str, Any]:
        """All figures, and the curve of every word; null for what is not known."""
        names = ("score", "correlation", "p", "standard_error", "low", "high")
        return {
            "edition": self.edition.value,
            **{name: finite(getattr(self, name)) for name in names},
            "num_valid": self.num_valid,
            "outcomes": self.outcomes(),
            "notes": list(self.notes),
            "milestones": [dataclasses.asdict(each) for each in self.milestones],
            "words": {name: _word_json(word) for name, word in self.words.items()},
        }


def score_acquisition(
    data: AcquisitionData,
    milestones: Sequence[Milestone],
    nats_PC: np.ndarray,
    *,
    edition: AcquisitionEdition,
    vocab_size: int,
    num_tokens: Mapping[str, int],
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> AcquisitionResult:
    """Finds the age of every word, and correlates it with that of children.

    Args:
      milestones: P checkpoints, in any order.
      nats_PC: surprisals of `data.rows` at each.
      vocab_size: ids among which chance is uniform (2026).
      num_tokens: of each word, see `tokens_of_words` (2026).

    Raises:
      UserError: two milestones have seen the same number of words.
    """
    order = np.argsort([each.words for each in milestones], kind="stable")
    milestones = tuple(milestones[i] for i in order.tolist())
    seen = np.array([each.words for each in milestones], np.float64)
    if len(set(seen.tolist())) < len(seen):
        raise UserError(
            "Two checkpoints have seen the same number of words.",
            where=", ".join(each.revision for each in milestones),
            remedy="leave one out.",
        )
    nats_PC = np.asarray(nats_PC, np.float64)[order]
    starts = np.cumsum([0, *map(len, data.contexts.values())])
    found = {}
    for i, word in enumerate(data.contexts):
        nats = nats_PC[:, starts[i] : starts[i + 1]]
        if not nats.shape[1]:
            continue
        found[word] = WordAges(
            model=curves.model_acquisition(
                np.broadcast_to(seen[:, None], nats.shape),
                nats,
                edition=edition,
                vocab_size=vocab_size,
                num_tokens=num_tokens[word],
            ),
            children=_children(data, word),
            nats=tuple(nats.mean(axis=1).tolist()),
        )
    return _correlate(found, milestones, edition, resamples, seed)


def _children(data: AcquisitionData, word: str) -> Acquisition:
    if word not in data.shares:
        return Acquisition(math.nan, Outcome.TOO_FEW)
    return curves.human_acquisition(data.ages, data.shares[word])


def _correlate(
    words: dict[str, WordAges],
    milestones: tuple[Milestone, ...],
    edition: AcquisitionEdition,
    resamples: int,
    seed: int,
) -> AcquisitionResult:
    valid = [word for word in words.values() if word.complete]
    model = np.array([word.model.age for word in valid])
    children = np.array([word.children.age for word in valid])
    correlation = p = error = low = high = math.nan
    score, notes = 0.0, _notes(len(milestones), len(valid))
    if len(valid) >= MIN_WORDS and np.ptp(model) > 0 and np.ptp(children) > 0:
        correlation = float(_correlations(model[None], children[None])[0])
        score, p = correlation, _p_value(correlation, len(valid))
        generator = np.random.default_rng(seed)
        draws = generator.integers(len(valid), size=(resamples, len(valid)))
        drawn = _correlations(model[draws], children[draws])
        tail = (1 - COVERAGE) / 2
        drawn = drawn[~np.isnan(drawn)]
        if len(drawn) > 1:
            low, high = np.quantile(drawn, [tail, 1 - tail]).tolist()
            error = float(drawn.std(ddof=1))
        if edition is AcquisitionEdition.BABYLM_2026 and p > MAX_P_2026:
            score = 0.0
            notes = (*notes, f"the correlation has p > {MAX_P_2026}: it scores 0")
    return AcquisitionResult(
        edition=edition,
        score=score,
        correlation=correlation,
        p=p,
        standard_error=error,
        low=low,
        high=high,
        words=words,
        milestones=milestones,
        notes=notes,
    )


def _notes(num_milestones: int, num_valid: int) -> tuple[str, ...]:
    notes = []
    if num_milestones < curves.MIN_POINTS:
        notes.append(
            f"{num_milestones} checkpoint(s) make no curve: it takes at least "
            f"{curves.MIN_POINTS}, and should have many more"
        )
    elif num_milestones <= curves.PARAMETERS:
        notes.append(
            f"{num_milestones} checkpoints do not determine a curve of "
            f"{curves.PARAMETERS} parameters: the ages are arbitrary"
        )
    if num_valid < MIN_WORDS:
        notes.append(
            f"{num_valid} word(s) have both ages, of at least {MIN_WORDS}: the score "
            "is 0 by definition"
        )
    return tuple(notes)


def _correlations(a_RN: np.ndarray, b_RN: np.ndarray) -> np.ndarray:
    """Pearson's of each row; NaN where one is constant."""
    a = a_RN - a_RN.mean(axis=1, keepdims=True)
    b = b_RN - b_RN.mean(axis=1, keepdims=True)
    norm = np.sqrt(np.sum(a * a, axis=1) * np.sum(b * b, axis=1))
    product = np.sum(a * b, axis=1)
    return np.where(norm > 0, product / np.where(norm > 0, norm, 1), np.nan)


def _p_value(r: float, n: int) -> float:
    """Two-sided, of a Pearson correlation over n pairs, by Student's t."""
    if abs(r) >= 1:
        return 0.0
    t = abs(r) * math.sqrt((n - 2) / (1 - r * r))
    return float(2 * special.stdtr(n - 2, -t))


def _word_json(word: WordAges) -> dict[str, Any]:
    model, children = word.model, word.children
    return {
        "model_log10_words": finite(model.age),
        "model": model.outcome.value,
        "children_months": finite(children.age),
        "children": children.outcome.value,
        "mean_nats": [finite(value) for value in word.nats],
    }
