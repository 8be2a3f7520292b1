"""Corpora that come as token ids -> documents of int64 ids.

What surrounds a document is dropped, since training adds its own: BOS in front, EOS
behind, and padding behind. EOS in the middle ends a document too.
"""

import dataclasses
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np

from lmjax.config.schema import TokenDtype
from lmjax.core import json_text
from lmjax.core.errors import UserError
from lmjax.data.reading.documents import Document
from lmjax.data.reading.files import (
    compression,
    file_size,
    open_bytes,
    unreadable,
    without_compressed_suffix,
)
from lmjax.data.reading.text_reader import BYTE_ORDER_MARK
from lmjax.data.reading.torch_archive import TorchArchive
from lmjax.data.tokenization.vocabulary import SpecialIds

# A longer document comes in pieces.
MAX_PIECE_IDS = 250_000

_BLOCK_BYTES = 1024 * 1024
_SPACES = b" \t\n\r\x0b\x0c"  # what bytes.split() splits at
_NUMBER = re.compile(rb"-?[0-9]{1,18}")  # fits int64
_MAX_DIGITS = 32  # in a row: more are no id
_WORD = re.compile(rb"\S+")
# Of the upper halves of 32-bit ids: more are zero for sure, fewer for no vocabulary.
_MOST, _FEW = 0.9, 0.5


@dataclasses.dataclass(frozen=True)
class IdRules:
    """What ids of the tokenizer mean, and which can occur in a document.

    Attributes:
      vocab_size: number of ids.
      special: the special ids.
      unpredictable: ids that no document holds.
    """

    vocab_size: int
    special: SpecialIds
    unpredictable: tuple[int, ...]


@dataclasses.dataclass(frozen=True)
class TorchReader:
    """A list of 1-D tensors as torch.save writes it, one per document."""

    path: Path
    rules: IdRules
    dtype: str

    @classmethod
    def open(cls, path: Path, rules: IdRules) -> "TorchReader":
        """Raises UserError if the file is not what it should be."""
        return cls(path, rules, TorchArchive.open(path).dtype)

    holds_ids = True

    def describe(self) -> dict[str, str]:
        return {"format": "torch", "dtype": np.dtype(self.dtype).name}

    def read(self) -> Iterator[Document]:
        return split_documents(self._blocks(), self.rules, self.path)

    def _blocks(self) -> Iterator["IdBlock"]:
        number = -1
        for document, position, ids in TorchArchive.open(self.path).read():
            if document != number and number >= 0:
                yield IdBlock(_NO_IDS, f"document {number + 1}, ", 0, True)
            number = document
            yield IdBlock(ids, f"document {document + 1}, ", position, False)


@dataclasses.dataclass(frozen=True)
class TokenTextReader:
    """Ids in decimal.

    Attributes:
      by_line: whether a line end ends a document; else the file is one stream.
    """

    path: Path
    rules: IdRules
    by_line: bool

    @classmethod
    def open(cls, path: Path, rules: IdRules, sample: bytes) -> "TokenTextReader":
        """Decides by the beginning of the file: one id per line makes a stream."""
        by_line = any(len(line.split()) > 1 for line in sample.split(b"\n"))
        return cls(path, rules, by_line)

    holds_ids = True

    def describe(self) -> dict[str, str]:
        unit = "line" if self.by_line else "stream"
        return {"format": "token_text", "documents": unit}

    def read(self) -> Iterator[Document]:
        return split_documents(self._blocks(), self.rules, self.path)

    def _blocks(self) -> Iterator["IdBlock"]:
        line, position = 1, 0
        for offset, data in self._chunks():
            if not self.by_line:
                ids = _parse(data, offset, self.path)
                yield IdBlock(ids, "", position, False)
                position += len(ids)
                continue
            for text in data.splitlines(keepends=True):
                ids = _parse(text, offset, self.path)
                ends = text.endswith(b"\n")
                yield IdBlock(ids, f"line {line}, ", position, ends)
                offset += len(text)
                line, position = (line + 1, 0) if ends else (line, position + len(ids))

    def _chunks(self) -> Iterator[tuple[int, bytes]]:
        """Yields the text, cut between ids, and where it stands in the file."""
        with open_bytes(self.path) as handle:
            data = handle.read(_BLOCK_BYTES)
            offset = len(BYTE_ORDER_MARK) if data.startswith(BYTE_ORDER_MARK) else 0
            data = data[offset:]
            while data:
                more = handle.read(_BLOCK_BYTES)
                end = max(map(data.rfind, _SPACES)) + 1
                if not more or (not end and len(data) > _MAX_DIGITS):
                    end = len(data)
                if end:
                    yield offset, data[:end]
                offset += end
                data = data[end:] + more


