"""Which documents are trained on, and which are held out."""

import dataclasses
import functools
import hashlib
import math
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from absl import logging

from lmjax.core.errors import ConfigError, UserError
from lmjax.data.readers import Document, read_documents, source_names, unreadable


@dataclasses.dataclass(frozen=True)
class Part:
    """Documents of one source that belong to one split."""

    source: str
    read: Callable[[], Iterator[Document]]


@dataclasses.dataclass(frozen=True)
class Corpus:
    """Files by source name, and the rule that splits them."""

    train: dict[str, Path]
    valid: dict[str, Path]  # empty: documents of train are held out
    fraction: float
    seed: int

    @classmethod
    def of_files(
        cls, train: Sequence[Path], valid: Sequence[Path], *, fraction: float, seed: int
    ) -> "Corpus":
        return cls(_named(train), _named(valid), fraction, seed)

    def describe(self) -> dict:
        """Everything that decides which document is in which split.

        Raises:
          UserError: a file is in both splits.
        """
        train = {name: _hash_corpus_file(file) for name, file in self.train.items()}
        valid = {name: _hash_corpus_file(file) for name, file in self.valid.items()}
        for name, digest in valid.items():
            if digest in train.values():
                raise UserError(
                    "A file is in both the training and the validation corpus.",
                    where=str(self.valid[name]),
                    remedy="take it out of data.train or data.valid.",
                )
        if valid:
            return {"train": train, "valid": valid}
        if not 0 < self.fraction < 1:
            raise ConfigError(
                f"A share of {self.fraction} can't be held out: it must be above 0 and "
                "below 1.",
                where="data.valid_fraction",
                remedy="correct it, or give separate files as data.valid.",
            )
        return {"train": train, "valid_fraction": self.fraction, "seed": self.seed}

    @functools.cached_property
    def parts(self) -> dict[str, list[Part]]:
        """The documents by split and source, those of empty files left out.

        Raises:
          UserError: a split has no words.
        """
        splits: dict[str, list[Part]] = {"train": [], "valid": []}
        if self.valid:
            for split, files in (("train", self.train), ("valid", self.valid)):
                for name, file in files.items():
                    read = functools.partial(read_documents, file, name)
                    splits[split].append(Part(name, read))
        else:
            for name, file in self.train.items():
                rule = HoldOut.make(file, name, self.fraction, self.seed)
                for split in splits:
                    read = functools.partial(rule.select, file, name, split == "valid")
                    splits[split].append(Part(name, read))
        for split, parts in splits.items():
            splits[split] = [part for part in parts if next(part.read(), None)]
        for name in sorted({*self.train, *self.valid}):
            if not any(p.source == name for parts in splits.values() for p in parts):
                logging.warning("%s has no words and is left out.", name)
        if not splits["train"]:
            raise _no_words("data.train", self.train)
        if not splits["valid"]:
            raise _no_words("data.valid", self.valid or self.train)
        return splits


@dataclasses.dataclass(frozen=True)
class HoldOut:
    """Which documents of one source are held out.

    A document ranks by a hash of the seed, its source and its text, so the choice
    depends neither on the order of files nor on other sources, and equal texts of a
    source fall on the same side.
    """

    seed: int
    threshold: bytes = b""  # hashes up to this one are held out
    cut: bool = False  # the only document is cut at its middle line

    @classmethod
    def make(cls, file: Path, source: str, fraction: float, seed: int) -> "HoldOut":
        rule = cls(seed)
        hashes = sorted(rule._hash(doc) for doc in read_documents(file, source))
        if not hashes:
            return rule
        if len(hashes) == 1:
            text = next(read_documents(file, source)).text
            if "\n" in text:
                return cls(seed, cut=True)
        # Rounded first: a product of floats may lie just above the whole number.
        count = max(1, math.ceil(round(fraction * len(hashes), 9)))
        threshold = hashes[count - 1]
        if threshold == hashes[-1]:  # nothing would be left to train on
            smaller = [h for h in hashes if h < threshold]
            if not smaller:
                logging.warning("%s: nothing can be held out of one text.", source)
                return rule
            threshold = smaller[-1]
        return cls(seed, threshold=threshold)

    def select(self, file: Path, source: str, held_out: bool) -> Iterator[Document]:
        for document in read_documents(file, source):
            if self.cut:
                lines = document.text.split("\n")
                middle = (len(lines) + 1) // 2
                lines = lines[middle:] if held_out else lines[:middle]
                yield Document("\n".join(lines), source)
            elif (self._hash(document) <= self.threshold) == held_out:
                yield document

    def _hash(self, document: Document) -> bytes:
        text = f"{self.seed}\0{document.source}\0{document.text}"
        return hashlib.blake2b(text.encode(), digest_size=16).digest()


def _named(files: Sequence[Path]) -> dict[str, Path]:
    """Files by source name, in the order of names."""
    return dict(sorted(zip(source_names(files), files, strict=True)))


def _hash_corpus_file(file: Path) -> str:
    try:
        return hash_file(file)
    except OSError as error:
        raise unreadable(file, error) from error


def hash_file(file: Path) -> str:
    """SHA-256 of the contents, in hex."""
    with file.open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


def _no_words(field: str, files: dict[str, Path]) -> UserError:
    return UserError(
        "There is no text in the corpus."
        if field == "data.train"
        else "There is no text to validate on.",
        where=f"{field}: {', '.join(str(file) for file in files.values())}",
        remedy=f"set {field} to files with text.",
    )
