"""Text <-> token ids, and what each token stands for."""

import dataclasses
import hashlib
import re
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple, Protocol

import numpy as np
import sentencepiece

from lmjax.core.errors import UserError

# SentencePiece writes a space as this character, and so reads it as a space.
_SPACE_MARK = "\u2581"
_MASK_PIECES = ("<mask>", "[MASK]")
_WORD = re.compile(r"\S+")  # the same words as str.split()
_NUM_THREADS = 2


@dataclasses.dataclass(frozen=True, kw_only=True)
class SpecialIds:
    """Ids with a meaning of their own; the only home of these numbers."""

    unk: int
    bos: int
    eos: int
    pad: int
    mask: int


class PieceLengths(NamedTuple):
    """What each id stands for, int32 [V] each; 0 for special ids.

    A character spread over several byte pieces counts at its first one.
    """

    chars: np.ndarray
    bytes: np.ndarray


class Encoding(NamedTuple):
    """A text as ids, with the words that start in and bytes that belong to each."""

    tokens: np.ndarray  # int32 [n]
    words: np.ndarray  # int64 [n]; sums to len(text.split())
    bytes: np.ndarray  # int64 [n]; sums to len(text.encode())


class Tokenizer(Protocol):
    """Everything the rest of lmjax knows about a tokenizer.

    Attributes:
      vocab_size: number of ids.
      special: the special ids.
      unpredictable: ids a model never predicts.
      piece_lengths: characters and bytes of each id.
      lossless: whether decoding gives back any text that was encoded.
      model_bytes: the serialized model.
      identity: SHA-256 of `model_bytes`, in hex.
    """

    vocab_size: int
    special: SpecialIds
    unpredictable: tuple[int, ...]
    piece_lengths: PieceLengths
    lossless: bool
    model_bytes: bytes
    identity: str

    def encode(self, text: str) -> list[int]: ...

    def encode_batch(self, texts: Sequence[str]) -> list[Encoding]: ...

    def decode(self, ids: Sequence[int] | np.ndarray) -> str: ...


def load_tokenizer(path: str | Path, field: str = "tokenizer.path") -> Tokenizer:
    """Reads a tokenizer from a SentencePiece `.model` file.

    Raises:
      UserError: the file is missing, is no SentencePiece model or lacks an id.
    """
    try:
        model = Path(path).expanduser().read_bytes()
    except OSError as error:
        raise UserError(
            f"The tokenizer can't be read: {error.strerror or error}.",
            where=f"{field} = {str(path)!r}",
            remedy=f"correct {field}, or leave it empty to train a tokenizer.",
        ) from error
    return SentencePieceTokenizer(model, where=f"{field} = {str(path)!r}")


