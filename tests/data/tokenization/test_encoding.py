"""Every token carries the words that begin in it and the bytes it stands for."""

import unicodedata
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from absl import logging
from hypothesis import given, settings
from hypothesis import strategies as st

from lmjax.config.schema import TokenizerConfig, TokenizerKind
from lmjax.core.errors import UserError
from lmjax.data.tokenization.byte_tokenizer import ByteTokenizer
from lmjax.data.tokenization.encoding import (
    Encoded,
    check_match,
    encode_texts,
    measure_ids,
)
from lmjax.data.tokenization.tokenizers import (
    Tokenizer,
    load_tokenizer,
    tokenizer_from_bytes,
)
from lmjax.data.tokenization.training import train_tokenizer
from lmjax.data.tokenization.words import count_words

REPEATABLE = settings(derandomize=True, deadline=None)
TEXTS = [
    "the cat sat on the mat\nand the dog sat by the cat",
    "naïve cafés serve thé to the cats – and the dogs, too",
] * 20
LETTERS = st.text(st.sampled_from("the cat sé語\n\u2581\u3000\x1c\x01\u2060😀ﬁ"))


@pytest.fixture(scope="module")
def made() -> dict[str, Tokenizer]:
    configs = {
        "bpe": TokenizerConfig(vocab_size=290),
        "huggingface": TokenizerConfig(kind=TokenizerKind.HUGGINGFACE, vocab_size=290),
        "nfkc": TokenizerConfig(
            kind=TokenizerKind.HUGGINGFACE, vocab_size=290, nfkc=True
        ),
        "bytes": TokenizerConfig(kind=TokenizerKind.BYTES),
    }
    return {
        name: tokenizer_from_bytes(train_tokenizer(config, TEXTS))
        for name, config in configs.items()
    }


