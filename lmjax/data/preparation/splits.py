"""Which documents are trained on, which are held out, and which are dropped.

Decided from the numbers of the first pass alone, for all sources together.
"""

import dataclasses
import functools
import math
from collections.abc import Callable, Mapping, Sequence

import numpy as np
from absl import logging

from lmjax.config.schema import CleaningConfig
from lmjax.core.errors import UserError
from lmjax.data.preparation import cleaning
from lmjax.data.preparation.cleaning import Cleaner
from lmjax.data.preparation.scanning import Scan

TRAIN, VALID = 0, 1
SPLITS = {TRAIN: "train", VALID: "valid"}
# Documents with a number from here on were dropped, by the rule of this name.
RULES = ("min_words", "exact_duplicates", "near_duplicates")
_FIRST_RULE = 2

# source -> the scans of its files
Scans = Mapping[str, Sequence[Scan]]


@dataclasses.dataclass(frozen=True, kw_only=True)
class HoldOut:
    """How documents are held out where no validation files are given.

    Attributes:
      fraction: share of the documents of each source.
      words: whitespace words of each source instead, if above 0.
      seed: chooses the documents.
    """

    fraction: float
    words: int
    seed: int


@dataclasses.dataclass(frozen=True, kw_only=True)
class Assignment:
    """What becomes of each document: `TRAIN`, `VALID` or a dropping rule.

    Attributes:
      places: uint8 [documents] by split the files were given for, source and file.
      shared: share of the validation documents whose text is also trained on.
      shared_words: the same, of their words.
    """

    places: dict[str, dict[str, list[np.ndarray]]]
    shared: float
    shared_words: float


@dataclasses.dataclass(frozen=True)
class _Column:
    """All documents of one source given for one split."""

    split: str
    source: str
    hashes: np.ndarray
    words: np.ndarray
    signatures: np.ndarray
    place: np.ndarray  # filled in by the rules

    @property
    def kept(self) -> np.ndarray:
        return self.place < _FIRST_RULE


def assign(
    scans: Mapping[str, Scans], cleaner: Cleaner, hold_out: HoldOut
) -> Assignment:
    """Decides about every document.

    Equal texts never end in different splits when documents are held out: if one of
    them is, all are. Of duplicates the first stays, validation files before training
    files, so that what is evaluated on does not depend on what is trained on.

    Args:
      scans: by split ("train", "valid"); an empty "valid" holds documents out.
    """
    columns = {
        split: [_column(split, source, files) for source, files in sources.items()]
        for split, sources in scans.items()
    }
    in_order = [*columns["valid"], *columns["train"]]
    _drop(in_order, cleaner)
    if not columns["valid"]:
        for column in columns["train"]:
            _hold_out(column, hold_out)
        _hold_out_copies(columns["train"])
    shared, shared_words = _shared(in_order)
    places: dict[str, dict[str, list[np.ndarray]]] = {}
    for column in in_order:
        sizes = [len(scan.hashes) for scan in scans[column.split][column.source]]
        parts = np.split(column.place, np.cumsum(sizes)[:-1])
        places.setdefault(column.split, {})[column.source] = parts
    return Assignment(places=places, shared=shared, shared_words=shared_words)


def _column(split: str, source: str, files: Sequence[Scan]) -> _Column:
    hashes = np.concatenate([scan.hashes for scan in files])
    return _Column(
        split=split,
        source=source,
        hashes=hashes,
        words=np.concatenate([scan.words for scan in files]),
        signatures=np.concatenate([scan.signatures for scan in files]),
        place=np.full(len(hashes), VALID if split == "valid" else TRAIN, np.uint8),
    )


def _drop(columns: Sequence[_Column], cleaner: Cleaner) -> None:
    """Applies the dropping rules; each sees what those before it left."""
    config: CleaningConfig = cleaner.config
    for column in columns:
        column.place[column.words < config.min_words] = rule_place("min_words")
    if config.exact_duplicates:
        _drop_found(columns, "exact_duplicates", lambda column: column.hashes, repeats)
    if config.near_duplicates:
        similar = functools.partial(
            cleaning.near_duplicates, similarity=config.near_duplicates
        )
        _drop_found(
            columns, "near_duplicates", lambda column: column.signatures, similar
        )