class SentencePieceTokenizer:
    """A `Tokenizer` over a serialized SentencePiece model."""

    def __init__(self, model: bytes, *, where: str = "tokenizer.path"):
        """Raises UserError if the bytes are no model or lack a special id."""
        self._processor = sentencepiece.SentencePieceProcessor()
        try:
            self._processor.LoadFromSerializedProto(model)
        except RuntimeError:
            raise UserError(
                "The tokenizer is not a SentencePiece model.",
                where=where,
                remedy="give a .model file written by SentencePiece, or leave "
                "tokenizer.path empty to train one.",
            ) from None
        self.model_bytes = model
        self.identity = hashlib.sha256(model).hexdigest()
        self.vocab_size = self._processor.get_piece_size()
        self.special = self._special_ids(where)
        special = self.special
        self.unpredictable = tuple(sorted({special.bos, special.pad, special.mask}))
        self._byte_ids = self._find_byte_ids()
        self.piece_lengths = self._measure_pieces()
        self.lossless = self._byte_ids is not None and self._keeps_text()

    def encode(self, text: str) -> list[int]:
        return self._encode_ids([text])[0].tolist()

    def encode_batch(self, texts: Sequence[str]) -> list[Encoding]:
        """Encodes texts with words and bytes per token, a special id never among them.

        A word counts at the token in which its first character lies.
        """
        encodings = []
        for text, tokens in zip(texts, self._encode_ids(texts), strict=True):
            chars = self.piece_lengths.chars[tokens]
            num_bytes = self.piece_lengths.bytes[tokens]
            # Unknown characters, or a model that rewrites text: ask where it read.
            if not self.lossless or chars.sum() != len(text):
                tokens, chars, num_bytes = self._encode_aligned(text)
            words = words_per_token(text, chars)
            encodings.append(Encoding(tokens, words, num_bytes))
        return encodings

    def decode(self, ids: Sequence[int] | np.ndarray) -> str:
        """Joins the pieces; special ids but unk vanish, broken UTF-8 becomes U+FFFD."""
        return self._processor.decode([int(i) for i in ids])

    def _encode_ids(self, texts: Sequence[str]) -> list[np.ndarray]:
        texts = list(texts)
        split_up = [
            i for i, t in enumerate(texts) if self.lossless and _SPACE_MARK in t
        ]
        whole = texts.copy()
        for i in split_up:
            whole[i] = ""
        try:
            tokens = self._processor.encode(
                whole, return_type="numpy", num_threads=_NUM_THREADS
            )
        except (RuntimeError, TypeError):  # what it raises differs with the version
            raise _not_unicode(texts) from None
        for i in split_up:
            tokens[i] = self._encode_space_marks(texts[i])
        return tokens

    def _encode_space_marks(self, text: str) -> np.ndarray:
        """Encodes a text with U+2581 in it, each as its three byte pieces."""
        mark = [self._byte_ids[byte] for byte in _SPACE_MARK.encode()]
        first, *others = self._encode_ids(text.split(_SPACE_MARK))
        parts = [first]
        for other in others:
            parts += [np.array(mark, np.int32), other]
        return np.concatenate(parts)

    def _encode_aligned(self, text: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Returns ids with the characters and bytes of `text` they were read from."""
        mapping = self._processor.encode(text, return_type="offset_mapping")
        tokens = np.array(mapping["ids"], np.int32)
        ends = np.array([end for _, end in mapping["offsets"]], np.int64)
        if not len(ends):  # the model drops this text altogether
            return tokens, ends, ends
        ends = np.maximum.accumulate(ends)
        ends[-1] = len(text)
        code_points = np.frombuffer(text.encode("utf-32-le"), "<u4")
        sizes = 1 + sum(
            (code_points >= c).astype(np.int64) for c in (2**7, 2**11, 2**16)
        )
        byte_ends = np.concatenate([[0], np.cumsum(sizes)])[ends]
        return tokens, np.diff(ends, prepend=0), np.diff(byte_ends, prepend=0)

    def _special_ids(self, where: str) -> SpecialIds:
        processor = self._processor
        mask = -1
        for piece in _MASK_PIECES:
            index = processor.piece_to_id(piece)
            if processor.id_to_piece(index) == piece:
                mask = index
        ids = {
            "unk": processor.unk_id(),
            "bos": processor.bos_id(),
            "eos": processor.eos_id(),
            "pad": processor.pad_id(),
            "mask": mask,
        }
        missing = [name for name, index in ids.items() if index < 0]
        if missing:
            raise UserError(
                f"The tokenizer has no id for: {', '.join(missing)}.",
                where=where,
                remedy="leave tokenizer.path empty to train one that has them, or "
                "train it with spm_train --unk_id=0 --bos_id=1 --eos_id=2 --pad_id=3 "
                "--control_symbols='<mask>'.",
            )
        return SpecialIds(**ids)

    def _find_byte_ids(self) -> list[int] | None:
        """Returns the ids of the 256 byte pieces, or None if there are none."""
        ids = [self._processor.piece_to_id(f"<0x{b:02X}>") for b in range(256)]
        return ids if all(self._processor.is_byte(i) for i in ids) else None

    def _measure_pieces(self) -> PieceLengths:
        processor = self._processor
        lengths = PieceLengths(*np.zeros((2, self.vocab_size), np.int32))
        for i in range(self.vocab_size):
            if processor.is_unknown(i) or processor.is_control(i):
                continue
            piece = processor.id_to_piece(i)
            if processor.is_byte(i):
                byte = int(piece[1:-1], 16)
                lengths.chars[i] = byte < 0x80 or byte >= 0xC0
                lengths.bytes[i] = 1
            else:
                text = piece.replace(_SPACE_MARK, " ")
                lengths.chars[i], lengths.bytes[i] = len(text), len(text.encode())
        return lengths

    def _keeps_text(self) -> bool:
        """Whether the model's normalisation leaves a text full of traps alone."""
        traps = "  a  \u00a0\tB\r\n\ufb01 \uff21 e\u0301 \u00e9 \u3000 \u2126 \x00 x "
        return self._processor.normalize(traps) == traps.replace(" ", _SPACE_MARK)


def words_per_token(text: str, chars: np.ndarray) -> np.ndarray:
    """Counts the whitespace words that start in each token.

    Args:
      text: what the tokens stand for.
      chars: int [n], characters of each token; they sum to len(text).
    """
    if not len(chars):
        return np.zeros(0, np.int64)
    starts = np.fromiter((m.start() for m in _WORD.finditer(text)), np.int64)
    # The first token that ends behind the character: skips tokens of no character.
    tokens = np.searchsorted(np.cumsum(chars), starts, side="right")
    return np.bincount(tokens, minlength=len(chars))


def _not_unicode(texts: Sequence[str]) -> UserError:
    bad = next((t for t in texts if any("\ud800" <= c <= "\udfff" for c in t)), "")
    return UserError(
        f"A text is not valid Unicode: {bad[:40]!r}.",
        remedy="give it as UTF-8 (a terminal set to another encoding causes this).",
    )
