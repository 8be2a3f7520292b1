"""What holds for every tokenizer, and what the kinds without a library of their own do.

Hugging Face has its own file, test_huggingface_tokenizer.py.
"""

import dataclasses
import io
import pickle
import sys
from collections.abc import Callable

import numpy as np
import pytest
import sentencepiece
from hypothesis import given, settings
from hypothesis import strategies as st

from lmjax.config.schema import SentencePieceModel, TokenizerConfig, TokenizerKind
from lmjax.core.errors import ConfigError, UserError
from lmjax.data.tokenization.byte_tokenizer import ByteTokenizer
from lmjax.data.tokenization.sentencepiece_tokenizer import SentencePieceTokenizer
from lmjax.data.tokenization.tokenizers import (
    SpecialIds,
    Tokenizer,
    load_tokenizer,
    tokenizer_from_bytes,
)
from lmjax.data.tokenization.training import train_tokenizer
from lmjax.data.tokenization.vocabulary import (
    Vocabulary,
    complete_special,
    find_special,
)

REPEATABLE = settings(derandomize=True, deadline=None)
TEXTS = [
    "the cat sat on the mat\nand the dog sat by the cat",
    "naïve cafés serve thé to the cats – and the dogs, too",
] * 20
NAMES = "<s> </s><mask>[MASK] <pad><unk> <|endoftext|> <special_0>"
TRAPS = st.sampled_from("\u2581 ▁a\né<>/s\x00\r\t\u2585\ufeff" + NAMES)


def _config(kind: str, **changes: object) -> TokenizerConfig:
    return TokenizerConfig(kind=TokenizerKind(kind), **({"vocab_size": 290} | changes))


def _train_elsewhere(**options: object) -> bytes:
    """A model as spm_train writes it by default: it rewrites text."""
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter("\n".join(TEXTS).split("\n")),
        model_writer=model,
        **{"vocab_size": 60, "hard_vocab_limit": False, "minloglevel": 2} | options,
    )
    return model.getvalue()


MADE: dict[str, Callable[[], Tokenizer]] = {
    "bytes": ByteTokenizer,
    "bpe": lambda: SentencePieceTokenizer(
        train_tokenizer(_config("sentencepiece"), TEXTS)
    ),
    "unigram": lambda: SentencePieceTokenizer(
        train_tokenizer(
            _config("sentencepiece", model=SentencePieceModel.UNIGRAM), TEXTS
        )
    ),
    "huggingface": lambda: tokenizer_from_bytes(
        train_tokenizer(_config("huggingface"), TEXTS)
    ),
    "nfkc": lambda: tokenizer_from_bytes(
        train_tokenizer(_config("huggingface", nfkc=True), TEXTS)
    ),
    "foreign": lambda: SentencePieceTokenizer(
        _train_elsewhere(pad_id=3, user_defined_symbols=["[MASK]"])
    ),
    "spelling": lambda: SentencePieceTokenizer(
        _train_elsewhere(
            model_type="bpe",
            byte_fallback=True,
            normalization_rule_name="identity",
            remove_extra_whitespaces=False,
            add_dummy_prefix=False,
            user_defined_symbols=["[MASK]"],
            vocab_size=290,
            hard_vocab_limit=True,
        )
    ),
    "bare": lambda: SentencePieceTokenizer(
        _train_elsewhere(bos_id=-1, eos_id=-1, control_symbols=["<x>"])
    ),
}
LOSSLESS = ("bytes", "bpe", "unigram", "huggingface", "spelling")


@pytest.fixture(scope="module")
def made() -> dict[str, Tokenizer]:
    return {name: make() for name, make in MADE.items()}


@pytest.fixture(params=MADE)
def tokenizer(request: pytest.FixtureRequest, made: dict[str, Tokenizer]) -> Tokenizer:
    return made[request.param]


def _ids(special: SpecialIds) -> tuple[int, ...]:
    return dataclasses.astuple(special)


def test_special_ids_are_distinct_and_stand_for_nothing(tokenizer: Tokenizer) -> None:
    special = tokenizer.special
    assert len(set(_ids(special))) == 5
    assert max(_ids(special)) < tokenizer.vocab_size == len(tokenizer.piece_bytes)
    assert {special.bos, special.pad, special.mask} <= set(tokenizer.unpredictable)
    assert special.eos not in tokenizer.unpredictable
    assert list(tokenizer.unpredictable) == sorted(set(tokenizer.unpredictable))
    for i in (*_ids(special), *tokenizer.unpredictable):
        assert tokenizer.piece_bytes[i] == b""
    assert tokenizer.decode(sorted({*_ids(special), *tokenizer.unpredictable})) == ""


