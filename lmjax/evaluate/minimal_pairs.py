"""Minimal pairs: does the model find the good sentence likelier than the bad one?"""

import collections
import dataclasses
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np

from lmjax.core.types import PyTree
from lmjax.data.batch import Batch
from lmjax.data.pipeline import segment
from lmjax.diffusion.schedules import sigma
from lmjax.evaluate.likelihood import Scorer
from lmjax.objectives.masked_diffusion import MaskDraws, MaskedDiffusion

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
    """

    score: str
    accuracy: float
    standard_error: float
    pairs: int
    phenomena: dict[str, float]


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
    expand = _masked_rows if pseudo else _whole_rows
    sentences = [ids for pair in pairs for ids in (pair.good, pair.bad)]
    scores = np.zeros(len(sentences))
    rows = ROWS + -ROWS % scorer.mesh.size
    for owners, batch, draws in _batches(
        sentences, expand, tuple(opening), eos_id, pad_id, pseudo, rows
    ):
        if document_mask:
            segments, positions = segment(batch.tokens, eos=eos_id, pad=pad_id)
            batch = dataclasses.replace(batch, segments=segments, positions=positions)
        nll = np.asarray(scorer.nll_B(params, batch, draws), np.float64)
        np.subtract.at(scores, owners, nll[: len(owners)])
    right = scores[0::2] > scores[1::2]
    groups = collections.defaultdict(list)
    for pair, is_right in zip(pairs, right, strict=True):
        groups[pair.phenomenon].append(float(is_right))
    accuracy, n = float(right.mean()), len(pairs)
    return PairAccuracy(
        score="pseudo-log-likelihood" if pseudo else "log-likelihood",
        accuracy=accuracy,
        standard_error=math.sqrt(accuracy * (1 - accuracy) / n),
        pairs=n,
        phenomena={name: sum(v) / len(v) for name, v in sorted(groups.items())},
    )


def _whole_rows(num_counted: int) -> np.ndarray:
    """One row that counts every token."""
    return np.ones((1, num_counted), bool)


def _masked_rows(num_counted: int) -> np.ndarray:
    """One row for each token, which counts that token alone."""
    return np.eye(num_counted, dtype=bool)


def _batches(
    sentences: Sequence[Sequence[int]],
    expand: Callable[[int], np.ndarray],
    opening: tuple[int, ...],
    eos_id: int,
    pad_id: int,
    pseudo: bool,
    rows: int,
) -> Iterator[tuple[np.ndarray, Batch, Any]]:
    """(sentence of each row, batch, draws), all batches in one shape.

    A row is the opening, which is given, the sentence, and the EOS that ends it.
    """
    skip = len(opening)
    longest = max(map(len, sentences)) + skip + 1
    length = math.ceil(longest / LENGTH_MULTIPLE) * LENGTH_MULTIPLE
    owners, tokens, real, counted = [], [], [], []
    for owner, ids in enumerate(sentences):
        row = np.full(length, pad_id, np.int32)
        row[: skip + len(ids) + 1] = [*opening, *ids, eos_id]
        for chosen in expand(len(ids) + 1):
            owners.append(owner)
            tokens.append(row)
            real.append(np.arange(skip, skip + len(ids) + 1))
            counted.append(np.pad(chosen, (skip, length - skip - chosen.size)))
    for start in range(0, len(owners), rows):
        chosen = slice(start, start + rows)
        weights = np.zeros((rows, length), np.float32)
        canvas = np.full((rows, length), pad_id, np.int32)
        masked = np.zeros((rows, length), bool)
        canvas[: len(owners[chosen])] = np.stack(tokens[chosen])
        masked[: len(owners[chosen])] = np.stack(counted[chosen])
        for i, positions in enumerate(real[chosen]):
            weights[i, positions] = 1.0
        zeros = np.zeros_like(canvas)
        batch = Batch(
            tokens=canvas,
            weights=weights,
            words=zeros,
            bytes=zeros,
            source=np.zeros(rows, np.int32),
        )
        draws = None
        if pseudo:
            rate = 1.0 / np.maximum(weights.sum(axis=1), 1.0)
            draws = MaskDraws(
                jnp.asarray(masked), jnp.ones(rows), sigma(jnp.asarray(rate))
            )
        yield np.asarray(owners[chosen]), batch, draws
