"""Tokenizers of SentencePiece."""

import hashlib
from collections.abc import Sequence

import numpy as np
import sentencepiece

from lmjax.core.errors import UserError
from lmjax.data.tokenization.vocabulary import (
    Vocabulary,
    complete_special,
    find_special,
    keeps_text,
    not_unicode,
)

# SentencePiece writes a space as this character, and so reads it as a space.
_SPACE_MARK = "\u2581"
_NUM_THREADS = 2


class SentencePieceTokenizer:
    """A `Tokenizer` over a serialized SentencePiece model."""

    def __init__(self, model: bytes, *, where: str = "tokenizer.path"):
        """Raises UserError if the bytes are no model."""
        self._processor = sentencepiece.SentencePieceProcessor()
        try:
            self._processor.LoadFromSerializedProto(model)
            self._vocabulary = self._read_vocabulary()
        except (RuntimeError, UnicodeDecodeError, LookupError):
            raise UserError(
                "The tokenizer is not a SentencePiece model.",
                where=where,
                remedy="give a .model file written by SentencePiece, set "
                "tokenizer.kind to what the file is, or leave tokenizer.path empty to "
                "train one.",
            ) from None
        self.model_bytes = model
        self.identity = hashlib.sha256(model).hexdigest()
        self.vocab_size = self._vocabulary.size
        self.special = self._vocabulary.special
        self.piece_bytes = self._vocabulary.pieces
        # Its byte pieces spell what it reads as something else.
        self.lossless = False
        self.lossless = keeps_text(self._encode_spelling_marks, self._vocabulary)
        self.unpredictable = self._vocabulary.unpredictable(self.lossless)

    def encode(self, text: str) -> list[int]:
        return self.encode_ids([text])[0].tolist()

    def encode_ids(self, texts: Sequence[str]) -> list[np.ndarray]:
        ids = self._encode(texts)
        if self.lossless:
            for i, text in enumerate(texts):
                if _SPACE_MARK in text:
                    ids[i] = self._encode_spelling_marks(text)
        name = self._processor.id_to_piece if self.lossless else None
        return [self._vocabulary.spell_names(each, name) for each in ids]

    def encode_aligned(self, text: str) -> tuple[np.ndarray, np.ndarray]:
        if self.lossless:
            ids = self.encode_ids([text])[0]
            sizes = [len(self.piece_bytes[i]) for i in ids.tolist()]
            if sum(sizes) == len(text.encode()):
                return ids, np.array(sizes, np.int64)
        try:
            mapping = self._processor.encode(text, return_type="offset_mapping")
        except (RuntimeError, TypeError):
            raise not_unicode([text]) from None
        ids = np.array(mapping["ids"], np.int32)
        ends = np.array([end for _, end in mapping["offsets"]], np.int64)
        return self._vocabulary.align(
            text, self._vocabulary.spell_names(ids, None), ends
        )

    def decode(self, ids: Sequence[int] | np.ndarray) -> str:
        if self.lossless:
            return self._vocabulary.bytes_of(ids).decode("utf-8", "replace")
        return self._processor.decode(self._vocabulary.without_special(ids))

    def _encode(self, texts: Sequence[str]) -> list[np.ndarray]:
        try:
            return self._processor.encode(
                list(texts), return_type="numpy", num_threads=_NUM_THREADS
            )
        except (RuntimeError, TypeError):  # what it raises differs with the version
            raise not_unicode(texts) from None

    def _encode_spelling_marks(self, text: str) -> np.ndarray:
        """Encodes a text with U+2581 in it, each as its three byte pieces."""
        mark = np.array(self._vocabulary.spell(_SPACE_MARK), np.int32)
        first, *others = self._encode(text.split(_SPACE_MARK))
        return np.concatenate([first, *(x for each in others for x in (mark, each))])

    def _read_vocabulary(self) -> Vocabulary:
        processor = self._processor
        size = processor.get_piece_size()

        def find(name: str) -> int | None:
            index = processor.piece_to_id(name)
            return index if processor.id_to_piece(index) == name else None

        found = find_special(find)
        for role in ("unk", "bos", "eos", "pad"):
            index = getattr(processor, f"{role}_id")()
            if index >= 0:
                found[role] = index
        pieces, reserved = [], []
        for i in range(size):
            name = processor.id_to_piece(i)
            if processor.is_control(i) or processor.is_unknown(i):
                reserved.append(i)
                pieces.append(b"")
            elif processor.is_byte(i):
                pieces.append(bytes([int(name[1:-1], 16)]))
            else:
                pieces.append(name.replace(_SPACE_MARK, " ").encode())
        return Vocabulary(pieces, complete_special(found, size), reserved)