def test_names_of_special_ids_are_plain_text(tokenizer: Tokenizer) -> None:
    forbidden = {*tokenizer.unpredictable, tokenizer.special.eos}
    for text in (NAMES, "a[MASK]b", "[MASK]", "<mask>", "</s>"):
        ids = tokenizer.encode(text)
        assert not forbidden & set(ids) - {tokenizer.special.unk}
        aligned, num_bytes = tokenizer.encode_aligned(text)
        assert aligned.tolist() == ids
        assert num_bytes.sum() == len(text)
        if tokenizer.lossless:
            assert tokenizer.decode(ids) == text


def test_bytes_rebuild_the_tokenizer(tokenizer: Tokenizer) -> None:
    for again in (
        tokenizer_from_bytes(tokenizer.model_bytes),
        pickle.loads(pickle.dumps(tokenizer)),
    ):
        assert type(again) is type(tokenizer)
        assert again.identity == tokenizer.identity
        assert len(again.identity) == 64
        assert again.special == tokenizer.special
        assert again.encode(NAMES) == tokenizer.encode(NAMES)


def test_identities_differ(made: dict[str, Tokenizer]) -> None:
    assert len({each.identity for each in made.values()}) == len(made)


def test_texts_are_encoded_like_each_by_itself(tokenizer: Tokenizer) -> None:
    texts = ["the cat", "", "a\u2581b", "é<mask>", "the dog"]
    for text, ids in zip(texts, tokenizer.encode_ids(texts), strict=True):
        assert ids.dtype == np.int32
        assert ids.tolist() == tokenizer.encode(text)


def test_broken_unicode_is_explained(tokenizer: Tokenizer) -> None:
    for encode in (tokenizer.encode, tokenizer.encode_aligned):
        with pytest.raises(UserError, match=r"not valid Unicode: 'a.udc80'"):
            encode("a\udc80")


def test_broken_utf8_becomes_a_replacement_character(
    made: dict[str, Tokenizer],
) -> None:
    for name in LOSSLESS:
        first, *_ = (i for i, p in enumerate(made[name].piece_bytes) if p == b"\xe2")
        a = made[name].encode("a")
        assert made[name].decode([*a, first, *a]) == "a\ufffda"
        assert made[name].decode(np.array([*a, first])) == "a\ufffd"


@REPEATABLE
@given(st.text(st.characters(exclude_categories=["Cs"]) | TRAPS))
def test_any_text_survives(made: dict[str, Tokenizer], text: str) -> None:
    for name in LOSSLESS:
        each = made[name]
        ids = each.encode(text)
        assert each.decode(ids) == text
        assert b"".join(each.piece_bytes[i] for i in ids) == text.encode()


def test_every_character_survives(made: dict[str, Tokenizer]) -> None:
    points = [c for c in range(sys.maxunicode + 1) if not 0xD800 <= c < 0xE000]
    text = "".join(map(chr, points))
    for start in range(0, len(text), 20_000):
        part = text[start : start + 20_000]
        assert made["bpe"].decode(made["bpe"].encode(part)) == part


@REPEATABLE
@given(st.text(st.sampled_from("the cat sé語\n\u2581\u3000\x1c😀ﬁ[MASK]")))
def test_bytes_of_aligned_ids_are_those_of_the_text(
    made: dict[str, Tokenizer], text: str
) -> None:
    for each in made.values():
        ids, num_bytes = each.encode_aligned(text)
        assert ids.dtype == np.int32 and num_bytes.dtype == np.int64
        assert (num_bytes >= 0).all() and num_bytes.sum() == len(text.encode())
        if each.lossless or len(ids) != 1:
            assert ids.tolist() == each.encode(text)


def test_lossless_is_what_keeps_text(made: dict[str, Tokenizer]) -> None:
    assert {name for name, each in made.items() if each.lossless} == set(LOSSLESS)


def test_bytes_are_numbered_behind_the_special_ids() -> None:
    tokenizer = ByteTokenizer()
    assert tokenizer.vocab_size == 261
    assert tokenizer.special == SpecialIds(unk=0, bos=1, eos=2, pad=3, mask=4)
    assert tokenizer.unpredictable == (1, 3, 4)
    assert tokenizer.encode("Aé\0") == [70, 200, 174, 5]
    assert tokenizer.decode([2, 70, 200, 174, 3]) == "Aé"


def test_ids_of_a_trained_sentencepiece_model(made: dict[str, Tokenizer]) -> None:
    for name in ("bpe", "unigram"):
        assert made[name].special == SpecialIds(unk=0, bos=1, eos=2, pad=3, mask=4)
        assert made[name].unpredictable == (1, 3, 4)
        assert made[name].vocab_size == 290
        assert made[name].piece_bytes[5:261] == tuple(bytes([b]) for b in range(256))


def test_a_model_that_rewrites_text_is_aligned(made: dict[str, Tokenizer]) -> None:
    foreign = made["foreign"]
    text = "  the     cat  語語語 "
    ids, num_bytes = foreign.encode_aligned(text)
    assert num_bytes.sum() == len(text.encode())
    assert foreign.special.unk in ids
    assert foreign.special.mask == 4  # a piece of the model, which text never reaches
    assert foreign.encode("[MASK]")[-1] == foreign.special.unk


