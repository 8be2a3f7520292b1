"""Text <-> token ids: what a tokenizer is, and where one comes from."""

from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

import numpy as np

from lmjax.config.schema import TokenizerConfig, TokenizerKind
from lmjax.core.errors import ConfigError, UserError
from lmjax.data.tokenization import byte_tokenizer, huggingface_tokenizer
from lmjax.data.tokenization.byte_tokenizer import ByteTokenizer
from lmjax.data.tokenization.huggingface_tokenizer import HuggingFaceTokenizer
from lmjax.data.tokenization.sentencepiece_tokenizer import SentencePieceTokenizer
from lmjax.data.tokenization.vocabulary import SpecialIds


class Tokenizer(Protocol):
    """Everything the rest of lmjax knows about a tokenizer.

    Text is data: whatever it spells, it is never encoded as a special id but unk.
    Encoding raises UserError for a text that is no valid Unicode.

    Attributes:
      vocab_size: number of ids, those appended to the vocabulary included.
      special: the special ids, all distinct; where the vocabulary lacks one, it is
        appended behind it.
      unpredictable: ids a model never predicts, in order.
      lossless: whether the pieces of an encoded text join to this text, whatever it is.
      piece_bytes: UTF-8 of each id, b"" for special ids. An id may stand for a part
        of a character.
      model_bytes: what `tokenizer_from_bytes` makes it from.
      identity: SHA-256 of `model_bytes`, in hex.
    """

    vocab_size: int
    special: SpecialIds
    unpredictable: tuple[int, ...]
    lossless: bool
    piece_bytes: Sequence[bytes]
    model_bytes: bytes
    identity: str

    def encode(self, text: str) -> list[int]: ...

    def encode_ids(self, texts: Sequence[str]) -> list[np.ndarray]:
        """Encodes texts, int32 [n] each."""
        ...

    def encode_aligned(self, text: str) -> tuple[np.ndarray, np.ndarray]:
        """Encodes a text, and tells where each id was read.

        A text of which nothing is left is one unk.

        Returns:
          int32 [n] ids, and int64 [n] bytes of `text` that each stands for, which sum
          to those of `text`. A character of several ids belongs to the first.
        """
        ...

    def decode(self, ids: Sequence[int] | np.ndarray) -> str:
        """Joins the pieces; special ids vanish, broken UTF-8 becomes U+FFFD."""
        ...


def load_tokenizer(config: TokenizerConfig) -> Tokenizer:
    """Makes the tokenizer that the config names.

    Raises:
      ConfigError: it names none.
      UserError: what it names is missing, or not what it should be.
    """
    if config.kind is not TokenizerKind.BYTES and not config.path:
        raise ConfigError(
            "No tokenizer is given.",
            where=f"tokenizer.kind = {config.kind.value}",
            remedy="set tokenizer.path.",
        )
    where = f"tokenizer.path = {config.path!r}"
    try:
        match config.kind:
            case TokenizerKind.SENTENCEPIECE:
                model = Path(config.path).expanduser().read_bytes()
                return SentencePieceTokenizer(model, where=where)
            case TokenizerKind.HUGGINGFACE:
                model = huggingface_tokenizer.read_tokenizer_json(config.path)
            case TokenizerKind.GPT2:
                model = huggingface_tokenizer.build_gpt2(config.path, where)
            case TokenizerKind.HUB:
                model = huggingface_tokenizer.download(config.path, where)
            case TokenizerKind.BYTES:
                return ByteTokenizer()
    except OSError as error:
        missing = f": {error.filename}" if error.filename else ""
        raise UserError(
            f"The tokenizer can't be read: {error.strerror or error}{missing}.",
            where=where,
            remedy="correct tokenizer.path or tokenizer.kind, or leave tokenizer.path "
            "empty to train a tokenizer.",
        ) from error
    return HuggingFaceTokenizer(model, where=where)


def tokenizer_from_bytes(model: bytes, where: str = "tokenizer.model") -> Tokenizer:
    """Makes a tokenizer from its `model_bytes`.

    Raises:
      UserError: they are those of no tokenizer; `where` says where they come from.
    """
    if model == byte_tokenizer.MODEL_BYTES:
        return ByteTokenizer()
    if model.lstrip().startswith(b"{"):
        return HuggingFaceTokenizer(model, where=where)
    return SentencePieceTokenizer(model, where=where)
