"""What is asked for a word after a text, against the official procedure."""

import json
import math
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tokenizers
from tokenizers import decoders, models, pre_tokenizers, trainers

from lmjax.config.schema import (
    EvaluateConfig,
    LongItems,
    TokenizerConfig,
    TokenizerKind,
    ZeroShotBackend,
)
from lmjax.core.errors import ConfigError, UserError
from lmjax.data.tokenization.huggingface_tokenizer import HuggingFaceTokenizer
from lmjax.data.tokenization.tokenizers import load_tokenizer
from lmjax.evaluate.human.next_word import NextWord, build_next_word, surprisals
from lmjax.evaluate.probes import Probe
from lmjax.evaluate.zero_shot.backends import noise_level

BOS, MASK = 1, 2
TEXTS = (
    ("The king", "placed"),
    ("The", "counter"),
    ("The king placed the cup on the", "unbelievable"),
    ("You're", "naïve,"),
    ("A", "a"),
)


class Pieces:
    """Cuts a text into the longest of a few pieces, from the left."""

    NAMES = ("", "<s>", "<mask>", "the", " the", " cat", "c", "a", "t", " s", "at", " ")

    def encode(self, text: str) -> list[int]:
        ids = []
        while text:
            fits = [name for name in self.NAMES[3:] if text.startswith(name)]
            ids.append(self.NAMES.index(max(fits, key=len)))
            text = text[len(self.NAMES[ids[-1]]) :]
        return ids

    def decode(self, ids: Sequence[int]) -> str:
        return "".join(self.NAMES[i] for i in ids)


def _asker(tokenizer: Any, backend: str = "causal", **changes: Any) -> NextWord:
    fields: dict[str, Any] = {
        "causal": {},
        "mlm": dict(mask_id=MASK, timed=True),
        "mlm_untimed": dict(mask_id=MASK),
        "mntp": dict(mask_id=MASK, shift=1, timed=True),
    }[backend]
    fixed = dict(backend=backend, tokenizer=tokenizer, opening=(BOS,), max_length=64)
    return NextWord(**fixed | fields | changes)


def _plain(probes: Sequence[Probe]) -> list[tuple[list[int], list[int], list[int]]]:
    return [(list(p.inputs), list(p.places), list(p.targets)) for p in probes]


def test_word_loses_the_space_before_it_and_is_read_id_by_id() -> None:
    """`the` + ` cat`: the word is c, at; then its letters meet the text: thec, thecat.

    The word is encoded without the space that the sentence has, as officially.
    """
    found = _asker(Pieces())("the", "cat")
    assert Pieces().encode("cat") == [6, 10]
    assert _plain(found) == [([BOS, 3], [1], [6]), ([BOS, 3, 6], [2], [10])]
    spaced = _asker(Pieces())("the", " cat")
    assert _plain(spaced) == [([BOS, 3], [1], [5])]


def test_what_was_read_is_encoded_again_with_the_text() -> None:
    """` s` is no beginning of a piece, but `c` + `at` meet in `cat` after a space."""
    found = _asker(Pieces())(" ", "cat")
    assert _plain(found)[0] == ([BOS, 11], [1], [6])
    # " " and "c" are read as two pieces still; with "at" they would be one.
    assert _plain(found)[1] == ([BOS, 11, 6], [2], [10])
    joined = _asker(Pieces())("", "the")
    assert _plain(joined) == [([BOS], [0], [3])]
    merged = _asker(Pieces())("c", "at")
    assert _plain(merged) == [([BOS, 6], [1], [10])]
    again = _asker(Pieces())(" c", "atthe")
    # "at" is read after " ", "c"; then the text is " cat", a single piece.
    assert _plain(again) == [([BOS, 11, 6], [2], [10]), ([BOS, 5], [1], [3])]


def test_masked_models_see_three_masks_and_mntp_predicts_one_place_earlier() -> None:
    masks = [MASK] * 3
    mlm = _asker(Pieces(), "mlm")("the", "cat")
    assert _plain(mlm) == [
        ([BOS, 3, *masks], [2], [6]),
        ([BOS, 3, 6, *masks], [3], [10]),
    ]
    assert [probe.sigma for probe in mlm] == [noise_level(3, 5), noise_level(3, 6)]
    assert mlm[0].sigma == pytest.approx(-math.log(1 - 3 / 5), rel=1e-6)
    mntp = _asker(Pieces(), "mntp")("the", "cat")
    assert [list(p.places) for p in mntp] == [[1], [2]]
    assert [list(p.inputs) for p in mntp] == [list(p.inputs) for p in mlm]
    untimed = _asker(Pieces(), "mlm_untimed")("the", "cat")
    assert [probe.sigma for probe in untimed] == [0.0, 0.0]


def test_surprisal_of_a_word_is_the_sum_over_its_ids() -> None:
    def ask(params: Any, probes: Sequence[Probe]) -> list[np.ndarray]:
        assert params == "weights"
        return [np.array([-nats[i] for i in p.targets], np.float32) for p in probes]

    nats = {6: 2.5, 10: 0.25, 5: 7.0}

    asker = _asker(Pieces())
    words = [asker("the", "cat"), asker("the", " cat"), asker("the", "c")]
    assert surprisals(ask, "weights", words).tolist() == [2.75, 7.0, 2.5]


