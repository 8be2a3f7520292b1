"""What a prepared folder holds, and how it is read back."""

import dataclasses
import json
from pathlib import Path

from absl import logging

from lmjax.data.packing import RecordLayout
from lmjax.data.tokenizers import Tokenizer, load_tokenizer

FORMAT_VERSION = 1


@dataclasses.dataclass(frozen=True, kw_only=True)
class Shard:
    """One ArrayRecord file of a prepared folder."""

    file: str  # relative to the folder
    bytes: int
    windows: int
    sha256: str


@dataclasses.dataclass(frozen=True, kw_only=True)
class Counts:
    """How much text; tokens include one end per document, never padding."""

    documents: int = 0
    words: int = 0
    bytes: int = 0
    tokens: int = 0
    windows: int = 0


@dataclasses.dataclass(frozen=True, kw_only=True)
class Records:
    """What one source has in one split."""

    source: str
    counts: Counts
    shards: tuple[Shard, ...]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Split:
    """All records of "train" or "valid", by source."""

    records: tuple[Records, ...]

    @property
    def counts(self) -> Counts:
        """Over all sources."""
        names = [field.name for field in dataclasses.fields(Counts)]
        total = {n: sum(getattr(r.counts, n) for r in self.records) for n in names}
        return Counts(**total)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Prepared:
    """A prepared corpus: what its manifest says, and its tokenizer.

    Attributes:
      folder: where the shards stand.
      sources: names of the corpus files; `Batch.source` is an index into it.
    """

    folder: Path
    tokenizer: Tokenizer
    layout: RecordLayout
    sources: tuple[str, ...]
    train: Split
    valid: Split

    @property
    def sequence_length(self) -> int:
        return self.layout.length

    def split(self, name: str) -> Split:
        return {"train": self.train, "valid": self.valid}[name]


def load_prepared(folder: Path) -> Prepared | None:
    """Reads a prepared folder; None if it is not there, not whole, or damaged.

    Shards are believed by their size, not read.
    """
    try:
        manifest = json.loads((folder / "manifest.json").read_text("utf-8"))
        if manifest["shaped_by"]["format"] != FORMAT_VERSION:
            return None
        splits = {
            name: _read_split(manifest["splits"][name]) for name in ("train", "valid")
        }
        tokenizer = load_tokenizer(folder / "tokenizer.model")
        if tokenizer.identity != manifest["tokenizer"]["identity"]:
            return None
        for split in splits.values():
            for records in split.records:
                for shard in records.shards:
                    if (folder / shard.file).stat().st_size != shard.bytes:
                        raise OSError(f"{shard.file} has not the size it should have")
        return Prepared(
            folder=folder,
            tokenizer=tokenizer,
            layout=RecordLayout(**manifest["layout"]),
            sources=tuple(manifest["sources"]),
            **splits,
        )
    except (OSError, ValueError, KeyError, TypeError) as error:
        if folder.exists():
            logging.warning("Not using %s: %s", folder, error)
        return None


def _read_split(sources: list[dict]) -> Split:
    return Split(
        records=tuple(
            Records(
                source=entry["source"],
                counts=Counts(**entry["counts"]),
                shards=tuple(Shard(**shard) for shard in entry["shards"]),
            )
            for entry in sources
        )
    )
