"""A trained tokenizer gives back any text, and counts its words and bytes."""

import io
import sys

import numpy as np
import pytest
import sentencepiece
from hypothesis import given, settings
from hypothesis import strategies as st

from lmjax.core.errors import ConfigError, UserError
from lmjax.data import tokenizer_training
from lmjax.data.tokenizer_training import train_sentencepiece
from lmjax.data.tokenizers import (
    SentencePieceTokenizer,
    SpecialIds,
    load_tokenizer,
    words_per_token,
)

REPEATABLE = settings(derandomize=True, deadline=None)
TEXTS = [
    "the cat sat on the mat\nand the dog sat by the cat",
    "naïve cafés serve thé to the cats – and the dogs, too",
] * 20


@pytest.fixture(scope="module")
def tokenizer() -> SentencePieceTokenizer:
    return SentencePieceTokenizer(train_sentencepiece(TEXTS, 300))


def _train_elsewhere(**options) -> bytes:
    """A model as spm_train writes it by default: it rewrites text."""
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter("\n".join(TEXTS).split("\n")),
        model_writer=model,
        vocab_size=60,
        hard_vocab_limit=False,
        minloglevel=2,
        **options,
    )
    return model.getvalue()


@pytest.fixture(scope="module")
def foreign() -> SentencePieceTokenizer:
    options = {"pad_id": 3, "user_defined_symbols": ["[MASK]"]}
    return SentencePieceTokenizer(_train_elsewhere(**options))


@REPEATABLE
@given(st.text(st.characters(exclude_categories=["Cs"])))
def test_any_text_survives(tokenizer, text):
    assert tokenizer.decode(tokenizer.encode(text)) == text


@REPEATABLE
@given(st.text(st.sampled_from("\u2581 ▁a\né<>/s\x00\r\t\u2585\ufeff")))
def test_traps_survive(tokenizer, text):
    assert tokenizer.decode(tokenizer.encode(text)) == text


@pytest.mark.parametrize("text", ["<s>", "</s> <mask><pad>", "<unk>", "<0x41>", ""])
def test_names_of_special_pieces_are_plain_text(tokenizer, text):
    ids = tokenizer.encode(text)
    assert tokenizer.decode(ids) == text
    assert not set(ids) & {0, 1, 2, 3, 4}


def test_every_character_survives(tokenizer):
    points = [c for c in range(sys.maxunicode + 1) if not 0xD800 <= c < 0xE000]
    text = "".join(map(chr, points))
    for start in range(0, len(text), 20_000):
        part = text[start : start + 20_000]
        assert tokenizer.decode(tokenizer.encode(part)) == part


@REPEATABLE
@given(st.text(st.sampled_from("the cat sé語\n\u2581\u3000\x1c😀")))
def test_words_and_bytes_are_those_of_the_text(tokenizer, foreign, text):
    for each in (tokenizer, foreign):
        tokens, words, num_bytes = each.encode_batch([text])[0]
        assert tokens.tolist() == each.encode(text)
        if len(tokens):  # the foreign one drops a text of spaces
            assert words.sum() == len(text.split())
            assert num_bytes.sum() == len(text.encode())


def test_a_batch_is_its_texts(tokenizer):
    texts = ["the cat", "", "a\u2581b", "the dog"]
    for text, encoding in zip(texts, tokenizer.encode_batch(texts), strict=True):
        assert encoding.tokens.tolist() == tokenizer.encode(text)


def test_a_word_counts_where_its_first_character_is():
    # "ab |c|d e|é (2 bytes)|" with a second token that is only part of a word.
    text = "ab cd eé  f"
    chars = np.array([3, 1, 1, 2, 1, 0, 2, 1])
    assert words_per_token(text, chars).tolist() == [1, 1, 0, 1, 0, 0, 0, 1]
    assert words_per_token("é a", np.array([1, 0, 2])).tolist() == [1, 0, 1]


def test_ids_and_lengths_of_special_and_byte_pieces(tokenizer):
    assert tokenizer.special == SpecialIds(unk=0, bos=1, eos=2, pad=3, mask=4)
    assert tokenizer.unpredictable == (1, 3, 4)
    assert tokenizer.lossless
    assert tokenizer.vocab_size == 300
    chars, num_bytes = tokenizer.piece_lengths
    assert not chars[:5].any() and not num_bytes[:5].any()
    first_byte = 5
    assert num_bytes[first_byte : first_byte + 256].tolist() == [1] * 256
    assert chars[first_byte : first_byte + 256].tolist() == (
        [1] * 0x80 + [0] * 0x40 + [1] * 0x40
    )
    for text in (" the", "é"):
        ids = tokenizer.encode(text)
        assert chars[ids].sum() == len(text)
        assert num_bytes[ids].sum() == len(text.encode())