def test_text_that_is_too_long_is_refused_or_loses_its_beginning() -> None:
    text = "the the the the"  # 4 ids
    with pytest.raises(UserError, match="4 tokens is longer than the 3"):
        _asker(Pieces(), max_length=4)(text, " cat")
    short = _asker(Pieces(), max_length=4, shorten=True)(text, " cat")
    assert _plain(short) == [([BOS, 4, 4, 4], [3], [5])]
    masked = _asker(Pieces(), "mlm", max_length=6, shorten=True)(text, " cat")
    assert _plain(masked) == [([BOS, 4, 4, MASK, MASK, MASK], [3], [5])]
    with pytest.raises(UserError, match="longer than the 0"):
        _asker(Pieces(), "mlm", max_length=4, shorten=True)(text, " cat")


def test_word_with_nothing_before_it_is_refused() -> None:
    with pytest.raises(UserError, match="Nothing stands before"):
        _asker(Pieces(), opening=())("", "cat")
    with pytest.raises(UserError, match="Nothing stands before"):
        _asker(Pieces(), "mntp", opening=())("", "cat")
    assert _asker(Pieces(), "mlm", opening=())("", "cat")


def _next_word(backend: str, causal: bool, **fields: Any) -> NextWord:
    return build_next_word(
        EvaluateConfig(backend=ZeroShotBackend(backend), **fields),
        Pieces(),
        opening=[BOS],
        max_length=32,
        causal=causal,
        mask_id=MASK,
    )


def test_the_config_says_how_words_are_asked_for() -> None:
    assert _next_word("auto", True).backend == "causal"
    assert _next_word("auto", True).mask_id is None
    assert _next_word("auto", False).backend == "mlm"
    assert (_next_word("auto", False).mask_id, _next_word("mlm", False).shift) == (2, 0)
    assert [_next_word(n, False).timed for n in ("mlm", "chain", "mlm_untimed")] == [
        True,
        True,
        False,
    ]
    assert _next_word("mntp", False).shift == 1
    assert not _next_word("mlm", False).shorten
    assert _next_word("mlm", False, long_items=LongItems.TRUNCATE).shorten
    with pytest.raises(ConfigError, match="not a bound"):
        _next_word("elbo", False)
    with pytest.raises(ConfigError):
        _next_word("mlm", True)


# The official procedure, with Hugging Face's library and a model of one's own.


def _law(row: Sequence[int], place: int, size: int) -> np.ndarray:
    """log p of a model that looks at its whole row, float64 [size]."""
    seed = zlib.crc32(np.array([*row, place], np.int64).tobytes())
    logits = np.random.default_rng(seed).normal(size=size)
    return logits - np.log(np.exp(logits).sum())


def _official(library: Any, context: str, word: str, backend: str) -> float:
    """Surprisal of a word, read as the evaluation pipeline reads it."""
    size = library.get_vocab_size()

    def ids(text: str) -> list[int]:
        return library.encode(text, add_special_tokens=False).ids

    def following(text: str) -> np.ndarray:
        row = [BOS, *ids(text)]
        if backend == "causal":
            return _law(row, len(row) - 1, size)
        row += [MASK] * 3
        return _law(row, len(row) - 3 - (backend == "mntp"), size)

    target = ids(word)
    total = following(context)[target[0]]
    text = context + library.decode([target[0]], skip_special_tokens=False)
    for token in target[1:]:
        piece = library.decode([token], skip_special_tokens=False)
        total += following(text)[ids(piece)[0]]
        text += piece
    return -total


def _ask(size: int) -> Any:
    def ask(params: Any, probes: Sequence[Probe]) -> list[np.ndarray]:
        del params
        return [
            np.array(
                [
                    _law(list(p.inputs), int(place), size)[target]
                    for place, target in zip(p.places, p.targets, strict=True)
                ]
            )
            for p in probes
        ]

    return ask


def _trained(add_prefix_space: bool) -> tokenizers.Tokenizer:
    library = tokenizers.Tokenizer(models.BPE())
    library.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=add_prefix_space)
    library.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=330,
        special_tokens=["<pad>", "<s>", "<mask>", "</s>", "<unk>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    library.train_from_iterator([" ".join(t) for t in TEXTS] * 20, trainer)
    return library


def _agrees(tokenizer: Any, library: Any, texts: Sequence[tuple[str, str]]) -> None:
    ask = _ask(library.get_vocab_size())
    for backend in ("causal", "mlm", "mntp"):
        asker = _asker(tokenizer, backend, max_length=512)
        found = surprisals(ask, None, [asker(*text) for text in texts])
        expected = [_official(library, *text, backend) for text in texts]
        np.testing.assert_allclose(found, expected, rtol=1e-12)


@pytest.mark.parametrize("add_prefix_space", [False, True])
def test_words_are_read_as_officially(add_prefix_space: bool) -> None:
    library = _trained(add_prefix_space)
    tokenizer = HuggingFaceTokenizer(library.to_str().encode(), where="test")
    assert tokenizer.special.bos == BOS
    assert tokenizer.special.mask == MASK
    _agrees(tokenizer, library, TEXTS)


@pytest.mark.parametrize("name", ["gptbert-10M-8192.json", "gpt2"])
def test_words_of_the_corpus_are_read_as_officially_by_real_tokenizers(
    name: str, shared_data: Path
) -> None:
    path = shared_data / "tokenizers" / name
    kind = TokenizerKind.GPT2 if path.is_dir() else TokenizerKind.HUGGINGFACE
    tokenizer = load_tokenizer(TokenizerConfig(kind=kind, path=str(path)))
    library = tokenizers.Tokenizer.from_str(tokenizer.model_bytes.decode())
    contexts = json.loads((shared_data / "eval/aoa/cdi_childes.json").read_bytes())
    texts = [
        (entries[0]["context"], word + "izing")
        for word, entries in contexts.items()
        if entries
    ]
    _agrees(tokenizer, library, texts[::25])
