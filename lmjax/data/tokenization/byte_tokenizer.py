"""A tokenizer of bytes: nothing to train, nothing to load."""

import hashlib
from collections.abc import Sequence

import numpy as np

from lmjax.data.tokenization.vocabulary import SpecialIds, Vocabulary, not_unicode

MODEL_BYTES = b"lmjax: one id per byte, behind 5 special ids\n"
_FIRST_BYTE = 5


class ByteTokenizer:
    """A `Tokenizer` in which byte b has id 5 + b."""

    def __init__(self):
        pieces = [b""] * _FIRST_BYTE + [bytes([byte]) for byte in range(256)]
        special = SpecialIds(unk=0, bos=1, eos=2, pad=3, mask=4)
        self._vocabulary = Vocabulary(pieces, special)
        self.vocab_size = self._vocabulary.size
        self.special = special
        self.lossless = True
        self.unpredictable = self._vocabulary.unpredictable(lossless=True)
        self.piece_bytes = self._vocabulary.pieces
        self.model_bytes = MODEL_BYTES
        self.identity = hashlib.sha256(MODEL_BYTES).hexdigest()

    def encode(self, text: str) -> list[int]:
        return self.encode_ids([text])[0].tolist()

    def encode_ids(self, texts: Sequence[str]) -> list[np.ndarray]:
        try:
            data = [text.encode() for text in texts]
        except UnicodeEncodeError:
            raise not_unicode(texts) from None
        return [np.frombuffer(d, np.uint8).astype(np.int32) + _FIRST_BYTE for d in data]

    def encode_aligned(self, text: str) -> tuple[np.ndarray, np.ndarray]:
        ids = self.encode_ids([text])[0]
        return ids, np.ones(len(ids), np.int64)

    def decode(self, ids: Sequence[int] | np.ndarray) -> str:
        return self._vocabulary.bytes_of(ids).decode("utf-8", "replace")
