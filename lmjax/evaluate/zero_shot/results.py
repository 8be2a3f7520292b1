"""What a model got in a zero-shot task: accuracies, with intervals and a stamp."""

import dataclasses
import importlib.metadata
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from lmjax.evaluate.figures import Figure, finite, named
from lmjax.evaluate.zero_shot.items import Task

# Changes whenever scores or accuracies could: figures of different scorers are not to
# be compared.
SCORER = "lmjax zero-shot 1"
COVERAGE = 0.95  # of intervals


@dataclasses.dataclass(frozen=True, kw_only=True)
class Stamp:
    """How figures came about.

    Attributes:
      backend: how candidates were scored.
      tie_rule: what became of candidates that score alike.
      dtype: of matrix products; logits and their softmax are float32.
      draws: masks per candidate; 1 where nothing is drawn.
      rule: which definition of the task; empty if there is only one.
    """

    backend: str
    tie_rule: str
    dtype: str
    draws: int = 1
    rule: str = ""
    scorer: str = SCORER
    lmjax: str = dataclasses.field(
        default_factory=lambda: importlib.metadata.version("lmjax")
    )

    def to_json(self) -> dict[str, Any]:
        """All of it."""
        return dataclasses.asdict(self)


@dataclasses.dataclass(frozen=True)
class Accuracy:
    """A share of items that are right.

    Attributes:
      value: in [0, 1].
      count: items.
      standard_error: over the items of each UID as a sample; UIDs of one item each
        are together one sample, for one item says nothing of its spread.
      low, high: 95 % interval by the same sampling: a percentile bootstrap (Efron
        1979). How many of a UID's n resampled items are right is binomial.
    """

    value: float
    count: int
    standard_error: float
    low: float
    high: float

    def to_json(self) -> dict[str, Any]:
        """In percent, as officially."""
        return {
            "accuracy": percent(self.value),
            "interval": [percent(self.low), percent(self.high)],
            "standard_error": percent(self.standard_error),
            "items": self.count,
        }


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class TaskResult:
    """What a model chose in a task, and what that is worth.

    Attributes:
      chosen: int [items], index of the candidate that was picked.
      ties, nans: items with several best candidates, and with a NaN.
      truncated: items whose prefix was cut.
      resamples: draws of the bootstrap behind intervals.
      seed: of the bootstrap.
    """

    task: Task
    chosen: np.ndarray
    stamp: Stamp
    ties: int = 0
    nans: int = 0
    truncated: int = 0
    resamples: int = 1000
    seed: int = 0

    def right(self) -> np.ndarray:
        """Whether each item is right: bool [items]."""
        labels = np.array([item.label for item in self.task.items])
        return self.chosen == labels

    def average(self) -> Accuracy:
        """The task's accuracy: the mean over UIDs, or over the means of splits."""
        return self._accuracy(self.task.members("UID"), self.task.weights())

    def groups(self) -> dict[str, dict[str, Accuracy]]:
        """Accuracy of each group of each kind, over its items alike."""
        found: dict[str, dict[str, Accuracy]] = {}
        for kind in self.task.kinds():
            found[kind] = {}
            for name, members in self.task.members(kind).items():
                cells: dict[str, list[int]] = {}
                for i in members:
                    cells.setdefault(self.task.items[i].uid, []).append(i)
                shares = {uid: len(cells[uid]) / len(members) for uid in cells}
                found[kind][name] = self._accuracy(cells, shares)
        return found

    def splits(self) -> dict[str, Accuracy]:
        """The mean over the UIDs of each split that there is."""
        found = {}
        for split in self.task.splits:
            cells = {
                uid: members
                for uid, members in self.task.members("UID").items()
                if uid.startswith(split)
            }
            if cells:
                found[split] = self._accuracy(
                    cells, dict.fromkeys(cells, 1 / len(cells))
                )
        return found

    def _accuracy(
        self, cells: Mapping[str, Sequence[int]], weights: Mapping[str, float]
    ) -> Accuracy:
        """The weighted mean of the shares of some UIDs' items that are right."""
        right = self.right()
        share_U = np.array([right[cells[uid]].mean() for uid in weights])
        count_U = np.array([len(cells[uid]) for uid in weights])
        weight_U = np.array(list(weights.values()))
        value = float(weight_U @ share_U)
        single_U = count_U == 1
        if single_U.any():  # each is redrawn from all of them
            weights_S = weight_U[single_U]
            share_U[single_U] = np.average(share_U[single_U], weights=weights_S)
        generator = np.random.default_rng(self.seed)
        shape = (self.resamples, len(weights))
        drawn_RU = generator.binomial(count_U, share_U, size=shape) / count_U
        tails = [(1 - COVERAGE) / 2, (1 + COVERAGE) / 2]
        low, high = np.quantile(drawn_RU @ weight_U, tails)
        variance = float(weight_U**2 @ (share_U * (1 - share_U) / count_U))
        return Accuracy(
            value=value,
            count=int(count_U.sum()),
            standard_error=math.sqrt(variance),
            low=float(low),
            high=float(high),
        )

    def figures(self) -> list[Figure]:
        """The average, then each group; shares in [0, 1]."""
        kind = f"accuracy ({self.stamp.backend}, ties {self.stamp.tie_rule})"
        values = {"accuracy": self.average()} | {
            f"{what}/{name}": accuracy
            for what, names in self.groups().items()
            for name, accuracy in names.items()
        }
        return [
            Figure(
                named(f"zero-shot/{self.task.dataset}", name),
                kind,
                accuracy.value,
                accuracy.standard_error,
                self.stamp.draws,
            )
            for name, accuracy in values.items()
        ]

    def to_json(self) -> dict[str, Any]:
        """Everything but the single items; accuracies in percent, as officially."""
        return {
            "task": self.task.name,
            "dataset": self.task.dataset,
            **self.average().to_json(),
            "chance": percent(self.task.chance()),
            "ties": self.ties,
            "nans": self.nans,
            "truncated": self.truncated,
            "groups": {
                kind: {name: share.to_json() for name, share in names.items()}
                for kind, names in self.groups().items()
            },
            "splits": {name: share.to_json() for name, share in self.splits().items()},
            "stamp": self.stamp.to_json(),
        }


def percent(share: float) -> float | None:
    """Of a share in [0, 1]; None if it is not finite."""
    return finite(100.0 * share)