@dataclasses.dataclass(frozen=True)
class TokenIdsReader:
    """Raw ids, one after the other, little-endian: one stream."""

    path: Path
    rules: IdRules
    dtype: Literal["uint16", "uint32"]

    @classmethod
    def open(
        cls, path: Path, rules: IdRules, dtype: TokenDtype, sample: bytes
    ) -> "TokenIdsReader":
        """Finds the number type: in the config, in a sidecar, or by the numbers.

        Args:
          sample: the beginning of the file.

        Raises:
          UserError: they contradict each other, or the size does not fit.
        """
        sidecar, noted = _sidecar_dtype(path)
        if dtype is TokenDtype.AUTO:
            name = noted or _guess_dtype(path, rules, sample)
        elif noted in ("", dtype.value):
            name = dtype.value
        else:
            raise UserError(
                f"Mixed dtypes: data.token_dtype says {dtype.value}, {noted} stands "
                "beside the ids.",
                where=str(sidecar),
                remedy="correct one of them, or leave data.token_dtype at auto.",
            )
        return cls(path, rules, name)

    holds_ids = True

    def describe(self) -> dict[str, str]:
        return {"format": "token_ids", "dtype": self.dtype}

    def read(self) -> Iterator[Document]:
        return split_documents(self._blocks(), self.rules, self.path)

    def _blocks(self) -> Iterator["IdBlock"]:
        dtype = np.dtype(self.dtype).newbyteorder("<")
        position = 0
        with open_bytes(self.path) as handle:
            while data := handle.read(_BLOCK_BYTES):
                if len(data) % dtype.itemsize:
                    raise _odd_size(self.path, self.dtype)
                ids = np.frombuffer(data, dtype).astype(np.int64)
                yield IdBlock(ids, "", position, False)
                position += len(ids)


class IdBlock(NamedTuple):
    """Ids that follow each other in a file."""

    ids: np.ndarray  # int64 [n]
    place: str  # what `position` counts in, as the beginning of a list; "" is the file
    position: int  # of the first id, from 0
    ends: bool  # whether a document ends behind it


_NO_IDS = np.zeros(0, np.int64)


def split_documents(
    blocks: Iterable[IdBlock], rules: IdRules, path: Path
) -> Iterator[Document]:
    """Yields what is between the ends of documents, and checks every id.

    Raises:
      UserError: an id is not of the vocabulary, or special in the midst of a document.
    """
    collector = _Collector(rules, path)
    for block in blocks:
        ids, start = block.ids, 0
        _check_range(block, rules, path)
        for end in np.flatnonzero(ids == rules.special.eos).tolist():
            collector.add(block, start, end)
            yield from collector.end()
            start = end + 1
        collector.add(block, start, len(ids))
        yield from collector.end() if block.ends else collector.overflow()
    yield from collector.end()


class _Collector:
    """The document that is not over yet."""

    def __init__(self, rules: IdRules, path: Path):
        self._rules, self._path = rules, path
        self._special = np.zeros(rules.vocab_size, bool)
        self._special[list(rules.unpredictable)] = True
        self._ids, self._place, self._position = _NO_IDS, "", 0
        self._started = False  # whether pieces of it were yielded

    def add(self, block: IdBlock, start: int, end: int) -> None:
        ids = block.ids[start:end]
        if not len(self._ids):
            self._ids, self._place = ids, block.place
            self._position = block.position + start
        elif len(ids):
            self._ids = np.concatenate([self._ids, ids])
        if not self._started:
            self._cut(_run_length(self._ids, self._rules.special.bos))

    def end(self) -> Iterator[Document]:
        """Yields what is left of the document."""
        self._ids = self._ids[: self._length()]
        yield from self.overflow()
        if len(self._ids):
            yield self._take(len(self._ids), continues=False)
        self._ids, self._started = _NO_IDS, False

    def overflow(self) -> Iterator[Document]:
        """Yields pieces while more than one is left, in front of trailing padding."""
        length = self._length()
        while length > MAX_PIECE_IDS:
            yield self._take(MAX_PIECE_IDS, continues=True)
            length -= MAX_PIECE_IDS
        # One pad is enough to be found if anything follows.
        self._ids = self._ids[: length + 1]

    def _length(self) -> int:
        return len(self._ids) - _run_length(self._ids[::-1], self._rules.special.pad)

    def _take(self, count: int, *, continues: bool) -> Document:
        ids = self._ids[:count]
        special = self._special[ids]
        if special.any():
            index = int(special.argmax())
            raise UserError(
                f"A document holds the special id {ids[index]} in its midst.",
                where=f"{self._path}, {self._place}id {self._position + index + 1}",
                remedy="name the tokenizer that made these ids as tokenizer.path; the "
                "ids it reserves for BOS, padding and the mask are not those of text.",
            )
        self._cut(count)
        self._started = continues
        return Document(ids, continues)

    def _cut(self, count: int) -> None:
        self._ids, self._position = self._ids[count:], self._position + count