def _documents(encoded: Encoded) -> list[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Tokens, words and bytes of each document."""
    ends = np.cumsum(encoded.lengths)[:-1]
    parts = (np.split(array, ends) for array in encoded[:3])
    return list(zip(*parts, strict=True))


def _naive_words(text: str, num_bytes: np.ndarray, inside: bool) -> list[int]:
    """One character after the other, looking for the token of each beginning."""
    words = [0] * len(num_bytes)
    position, in_word = 0, inside
    for character in text:
        if character == "\u2060" or (
            character.isspace() and character not in "\x1c\x1d\x1e\x1f\x85"
        ):
            in_word = False
        elif unicodedata.category(character) != "Cc":
            if not in_word:
                seen = 0
                for token, size in enumerate(num_bytes):
                    seen += size
                    if position < seen:
                        words[token] += 1
                        break
            in_word = True
        position += len(character.encode("utf-8", "surrogateescape"))
    return words


@REPEATABLE
@given(st.lists(st.tuples(LETTERS, st.booleans()), max_size=4))
def test_words_and_bytes_are_those_of_the_text(
    made: dict[str, Tokenizer], documents: list[tuple[str, bool]]
) -> None:
    texts = [text for text, _ in documents]
    inside = [each for _, each in documents]
    for tokenizer in made.values():
        encoded = encode_texts(tokenizer, texts, inside)
        assert [array.dtype.name for array in encoded] == ["int32"] * 3 + ["int64"]
        assert len(encoded.lengths) == len(texts)
        assert encoded.lengths.sum() == len(encoded.tokens)
        parts = _documents(encoded)
        for text, goes_on, (tokens, words, num_bytes) in zip(
            texts, inside, parts, strict=False
        ):
            assert tokens.tolist() == tokenizer.encode(text)
            assert num_bytes.sum() == len(text.encode())
            assert words.tolist() == _naive_words(text, num_bytes, goes_on)
            if not goes_on:
                assert words.sum() == count_words(text)
            if tokenizer.lossless:
                sizes = [len(tokenizer.piece_bytes[i]) for i in tokens]
                assert num_bytes.tolist() == sizes


@REPEATABLE
@given(LETTERS, LETTERS)
def test_a_word_that_goes_on_is_counted_once(
    made: dict[str, Tokenizer], first: str, second: str
) -> None:
    before = first.rstrip("\x01\x1c")  # control characters leave the word open
    inside = bool(before) and count_words(before[-1]) == 1
    encoded = encode_texts(made["bytes"], [first, second], [False, inside])
    assert encoded.words.sum() == count_words(first + second)


def test_a_word_counts_where_its_first_byte_is() -> None:
    text = "ab é\u3000c"
    encoded = encode_texts(ByteTokenizer(), [text, "", "d", "e"])
    assert encoded.words.tolist() == [1, 0, 0, 1, 0, 0, 0, 0, 1, 1, 1]
    assert encoded.bytes.tolist() == [1] * 11
    assert encoded.lengths.tolist() == [9, 0, 1, 1]
    going_on = encode_texts(ByteTokenizer(), [text, " f", "gh i"], [True] * 3)
    assert going_on.words.tolist() == [0, 0, 0, 1, 0, 0, 0, 0, 1, 0, 1, 0, 0, 0, 1]


def test_nothing_is_nothing(made: dict[str, Tokenizer]) -> None:
    for tokenizer in made.values():
        for encoded in (encode_texts(tokenizer, []), measure_ids(tokenizer, [])):
            assert [array.tolist() for array in encoded] == [[], [], [], []]
        assert encode_texts(tokenizer, ["", ""]).lengths.tolist() == [0, 0]


def test_broken_unicode_is_explained(made: dict[str, Tokenizer]) -> None:
    for tokenizer in made.values():
        with pytest.raises(UserError, match="not valid Unicode"):
            encode_texts(tokenizer, ["fine", "a\udc80"])


class _Rewriting(ByteTokenizer):
    """Says that it keeps text, but drops every "x"."""

    def encode_ids(self, texts: Sequence[str]) -> list[np.ndarray]:
        return super().encode_ids([text.replace("x", "") for text in texts])

    def encode_aligned(self, text: str) -> tuple[np.ndarray, np.ndarray]:
        ids = self.encode_ids([text])[0]
        return ids, np.array([len(text)] + [0] * (len(ids) - 1))


def test_a_document_whose_pieces_do_not_add_up_is_aligned() -> None:
    encoded = encode_texts(_Rewriting(), ["ab c", "ax b"])
    assert encoded.lengths.tolist() == [4, 3]
    assert encoded.words.tolist() == [1, 0, 0, 1, 2, 0, 0]
    assert encoded.bytes.tolist() == [1, 1, 1, 1, 4, 0, 0]


@REPEATABLE
@given(st.lists(st.lists(st.integers(0, 260), max_size=12), max_size=3))
def test_ids_are_measured_by_what_they_spell(
    made: dict[str, Tokenizer], documents: list[list[int]]
) -> None:
    arrays = [np.array(ids, np.int64) for ids in documents]
    tokenizer = made["bytes"]
    parts = _documents(measure_ids(tokenizer, arrays)) if documents else []
    for ids, (tokens, words, num_bytes) in zip(documents, parts, strict=True):
        data = b"".join(tokenizer.piece_bytes[i] for i in ids)
        text = data.decode("utf-8", "surrogateescape")
        assert tokens.tolist() == ids
        assert num_bytes.tolist() == [int(i >= 5) for i in ids]
        assert words.tolist() == _naive_words(text, num_bytes, False)


def test_measured_ids_are_the_encoded_text(made: dict[str, Tokenizer]) -> None:
    for name in ("bpe", "huggingface", "bytes"):
        encoded = encode_texts(made[name], TEXTS)
        ids = [part[0] for part in _documents(encoded)]
        for expected, array in zip(encoded, measure_ids(made[name], ids), strict=True):
            assert (array == expected).all() and array.dtype == expected.dtype


@pytest.mark.parametrize("wrong", [-1, 261])
def test_an_unknown_id_is_an_error(wrong: int) -> None:
    documents = [np.array([5, 6]), np.array([7, wrong])]
    message = f"no id {wrong}: it has 261"
    with pytest.raises(UserError, match=message):
        measure_ids(ByteTokenizer(), documents)
    with pytest.raises(UserError, match=message) as caught:
        check_match(ByteTokenizer(), documents, "ids.bin")
    assert caught.value.where == "ids.bin"


@pytest.fixture
def warnings(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    said: list[str] = []
    monkeypatch.setattr(
        logging, "warning", lambda message, *args: said.append(message % args)
    )
    return said


def test_ids_of_the_tokenizer_match(
    made: dict[str, Tokenizer], warnings: list[str]
) -> None:
    for tokenizer in made.values():
        documents = [np.array(tokenizer.encode(text * 30)) for text in TEXTS]
        assert len(documents[0]) > 512
        check_match(tokenizer, documents, "here")
        end = tokenizer.special.eos
        check_match(tokenizer, [np.append(documents[0][:20], [end, 9])], "here")
        check_match(tokenizer, [np.append([end, 9, end], documents[0])], "here")
    cut = "a" + "é" * 300  # the last id that is looked at is half a character
    check_match(made["bytes"], [np.array(made["bytes"].encode(cut))], "here")
    assert not warnings


def test_ids_of_another_tokenizer_do_not_match(made: dict[str, Tokenizer]) -> None:
    documents = [np.array(made["bytes"].encode(text)) for text in TEXTS]
    with pytest.raises(UserError, match="does not match the ids") as caught:
        check_match(made["bpe"], documents, "ids.bin")
    assert caught.value.where == "ids.bin"
    assert "One reads 'the cat" in caught.value.what
    assert "tokenizer.path" in caught.value.remedy


def test_some_other_documents_are_a_warning(
    made: dict[str, Tokenizer], warnings: list[str]
) -> None:
    right = np.array(made["bpe"].encode(TEXTS[0]))
    wrong = np.array(made["bytes"].encode(TEXTS[0]))
    check_match(made["bpe"], [right, wrong, wrong[:7], right], "ids.bin")
    assert len(warnings) == 1
    assert "ids.bin: the text of 1 of 3 documents" in warnings[0]


def test_little_text_matches_anything(
    made: dict[str, Tokenizer], warnings: list[str]
) -> None:
    check_match(made["bpe"], [np.array([261, 9, 8]), np.array([], np.int64)], "here")
    check_match(made["bpe"], [], "here")
    assert not warnings


def test_only_the_first_documents_are_looked_at(made: dict[str, Tokenizer]) -> None:
    def documents():
        for _ in range(20):
            yield np.array(made["bytes"].encode(TEXTS[0]))
        raise AssertionError("asked for more")

    check_match(made["bytes"], documents(), "here")


KINDS = {
    "gpt2": (TokenizerKind.GPT2, "gpt2"),
    "gptbert": (TokenizerKind.HUGGINGFACE, "gptbert-100M-16384.json"),
}


@pytest.mark.parametrize("kind", KINDS)
def test_real_text_keeps_its_words_and_bytes(shared_data: Path, kind: str) -> None:
    pytest.importorskip("tokenizers")
    kind, name = KINDS[kind]
    path = str(shared_data / "tokenizers" / name)
    tokenizer = load_tokenizer(TokenizerConfig(kind=kind, path=path))
    for file in (shared_data / "corpus" / "babylm" / "train").glob("*.train"):
        texts = file.read_bytes()[:100_000].decode("utf-8", "ignore").split("\n")
        encoded = encode_texts(tokenizer, texts)
        parts = _documents(encoded)
        for text, (_, words, num_bytes) in zip(texts, parts, strict=True):
            assert words.sum() == count_words(text)
            assert num_bytes.sum() == len(text.encode())
        ids = [tokens for tokens, *_ in parts if len(tokens) > 8]
        check_match(tokenizer, ids, file.name)
