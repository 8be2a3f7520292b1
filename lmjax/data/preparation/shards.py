"""One shard of a prepared corpus: pieces of text in, an ArrayRecord file out.

A shard is a pure function of its job, whoever writes it: any number of processes, or
the workers of a Beam pipeline. Beside it stands a note of what is in it, written last:
where a note is, the shard is whole.
"""

import dataclasses
import errno
import functools
import itertools
import json
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from array_record.python import array_record_module

from lmjax.core import json_text
from lmjax.core.errors import UserError
from lmjax.core.files import replacing
from lmjax.data.preparation.cleaning import Cleaner
from lmjax.data.preparation.packing import (
    PackingRule,
    RecordLayout,
    join,
    pack,
    prepend,
)
from lmjax.data.preparation.scanning import Piece
from lmjax.data.reading.files import hash_file
from lmjax.data.tokenization.encoding import Encoded, encode_texts, measure_ids
from lmjax.data.tokenization.tokenizers import Tokenizer, tokenizer_from_bytes

# One record per chunk, which Grain needs to read at random; compressing each by
# itself saves little of the space and makes writing six times as slow.
_WRITER_OPTIONS = "group_size:1,uncompressed"
NOTES = "notes"
# A name, and no path: what a manifest says must not lead out of its folder.
_SHARD_NAME = re.compile(r"\w[\w.-]*\.array_record", re.ASCII)
_MOST = 2**62  # of anything that is counted
_BATCH_CHARACTERS = 1_000_000  # encoded at once, which bounds memory


@dataclasses.dataclass(frozen=True, kw_only=True)
class Counts:
    """How much text.

    Attributes:
      documents: those that end here.
      words: whitespace words, prompts left out.
      bytes: of text, as UTF-8, prompts left out.
      tokens: those that count in a loss: one end per document included, never BOS,
        padding, prompts or repeated context.
      windows: records.
    """

    documents: int = 0
    words: int = 0
    bytes: int = 0
    tokens: int = 0
    windows: int = 0

    @classmethod
    def total(cls, counts: Iterable["Counts"]) -> "Counts":
        """The sum, field by field."""
        counts = list(counts)
        names = [field.name for field in dataclasses.fields(cls)]
        return cls(**{n: sum(getattr(count, n) for count in counts) for n in names})


@dataclasses.dataclass(frozen=True, kw_only=True)
class Shard:
    """One ArrayRecord file of a prepared folder."""

    file: str  # relative to the folder
    bytes: int
    sha256: str
    counts: Counts


@dataclasses.dataclass(frozen=True, kw_only=True)
class Recipe:
    """Everything but the text that decides what stands in the shards."""

    tokenizer_model: bytes
    packing: PackingRule
    layout: RecordLayout
    cleaner: Cleaner

    @property
    def tokenizer(self) -> Tokenizer:
        """Built once per process."""
        return cached_tokenizer(self.tokenizer_model)


@dataclasses.dataclass(frozen=True, kw_only=True)
class ShardJob:
    """A shard to write.

    Attributes:
      folder: of the prepared corpus.
      name: of the shard, without a suffix.
      source: for error messages.
      pieces: what stands in it, as it is on disk.
    """

    folder: Path
    name: str
    source: str
    pieces: Sequence[Piece]
    recipe: Recipe


def write_shard(job: ShardJob) -> tuple[str, Shard]:
    """Writes a shard and its note; returns its name and the note.

    Raises:
      OSError: the disk is full, or can't be written to.
      UserError: a prompt is too long for a window.
    """
    recipe = job.recipe
    special, bos = recipe.tokenizer.special, recipe.packing.bos
    encoded = encode_pieces(job.pieces, recipe)
    begins = np.array([piece.begins for piece in job.pieces])
    ends = np.array([piece.ends for piece in job.pieces])
    pieces, openings = encoded, None
    if any(piece.prompt is not None for piece in job.pieces):
        prompts = _encode_prompts(job.pieces, recipe)
        pieces = prepend(encoded, prompts)
        # What is in front of each text, by document.
        sizes = np.array([len(prompt) for prompt in prompts])
        first = np.append(True, ends[:-1])
        openings = np.where(sizes > 0, sizes + bos, 0)[first]
    documents = join(pieces, begins, ends, special, bos=bos)
    windows = pack(documents, recipe.packing, pad=special.pad, prompts=openings)
    records = itertools.chain.from_iterable(map(recipe.layout.to_bytes, windows))
    file = job.folder / f"{job.name}.array_record"
    with replacing(file) as temporary:
        num_windows = _write_records(temporary, records)
        shard = Shard(
            file=file.name,
            bytes=temporary.stat().st_size,
            sha256=hash_file(temporary),
            counts=Counts(
                documents=int(ends.sum()),
                words=int(encoded.words.sum()),
                bytes=int(encoded.bytes.sum()),
                tokens=int((encoded.tokens != special.bos).sum() + ends.sum()),
                windows=num_windows,
            ),
        )
    note = _note_file(job.folder, job.name)
    note.parent.mkdir(exist_ok=True)
    write_text(note, json.dumps(dataclasses.asdict(shard)))
    return job.name, shard