def _run_length(ids: np.ndarray, value: int) -> int:
    """Returns how often `value` stands at the beginning."""
    if not len(ids) or ids[0] != value:
        return 0
    others = ids != value
    return int(others.argmax()) if others.any() else len(ids)


def _check_range(block: IdBlock, rules: IdRules, path: Path) -> None:
    ids = block.ids
    if not len(ids) or (ids.min() >= 0 and ids.max() < rules.vocab_size):
        return
    index = int(((ids < 0) | (ids >= rules.vocab_size)).argmax())
    raise UserError(
        f"The id {ids[index]} is not one of the {rules.vocab_size} of the tokenizer.",
        where=f"{path}, {block.place}id {block.position + index + 1}",
        remedy="name the tokenizer that made these ids as tokenizer.path, and check "
        "data.format and data.token_dtype.",
    )


def _parse(text: bytes, offset: int, path: Path) -> np.ndarray:
    """Returns numbers in decimal as int64; `offset` is where they stand."""
    # int() knows more ways to write a number than this format does.
    if not text.translate(None, b"0123456789-" + _SPACES):
        try:
            return np.array([int(word) for word in text.split()], np.int64)
        except (ValueError, OverflowError):
            pass
    wrong = next(w for w in _WORD.finditer(text) if not _NUMBER.fullmatch(w[0]))
    raise UserError(
        f"{wrong[0][:40].decode('utf-8', 'replace')!r} is not a token id.",
        where=f"{path}, byte {offset + wrong.start()}",
        remedy="correct the file, or set data.format=text if it is text.",
    )


def _sidecar_dtype(path: Path) -> tuple[Path, str]:
    """Returns the JSON file beside the ids that names their type, and the type."""
    unpacked = path.with_name(without_compressed_suffix(path.name))
    for base in dict.fromkeys([path.name, unpacked.name, "meta"]):
        sidecar = path.with_name(f"{base}.json")
        if not sidecar.is_file():
            continue
        try:
            content = json_text.parse(sidecar.read_bytes())
        except OSError as error:
            raise unreadable(sidecar, error) from error
        except ValueError as error:
            raise UserError(
                f"The description of the ids is not JSON: {error}.",
                where=str(sidecar),
                remedy='correct it, e.g. {"dtype": "uint16"}, or delete it.',
            ) from error
        if not isinstance(content, dict) or "dtype" not in content:
            continue
        if content["dtype"] not in ("uint16", "uint32"):
            raise UserError(
                f"Raw ids of the type {content['dtype']!r} are not known.",
                where=f"{sidecar}: dtype",
                remedy="give uint16 or uint32, whichever it is.",
            )
        return sidecar, content["dtype"]
    return path, ""


def _guess_dtype(path: Path, rules: IdRules, sample: bytes) -> str:
    """Tells 32-bit ids by their upper halves, which are mostly 0."""
    # Of a packed file that goes on behind the sample the size is unknown.
    size = len(sample) if compression(path) else file_size(path)
    if size % 2:
        raise _odd_size(path, "uint16")
    if size % 4 or not sample:
        return "uint16"
    halves = np.frombuffer(sample[: len(sample) // 4 * 4], "<u2").reshape(-1, 2)
    lower, upper = halves.T
    fits_32 = bool((upper <= (rules.vocab_size - 1) >> 16).all())
    fits_16 = bool((halves < rules.vocab_size).all())
    zeros = (upper == 0).mean()
    if fits_32 and zeros >= _MOST and (lower != 0).mean() >= _FEW:
        return "uint32"
    if fits_16 and (not fits_32 or zeros < _FEW):
        return "uint16"
    raise UserError(
        "The number type of these ids can't be told from the numbers.",
        where=str(path),
        remedy="set data.token_dtype to uint16 or uint32, and check that "
        "tokenizer.path names the tokenizer that made them.",
    )


def _odd_size(path: Path, dtype: str) -> UserError:
    return UserError(
        f"The file does not consist of {dtype} ids: its size is no multiple of theirs.",
        where=str(path),
        remedy="check that it is complete, and data.format and data.token_dtype.",
    )
