"""The files of a corpus, opened: what each is read as, and what it holds, by hash."""

import dataclasses
from collections.abc import Sequence
from typing import Any

from absl import logging

from lmjax.core.errors import UserError
from lmjax.data.reading.documents import Reader
from lmjax.data.reading.files import file_size, hash_file
from lmjax.data.reading.formats import ReadOptions, open_reader
from lmjax.data.reading.sources import Source

Readers = dict[str, tuple[Reader, ...]]  # source -> its files


@dataclasses.dataclass(frozen=True, kw_only=True)
class Corpus:
    """Readers by source name, in the order of names.

    Attributes:
      train: what is trained on and, without `valid`, held out from.
      valid: files given for validation; may be empty.
      num_bytes: size of all files on disk.
    """

    train: Readers
    valid: Readers
    num_bytes: int

    @property
    def splits(self) -> dict[str, Readers]:
        return {"train": self.train, "valid": self.valid}

    @property
    def sources(self) -> list[str]:
        """All names, sorted."""
        return sorted({*self.train, *self.valid})

    def paths(self) -> dict[str, list[str]]:
        """Files by the split that their text may be in, for messages."""
        valid = self.valid or self.train
        return {
            split: [str(reader.path) for files in readers.values() for reader in files]
            for split, readers in (("train", self.train), ("valid", valid))
        }

    def describe(self) -> dict[str, Any]:
        """Contents by hash and what each file is read as, by split and source.

        Raises:
          UserError: a file is in both splits, or can't be read.
        """
        description = {
            split: {
                source: [_describe(reader) for reader in readers]
                for source, readers in sources.items()
            }
            for split, sources in self.splits.items()
        }
        trained_on = {
            file["sha256"] for files in description["train"].values() for file in files
        }
        for source, files in description["valid"].items():
            for reader, file in zip(self.valid[source], files, strict=True):
                if file["sha256"] in trained_on and reader.path.stat().st_size:
                    raise UserError(
                        "A file is in both the training and the validation corpus.",
                        where=str(reader.path),
                        remedy="take it out of data.train or data.valid.",
                    )
        return description


def open_corpus(
    train: Sequence[Source], valid: Sequence[Source], options: ReadOptions
) -> Corpus:
    """Recognises the format of every file, and says what was decided.

    Raises:
      UserError: a file is unreadable or of no known format.
    """
    splits: dict[str, Readers] = {}
    num_bytes = 0
    for split, sources in (("train", train), ("valid", valid)):
        splits[split] = {}
        for source in sorted(sources, key=lambda source: source.name):
            readers = tuple(open_reader(file, options) for file in source.files)
            splits[split][source.name] = readers
            num_bytes += sum(map(file_size, source.files))
            _check_alike(source.name, readers)
            said = {_say(reader) for reader in readers}
            logging.info("%s is read as %s", source.name, "; ".join(sorted(said)))
    return Corpus(**splits, num_bytes=num_bytes)


def _check_alike(source: str, readers: Sequence[Reader]) -> None:
    for reader in readers[1:]:
        if reader.holds_ids != readers[0].holds_ids:
            files = (readers[0].path, reader.path)
            text, ids = files[:: -1 if readers[0].holds_ids else 1]
            raise UserError(
                f"The source {source!r} holds both text and token ids.",
                where=f"{text} is text, {ids} holds ids",
                remedy="make a source of each: data.train takes several paths.",
            )


def _describe(reader: Reader) -> dict[str, str]:
    return {"sha256": hash_file(reader.path)} | reader.describe()


def _say(reader: Reader) -> str:
    return ", ".join(f"{name} {value}" for name, value in reader.describe().items())
