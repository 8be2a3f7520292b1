"""What a completion costs after its prompt: exact, or the conditional bound."""

import collections
import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from lmjax.core import rng
from lmjax.core.errors import UserError
from lmjax.core.types import PyTree
from lmjax.data.batch import Batch
from lmjax.evaluate.figures import finite
from lmjax.evaluate.likelihood import Scorer
from lmjax.evaluate.rows import Layout, Row
from lmjax.parallel import hosts

DRAWS = 128  # as LLaDA (Nie et al. 2025)
BATCH_TOKENS = 32_768  # tokens of a batch, padding included
MAX_ROWS = 512
MIN_LENGTH = 16


@dataclasses.dataclass(frozen=True)
class Completion:
    """Token ids of a prompt, which is given and may be empty, and of what follows."""

    prompt: Sequence[int]
    completion: Sequence[int]


@dataclasses.dataclass(frozen=True)
class CompletionLikelihood:
    """What one completion costs after its prompt.

    Attributes:
      kind: "exact" or "upper bound".
      estimator: how it was found.
      nll: nats of the whole completion.
      standard_error: of nll, over masks alone: 0 where nothing is drawn, NaN where one
        draw cannot tell.
      tokens: that count.
      draws: masks drawn; 1 where nothing is drawn.
    """

    kind: str
    estimator: str
    nll: float
    standard_error: float
    tokens: int
    draws: int

    def to_json(self) -> dict[str, Any]:
        """All figures; null where one is not known."""
        error = finite(self.standard_error)
        return dataclasses.asdict(self) | {"standard_error": error}


def score_completions(
    scorer: Scorer,
    params: PyTree,
    completions: Sequence[Completion],
    *,
    opening: Sequence[int],
    eos_id: int,
    pad_id: int,
    max_length: int,
    end: bool = True,
    draws: int = DRAWS,
    seed: int = 0,
    document_mask: bool = False,
) -> list[CompletionLikelihood]:
    """Finds -log p(completion | prompt), each pair as a document of its own.

    A causal model gives it exactly. Diffusion gives its bound with the prompt visible
    in every draw. The draws of a completion are spread evenly over the sizes of masks,
    from a random start (LLaDA, appendix B.5); where a completion of one token leaves
    nothing to chance it takes one draw. Keys are fixed, and each completion has its
    own by its place in the list: the others and the batches do not matter to it.

    Args:
      opening: ids that stand before the text of a document, as in training.
      max_length: most tokens of a row that the model takes.
      end: whether EOS ends the completion, and counts.
      draws: masks for each completion.
      seed: another gives other masks.
      document_mask: whether attention stays within documents, as in training.

    Raises:
      UserError: a completion is empty, or too long with its prompt.
    """
    tail = (eos_id,) if end else ()
    rows = []
    for i, example in enumerate(completions):
        given = (*opening, *example.prompt)
        rows.append(Row(i, (*given, *example.completion, *tail), len(given)))
    _check(completions, rows, max_length)
    by_length = collections.defaultdict(list)
    for row in rows:
        by_length[_padded_length(len(row.tokens), max_length)].append(row)
    draw = _Draw(scorer, seed, draws)
    costs = {}
    for length, alike in sorted(by_length.items()):
        num_rows = _num_rows(length, scorer.mesh.size)
        layout = Layout(
            num_rows=num_rows,
            local=hosts.local_rows(scorer.mesh, num_rows),
            length=length,
            eos_id=eos_id,
            pad_id=pad_id,
            document_mask=document_mask,
        )
        for row in alike:
            costs[row.owner] = np.zeros(draw.count(row, layout))
        repeated = (r for row in alike for r in row.repeated(costs[row.owner].size))
        for chosen, batch in layout.batches(repeated):
            masks = draw(chosen, batch, layout.num_rows)
            nll = np.asarray(scorer.nll_B(params, batch, masks), np.float64)
            # Rows of padding stand at the end.
            for row, cost in zip(chosen, nll[: len(chosen)], strict=True):
                costs[row.owner][row.number] = cost
    return [
        CompletionLikelihood(
            kind=scorer.objective.kind,
            estimator=scorer.objective.estimator,
            nll=float(costs[row.owner].mean()),
            standard_error=_error(costs[row.owner]) if draw.is_random(row) else 0.0,
            tokens=row.counted,
            draws=costs[row.owner].size,
        )
        for row in rows
    ]


