"""A trained tokenizer keeps text, is the same each time, and says what it can't be."""

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
from absl import logging

from lmjax.config.schema import SentencePieceModel, TokenizerConfig, TokenizerKind
from lmjax.core.errors import ConfigError
from lmjax.data.tokenization import training as tokenizer_training
from lmjax.data.tokenization.tokenizers import (
    SpecialIds,
    Tokenizer,
    tokenizer_from_bytes,
)
from lmjax.data.tokenization.training import train_tokenizer, training_key

pytest.importorskip("tokenizers")

TEXTS = [
    "the cat sat on the mat\nand the dog sat by the cat",
    "naïve cafés serve thé to the cats – and the dogs, too",
] * 20
BPE = TokenizerConfig(vocab_size=290)
UNIGRAM = TokenizerConfig(vocab_size=290, model=SentencePieceModel.UNIGRAM)
HUGGINGFACE = TokenizerConfig(kind=TokenizerKind.HUGGINGFACE, vocab_size=290)
BYTES = TokenizerConfig(kind=TokenizerKind.BYTES)
TRAINED = {"bpe": BPE, "unigram": UNIGRAM, "huggingface": HUGGINGFACE}
each_kind = pytest.mark.parametrize("config", TRAINED.values(), ids=TRAINED)


def _train(config: TokenizerConfig, texts: list[str], **changes: object) -> Tokenizer:
    config = dataclasses.replace(config, **changes)
    return tokenizer_from_bytes(train_tokenizer(config, texts))


def _pieces(tokenizer: Tokenizer, text: str) -> list[str]:
    return [tokenizer.piece_bytes[i].decode() for i in tokenizer.encode(text)]


@each_kind
def test_training_is_repeatable(config: TokenizerConfig) -> None:
    model = train_tokenizer(config, iter(TEXTS))
    assert train_tokenizer(config, TEXTS) == model
    assert train_tokenizer(config, [*TEXTS, *["zebra"] * 99]) != model


@each_kind
def test_training_is_silent(config: TokenizerConfig, capfd) -> None:
    train_tokenizer(config, TEXTS)
    said = capfd.readouterr()
    assert "trainer_interface" not in said.err
    assert not said.out


@each_kind
def test_ids_are_the_same_for_every_kind(config: TokenizerConfig) -> None:
    tokenizer = _train(config, TEXTS)
    assert tokenizer.special == SpecialIds(unk=0, bos=1, eos=2, pad=3, mask=4)
    assert tokenizer.vocab_size == 290
    assert tokenizer.lossless


@pytest.mark.parametrize("kind", [*TRAINED, "bytes"])
def test_every_source_of_a_real_corpus_survives(shared_data: Path, kind: str) -> None:
    files = sorted((shared_data / "corpus" / "babylm" / "train").glob("*.train"))
    assert len(files) == 6
    texts = [file.read_bytes()[:200_000].decode("utf-8", "ignore") for file in files]
    config = TRAINED.get(kind, BYTES)
    tokenizer = _train(config, [text[:50_000] for text in texts], vocab_size=1000)
    assert tokenizer.lossless
    for file, text in zip(files, texts, strict=True):
        ids = tokenizer.encode(text)
        assert tokenizer.decode(ids) == text, file.name
        assert kind == "bytes" or len(ids) < len(text) / 1.5


def test_bytes_need_no_training() -> None:
    def texts():
        raise AssertionError("was read")
        yield

    assert tokenizer_from_bytes(train_tokenizer(BYTES, texts())).vocab_size == 261


@pytest.mark.parametrize("kind", ["gpt2", "hub"])
def test_what_is_only_loaded_is_not_trained(kind: str) -> None:
    config = TokenizerConfig(kind=TokenizerKind(kind))
    for make in (training_key, lambda config: train_tokenizer(config, TEXTS)):
        with pytest.raises(ConfigError, match=f"kind {kind} is not trained") as caught:
            make(config)
        assert "tokenizer.path" in caught.value.remedy


