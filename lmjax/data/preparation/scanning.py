"""The first pass over a corpus: what each document is worth, and whether it recurs.

Everything that decides about documents (what is dropped, what is held out, what
stands in which shard) needs to know all of them; so they are read twice. The first
pass keeps a few numbers per document, and no text.
"""

import array
import dataclasses
import hashlib
from collections import Counter
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from lmjax.data.preparation import cleaning
from lmjax.data.preparation.cleaning import Cleaner
from lmjax.data.reading.documents import Reader
from lmjax.data.tokenization.encoding import measure_ids
from lmjax.data.tokenization.tokenizers import Tokenizer
from lmjax.data.tokenization.words import count_words, ends_in_word

_LAST_IDS = 64  # of a piece, whose text tells whether it ends in a word


class Piece(NamedTuple):
    """A piece of a document, and where it stands in it."""

    content: str | np.ndarray
    begins: bool  # the first of its document
    ends: bool  # the last of its document
    inside: bool  # its text goes on with the last word of the piece before


@dataclasses.dataclass(frozen=True, kw_only=True)
class Scan:
    """The documents of one file after rewriting, in order.

    Attributes:
      hashes: uint64 [documents], of the text; equal texts have equal hashes.
      words, sizes: int64 [documents], whitespace words and UTF-8 bytes.
      pieces: int32 [documents], pieces a document comes in.
      rewritten: how many documents each rule changed.
      signatures: uint32 [documents, 64] for near duplicates, of the first piece; else
        of no row.
    """

    hashes: np.ndarray
    words: np.ndarray
    sizes: np.ndarray
    pieces: np.ndarray
    rewritten: dict[str, int]
    signatures: np.ndarray


def pieces(reader: Reader, tokenizer: Tokenizer | None = None) -> Iterator[Piece]:
    """The pieces of a file as they are on disk.

    Args:
      tokenizer: tells the text of ids; without it, words that begin in one piece of ids
        and go on in the next are not known.
    """
    inside = going_on = False
    for document in reader.read():
        content = document.content
        yield Piece(content, not going_on, not document.continues, inside)
        going_on = document.continues
        if not going_on:
            inside = False
        elif isinstance(content, str):
            inside = ends_in_word(content, inside)
        elif tokenizer is not None:
            ends = [tokenizer.piece_bytes[i] for i in content[-_LAST_IDS:].tolist()]
            text = b"".join(ends).decode("utf-8", "surrogateescape")
            inside = ends_in_word(text, inside)


def scan(reader: Reader, cleaner: Cleaner, tokenizer: Tokenizer | None) -> Scan:
    """Reads a file once.

    Args:
      tokenizer: for input that comes as ids, whose words are those of its text.
    """
    # Numbers rather than objects: there may be many millions of documents.
    hashes, words_of, sizes, counts = (array.array(code) for code in "QqqL")
    signatures: list[np.ndarray] = []
    rewritten: Counter[str] = Counter()
    near = cleaner.config.near_duplicates > 0
    for piece in pieces(reader, tokenizer):
        if piece.begins:
            digest = hashlib.blake2b(digest_size=8)
            words = size = count = 0
            rules: set[str] = set()
        content = piece.content
        if isinstance(content, str):
            if cleaner.rewrites:
                changed = cleaner.rewrite(content, begins=piece.begins, ends=piece.ends)
                rules.update(changed)
                content = next(reversed(changed.values()), content)
            data = content.encode()
            words += count_words(content, piece.inside)
            size += len(data)
            if near and piece.begins:
                signatures.append(cleaning.signature(content))
        else:
            data = np.ascontiguousarray(content, "<i8").tobytes()
            measured = measure_ids(tokenizer, [content], [piece.inside])
            words += int(measured.words.sum())
            size += int(measured.bytes.sum())
        digest.update(data)
        count += 1
        if piece.ends:
            rewritten.update(rules)
            hashes.append(int.from_bytes(digest.digest(), "little"))
            words_of.append(words)
            sizes.append(size)
            counts.append(count)
    return Scan(
        hashes=np.array(hashes, np.uint64),
        words=np.array(words_of, np.int64),
        sizes=np.array(sizes, np.int64),
        pieces=np.array(counts, np.int32),
        rewritten=dict(rewritten),
        signatures=np.array(signatures, np.uint32).reshape(-1, cleaning.NUM_HASHES),
    )