class _Draw:
    """Masks of rows: how many a text takes, and which."""

    def __init__(self, scorer: Scorer, seed: int, draws: int):
        self._scorer, self._seed, self._draws = scorer, seed, draws
        self._key = rng.stream(seed, "completions")
        self._one_token_is_random: bool | None = None  # not known

    def is_random(self, row: Row) -> bool:
        """Whether the draws of this text differ; for one token `count` finds out."""
        if self._scorer.objective.kind == "exact":
            return False
        return row.counted > 1 or self._one_token_is_random is not False

    def count(self, row: Row, layout: Layout) -> int:
        """Rows that the text of `row` takes."""
        if row.counted == 1 and self._one_token_is_random is None:
            self._one_token_is_random = self._differs(row, layout)
        return self._draws if self.is_random(row) else 1

    def __call__(self, rows: Sequence[Row], batch: Batch, num_rows: int) -> Any:
        """Draws of a batch; row j of a text's n is at (j + start) / n in [0, 1)."""
        numbers = np.zeros((num_rows, 2), np.int32)
        position = np.zeros(num_rows, np.float32)
        for i, row in enumerate(rows):
            start = np.random.default_rng([self._seed, row.owner]).random()
            numbers[i] = row.owner, row.number
            position[i] = (row.number + start) / row.count
        # In float32 a position may round up to 1, which is outside.
        position = np.minimum(position, np.float32(1 - 2**-24))
        return self._scorer.draw_rows(batch, self._key, numbers, position)

    def _differs(self, row: Row, layout: Layout) -> bool:
        """Whether draws of a text at several places of [0, 1) are not all the same."""
        layout = dataclasses.replace(layout, num_rows=8 + -8 % self._scorer.mesh.size)
        ((rows, batch),) = layout.batches(row.repeated(layout.num_rows))
        draws = self(rows, batch, layout.num_rows)
        for leaf in map(np.asarray, jax.tree.leaves(draws)):
            if np.any(leaf != leaf[:1]):
                return True
        return False


def _padded_length(length: int, max_length: int) -> int:
    """The next power of two, so that few programs are compiled."""
    return min(max(MIN_LENGTH, 2 ** math.ceil(math.log2(length))), max_length)


def _num_rows(length: int, num_devices: int) -> int:
    rows = min(MAX_ROWS, max(1, BATCH_TOKENS // length))
    return rows + -rows % num_devices


def _error(costs: np.ndarray) -> float:
    """Standard error of the mean of draws in the order of their sizes.

    From differences of neighbours (Wolter 2007, section 8.2): what sizes of masks
    differ by is no noise where draws are spread evenly over them.
    """
    n = costs.size
    if n < 2:
        return math.nan
    return math.sqrt(float(np.square(np.diff(costs)).sum()) / (2 * n * (n - 1)))


def _check(
    completions: Sequence[Completion], rows: Sequence[Row], max_length: int
) -> None:
    for i, (example, row) in enumerate(zip(completions, rows, strict=True)):
        if not len(example.completion):
            raise UserError(
                "A completion is empty: there is nothing to score.",
                where=f"example {i}, counted from 0",
                remedy="leave it out.",
            )
        if len(row.tokens) > max_length:
            raise UserError(
                f"A prompt of {len(example.prompt)} tokens and a completion of "
                f"{len(example.completion)} need {len(row.tokens)} with what opens and "
                f"ends them, but the model takes {max_length}.",
                where=f"example {i}, counted from 0",
                remedy="shorten the prompt from its beginning, or leave it out.",
            )
