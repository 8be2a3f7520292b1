"""Trains a tokenizer on a corpus."""

import dataclasses
import io
import random
import re
from collections.abc import Callable, Iterable, Iterator

import sentencepiece
from absl import logging

from lmjax.config.schema import TokenizerConfig, TokenizerKind
from lmjax.core.errors import ConfigError
from lmjax.data.tokenization.byte_tokenizer import MODEL_BYTES
from lmjax.data.tokenization.huggingface_tokenizer import tokenizers_library

# Part of what a trained tokenizer is cached under: raise it with any change here that
# changes what is trained.
TRAINER_VERSION = 2
MAX_CHARACTERS = 10_000_000  # of the corpus that is trained on
NUM_SPECIAL = 5
MIN_VOCAB_SIZE = NUM_SPECIAL + 256 + 1  # 256 byte pieces, and one to learn

_SPECIAL_NAMES = ("<unk>", "<s>", "</s>", "<pad>", "<mask>")  # ids 0 to 4
_MAX_LINE = 1000  # characters, at most 4 bytes each: SentencePiece skips above 4192
# SentencePiece reads U+2581 as a space and skips lines with U+2585.
_RESERVED = str.maketrans({"\u2581": " ", "\u2585": " ", "\0": " "})
# No merge reaches beyond one of these; the first that fits is taken.
_SPLIT = "|".join(
    (
        r"'(?i:s|t|d|m|re|ve|ll)",  # contractions
        r"[^\r\n\p{L}\p{N}]?\p{L}+",  # letters, with a blank or a sign before them
        r"\p{N}{1,3}",
        r" ?[^\s\p{L}\p{N}]+[\r\n]*",  # other signs, up to the next line
        r"\s*[\r\n]+",
        r"\s+(?!\S)",  # blanks, less the one that goes with the next word
        r"\s+",
    )
)
_MAX_PIECE = 64  # characters that bound a merge: rulers of dashes are not worth ids


def train_tokenizer(config: TokenizerConfig, texts: Iterable[str]) -> bytes:
    """Returns the `model_bytes` of a new tokenizer; the same for equal input.

    What it makes gives back every text (but with `nfkc`, which rewrites it): what has
    no piece of its own is spelled in bytes. Ids: unk 0, bos 1, eos 2, pad 3, mask 4. A
    long corpus is sampled down to about `MAX_CHARACTERS`.

    Raises:
      ConfigError: `vocab_size` is too small, or too large for this much text, or the
        kind is not one to train.
    """
    match config.kind:
        case TokenizerKind.SENTENCEPIECE:
            return _train_sentencepiece(config, texts)
        case TokenizerKind.HUGGINGFACE:
            return _train_huggingface(config, texts)
        case TokenizerKind.BYTES:
            return MODEL_BYTES
        case TokenizerKind.GPT2 | TokenizerKind.HUB:
            raise _not_trained(config)


def training_key(config: TokenizerConfig) -> dict[str, str | int | bool]:
    """Everything besides the text that shapes what `train_tokenizer` returns.

    Raises:
      ConfigError: the kind is not one to train.
    """
    key = {"trainer": TRAINER_VERSION, "kind": config.kind.value}
    match config.kind:
        case TokenizerKind.SENTENCEPIECE:
            return key | {
                "library": sentencepiece.__version__,
                "vocab_size": config.vocab_size,
                "model": config.model.value,
            }
        case TokenizerKind.HUGGINGFACE:
            return key | {
                "library": tokenizers_library().__version__,
                "vocab_size": config.vocab_size,
                "nfkc": config.nfkc,
                "min_frequency": config.min_frequency,
                "reserved": config.reserved,
            }
        case TokenizerKind.BYTES:
            return key
        case TokenizerKind.GPT2 | TokenizerKind.HUB:
            raise _not_trained(config)


def _train_sentencepiece(config: TokenizerConfig, texts: Iterable[str]) -> bytes:
    size = config.vocab_size
    if size < MIN_VOCAB_SIZE:
        raise _too_small(size, NUM_SPECIAL)
    texts = (text.translate(_RESERVED) for text in texts)
    sample = _sample(texts, _lines, MAX_CHARACTERS)
    logging.info("Training a tokenizer of %s ids on %s.", f"{size:,}", sample.say())
    model = io.BytesIO()
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(sample.pieces),
            model_writer=model,
            model_type=config.model.value,
            vocab_size=size,
            character_coverage=0.9995,  # rare characters are spelled in bytes
            byte_fallback=True,
            normalization_rule_name="identity",
            remove_extra_whitespaces=False,
            add_dummy_prefix=False,
            unk_id=0,
            bos_id=1,
            eos_id=2,
            pad_id=3,
            control_symbols=["<mask>"],
            input_sentence_size=0,  # sampled here already
            minloglevel=2,
        )
    except RuntimeError as error:
        raise _explain(size, sample.characters, str(error)) from error
    return model.getvalue()


