"""A corpus that is not there: its size and its tokenizer assumed, for planning."""

import dataclasses
import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from lmjax.config.schema import DataConfig, TokenizerConfig, TokenizerKind
from lmjax.data.preparation.manifest import Prepared, Records, Split
from lmjax.data.preparation.packing import RecordLayout
from lmjax.data.preparation.shards import Counts, Shard
from lmjax.data.tokenization.tokenizers import Tokenizer, load_tokenizer
from lmjax.data.tokenization.vocabulary import SpecialIds

WORDS = 100_000_000  # of training text, where the config sets no limit
_SPECIAL = SpecialIds(unk=0, bos=1, eos=2, pad=3, mask=4)
BYTES_PER_WORD = 5.5  # of English, the blank included
TOKENS_PER_WORD = 1.4  # of 16,384 ids or about as many


@dataclasses.dataclass(frozen=True)
class AssumedTokenizer:
    """As many ids as a trained tokenizer would have; it reads and writes nothing."""

    vocab_size: int
    special: SpecialIds = _SPECIAL
    lossless: bool = False
    model_bytes: bytes = b""
    identity: str = ""

    @property
    def unpredictable(self) -> tuple[int, ...]:
        return (self.special.bos, self.special.pad, self.special.mask)

    @property
    def piece_bytes(self) -> Sequence[bytes]:
        return (b"",) * self.vocab_size

    def encode(self, text: str) -> list[int]:
        raise NotImplementedError("there is no vocabulary")

    def encode_ids(self, texts: Sequence[str]) -> list[np.ndarray]:
        raise NotImplementedError("there is no vocabulary")

    def encode_aligned(self, text: str) -> tuple[np.ndarray, np.ndarray]:
        raise NotImplementedError("there is no vocabulary")

    def decode(self, ids: Sequence[int] | np.ndarray) -> str:
        raise NotImplementedError("there is no vocabulary")


def assume_corpus(data: DataConfig, tokenizer: TokenizerConfig) -> Prepared:
    """One source of `data.max_words` or `WORDS` words.

    A tokenizer that the config names is read.

    Raises:
      UserError: the tokenizer that is named cannot be read.
    """
    words, per_word = data.max_words or WORDS, TOKENS_PER_WORD
    if tokenizer.kind is TokenizerKind.BYTES:
        per_word = BYTES_PER_WORD
    found: Tokenizer = AssumedTokenizer(tokenizer.vocab_size)
    if tokenizer.path or tokenizer.kind is TokenizerKind.BYTES:
        found = load_tokenizer(tokenizer)
    tokens = round(words * per_word)
    counts = Counts(
        words=words,
        bytes=round(words * BYTES_PER_WORD),
        tokens=tokens,
        windows=math.ceil(tokens / data.sequence_length),
    )
    shard = Shard(file="", bytes=0, sha256="", counts=counts)
    return Prepared(
        folder=Path(),
        sha256="",
        tokenizer=found,
        layout=RecordLayout(
            length=data.sequence_length, token_dtype="<u4", count_dtype="<u4"
        ),
        sources=("assumed",),
        train=Split(records=(Records(source="assumed", shards=(shard,)),)),
        valid=Split(records=()),
        statistics={},
    )
