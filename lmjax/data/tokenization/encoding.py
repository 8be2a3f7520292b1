"""Documents -> ids, with the words and the bytes that each id stands for."""

import itertools
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np
from absl import logging

from lmjax.core.errors import UserError
from lmjax.data.tokenization.tokenizers import Tokenizer
from lmjax.data.tokenization.vocabulary import not_unicode
from lmjax.data.tokenization.words import word_starts

_CHECKED_DOCUMENTS = 20
_CHECKED_IDS = 400
# More ids than are compared are decoded: the last ones depend on where the text ends.
_DECODED_IDS = 512
_LEAST_IDS = 8  # shorter documents say nothing


class Encoded(NamedTuple):
    """Documents one behind the other, without anything between them.

    A word counts at the token in which the first byte of its first character lies.
    """

    tokens: np.ndarray  # int32 [n]
    words: np.ndarray  # int32 [n], words that begin in each token
    bytes: np.ndarray  # int32 [n], bytes of text that each token stands for
    lengths: np.ndarray  # int64 [documents], tokens of each


def encode_texts(
    tokenizer: Tokenizer, texts: Sequence[str], inside: Sequence[bool] | None = None
) -> Encoded:
    """Encodes documents; words and bytes of each sum to those of its text.

    Args:
      inside: for each text whether it goes on with a word that began in the text before
        it, so that this word has been counted. None: no text does.

    Raises:
      UserError: a text is no valid Unicode.
    """
    try:
        data = [text.encode() for text in texts]
    except UnicodeEncodeError:
        raise not_unicode(texts) from None
    sizes = _piece_sizes(tokenizer)
    if tokenizer.lossless:
        ids = tokenizer.encode_ids(texts)
        num_bytes = [sizes[each] for each in ids]
        changed = [i for i, each in enumerate(num_bytes) if each.sum() != len(data[i])]
    else:
        ids, num_bytes = [None] * len(texts), [None] * len(texts)
        changed = range(len(texts))
    for i in changed:  # the pieces don't tell what an id was read from
        ids[i], num_bytes[i] = tokenizer.encode_aligned(texts[i])
    return _with_words(ids, num_bytes, data, inside)


def measure_ids(
    tokenizer: Tokenizer,
    documents: Sequence[np.ndarray],
    inside: Sequence[bool] | None = None,
) -> Encoded:
    """Finds the words and bytes of documents that come as ids.

    Their text is what the pieces spell, valid UTF-8 or not.

    Args:
      inside: as of `encode_texts`.

    Raises:
      UserError: an id is not one of the tokenizer.
    """
    _check_ids(tokenizer, documents)
    sizes = _piece_sizes(tokenizer)
    pieces = tokenizer.piece_bytes
    data = [b"".join(map(pieces.__getitem__, ids.tolist())) for ids in documents]
    return _with_words(documents, [sizes[ids] for ids in documents], data, inside)


def check_match(
    tokenizer: Tokenizer, documents: Iterable[np.ndarray], where: str
) -> None:
    """Checks that ids come from this tokenizer: it encodes their text to them again.

    Args:
      documents: the first few are looked at, and only their beginnings.
      where: where the ids come from.

    Raises:
      UserError: none of the documents comes back, or an id is not of the tokenizer.
    """
    different: list[str] = []
    checked = 0
    special = _special_table(tokenizer)
    for document in itertools.islice(documents, _CHECKED_DOCUMENTS):
        ids = np.asarray(document[:_DECODED_IDS])
        _check_ids(tokenizer, [ids], where)
        # A special id is no text: go by what stands between two of them.
        runs = np.split(ids, np.flatnonzero(special[ids]))
        runs = [run[special[run].sum() :] for run in runs]
        ids = next((run for run in runs if len(run) >= _LEAST_IDS), None)
        if ids is None:
            continue
        checked += 1
        text = tokenizer.decode(ids)
        expected = ids[:_CHECKED_IDS].tolist()
        if tokenizer.encode(text)[: len(expected)] != expected:
            different.append(text)
    if not different:
        return
    if len(different) == checked:
        raise UserError(
            "The tokenizer does not match the ids: it encodes no document's text to "
            f"the ids it was decoded from. One reads {different[0][:80]!r}.",
            where=where,
            remedy="set tokenizer.kind and tokenizer.path to the tokenizer that made "
            "these ids.",
        )
    logging.warning(
        "%s: the text of %d of %d documents is encoded to other ids by this tokenizer, "
        "such as %r. It may not be the one that made them.",
        where,
        len(different),
        checked,
        different[0][:80],
    )


def _with_words(
    documents: Sequence[np.ndarray],
    sizes: Sequence[np.ndarray],
    data: Sequence[bytes],
    inside: Sequence[bool] | None,
) -> Encoded:
    """Counts the words of each token.

    Args:
      documents: ids of each document.
      sizes: bytes of each id of each document.
      data: UTF-8 of each document; as long as its sizes together.
    """
    tokens, num_bytes = _concatenate(documents), _concatenate(sizes)
    lengths = np.array([len(ids) for ids in documents], np.int64)
    # One byte before each document ends the word before it, or is in the word itself.
    before = [b"x" if each else b"\n" for each in inside or [False] * len(data)]
    starts = word_starts(b"".join(itertools.chain(*zip(before, data, strict=True))))
    if inside is not None and any(inside):
        spans = np.array([len(each) + 1 for each in data], np.int64)
        starts = starts[~np.isin(starts, np.cumsum(spans) - spans)]
    document = np.repeat(np.arange(1, len(lengths) + 1), lengths)
    ends = np.cumsum(num_bytes, dtype=np.int64) + document
    # The first token that ends behind the byte: skips tokens of no byte.
    words = np.bincount(
        np.searchsorted(ends, starts, side="right"), minlength=len(tokens)
    )
    return Encoded(
        tokens=tokens,
        words=words.astype(np.int32),
        bytes=num_bytes,
        lengths=lengths,
    )


def _piece_sizes(tokenizer: Tokenizer) -> np.ndarray:
    return np.fromiter(map(len, tokenizer.piece_bytes), np.int32, tokenizer.vocab_size)


def _special_table(tokenizer: Tokenizer) -> np.ndarray:
    """bool [V]; true for ids that stand for no text."""
    return _piece_sizes(tokenizer) == 0


def _check_ids(
    tokenizer: Tokenizer, documents: Sequence[np.ndarray], where: str = ""
) -> None:
    for ids in documents:
        if len(ids) and not 0 <= ids.min() <= ids.max() < tokenizer.vocab_size:
            wrong = ids.max() if ids.min() >= 0 else ids.min()
            raise UserError(
                f"The tokenizer has no id {wrong}: it has {tokenizer.vocab_size:,}.",
                where=where,
                remedy="set tokenizer.kind and tokenizer.path to the tokenizer that "
                "made these ids.",
            )


def _concatenate(arrays: Sequence[np.ndarray]) -> np.ndarray:
    return np.concatenate([np.zeros(0, np.int32), *arrays]).astype(np.int32)
