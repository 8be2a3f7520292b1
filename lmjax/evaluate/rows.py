"""Texts as rows of batches of one shape: a context that is given, then what counts."""

import dataclasses
import itertools
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

import numpy as np

from lmjax.data.batch import Batch
from lmjax.data.pipeline import segment


class Row(NamedTuple):
    """One row of a batch.

    Attributes:
      owner: index of the text that it scores.
      tokens: ids, without padding.
      given: how many of them, at the beginning, are context and do not count.
      number: which of the owner's rows it is, from 0.
      count: how many rows the owner has.
    """

    owner: int
    tokens: Sequence[int]
    given: int
    number: int = 0
    count: int = 1

    @property
    def counted(self) -> int:
        """Number of tokens that count."""
        return len(self.tokens) - self.given

    def repeated(self, count: int) -> Iterator["Row"]:
        """All rows of an owner that has `count` of them."""
        for number in range(count):
            yield self._replace(number=number, count=count)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Layout:
    """How rows become batches.

    Attributes:
      num_rows: rows of every batch, over all processes; the devices divide them.
      local: those of this process.
      length: tokens of every row, padding included.
      eos_id: ends a document, which matters under a document mask alone.
      document_mask: whether attention stays within documents, as in training.
    """

    num_rows: int
    local: slice
    length: int
    eos_id: int
    pad_id: int
    document_mask: bool = False

    def batches(self, rows: Iterable[Row]) -> Iterator[tuple[list[Row], Batch]]:
        """Yields the rows of each batch, and this process's part of the batch.

        The last batch is filled up with rows of padding.
        """
        rows = iter(rows)
        while chosen := list(itertools.islice(rows, self.num_rows)):
            yield chosen, self._batch(chosen)

    def _batch(self, rows: Sequence[Row]) -> Batch:
        shape = (self.num_rows, self.length)
        tokens = np.full(shape, self.pad_id, np.int32)
        weights = np.zeros(shape, np.float32)
        for i, row in enumerate(rows):
            tokens[i, : len(row.tokens)] = row.tokens
            weights[i, row.given : len(row.tokens)] = 1.0
        tokens, weights = tokens[self.local], weights[self.local]
        segments = positions = None
        if self.document_mask:
            segments, positions = segment(tokens, eos=self.eos_id, pad=self.pad_id)
        zeros = np.zeros_like(tokens)
        return Batch(
            tokens=tokens,
            weights=weights,
            words=zeros,
            bytes=zeros,
            source=zeros[:, 0],
            segments=segments,
            positions=positions,
        )
