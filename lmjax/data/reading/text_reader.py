"""Plain text -> documents.

Text is read in chunks that end at a line end and are split by regular expressions,
which work without a Python loop over lines. Chunks are never larger than a piece, so
that only the document at the border of two of them can be too long for one.
"""

import dataclasses
import re
from collections.abc import Iterator
from pathlib import Path
from typing import AnyStr

from lmjax.config.schema import DocumentUnit
from lmjax.core.errors import UserError
from lmjax.data.reading import documents
from lmjax.data.reading.documents import Document, Prompt
from lmjax.data.reading.files import open_bytes

MAX_PASSAGE_BYTES = 32 * 1024
BYTE_ORDER_MARK = b"\xef\xbb\xbf"

# Lines end at "\n" alone; what is blank is what str.split() takes for blank.
_BLANK = r"[^\S\n]*+"
_HEADING = rf"= = = .* = = ={_BLANK}$"
_BEFORE_HEADING = re.compile(rf"\n(?={_HEADING})", re.MULTILINE)
_BETWEEN_BLOCKS = re.compile(
    rf"\n(?:{_BLANK}\n)++|\n(?={_HEADING})",
    re.MULTILINE,
)
_FEW_HEADINGS = 2


@dataclasses.dataclass(frozen=True)
class TextReader:
    """A file of UTF-8 text, perhaps compressed.

    Nothing is normalised, so the words of the documents are those of the file; blank
    lines around a document are no part of it.

    Attributes:
      path: the file.
      unit: what ends a document; not AUTO.
      replace_invalid_utf8: whether U+FFFD stands for bytes that are not UTF-8, which
        else are an error.
    """

    path: Path
    unit: DocumentUnit
    replace_invalid_utf8: bool = False

    holds_ids = False

    def describe(self) -> dict[str, str]:
        decided = {"format": "text", "documents": self.unit.value}
        if self.replace_invalid_utf8:
            decided["invalid_utf8"] = "replaced"
        return decided

    def read(self) -> Iterator[Document]:
        """Yields the documents in order, in bounded memory.

        Raises:
          UserError: the file can't be read or is not UTF-8.
        """
        open_document = ""
        started = False  # whether pieces of the open document were yielded
        for chunk in self._chunks():
            text = open_document + chunk
            if started and self.unit is DocumentUnit.PASSAGE:
                # Pieces are only cut off a line that is a passage by itself.
                line, line_end, text = text.partition("\n")
                if line_end:
                    yield from _finish(line, started)
                    started = False
                else:
                    text = line
            *whole, open_document = self._split(text)
            if whole:
                yield from _finish(whole[0], started)
                started = False
                yield from map(Document, filter(str.strip, whole[1:]))
            if not started:
                open_document = _trim_start(open_document)
            while piece := _overflow(open_document):
                yield Document(piece, continues=True)
                open_document = open_document[len(piece) :]
                started = True
        yield from _finish(open_document, started)

    def _split(self, text: str) -> list[str]:
        """Returns the documents that are over, then the beginning of the open one.

        All but the first are without blank lines around them and smaller than a piece.
        """
        if self.unit is DocumentUnit.FILE:
            return [text]
        if self.unit is DocumentUnit.LINE:
            return text.split("\n")
        if self.unit is DocumentUnit.HEADING:
            found = _BEFORE_HEADING.split(text)
            return [found[0], *map(trim_blank_lines, found[1:-1]), *found[1:][-1:]]
        found = _BETWEEN_BLOCKS.split(text)
        if self.unit is DocumentUnit.BLOCK:
            return found
        return [passage for block in found for passage in _passages(block)]

    def _chunks(self) -> Iterator[str]:
        """Yields the text up to line ends, or parts of lines too long for that."""
        errors = "replace" if self.replace_invalid_utf8 else "strict"
        offset, line = 0, 1
        with open_bytes(self.path) as handle:
            data = handle.read(documents.MAX_PIECE_BYTES)
            ended = len(data) < documents.MAX_PIECE_BYTES
            if data.startswith(BYTE_ORDER_MARK):
                offset = len(BYTE_ORDER_MARK)
                data = data[offset:]
            while data:
                end = data.rfind(b"\n") + 1
                if not end:  # a character may be cut off, but not at the end of all
                    end = len(data) if ended else end_of_characters(data)
                try:
                    yield data[:end].decode("utf-8", errors)
                except UnicodeDecodeError as error:
                    line += data.count(b"\n", 0, error.start)
                    place = f"{self.path}, line {line}, byte {offset + error.start}"
                    raise not_utf8(self.path, error, place) from None
                offset += end
                line += data.count(b"\n", 0, end)
                rest = data[end:]
                wanted = documents.MAX_PIECE_BYTES - len(rest)
                more = handle.read(wanted)
                ended = len(more) < wanted
                data = rest + more