def _train_huggingface(config: TokenizerConfig, texts: Iterable[str]) -> bytes:
    """Trains byte-level BPE."""
    size, num_special = config.vocab_size, NUM_SPECIAL + config.reserved
    if size < num_special + 256 + 1:
        raise _too_small(size, num_special)
    sample = _sample(texts, _paragraphs, MAX_CHARACTERS)
    logging.info("Training a tokenizer of %s ids on %s.", f"{size:,}", sample.say())
    library = tokenizers_library()
    before = library.pre_tokenizers
    tokenizer = library.Tokenizer(library.models.BPE())
    if config.nfkc:
        tokenizer.normalizer = library.normalizers.NFKC()
    tokenizer.pre_tokenizer = before.Sequence(
        [
            before.Split(library.Regex(_SPLIT), "isolated"),
            before.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = library.decoders.ByteLevel()
    reserved = [f"<special_{i}>" for i in range(config.reserved)]
    trainer = library.trainers.BpeTrainer(
        vocab_size=size,
        min_frequency=config.min_frequency,
        special_tokens=[*_SPECIAL_NAMES, *reserved],
        initial_alphabet=before.ByteLevel.alphabet(),
        max_token_length=_MAX_PIECE,
        show_progress=False,
    )
    tokenizer.train_from_iterator(sample.pieces, trainer)
    reached = tokenizer.get_vocab_size()
    if reached < size:
        raise _too_large(
            size, sample.characters, reached, "lower tokenizer.min_frequency, "
        )
    return tokenizer.to_str().encode()


def _lines(text: str) -> Iterator[str]:
    """Non-blank lines, long ones cut in front of a space."""
    for line in text.split("\n"):
        yield from _cut(line, lambda line, start, end: line.rfind(" ", start, end))


def _paragraphs(text: str) -> Iterator[str]:
    """A text cut behind line ends, or in front of a space."""

    def last_end(text: str, start: int, end: int) -> int:
        line_end = text.rfind("\n", start, end) + 1
        return line_end or text.rfind(" ", start, end)

    return _cut(text, last_end)


def _cut(text: str, find: Callable[[str, int, int], int]) -> Iterator[str]:
    """Pieces of at most _MAX_LINE characters; `find` may give a good end, or -1."""
    start = 0
    while len(text) - start > _MAX_LINE:
        end = find(text, start + 1, start + _MAX_LINE)
        end = end if end > start else start + _MAX_LINE
        yield text[start:end]
        start = end
    if start < len(text):
        yield text[start:]


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Sample:
    """Pieces of a corpus, and how much of it they are."""

    pieces: list[str]
    characters: int
    total_characters: int
    total_pieces: int
    num_cut: int  # lines that became several pieces

    def say(self) -> str:
        """Says what is trained on, and what is not."""
        return (
            f"{self.characters:,} of {self.total_characters:,} characters "
            f"({len(self.pieces):,} of {self.total_pieces:,} pieces of text, drawn "
            f"evenly; {self.num_cut:,} lines above {_MAX_LINE:,} characters were cut)"
        )


def _sample(
    texts: Iterable[str], split: Callable[[str], Iterator[str]], max_characters: int
) -> _Sample:
    """Draws pieces of texts evenly, in one pass."""
    draw = random.Random(0).random
    kept: list[tuple[float, str]] = []
    size, total, count, num_cut, share = 0, 0, 0, 0, 1.0
    for text in texts:
        num_cut += sum(len(line) > _MAX_LINE for line in text.split("\n"))
        for piece in split(text):
            total += len(piece)
            count += 1
            value = draw()
            if value >= share:
                continue
            kept.append((value, piece))
            size += len(piece)
            while size > max_characters:
                share *= 0.8
                kept = [item for item in kept if item[0] < share]
                size = sum(len(piece) for _, piece in kept)
    return _Sample(
        pieces=[piece for _, piece in kept],
        characters=size,
        total_characters=total,
        total_pieces=count,
        num_cut=num_cut,
    )


def _explain(vocab_size: int, characters: int, message: str) -> ConfigError:
    """Turns what SentencePiece says about the size into a ConfigError."""
    if found := re.search(r"value <= (\d+)", message):
        return _too_large(vocab_size, characters, int(found[1]))
    if found := re.search(r"smaller than required_chars\. \d+ vs (\d+)", message):
        return _wrong_size(
            f"{vocab_size} is too small: special ids, byte pieces and the characters "
            f"of this text are {found[1]} already",
            f"at least {found[1]}, better some thousand more",
        )
    return ConfigError(
        f"The tokenizer could not be trained: {message}", where="tokenizer"
    )


def _too_small(vocab_size: int, num_special: int) -> ConfigError:
    return _wrong_size(
        f"{vocab_size} is too small: {num_special} special ids and 256 bytes must fit",
        f"at least {num_special + 256 + 1}, better 1000 and more",
    )


def _too_large(
    vocab_size: int, characters: int, largest: int, other: str = ""
) -> ConfigError:
    return _wrong_size(
        f"{vocab_size} is too large: {characters:,} characters of text hold no more "
        f"than {largest} pieces",
        f"at most {largest}, {other}or give more text",
    )


def _wrong_size(what: str, size: str) -> ConfigError:
    return ConfigError(
        f"A vocabulary of {what}.",
        where="tokenizer.vocab_size",
        remedy=f"set tokenizer.vocab_size to {size}.",
    )


def _not_trained(config: TokenizerConfig) -> ConfigError:
    return ConfigError(
        f"A tokenizer of the kind {config.kind.value} is not trained.",
        where=f"tokenizer.kind = {config.kind.value}",
        remedy="set tokenizer.path, or train with tokenizer.kind=sentencepiece or "
        "huggingface.",
    )
