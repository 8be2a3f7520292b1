"""Which document stands in which shard, and the jobs that write a source's shards."""

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np

from lmjax.core.errors import UserError
from lmjax.data.preparation.manifest import Records, Split, damaged
from lmjax.data.preparation.scanning import Piece, Scan, pieces
from lmjax.data.preparation.shards import Recipe, ShardJob, finished_shard
from lmjax.data.preparation.splits import SPLITS, Assignment
from lmjax.data.reading.documents import Reader

DOCUMENT_BYTES = 64


@dataclasses.dataclass(frozen=True, kw_only=True)
class SourceJob:
    """The files of one source, and what becomes of their documents.

    Attributes:
      folder: of the prepared corpus.
      prefix: number of the source, in the names of its shards.
      places: uint8 [documents] by file: split, or the rule that dropped a document.
      numbers: int32 [documents] by file: the shard a document begins in.
      spread: numbers of the shards of each piece, for documents above a shard's size,
        by file and document.
      finished: names of shards that need not be written.
    """

    folder: Path
    source: str
    prefix: str
    readers: tuple[Reader, ...]
    places: tuple[np.ndarray, ...]
    numbers: tuple[np.ndarray, ...]
    spread: dict[tuple[int, int], np.ndarray]
    recipe: Recipe
    finished: frozenset[str] = frozenset()

    def shard_names(self) -> dict[str, list[str]]:
        """Names of all shards, in order, by split."""
        names = {}
        for place, split in SPLITS.items():
            numbers: set[int] = set()
            for file, (places, all_numbers) in enumerate(
                zip(self.places, self.numbers, strict=True)
            ):
                numbers.update(np.unique(all_numbers[places == place]).tolist())
                for (in_file, document), spread in self.spread.items():
                    if in_file == file and places[document] == place:
                        numbers.update(spread.tolist())
            names[split] = [self.shard_name(place, n) for n in sorted(numbers)]
        return names

    def shard_name(self, place: int, number: int) -> str:
        return f"{SPLITS[place]}-{self.prefix}-{number:05d}"


def plan_source(
    *, scans: Sequence[Scan], places: Sequence[np.ndarray], shard_bytes: int, **fields
) -> SourceJob:
    """Cuts the documents of each split into shards of about `shard_bytes` of text.

    A document stands in the shard that its first byte falls into, counted over the
    documents before it in its split; one larger than a shard goes on in the next.
    """
    # What a document costs beyond its text keeps shards of many short ones small.
    sizes = np.concatenate([scan.stored for scan in scans]) + DOCUMENT_BYTES
    counts = np.concatenate([scan.pieces for scan in scans])
    place = np.concatenate(places)
    before = np.zeros(len(sizes), np.int64)
    for split in SPLITS:
        chosen = place == split
        before[chosen] = np.cumsum(sizes[chosen]) - sizes[chosen]
    ends = np.cumsum([len(scan.sizes) for scan in scans])
    spread = {}
    for index in np.flatnonzero((sizes > shard_bytes) & (counts > 1)):
        file = int(np.searchsorted(ends, index, side="right"))
        document = int(index - (ends[file - 1] if file else 0))
        parts = np.arange(counts[index]) * sizes[index] // counts[index]
        spread[file, document] = (before[index] + parts) // shard_bytes
    return SourceJob(
        places=tuple(places),
        numbers=tuple(np.split((before // shard_bytes).astype(np.int32), ends[:-1])),
        spread=spread,
        **fields,
    )


def shard_jobs(job: SourceJob) -> Iterator[ShardJob]:
    """Reads the source once and yields what is to be written, shard by shard.

    Raises:
      UserError: the files are not those of the first pass any more.
    """
    if all(n in job.finished for names in job.shard_names().values() for n in names):
        return
    filling: dict[int, tuple[int, list[Piece]]] = {}

    def done(place: int) -> Iterator[ShardJob]:
        number, content = filling.pop(place)
        name = job.shard_name(place, number)
        if name not in job.finished:
            yield ShardJob(
                folder=job.folder,
                name=name,
                source=job.source,
                pieces=content,
                recipe=job.recipe,
            )

    for file, reader in enumerate(job.readers):
        document, part = -1, 0
        tokenizer = job.recipe.tokenizer if reader.holds_ids else None
        for piece in pieces(reader, tokenizer):
            document, part = (document + 1, 0) if piece.begins else (document, part + 1)
            if document >= len(job.places[file]):
                raise _changed(reader)
            place = int(job.places[file][document])
            if place not in SPLITS:
                continue
            number = int(job.numbers[file][document])
            if (file, document) in job.spread:
                number = int(job.spread[file, document][part])
            if place in filling and filling[place][0] != number:
                yield from done(place)
            filling.setdefault(place, (number, []))[1].append(piece)
        if document + 1 != len(job.places[file]):
            raise _changed(reader)
    for place in sorted(filling):
        yield from done(place)


def _changed(reader: Reader) -> UserError:
    return UserError(
        "The corpus changed while it was prepared.",
        where=str(reader.path),
        remedy="start again when nothing writes to it any more.",
    )


def gather(jobs: Sequence[SourceJob]) -> dict[str, Split]:
    """What was written, by split and source; sources without a document left out."""
    splits: dict[str, list[Records]] = {"train": [], "valid": []}
    for job in jobs:
        for split, names in job.shard_names().items():
            shards = []
            for name in names:
                shard = finished_shard(job.folder, name)
                if shard is None:
                    raise damaged(job.folder, f"the shard {name} disappeared")
                shards.append(shard)
            if shards:
                splits[split].append(Records(source=job.source, shards=tuple(shards)))
    return {
        split: Split(records=tuple(sorted(records, key=lambda r: r.source)))
        for split, records in splits.items()
    }


def check_counts(
    splits: dict[str, Split],
    scans: Mapping[str, Mapping[str, Sequence[Scan]]],
    assignment: Assignment,
) -> None:
    """What was written is what was read: an error here is a bug, or a changed file."""
    for place, split in SPLITS.items():
        documents = words = 0
        for given, sources in scans.items():
            for source, files in sources.items():
                for result, places in zip(
                    files, assignment.places[given][source], strict=True
                ):
                    documents += int((places == place).sum())
                    words += int(result.words[places == place].sum())
        counts = splits[split].counts
        if (counts.documents, counts.words) != (documents, words):
            raise UserError(
                f"{documents} documents of {words} words were read for {split}, but "
                f"{counts.documents} of {counts.words} were written.",
                remedy="the corpus changed while it was prepared: start again; if it "
                "did not, please report this.",
            )
