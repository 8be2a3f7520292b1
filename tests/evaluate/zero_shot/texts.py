"""Tokenizers, items and models small enough to check by hand."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from lmjax.evaluate.probes import Probe
from lmjax.evaluate.zero_shot.items import Item, Task, completions

FIRST = 3  # id of "a"; below are pad, bos and mask
BOS, MASK = 1, 2


@dataclasses.dataclass(frozen=True)
class Pieces:
    """Cuts a text into pieces of `size` letters; a piece's id is that of its first."""

    size: int = 1

    def encode_aligned(self, text: str) -> tuple[np.ndarray, np.ndarray]:
        pieces = [text[i : i + self.size] for i in range(0, len(text), self.size)]
        ids = [FIRST + ord(piece[0]) - ord("a") for piece in pieces]
        sizes = [len(piece.encode()) for piece in pieces]
        return np.array(ids, np.int32), np.array(sizes, np.int64)


def item(*ends: str, prefix: str = "", label: int = 0, uid: str = "u") -> Item:
    """An item whose candidates share a prefix."""
    found = completions([prefix] * len(ends), ends)
    return Item(found, label, {"UID": uid}, f"{uid}.jsonl, line 1")


def task(*items: Item, **changes: Any) -> Task:
    """A task of these items."""
    return Task("name", "dataset", items, **changes)


def scorer(score: Callable[[Probe], Sequence[float]]) -> Any:
    """A stand-in for `Prober`: log-probabilities from a function of each probe."""
    return lambda params, probes: [np.array(score(probe), float) for probe in probes]