def _drop_found(
    columns: Sequence[_Column],
    rule: str,
    values: Callable[[_Column], np.ndarray],
    find: Callable[[np.ndarray], np.ndarray],
) -> None:
    """Drops what `find` marks among the kept documents of all columns together."""
    kept = [np.flatnonzero(column.kept) for column in columns]
    pairs = list(zip(columns, kept, strict=True))
    found = find(np.concatenate([values(column)[indices] for column, indices in pairs]))
    parts = np.split(found, np.cumsum([len(indices) for indices in kept])[:-1])
    for (column, indices), part in zip(pairs, parts, strict=True):
        column.place[indices[part]] = rule_place(rule)


def rule_place(rule: str) -> int:
    """The number of documents that a rule dropped."""
    return _FIRST_RULE + RULES.index(rule)


def repeats(hashes: np.ndarray) -> np.ndarray:
    """bool [n], whether the same hash stands further in front."""
    _, first = np.unique(hashes, return_index=True)
    again = np.ones(len(hashes), bool)
    again[first] = False
    return again


def _hold_out(column: _Column, rule: HoldOut) -> None:
    """Holds out documents of one source: those that rank first by hash and seed."""
    kept = np.flatnonzero(column.kept)
    if not len(kept):
        return
    ranks = mix(column.hashes[kept], rule.seed)
    order = np.argsort(ranks, kind="stable")
    if rule.words:
        words = column.words[kept][order]
        wanted = rule.words
        if wanted > words.sum() / 2:
            wanted = words.sum() / 2
            logging.warning(
                "%s has %d words: half of them are held out, not data.valid_words=%d.",
                column.source,
                words.sum(),
                rule.words,
            )
        count = int(np.searchsorted(np.cumsum(words) - words, wanted, side="left"))
    else:
        # Rounded first: a product of floats may lie just above the whole number.
        count = math.ceil(round(rule.fraction * len(kept), 9))
    ranks_in_order = ranks[order]
    threshold = ranks_in_order[max(count, 1) - 1]
    if threshold == ranks_in_order[-1]:  # nothing would be left to train on
        smaller = ranks_in_order[ranks_in_order < threshold]
        if not len(smaller):
            logging.warning(
                "%s: nothing can be held out of one text; smaller documents (such as "
                "data.documents=line), or files for data.valid, can be.",
                column.source,
            )
            return
        threshold = smaller[-1]
    column.place[kept[ranks <= threshold]] = VALID


def _hold_out_copies(columns: Sequence[_Column]) -> None:
    """What is held out of one source is trained on in no other."""
    held = [column.hashes[column.place == VALID] for column in columns]
    all_held = np.unique(np.concatenate(held)) if held else np.zeros(0, np.uint64)
    for column in columns:
        copies = (column.place == TRAIN) & np.isin(column.hashes, all_held)
        column.place[copies] = VALID


def _shared(columns: Sequence[_Column]) -> tuple[float, float]:
    """Shares of validation documents, and of their words, that are trained on too."""
    hashes = np.concatenate([column.hashes for column in columns])
    words = np.concatenate([column.words for column in columns])
    place = np.concatenate([column.place for column in columns])
    valid = place == VALID
    both = np.isin(hashes[valid], hashes[place == TRAIN])
    total = words[valid].sum()
    return (
        float(both.mean()) if valid.any() else 0.0,
        float(words[valid][both].sum() / total) if total else 0.0,
    )


def mix(hashes: np.ndarray, seed: int) -> np.ndarray:
    """Other hashes for another seed: uint64 [n], the finaliser of SplitMix64.

    Steele, Lea and Flood 2014, "Fast splittable pseudorandom number generators".
    """
    step = np.uint64((0x9E3779B97F4A7C15 * (seed + 1)) % 2**64)
    with np.errstate(over="ignore"):
        z = hashes + step
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))


def check_not_empty(assignment: Assignment, files: Mapping[str, Sequence[str]]) -> None:
    """Says what is empty.

    Args:
      files: paths by split, for the message.

    Raises:
      UserError: there is nothing to train on, or nothing to validate on.
    """
    kept = dict.fromkeys(SPLITS, 0)
    for given, sources in assignment.places.items():
        for source, of_files in sources.items():
            if not sum(map(len, of_files)):
                logging.warning("%s (%s) is empty and is left out.", source, given)
            for places in of_files:
                for place in kept:
                    kept[place] += int((places == place).sum())
    for place, what in ((TRAIN, "in the corpus"), (VALID, "to validate on")):
        if not kept[place]:
            field = f"data.{SPLITS[place]}"
            raise UserError(
                f"There is no text {what}.",
                where=f"{field}: {', '.join(files[SPLITS[place]])}",
                remedy=f"set {field} to files with text, or relax data.documents and "
                "the rules under cleaning.",
            )
