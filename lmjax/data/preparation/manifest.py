"""What a prepared folder holds, how it is read back, and when it is believed."""

import dataclasses
import hashlib
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from array_record.python import array_record_module

from lmjax.core import json_text
from lmjax.core.errors import UserError
from lmjax.data.preparation.packing import RecordLayout
from lmjax.data.preparation.shards import Counts, Shard, read_shard
from lmjax.data.reading.files import hash_file
from lmjax.data.tokenization.tokenizers import Tokenizer, tokenizer_from_bytes

FORMAT_VERSION = 2
MANIFEST = "manifest.json"
TOKENIZER = "tokenizer.model"
_REBUILD = (
    "run the same command with --mode prepare: it writes again what is wrong and keeps "
    "the rest (--mode check reads every shard and tells)"
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Records:
    """What one source has in one split."""

    source: str
    shards: tuple[Shard, ...]

    @property
    def counts(self) -> Counts:
        """Over all shards."""
        return Counts.total([shard.counts for shard in self.shards])


@dataclasses.dataclass(frozen=True, kw_only=True)
class Split:
    """All records of "train" or "valid", by source."""

    records: tuple[Records, ...]

    @property
    def counts(self) -> Counts:
        """Over all sources."""
        return Counts.total([records.counts for records in self.records])


@dataclasses.dataclass(frozen=True, kw_only=True)
class Prepared:
    """A prepared corpus: what its manifest says, and its tokenizer.

    Attributes:
      folder: where the shards stand.
      sha256: of the manifest, which names the shards by their own: equal hashes are
        equal corpora.
      sources: names of the sources; `Batch.source` is an index into it.
      statistics: what preparation found, see `statistics.py`.
    """

    folder: Path
    sha256: str
    tokenizer: Tokenizer
    layout: RecordLayout
    sources: tuple[str, ...]
    train: Split
    valid: Split
    statistics: dict[str, Any]

    @property
    def sequence_length(self) -> int:
        return self.layout.length

    def split(self, name: str) -> Split:
        return {"train": self.train, "valid": self.valid}[name]


def to_json(
    *,
    shaped_by: dict,
    tokenizer: Tokenizer,
    layout: RecordLayout,
    sources: Sequence[str],
    splits: dict[str, Split],
    statistics: dict,
) -> str:
    """The text of a manifest; the same wherever and whenever it is made."""
    manifest = {
        "shaped_by": shaped_by,
        "tokenizer": {
            "identity": tokenizer.identity,
            "vocab_size": tokenizer.vocab_size,
            "special": dataclasses.asdict(tokenizer.special),
        },
        "layout": dataclasses.asdict(layout),
        "sources": list(sources),
        "totals": {name: dataclasses.asdict(s.counts) for name, s in splits.items()},
        "statistics": statistics,
        "splits": {
            name: [
                {
                    "source": records.source,
                    "counts": dataclasses.asdict(records.counts),
                    "shards": [dataclasses.asdict(shard) for shard in records.shards],
                }
                for records in split.records
            ]
            for name, split in splits.items()
        },
    }
    return json.dumps(manifest, indent=1, ensure_ascii=False) + "\n"


def load_prepared(folder: Path) -> Prepared | None:
    """Reads a prepared folder; None if there is none, or none that was finished.

    Shards are believed by their size and their number of records; `check_shards` reads
    them.

    Raises:
      UserError: the folder was finished once and is not whole any more; names the
        shard.
    """
    file = folder / MANIFEST
    if not file.exists():
        return None
    try:
        text = file.read_bytes()
        manifest = json_text.parse(text)
        if manifest["shaped_by"]["format"] != FORMAT_VERSION:
            return None
        model = (folder / TOKENIZER).read_bytes()
        if hashlib.sha256(model).hexdigest() != manifest["tokenizer"]["identity"]:
            raise damaged(folder, f"{TOKENIZER} is not that of the shards")
        tokenizer = tokenizer_from_bytes(model)
        splits = {
            name: Split(
                records=tuple(
                    Records(
                        source=_names([entry["source"]])[0],
                        shards=tuple(read_shard(shard) for shard in entry["shards"]),
                    )
                    for entry in manifest["splits"][name]
                )
            )
            for name in ("train", "valid")
        }
        prepared = Prepared(
            folder=folder,
            sha256=hashlib.sha256(text).hexdigest(),
            tokenizer=tokenizer,
            layout=RecordLayout(**manifest["layout"]),
            sources=_names(manifest["sources"]),
            statistics=manifest["statistics"],
            **splits,
        )
    except UserError:
        raise
    except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
        raise damaged(folder, f"{MANIFEST} can't be read: {error!r}") from error
    for split in (prepared.train, prepared.valid):
        for records in split.records:
            if records.source not in prepared.sources:
                raise damaged(folder, f"{MANIFEST} has no source {records.source!r}")
    for shard in shards(prepared):
        if problem := _looks_wrong(folder, shard):
            raise damaged(folder, problem)
    return prepared


def _names(sources: Any) -> tuple[str, ...]:
    if type(sources) is not list or not all(type(name) is str for name in sources):
        raise TypeError(f"{sources!r} are no names of sources")
    return tuple(sources)


def shards(prepared: Prepared) -> Iterator[Shard]:
    """All shards of both splits."""
    for split in (prepared.train, prepared.valid):
        for records in split.records:
            yield from records.shards


def check_shards(prepared: Prepared) -> list[str]:
    """Reads every shard whole; returns what is wrong, with the name of the shard."""
    problems = []
    for shard in shards(prepared):
        if problem := look_into(prepared.folder, shard):
            problems.append(problem)
    return problems


def look_into(folder: Path, shard: Shard) -> str:
    """What is wrong with a shard that is read whole; empty if nothing is."""
    problem = _looks_wrong(folder, shard)
    if not problem and hash_file(folder / shard.file) != shard.sha256:
        problem = f"the shard {shard.file} was altered: its checksum differs"
    return problem


def damaged(folder: Path, problem: str) -> UserError:
    """The error that names what is wrong and what rebuilds it."""
    return UserError(
        f"The prepared corpus is damaged: {problem}.",
        where=str(folder),
        remedy=_REBUILD + ".",
    )


def _looks_wrong(folder: Path, shard: Shard) -> str:
    """What is wrong with a shard's size or number of records; empty if nothing."""
    file = folder / shard.file
    try:
        size = file.stat().st_size
    except OSError as error:
        return f"the shard {shard.file} can't be read ({error.strerror})"
    if size != shard.bytes:
        return f"the shard {shard.file} has {size} bytes instead of {shard.bytes}"
    try:
        reader = array_record_module.ArrayRecordReader(str(file))
        num_records = reader.num_records()
        reader.close()
    except (RuntimeError, ValueError) as error:
        return f"the shard {shard.file} is no ArrayRecord file ({error})"
    if num_records != shard.counts.windows:
        return (
            f"the shard {shard.file} holds {num_records} windows instead of "
            f"{shard.counts.windows}"
        )
    return ""