@pytest.mark.parametrize("reserved", [0, 11])
def test_reserved_ids_follow_the_special_ones(reserved: int) -> None:
    tokenizer = _train(HUGGINGFACE, TEXTS, reserved=reserved)
    names = json.loads(tokenizer.model_bytes)["model"]["vocab"]
    first = sorted(names, key=names.get)[: 5 + reserved]
    expected = [f"<special_{i}>" for i in range(reserved)]
    assert first == ["<unk>", "<s>", "</s>", "<pad>", "<mask>", *expected]
    assert tokenizer.unpredictable == (1, 3, 4, *range(5, 5 + reserved))
    singles = [p for p in tokenizer.piece_bytes if len(p) == 1]
    assert len(singles) == len(set(singles)) == 256


def test_merges_stay_within_words_numbers_and_signs() -> None:
    text = "Y'LLX I'll see 12345 cats' tails, DON'T you?!\n\n  Hm -----\t\tx  \n" * 50
    tokenizer = _train(HUGGINGFACE, [text], vocab_size=311)
    expected = [
        "Y",
        "'LL",
        "X",
        " I",
        "'ll",
        " see",
        " ",
        "123",
        "45",
        " cats",
        "'",
        " tails",
        ",",
        " DON",
    ] + ["'T", " you", "?!\n\n", " ", " Hm", " -----", "\t", "\tx", "  \n"]
    assert _pieces(tokenizer, text) == expected * 50


def test_normalising_is_a_choice() -> None:
    plain = _train(HUGGINGFACE, TEXTS)
    nfkc = _train(HUGGINGFACE, TEXTS, nfkc=True)
    assert plain.decode(plain.encode("ﬁne Å")) == "ﬁne Å"
    assert nfkc.decode(nfkc.encode("ﬁne Å")) == "fine Å"
    assert not nfkc.lossless


def test_rare_merges_are_left_out() -> None:
    texts = ["abc abc abc", "xyz"]
    tokenizer = _train(HUGGINGFACE, texts, vocab_size=274, min_frequency=3, reserved=11)
    expected = ["abc", " ", "abc", " ", "x", "y", "z"]  # " abc" is there only twice
    assert _pieces(tokenizer, "abc abc xyz") == expected
    assert _train(HUGGINGFACE, texts, vocab_size=275).vocab_size == 275
    with pytest.raises(ConfigError, match="no more than 274") as caught:
        _train(HUGGINGFACE, texts, vocab_size=275, min_frequency=3)
    assert "tokenizer.min_frequency" in caught.value.remedy


def test_no_piece_is_a_ruler() -> None:
    text = ["=" * 900]
    tokenizer = _train(HUGGINGFACE, text, vocab_size=261 + 5, reserved=0)
    assert max(map(len, tokenizer.piece_bytes)) == 2**5
    with pytest.raises(ConfigError, match="no more than 266"):
        _train(HUGGINGFACE, text, vocab_size=261 + 6, reserved=0)


@each_kind
def test_long_lines_are_trained_on(config: TokenizerConfig) -> None:
    line = " ".join(["extraordinary"] * 1000)  # skipped by SentencePiece by itself
    size = 285 if config is BPE else 274
    tokenizer = _train(config, [line], vocab_size=size, reserved=0)
    assert len(tokenizer.encode(" extraordinary")) <= 2


def test_text_is_cut_at_good_places() -> None:
    text = "a" * 10 + " " + "b" * 985 + " ccc ddd\n" + "e" * 2500 + "\n\n"
    lines = list(tokenizer_training._lines(text))
    assert "".join(lines) == text.replace("\n", "")
    assert [len(line) for line in lines] == [996, 8, 1000, 1000, 500]
    assert lines[1] == " ccc ddd"
    paragraphs = list(tokenizer_training._paragraphs(text))
    assert "".join(paragraphs) == text
    assert [len(piece) for piece in paragraphs] == [996, 9, 1000, 1000, 502]
    assert list(tokenizer_training._paragraphs("a\nb")) == ["a\nb"]
    assert not list(tokenizer_training._paragraphs(""))


