"""Minimal pairs: does the model find the good sentence likelier than the bad one?"""

import collections
import dataclasses
import math
from collections.abc import Iterator, Sequence

import jax.numpy as jnp
import numpy as np

from lmjax.core.types import PyTree
from lmjax.diffusion.schedules import sigma
from lmjax.evaluate.figures import Figure, named
from lmjax.evaluate.likelihood import Scorer
from lmjax.evaluate.rows import Layout, Row
from lmjax.objectives.masked_diffusion import MaskDraws, MaskedDiffusion
from lmjax.parallel import hosts

ROWS = 512  # rows per compiled batch, or a few more so that the devices divide them
LENGTH_MULTIPLE = 16  # rows are padded to a multiple of this


@dataclasses.dataclass(frozen=True)
class Pair:
    """Two token sequences that differ minimally, and what they test."""

    good: Sequence[int]
    bad: Sequence[int]
    phenomenon: str


@dataclasses.dataclass(frozen=True)
class PairAccuracy:
    """Share of pairs whose good member scores strictly higher.

    Attributes:
      score: how a sentence is scored.
      accuracy: in [0, 1]; ties and NaN count as wrong.
      standard_error: of accuracy, binomial.
      pairs: number of pairs.
      phenomena: accuracy by phenomenon.
      phenomenon_pairs: number of pairs by phenomenon.
    """

    score: str
    accuracy: float
    standard_error: float
    pairs: int
    phenomena: dict[str, float]
    phenomenon_pairs: dict[str, int]

    def figures(self, prefix: str = "") -> list[Figure]:
        """The accuracy over all pairs, then by phenomenon."""
        shares = {"accuracy": (self.accuracy, self.pairs)} | {
            f"accuracy/{name}": (share, self.phenomenon_pairs[name])
            for name, share in self.phenomena.items()
        }
        kind = f"accuracy ({self.score})"
        return [
            Figure(named(prefix, name), kind, share, _binomial_error(share, n))
            for name, (share, n) in shares.items()
        ]


def evaluate_pairs(
    scorer: Scorer,
    params: PyTree,
    pairs: Sequence[Pair],
    *,
    opening: Sequence[int],
    eos_id: int,
    pad_id: int,
    document_mask: bool = False,
) -> PairAccuracy:
    """Scores both members of every pair as a document of their own.

    Args:
      opening: ids that stand before the text of a document, as in training.
      document_mask: whether attention stays within documents, as in training.

    A causal model gives the exact log-likelihood; masked diffusion the
    pseudo-log-likelihood: each token given all others (Salazar et al. 2020).
    """
    pseudo = isinstance(scorer.objective, MaskedDiffusion)
    sentences = [ids for pair in pairs for ids in (pair.good, pair.bad)]
    longest = max(map(len, sentences)) + len(opening) + 1
    num_rows = ROWS + -ROWS % scorer.mesh.size
    layout = Layout(
        num_rows=num_rows,
        local=hosts.local_rows(scorer.mesh, num_rows),
        length=math.ceil(longest / LENGTH_MULTIPLE) * LENGTH_MULTIPLE,
        eos_id=eos_id,
        pad_id=pad_id,
        document_mask=document_mask,
    )
    scores = np.zeros(len(sentences))
    for rows, batch in layout.batches(_rows(sentences, opening, eos_id, pseudo)):
        draws = _one_masked(rows, layout) if pseudo else None
        nll = np.asarray(scorer.nll_B(params, batch, draws), np.float64)
        np.subtract.at(scores, [row.owner for row in rows], nll[: len(rows)])
    right = scores[0::2] > scores[1::2]
    groups = collections.defaultdict(list)
    for pair, is_right in zip(pairs, right, strict=True):
        groups[pair.phenomenon].append(float(is_right))
    accuracy, n = float(right.mean()), len(pairs)
    groups = dict(sorted(groups.items()))
    return PairAccuracy(
        score="pseudo-log-likelihood" if pseudo else "log-likelihood",
        accuracy=accuracy,
        standard_error=_binomial_error(accuracy, n),
        pairs=n,
        phenomena={name: sum(v) / len(v) for name, v in groups.items()},
        phenomenon_pairs={name: len(v) for name, v in groups.items()},
    )


def _binomial_error(share: float, n: int) -> float:
    return math.sqrt(share * (1 - share) / n)


def _rows(
    sentences: Sequence[Sequence[int]], opening: Sequence[int], eos_id: int, each: bool
) -> Iterator[Row]:
    """The opening, which is given, the sentence, and the EOS that ends it.

    Once for a sentence, or for `each` of its tokens and its end.
    """
    for owner, ids in enumerate(sentences):
        row = Row(owner, [*opening, *ids, eos_id], len(opening))
        yield from row.repeated(row.counted if each else 1)


def _one_masked(rows: Sequence[Row], layout: Layout) -> MaskDraws:
    """Row i of a sentence has its token i masked, and counts it alone."""
    masked = np.zeros((layout.num_rows, layout.length), bool)
    rate = np.ones(layout.num_rows, np.float32)
    for i, row in enumerate(rows):
        masked[i, row.given + row.number] = True
        rate[i] = 1.0 / row.counted
    weight = np.ones(layout.num_rows, np.float32)
    return MaskDraws(masked, weight, np.asarray(sigma(jnp.asarray(rate))))
