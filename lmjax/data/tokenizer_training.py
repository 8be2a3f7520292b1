"""Trains a SentencePiece tokenizer on a corpus."""

import io
import random
import re
from collections.abc import Iterable, Iterator

import sentencepiece
from absl import logging

from lmjax.core.errors import ConfigError

# Part of the name under which a trained tokenizer is cached: raise it with any
# change here that changes what is trained.
TRAINER_VERSION = f"1-sentencepiece-{sentencepiece.__version__}"
MAX_CHARACTERS = 10_000_000  # of the corpus that is trained on
NUM_SPECIAL = 5
MIN_VOCAB_SIZE = NUM_SPECIAL + 256 + 1  # 256 byte pieces, and one to learn

_MAX_LINE = 1000  # characters, at most 4 bytes each: SentencePiece skips above 4192
# SentencePiece reads U+2581 as a space and skips lines with U+2585.
_RESERVED = str.maketrans({"\u2581": " ", "\u2585": " ", "\0": " "})


def train_sentencepiece(texts: Iterable[str], vocab_size: int) -> bytes:
    """Returns a serialized byte-level-complete BPE model; the same for equal input.

    Text is not normalised, and what has no piece of its own is spelled in byte
    pieces, so that decoding gives back every text. Ids: unk 0, bos 1, eos 2,
    pad 3, mask 4. A long corpus is sampled down to about `MAX_CHARACTERS`.

    Raises:
      ConfigError: `vocab_size` is too small, or too large for this much text.
    """
    if vocab_size < MIN_VOCAB_SIZE:
        raise _wrong_size(
            f"{vocab_size} is too small: {NUM_SPECIAL} special ids and 256 byte pieces "
            "must fit",
            f"at least {MIN_VOCAB_SIZE}, better 1000 and more",
        )
    lines, total = _sample(_split_lines(texts), MAX_CHARACTERS)
    used = sum(map(len, lines))
    logging.info(
        "Training a tokenizer of %s ids on %s of %s characters.",
        f"{vocab_size:,}",
        f"{used:,}",
        f"{total:,}",
    )
    model = io.BytesIO()
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(lines),
            model_writer=model,
            model_type="bpe",
            vocab_size=vocab_size,
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
        raise _explain(vocab_size, used, str(error)) from error
    return model.getvalue()


def _split_lines(texts: Iterable[str]) -> Iterator[str]:
    """Yields non-blank lines, long ones cut in front of a space."""
    for text in texts:
        for line in text.translate(_RESERVED).split("\n"):
            while len(line) > _MAX_LINE:
                cut = line.rfind(" ", 1, _MAX_LINE)
                cut = cut if cut > 0 else _MAX_LINE
                yield line[:cut]
                line = line[cut:]
            if line:
                yield line


def _sample(lines: Iterable[str], max_characters: int) -> tuple[list[str], int]:
    """Draws lines evenly, in one pass; returns them and the characters seen."""
    draw = random.Random(0).random
    kept: list[tuple[float, str]] = []
    size, total, share = 0, 0, 1.0
    for line in lines:
        total += len(line)
        value = draw()
        if value >= share:
            continue
        kept.append((value, line))
        size += len(line)
        while size > max_characters:
            share *= 0.8
            kept = [item for item in kept if item[0] < share]
            size = sum(len(line) for _, line in kept)
    return [line for _, line in kept], total


def _explain(vocab_size: int, characters: int, message: str) -> ConfigError:
    """Turns what SentencePiece says about the size into a ConfigError."""
    if found := re.search(r"value <= (\d+)", message):
        return _wrong_size(
            f"{vocab_size} is too large: {characters:,} characters of text hold "
            f"no more than {found[1]} pieces",
            f"at most {found[1]}, or give more text",
        )
    if found := re.search(r"smaller than required_chars\. \d+ vs (\d+)", message):
        return _wrong_size(
            f"{vocab_size} is too small: special ids, byte pieces and the characters "
            f"of this text are {found[1]} already",
            f"at least {found[1]}, better some thousand more",
        )
    return ConfigError(
        f"The tokenizer could not be trained: {message}", where="tokenizer"
    )


def _wrong_size(what: str, size: str) -> ConfigError:
    return ConfigError(
        f"A vocabulary of {what}.",
        where="tokenizer.vocab_size",
        remedy=f"set tokenizer.vocab_size to {size}.",
    )