def test_the_identity_is_that_of_the_model(tokenizer, foreign):
    again = SentencePieceTokenizer(tokenizer.model_bytes)
    assert again.identity == tokenizer.identity != foreign.identity
    assert len(again.identity) == 64


def test_broken_unicode_is_explained(tokenizer):
    with pytest.raises(UserError, match="not valid Unicode"):
        tokenizer.encode("a\udc80")


def test_a_model_that_rewrites_text_is_recognised(foreign):
    assert not foreign.lossless
    assert foreign.special.mask == foreign.encode("[MASK]")[-1]
    text = "  the     cat  語語語 "
    tokens, words, num_bytes = foreign.encode_batch([text])[0]
    assert words.sum() == 3
    assert num_bytes.sum() == len(text.encode())
    assert len(tokens) == len(words) == len(num_bytes)


def test_missing_ids_are_named():
    with pytest.raises(UserError) as caught:
        SentencePieceTokenizer(_train_elsewhere(), where="here")
    assert caught.value.what.endswith("no id for: pad, mask.")
    assert caught.value.where == "here"
    assert "spm_train" in caught.value.remedy


@pytest.mark.parametrize("content", [b"", b"no model", b"\x00" * 50])
def test_a_file_that_is_no_model_is_an_error(tmp_path, content):
    file = tmp_path / "x.model"
    file.write_bytes(content)
    with pytest.raises(UserError, match="not a SentencePiece model") as caught:
        load_tokenizer(file)
    assert str(file) in caught.value.where


def test_a_missing_file_is_an_error(tmp_path):
    with pytest.raises(UserError, match="can't be read"):
        load_tokenizer(tmp_path / "missing.model")


def test_a_model_is_read_from_its_file(tmp_path, tokenizer):
    (tmp_path / "x.model").write_bytes(tokenizer.model_bytes)
    assert load_tokenizer(tmp_path / "x.model").identity == tokenizer.identity


def test_training_is_repeatable(tokenizer):
    assert train_sentencepiece(iter(TEXTS), 300) == tokenizer.model_bytes
    assert train_sentencepiece(TEXTS[1:], 300) != tokenizer.model_bytes


def test_training_is_silent(capfd):
    train_sentencepiece(TEXTS, 300)
    assert "trainer_interface" not in capfd.readouterr().err


def test_long_lines_are_trained_on():
    line = " ".join(["extraordinary"] * 1000)  # skipped by SentencePiece by itself
    tokenizer = SentencePieceTokenizer(train_sentencepiece([line], 290))
    assert len(tokenizer.encode(" extraordinary")) == 1


def test_a_large_corpus_is_sampled_evenly(monkeypatch):
    monkeypatch.setattr(tokenizer_training, "MAX_CHARACTERS", 10_000)
    lines = [f"{i:05d}" for i in range(100_000)]
    kept, total = tokenizer_training._sample(lines, 10_000)
    assert total == 500_000
    assert 7_000 < 5 * len(kept) <= 10_000
    numbers = np.array(kept, int)
    assert (np.diff(numbers) > 0).all()
    assert 45_000 < numbers.mean() < 55_000
    assert tokenizer_training._sample(lines, 10_000)[0] == kept


def test_the_largest_possible_vocabulary_is_named():
    with pytest.raises(ConfigError) as caught:
        train_sentencepiece(TEXTS, 10_000)
    assert caught.value.where == "tokenizer.vocab_size"
    largest = int(caught.value.remedy.split("at most ")[1].split(",")[0])
    model = train_sentencepiece(TEXTS, largest)
    assert SentencePieceTokenizer(model).vocab_size == largest


@pytest.mark.parametrize("size", [0, 261, 264])
def test_too_small_a_vocabulary_is_an_error(size):
    with pytest.raises(ConfigError, match="too small") as caught:
        train_sentencepiece(TEXTS, size)
    assert caught.value.where == "tokenizer.vocab_size"