def test_a_text_of_which_nothing_is_left_is_one_unk(made: dict[str, Tokenizer]) -> None:
    ids, num_bytes = made["foreign"].encode_aligned("   ")
    assert ids.tolist() == [made["foreign"].special.unk]
    assert num_bytes.tolist() == [3]
    assert made["foreign"].special.unk not in made["foreign"].unpredictable


def test_missing_ids_are_appended(made: dict[str, Tokenizer]) -> None:
    bare = made["bare"]
    size = bare.vocab_size - 4
    assert bare.special == SpecialIds(
        unk=0, mask=size, bos=size + 1, pad=size + 2, eos=size + 3
    )
    control = 1  # <x>
    assert bare.unpredictable == (control, size, size + 1, size + 2)
    assert bare.decode([*bare.encode("the cat"), size, size + 3]) == "the cat"


def test_an_id_of_two_roles_is_eos() -> None:
    found = {"bos": 7, "eos": 7, "unk": 7, "mask": 2}
    assert complete_special(found, 10) == SpecialIds(
        unk=12, bos=10, eos=7, pad=11, mask=2
    )


def test_the_usual_name_of_a_special_id_wins() -> None:
    names = {"[SEP]": 3, "<|endoftext|>": 4, "[CLS]": 5, "<mask>": 6, "␢": 7}
    assert find_special(names.get) == {"eos": 3, "bos": 5, "mask": 6}
    pictures = {"␦": 1, "␂": 2, "␃": 3, "␢": 4, "␥": 5}
    found = {"unk": 1, "bos": 2, "eos": 3, "pad": 4, "mask": 5}
    assert find_special(pictures.get) == found
    assert find_special((pictures | {"<s>": 9}).get) == {"bos": 9}
    del pictures["␥"]
    assert not find_special(pictures.get)


def test_an_appended_unk_is_predicted_only_where_text_holds_it() -> None:
    special = complete_special({}, 2)
    vocabulary = Vocabulary([b"a", b"b"], special, reserved=[1])
    assert special == SpecialIds(mask=2, bos=3, pad=4, eos=5, unk=6)
    assert vocabulary.unpredictable(lossless=False) == (1, 2, 3, 4)
    assert vocabulary.unpredictable(lossless=True) == (1, 2, 3, 4, 6)
    assert vocabulary.pieces == (b"a", *[b""] * 6)


def test_an_inserted_blank_leaves_the_word_its_beginning() -> None:
    """A blank that a model put before a character spread over two ids."""
    special = complete_special({}, 4)
    vocabulary = Vocabulary([b" ", b"\xc3", b"\xa9", b"b"], special)
    ids = np.array([0, 1, 2, 0, 3], np.int32)
    ends = np.array([1, 1, 1, 2, 3])
    assert vocabulary.align("é b", ids, ends)[1].tolist() == [0, 2, 0, 1, 1]
    going_back = np.array([0, 2, 1, 2, 3])
    assert vocabulary.align("é b", ids, going_back)[1].tolist() == [0, 3, 0, 0, 1]


@pytest.mark.parametrize("content", [b"", b"no model", b"\x00" * 50])
def test_a_file_that_is_no_model_is_an_error(tmp_path, content: bytes) -> None:
    file = tmp_path / "x.model"
    file.write_bytes(content)
    with pytest.raises(UserError, match="not a SentencePiece model") as caught:
        load_tokenizer(_config("sentencepiece", path=str(file)))
    assert str(file) in caught.value.where
    assert "tokenizer.kind" in caught.value.remedy
    with pytest.raises(UserError, match="not a SentencePiece model") as caught:
        tokenizer_from_bytes(content, where="there")
    assert caught.value.where == "there"


@pytest.mark.parametrize("kind", ["sentencepiece", "huggingface", "gpt2"])
def test_a_missing_file_is_an_error(tmp_path, kind: str) -> None:
    path = str(tmp_path / "missing")
    with pytest.raises(UserError, match=r"can't be read.*missing") as caught:
        load_tokenizer(_config(kind, path=path))
    assert path in caught.value.where


@pytest.mark.parametrize("kind", ["sentencepiece", "huggingface", "gpt2", "hub"])
def test_what_is_not_named_can_not_be_loaded(kind: str) -> None:
    with pytest.raises(ConfigError, match="No tokenizer is given"):
        load_tokenizer(_config(kind))


def test_each_kind_is_loaded_as_the_config_says(
    tmp_path, made: dict[str, Tokenizer]
) -> None:
    assert load_tokenizer(_config("bytes")).identity == made["bytes"].identity
    for kind, name in (("sentencepiece", "bpe"), ("huggingface", "huggingface")):
        file = tmp_path / name
        file.write_bytes(made[name].model_bytes)
        loaded = load_tokenizer(_config(kind, path=str(file)))
        assert loaded.identity == made[name].identity