def encode_pieces(pieces: Sequence[Piece], recipe: Recipe) -> Encoded:
    """Cleans and encodes, some pieces at a time."""
    batches = [_encode(batch, recipe) for batch in _batches(pieces)]
    if not batches:
        empty = np.zeros(0, np.int32)
        return Encoded(empty, empty, empty, np.zeros(0, np.int64))
    return Encoded(*(np.concatenate(column) for column in zip(*batches, strict=True)))


def _encode(batch: Sequence[Piece], recipe: Recipe) -> Encoded:
    inside = [piece.inside for piece in batch]
    if not isinstance(batch[0].content, str):
        ids = [piece.content for piece in batch]
        return measure_ids(recipe.tokenizer, ids, inside)
    texts = [piece.clean_text(recipe.cleaner) for piece in batch]
    return encode_texts(recipe.tokenizer, texts, inside)


def _encode_prompts(pieces: Sequence[Piece], recipe: Recipe) -> list[np.ndarray]:
    """The prompt of each piece, int32 [n]; by themselves, so that an answer is encoded
    as it is whatever its prompt.

    Raises:
      UserError: no window holds a prompt and a token of its answer.
    """
    prompts: list[np.ndarray] = []
    for batch in _batches(pieces):
        texts = [piece.clean_prompt(recipe.cleaner) for piece in batch]
        prompts += recipe.tokenizer.encode_ids(texts)
    length = recipe.packing.length
    needed = np.array([len(prompt) for prompt in prompts]) + recipe.packing.bos + 1
    too_long = np.flatnonzero(needed > length)
    if len(too_long):
        first = too_long[0]
        raise UserError(
            f"A prompt of {len(prompts[first])} tokens leaves no room for its answer "
            f"in a window of {length}.",
            where=pieces[first].prompt.where,
            remedy="shorten it, take the record out, or set data.sequence_length to "
            f"{needed.max()} or more, which the longest prompt of this shard needs.",
        )
    return prompts


def _batches(pieces: Sequence[Piece]) -> Iterator[Sequence[Piece]]:
    start = size = 0
    for stop, piece in enumerate(pieces, start=1):
        size += len(piece.content) + len(piece.prompt.text if piece.prompt else "")
        if size >= _BATCH_CHARACTERS:
            yield pieces[start:stop]
            start, size = stop, 0
    if start < len(pieces):
        yield pieces[start:]


def finished_shard(folder: Path, name: str) -> Shard | None:
    """What the note beside a shard says, if both are there and agree on its size."""
    try:
        shard = read_shard(json_text.parse(_note_file(folder, name).read_text("utf-8")))
        if (folder / shard.file).stat().st_size == shard.bytes:
            return shard
    except (OSError, ValueError, KeyError, TypeError):
        pass
    return None


def read_shard(note: dict[str, Any]) -> Shard:
    """A shard from JSON.

    Raises:
      ValueError, KeyError, TypeError: it is none, or its file is not in the folder.
    """
    shard = Shard(**{**note, "counts": read_counts(note["counts"])})
    for value, kind in ((shard.file, str), (shard.bytes, int), (shard.sha256, str)):
        if type(value) is not kind:
            raise TypeError(f"{value!r} is no {kind.__name__}")
    if not _SHARD_NAME.fullmatch(shard.file):
        raise ValueError(f"{shard.file!r} is not the name of a shard")
    return shard


def read_counts(counts: dict[str, int]) -> Counts:
    """Counts from JSON. Raises ValueError or TypeError if they are none."""
    found = Counts(**counts)
    for name, count in counts.items():
        if type(count) is not int or not 0 <= count < _MOST:
            raise ValueError(f"{name} is {count!r}, which is no count")
    return found


def notes(folder: Path) -> list[Path]:
    """The notes about all shards of a folder."""
    return sorted((folder / NOTES).glob("*.json"))


def _note_file(folder: Path, name: str) -> Path:
    return folder / NOTES / f"{name}.json"


def write_text(file: Path, text: str) -> None:
    """Writes a file that is there whole or not at all."""
    with replacing(file) as temporary:
        temporary.write_text(text, "utf-8")


def _write_records(file: Path, records: Iterable[bytes]) -> int:
    """Returns the number of records.

    Raises:
      OSError: the file can't be written; ArrayRecord has no type for that.
    """
    number = 0
    try:
        writer = array_record_module.ArrayRecordWriter(str(file), _WRITER_OPTIONS)
        for number, record in enumerate(records, start=1):  # noqa: B007
            writer.write(record)
        writer.close()
    except RuntimeError as error:
        full = os.strerror(errno.ENOSPC) in str(error)
        raise OSError(errno.ENOSPC if full else errno.EIO, str(error)) from error
    return number


@functools.lru_cache(maxsize=2)
def cached_tokenizer(model: bytes) -> Tokenizer:
    """`tokenizer_from_bytes`, once for all jobs of a process: it may take long."""
    return tokenizer_from_bytes(model)
