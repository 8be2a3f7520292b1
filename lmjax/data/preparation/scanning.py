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
from lmjax.data.reading.documents import Prompt, Reader
from lmjax.data.tokenization.encoding import measure_ids
from lmjax.data.tokenization.tokenizers import Tokenizer
from lmjax.data.tokenization.words import count_words, ends_in_word

_LAST_IDS = 64  # of a piece, whose text tells whether it ends in a word
_PROMPT_END = b"\xff"  # in a hash; no byte of UTF-8


class Piece(NamedTuple):
    """A piece of a document, and where it stands in it."""

    content: str | np.ndarray
    begins: bool  # the first of its document
    ends: bool  # the last of its document
    inside: bool  # its text goes on with the last word of the piece before
    prompt: Prompt | None = None  # of its document, where it begins one

    @property
    def opens(self) -> bool:
        """Whether no text stands before it in its document, of a prompt neither."""
        return self.begins and not (self.prompt and self.prompt.text)

    def clean_prompt(self, cleaner: Cleaner) -> str:
        """Its prompt after all rules; empty if it has none."""
        if self.prompt is None:
            return ""
        return cleaner.clean(self.prompt.text, begins=True, ends=False)

    def clean_text(self, cleaner: Cleaner) -> str:
        """Its own text after all rules."""
        return cleaner.clean(self.content, begins=self.opens, ends=self.ends)


def _no_numbers() -> np.ndarray:
    return np.zeros(0, np.int64)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Scan:
    """The documents of one file after rewriting, in order.

    Attributes:
      hashes: uint64 [documents], of prompt and text; equal ones have equal hashes.
      words, sizes: int64 [documents], whitespace words and UTF-8 bytes, prompts left
        out.
      pieces: int32 [documents], pieces a document comes in.
      rewritten: how many documents each rule changed.
      signatures: uint32 [documents, 64] for near duplicates, of the first piece; else
        of no row.
      prompt_words, prompt_sizes: int64 [documents], of the prompts; of no row where
        documents have none.
    """

    hashes: np.ndarray
    words: np.ndarray
    sizes: np.ndarray
    pieces: np.ndarray
    rewritten: dict[str, int]
    signatures: np.ndarray
    prompt_words: np.ndarray = dataclasses.field(default_factory=_no_numbers)
    prompt_sizes: np.ndarray = dataclasses.field(default_factory=_no_numbers)

    @property
    def stored(self) -> np.ndarray:
        """int64 [documents], bytes of prompt and text together."""
        return self.sizes + self.prompt_sizes if len(self.prompt_sizes) else self.sizes


def pieces(reader: Reader, tokenizer: Tokenizer | None = None) -> Iterator[Piece]:
    """The pieces of a file as they are on disk.

    Args:
      tokenizer: tells the text of ids; without it, words that begin in one piece of ids
        and go on in the next are not known.
    """
    inside = going_on = False
    for document in reader.read():
        content = document.content
        yield Piece(
            content, not going_on, not document.continues, inside, document.prompt
        )
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
    prompt_words, prompt_sizes = array.array("q"), array.array("q")
    signatures: list[np.ndarray] = []
    rewritten: Counter[str] = Counter()
    near = cleaner.config.near_duplicates > 0
    for piece in pieces(reader, tokenizer):
        if piece.begins:
            digest = hashlib.blake2b(digest_size=8)
            words = size = count = 0
            rules: set[str] = set()
            prompt = ""
        if piece.prompt is not None:
            prompt = _rewrite(
                cleaner, piece.prompt.text, rules, begins=True, ends=False
            )
            data = prompt.encode()
            digest.update(data + _PROMPT_END)
            prompt_words.append(count_words(prompt))
            prompt_sizes.append(len(data))
        content = piece.content
        if isinstance(content, str):
            content = _rewrite(
                cleaner, content, rules, begins=piece.opens, ends=piece.ends
            )
            data = content.encode()
            words += count_words(content, piece.inside)
            size += len(data)
            if near and piece.begins:
                signatures.append(cleaning.signature(f"{prompt}\n{content}"))
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
        prompt_words=np.array(prompt_words, np.int64),
        prompt_sizes=np.array(prompt_sizes, np.int64),
    )


def _rewrite(
    cleaner: Cleaner, text: str, rules: set[str], *, begins: bool, ends: bool
) -> str:
    """The text after all rules; those that changed it are added to `rules`."""
    changed = cleaner.rewrite(text, begins=begins, ends=ends)
    rules.update(changed)
    return next(reversed(changed.values()), text)
