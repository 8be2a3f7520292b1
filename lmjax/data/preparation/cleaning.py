"""Rules that rewrite or drop documents, all opt-in and all counted."""

import dataclasses
import functools
import re
from collections.abc import Sequence
from importlib import metadata

import numpy as np

from lmjax.config.schema import CleaningConfig
from lmjax.core.extras import require

_BLANKS = re.compile(r"[^\S\n]+")
_LINE_ENDS = re.compile(r" *\n *")
_SHINGLE_WORDS = 5
_PACKAGES = {"repair_unicode": "ftfy", "near_duplicates": "datasketch"}
_SCHEME = "affine32"  # of datasketch: values of 32 bits
NUM_HASHES = 64  # of a near-duplicate signature: similarity to about 0.06


@dataclasses.dataclass(frozen=True)
class Cleaner:
    """What happens to the text of each document before it is counted."""

    config: CleaningConfig

    @property
    def rewrites(self) -> bool:
        """Whether any text may change."""
        return self.config.repair_unicode or self.config.whitespace

    def describe(self) -> dict:
        """The rules that are on; shapes the prepared corpus."""
        default = CleaningConfig()
        rules = {
            name: value
            for name, value in dataclasses.asdict(self.config).items()
            if value != getattr(default, name)
        }
        # What they do may change with the version.
        for rule, package in _PACKAGES.items():
            if rule in rules:
                require(package, extra="clean", what=f"cleaning.{rule}")
                rules[package] = metadata.version(package)
        return rules

    def rewrite(self, text: str, *, begins: bool, ends: bool) -> dict[str, str]:
        """The text after each rule that changed it, by rule and in order.

        Args:
          text: a document, or a piece of one.
          begins, ends: whether the piece is the first, the last of its document: only
            there blanks at its border are no part of the text.
        """
        changed = {}
        if self.config.repair_unicode:
            repaired = _ftfy().fix_encoding(text)
            if repaired != text:
                changed["repair_unicode"] = text = repaired
        if self.config.whitespace:
            tidy = _LINE_ENDS.sub("\n", _BLANKS.sub(" ", text))
            tidy = tidy.lstrip() if begins else tidy
            tidy = tidy.rstrip() if ends else tidy
            if tidy != text:
                changed["whitespace"] = tidy
        return changed

    def clean(self, text: str, *, begins: bool, ends: bool) -> str:
        """The text after all rules."""
        if not self.rewrites:
            return text
        changed = self.rewrite(text, begins=begins, ends=ends)
        return next(reversed(changed.values()), text)


def signature(text: str) -> np.ndarray:
    """MinHash of a text's runs of five words: uint32 [64].

    Broder 1997: two signatures agree in about the share of places that is the Jaccard
    similarity of the two sets.
    """
    datasketch = require("datasketch", extra="clean", what="cleaning.near_duplicates")
    words = text.split()
    runs = range(max(len(words) - _SHINGLE_WORDS + 1, 1))
    shingles = {" ".join(words[i : i + _SHINGLE_WORDS]) for i in runs}
    minhash = datasketch.MinHash(num_perm=NUM_HASHES, seed=1, scheme=_SCHEME)
    minhash.update_batch([shingle.encode() for shingle in sorted(shingles)])
    return minhash.hashvalues.astype(np.uint32)


def near_duplicates(signatures: Sequence[np.ndarray], similarity: float) -> np.ndarray:
    """Which documents resemble an earlier one that stays; bool [documents]."""
    datasketch = require("datasketch", extra="clean", what="cleaning.near_duplicates")
    # It proposes candidates, whose similarity is then looked at; more than 0.9 it does
    # not take with so few hashes.
    index = datasketch.MinHashLSH(threshold=min(similarity, 0.9), num_perm=NUM_HASHES)
    dropped = np.zeros(len(signatures), bool)
    for number, values in enumerate(signatures):
        minhash = datasketch.MinHash(
            num_perm=NUM_HASHES,
            seed=1,
            scheme=_SCHEME,
            hashvalues=values.astype(np.uint64),
        )
        resembled = (
            np.mean(signatures[other] == values) >= similarity
            for other in index.query(minhash)
        )
        if any(resembled):
            dropped[number] = True
        else:
            index.insert(number, minhash, check_duplication=False)
    return dropped


@functools.cache
def _ftfy():
    return require("ftfy", extra="clean", what="cleaning.repair_unicode")