def choose_unit(sample: str) -> DocumentUnit:
    """Returns the unit that fits a text, given its beginning.

    Headings are used where there are some, else blank lines; where these are so rare
    that most of the text would be in blocks larger than a passage, as in transcripts,
    passages.
    """
    if len(_BEFORE_HEADING.findall("\n" + sample)) >= _FEW_HEADINGS:
        return DocumentUnit.HEADING
    blocks = [block for block in _BETWEEN_BLOCKS.split(sample) if block.strip()]
    if _num_bytes(sample) > MAX_PASSAGE_BYTES * max(len(blocks), 1):
        return DocumentUnit.PASSAGE
    return DocumentUnit.BLOCK


def in_pieces(text: str, prompt: Prompt | None = None) -> Iterator[Document]:
    """Yields a text as one document, or in the pieces of a long one.

    They end behind a line end, else in front of a space, else between two characters.

    Args:
      prompt: of the document; stands in front of the first piece.
    """
    while piece := _first_piece(text):
        yield Document(piece, continues=True, prompt=prompt)
        text, prompt = text[len(piece) :], None
    yield Document(text, prompt=prompt)


def trim_blank_lines(text: str) -> str:
    """Returns a text without the blank lines at its ends and its last line end."""
    if not text or text.isspace():
        return ""
    return _trim_start(_trim_end(text))


def _trim_start(text: str) -> str:
    if not text[:1].isspace():
        return text
    return text[text.rfind("\n", 0, len(text) - len(text.lstrip())) + 1 :]


def end_of_characters(data: bytes) -> int:
    """Returns how many bytes are before the last character, if it may be cut off."""
    for end in range(len(data) - 1, max(len(data) - 5, 0), -1):
        if data[end] & 0xC0 != 0x80:  # the first byte of a character
            return end if data[end] & 0x80 else end + 1
    return len(data)


def not_utf8(path: Path, error: UnicodeDecodeError, place: str) -> UserError:
    """Returns the error to raise for a text that can't be decoded."""
    return UserError(
        f"The corpus is not UTF-8 text: byte 0x{error.object[error.start]:02x} "
        f"({error.reason}).",
        where=place,
        remedy=f"convert the file, e.g. iconv -f WINDOWS-1252 -t UTF-8 {path} > "
        "fixed.txt, or set data.replace_invalid_utf8=true, which reads U+FFFD instead.",
    )


def _finish(text: str, started: bool) -> Iterator[Document]:
    """Yields what is left of a document, unless it is blank from the beginning."""
    if started:
        # Not its first lines: blank ones among them are in the middle of a document.
        yield from in_pieces(_trim_end(text) or text)
    elif trimmed := trim_blank_lines(text):
        yield from in_pieces(trimmed)


def _trim_end(text: str) -> str:
    """Returns a text up to the end of its last line that is not blank."""
    end = text.find("\n", len(text.rstrip()))
    return text[:end] if end >= 0 else text


def _overflow(text: str) -> str:
    """Returns the first piece of an open document, "" while it may be the last.

    What is blank may turn out to be behind the end, but is not kept for ever.
    """
    if 4 * len(text) <= documents.MAX_PIECE_BYTES:
        return ""
    piece = _first_piece(_trim_end(text))
    if not piece and len(text) > 2 * documents.MAX_PIECE_BYTES:
        piece = _first_piece(text)
    return piece


def _first_piece(text: str) -> str:
    """Returns what to cut off a text, "" if it is small enough to stay whole."""
    limit = documents.MAX_PIECE_BYTES
    if 4 * len(text) <= limit:
        return ""
    data = text[: limit + 1].encode()  # a character takes a byte at least
    if len(data) <= limit:
        return ""
    end = data.rfind(b"\n", 0, limit) + 1
    if not end:
        end = max(data.rfind(b" ", 1, limit + 1), data.rfind(b"\t", 1, limit + 1))
    if end <= 0:
        end = limit
        while data[end] & 0xC0 == 0x80:
            end -= 1
    return data[:end].decode()


def _passages(block: str) -> list[str]:
    """Splits a block, perhaps an open one, in front of lines that would not fit."""
    if 4 * len(block) <= MAX_PASSAGE_BYTES:
        return [block]
    if block.isascii():  # then characters are bytes
        return _fill(block, "\n")
    return [part.decode() for part in _fill(block.encode(), b"\n")]


def _fill(block: AnyStr, line_end: AnyStr) -> list[AnyStr]:
    passages, start = [], 0
    while len(block) - start > MAX_PASSAGE_BYTES:
        end = block.rfind(line_end, start, start + MAX_PASSAGE_BYTES + 1)
        if end < 0:  # a line that is a passage by itself
            end = block.find(line_end, start)
        if end < 0:
            break
        passages.append(block[start:end])
        start = end + 1
    return [*passages, block[start:]]


def _num_bytes(text: str) -> int:
    return len(text) if text.isascii() else len(text.encode())
