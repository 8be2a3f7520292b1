"""Scores the items of zero-shot tasks, and picks what the model finds likeliest."""

import dataclasses
from collections.abc import Callable, Sequence

import numpy as np

from lmjax.config.schema import EvaluateConfig, Ties
from lmjax.core.types import PyTree
from lmjax.data.tokenization.tokenizers import Tokenizer
from lmjax.evaluate.probes import Probe
from lmjax.evaluate.zero_shot.backends import Backend, Term, build_backend
from lmjax.evaluate.zero_shot.encoding import (
    EncodedCandidate,
    EncodedTask,
    encode_task,
)
from lmjax.evaluate.zero_shot.items import Item, Task
from lmjax.evaluate.zero_shot.results import Stamp, TaskResult

SLICE = 32_768  # probes made at a time: they are sorted by length, and held in memory

ProbeFunction = Callable[[PyTree, Sequence[Probe]], list[np.ndarray]]


class ZeroShot:
    """Evaluates tasks under one backend; for all checkpoints of a model.

    Each task is encoded once, however many parameters it is scored under.

    Args:
      prober: `probes.Prober` of the model.
      max_length: most ids that the model reads at once.
      opening: ids that stand before every text, as in training; read, not scored. For
        a causal model, all it reads before a text: one BOS, for one.
      causal: whether the model sees no later token.
      mask_id: what hides a token from a model that is not causal.
      dtype: of the model's matrix products, for the record; logits are float32.
      seed: of draws among ties, of masks and of resamples.

    Raises:
      ConfigError: the model can't be scored by the backend of the config.
    """

    def __init__(
        self,
        config: EvaluateConfig,
        prober: ProbeFunction,
        tokenizer: Tokenizer,
        *,
        max_length: int,
        opening: Sequence[int],
        causal: bool,
        mask_id: int,
        dtype: str,
        seed: int = 0,
    ):
        self.backend = build_backend(config, causal=causal, mask_id=mask_id, seed=seed)
        self._config, self._prober, self._tokenizer = config, prober, tokenizer
        self._opening, self._max_length = tuple(opening), max_length
        self._dtype, self._seed = dtype, seed
        self._encoded: dict[Task, EncodedTask] = {}

    def evaluate(self, params: PyTree, task: Task) -> TaskResult:
        """Scores every candidate of a task, and picks one of each item.

        Raises:
          UserError: an item is too long, or has an empty completion.
        """
        scores = self.scores(params, task)
        generator = np.random.default_rng([self._seed, len(task.items)])
        chosen, ties, nans = [], 0, 0
        for item, values in zip(task.items, scores, strict=True):
            choice = choose(values, item.label, self._config.ties, generator)
            chosen.append(choice.index)
            ties += choice.tied
            nans += choice.nan
        draws = self._config.elbo_draws if self.backend.name == "elbo" else 1
        return TaskResult(
            task=task,
            chosen=np.array(chosen),
            ties=ties,
            nans=nans,
            truncated=self.encoded(task).truncated,
            stamp=Stamp(
                backend=self.backend.name,
                tie_rule=self._config.ties.value,
                dtype=self._dtype,
                draws=draws,
                rule=task.rule,
            ),
            resamples=self._config.bootstrap,
            seed=self._seed,
        )

    def scores(self, params: PyTree, task: Task) -> list[np.ndarray]:
        """Score of every candidate of every item: float64 [candidates], in nats."""
        encoded = self.encoded(task)
        counts = [len(item) for item in encoded.items]
        totals = np.zeros(sum(counts))
        pending: list[Term] = []
        owners: list[int] = []
        owner = 0
        for number, candidates in enumerate(encoded.items):
            for terms in self.backend.terms(candidates, number):
                pending += terms
                owners += [owner] * len(terms)
                owner += 1
            if len(pending) >= SLICE or number + 1 == len(encoded.items):
                self._add(params, pending, owners, totals)
                pending, owners = [], []
        scores = np.split(totals, np.cumsum(counts)[:-1])
        for item, candidates, values in zip(
            task.items, encoded.items, scores, strict=True
        ):
            values /= _divisors(self.backend, item, candidates)
        return scores

    def encoded(self, task: Task) -> EncodedTask:
        """The items of a task in ids, the same ones at every call."""
        if task not in self._encoded:
            self._encoded[task] = encode_task(
                task,
                self._tokenizer,
                opening=self._opening,
                max_length=self._max_length + (not self.backend.reads_last),
                long_items=self._config.long_items,
            )
        return self._encoded[task]

    def _add(
        self, params: PyTree, terms: list[Term], owners: list[int], totals: np.ndarray
    ) -> None:
        """Adds each term to the score of its owner."""
        found = self._prober(params, [term.probe for term in terms])
        weights = np.array([term.weight for term in terms])
        sizes = np.array([len(values) for values in found], np.int64)
        values = np.concatenate([*found, np.zeros(0)]).astype(np.float64)
        weighted = values * np.repeat(weights, sizes)
        np.add.at(totals, np.repeat(np.array(owners, np.int64), sizes), weighted)


@dataclasses.dataclass(frozen=True)
class Choice:
    """What was picked of an item.

    Attributes:
      index: of the candidate.
      tied: whether several candidates score best.
      nan: whether a score is NaN.
    """

    index: int
    tied: bool
    nan: bool


def choose(
    scores: np.ndarray, label: int, ties: Ties, generator: np.random.Generator
) -> Choice:
    """Picks the best of an item's candidates.

    Args:
      scores: float [candidates]; NaN stands below all others.
      label: the right candidate. Where ties are wrong, it is picked only if it scores
        higher than all others and none is NaN.
      generator: draws among ties, where that is asked for.
    """
    nan_C = np.isnan(scores)
    safe = np.where(nan_C, -np.inf, scores)
    best_C = safe == safe.max()
    tied, nan = bool(best_C.sum() > 1), bool(nan_C.any())
    if not tied and not nan:
        return Choice(int(np.argmax(safe)), tied, nan)
    match ties:
        case Ties.OFFICIAL:
            index = generator.choice(np.flatnonzero(best_C))
        case Ties.WRONG:
            best_C = best_C | nan_C
            best_C[label] = False
            index = np.argmax(best_C)
    return Choice(int(index), tied, nan)


def _divisors(
    backend: Backend, item: Item, candidates: Sequence[EncodedCandidate]
) -> np.ndarray | float:
    """What the scores of an item's candidates are divided by."""
    if not item.per_token:
        return 1.0
    return np.array([max(backend.scored(each), 1) for each in candidates], np.float64)