def test_a_large_corpus_is_sampled_evenly() -> None:
    def sample() -> tokenizer_training._Sample:
        texts = ("\n".join(f"{i:05d}" for i in range(j, j + 50)) for j in starts)
        return tokenizer_training._sample(texts, tokenizer_training._lines, 10_000)

    starts = range(0, 100_000, 50)
    found = sample()
    assert found.total_characters == 500_000
    assert found.total_pieces == 100_000
    assert found.num_cut == 0
    assert found.characters == 5 * len(found.pieces)
    assert 7_000 < found.characters <= 10_000
    numbers = np.array(found.pieces, int)
    assert (np.diff(numbers) > 0).all()
    assert 45_000 < numbers.mean() < 55_000
    assert sample() == found


@pytest.mark.parametrize("config", [BPE, HUGGINGFACE], ids=["bpe", "huggingface"])
def test_what_is_left_out_is_told(config: TokenizerConfig, monkeypatch) -> None:
    said: list[str] = []
    monkeypatch.setattr(logging, "info", lambda text, *args: said.append(text % args))
    monkeypatch.setattr(tokenizer_training, "MAX_CHARACTERS", 1500)
    train_tokenizer(
        dataclasses.replace(config, vocab_size=283),
        ["the cat and the dog " * 60, *TEXTS],
    )
    assert len(said) == 1
    total = sum(map(len, TEXTS)) + 1200
    total -= 20 if config is BPE else 0  # its line ends are no text
    assert f" of {total:,} characters" in said[0]
    assert "1 lines above 1,000 characters were cut" in said[0]


@each_kind
def test_the_largest_possible_vocabulary_is_named(config: TokenizerConfig) -> None:
    with pytest.raises(ConfigError, match="too large") as caught:
        _train(config, TEXTS, vocab_size=10_000)
    assert caught.value.where == "tokenizer.vocab_size"
    largest = int(caught.value.remedy.split("at most ")[1].split(",")[0])
    assert 290 <= largest < 500
    assert _train(config, TEXTS, vocab_size=largest).vocab_size == largest


@pytest.mark.parametrize("size", [0, 261, 264])
def test_too_small_a_vocabulary_is_an_error(size: int) -> None:
    with pytest.raises(ConfigError, match="too small") as caught:
        _train(BPE, TEXTS, vocab_size=size)
    assert caught.value.where == "tokenizer.vocab_size"
    with pytest.raises(ConfigError, match="16 special ids") as caught:
        _train(HUGGINGFACE, TEXTS, vocab_size=272)
    assert "at least 273" in caught.value.remedy


def test_the_key_holds_what_shapes_the_result() -> None:
    """A field of which the key knows nothing must not change what is trained."""
    fields = {"trainer", "kind", "library", "vocab_size"}
    assert set(training_key(BPE)) == fields | {"model"}
    assert set(training_key(HUGGINGFACE)) == fields | {
        "nfkc",
        "min_frequency",
        "reserved",
    }
    changes = {
        "kind": TokenizerKind.HUGGINGFACE,
        "path": "x",
        "vocab_size": 284,
        "model": SentencePieceModel.UNIGRAM,
        "nfkc": True,
        "min_frequency": 3,
        "reserved": 3,
    }
    assert set(changes) == {f.name for f in dataclasses.fields(TokenizerConfig)}
    for config in (BPE, HUGGINGFACE):
        key, model = training_key(config), train_tokenizer(config, TEXTS)
        assert json.loads(json.dumps(key)) == key
        for name, value in changes.items():
            if getattr(config, name) == value:
                continue
            changed = dataclasses.replace(config, **{name: value})
            if training_key(changed) == key:
                assert train_tokenizer(changed, TEXTS) == model, name


def test_the_key_changes_with_the_library(monkeypatch) -> None:
    keys = [training_key(BPE), training_key(HUGGINGFACE)]
    for module in ("sentencepiece", "tokenizers"):
        monkeypatch.setattr(f"{module}.__version__", "0.0")
    changed = [training_key(BPE), training_key(HUGGINGFACE)]
    assert all(a != b for a, b in zip(keys, changed, strict=True))
