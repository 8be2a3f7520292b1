"""Tokenizers of Hugging Face: real ones, and small ones of each sort."""

import json
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from lmjax.config.schema import TokenizerConfig, TokenizerKind
from lmjax.core.errors import UserError
from lmjax.data.tokenization.huggingface_tokenizer import HuggingFaceTokenizer
from lmjax.data.tokenization.tokenizers import SpecialIds, Tokenizer, load_tokenizer

tokenizers = pytest.importorskip("tokenizers")
huggingface_hub = pytest.importorskip("huggingface_hub")
errors = pytest.importorskip("huggingface_hub.errors")

WORDS = ["the", "cat", "s", "##s", ",", "don", "'", "t", "[MASK", "MASK", "]", "["]


def _load(kind: str, path: object) -> Tokenizer:
    return load_tokenizer(TokenizerConfig(kind=TokenizerKind(kind), path=str(path)))


@pytest.fixture(scope="module")
def gpt2(shared_data: Path) -> Tokenizer:
    return _load("gpt2", shared_data / "tokenizers" / "gpt2")


@pytest.fixture(scope="module", params=["10M-8192", "100M-16384"])
def gptbert(request: pytest.FixtureRequest, shared_data: Path) -> Tokenizer:
    file = shared_data / "tokenizers" / f"gptbert-{request.param}.json"
    return _load("huggingface", file)


def _word_piece(*special: str) -> "tokenizers.Tokenizer":
    """As BERT's, but that it splits at blanks alone."""
    names = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS]
    model = tokenizers.models.WordPiece(
        {name: i for i, name in enumerate(names)}, unk_token="[UNK]"
    )
    made = tokenizers.Tokenizer(model)
    made.normalizer = tokenizers.normalizers.Lowercase()
    made.pre_tokenizer = tokenizers.pre_tokenizers.WhitespaceSplit()
    made.decoder = tokenizers.decoders.WordPiece(cleanup=False)
    made.post_processor = tokenizers.processors.BertProcessing(
        ("[SEP]", 3), ("[CLS]", 2)
    )
    made.add_special_tokens(list(special))
    return made


def _load_made(made: "tokenizers.Tokenizer") -> Tokenizer:
    return HuggingFaceTokenizer(made.to_str().encode())


def _byte_level(**model: object) -> "tokenizers.Tokenizer":
    """The bytes, four merges and a special id that BPE can't reach."""
    alphabet = sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet())
    vocab = {c: i for i, c in enumerate([*alphabet, "th", "the", "Ġthe", "<mask>"])}
    merges = [("t", "h"), ("th", "e"), ("Ġ", "the")]
    made = tokenizers.Tokenizer(
        tokenizers.models.BPE(vocab=vocab, merges=merges, **model)
    )
    made.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(
        add_prefix_space=False, use_regex=False
    )
    made.decoder = tokenizers.decoders.ByteLevel()
    return made


def test_gpt2_is_gpt2(gpt2: Tokenizer) -> None:
    assert gpt2.encode("Hello world") == [15496, 995]
    assert gpt2.decode([15496, 995]) == "Hello world"
    assert gpt2.piece_bytes[995] == b" world"
    assert gpt2.lossless
    assert gpt2.special == SpecialIds(
        eos=50256, mask=50257, bos=50258, pad=50259, unk=50260
    )
    assert gpt2.vocab_size == 50261
    assert gpt2.unpredictable == (50257, 50258, 50259, 50260)
    assert gpt2.encode("<|endoftext|>") == [27, 91, 437, 1659, 5239, 91, 29]
    assert gpt2.decode([50256, 15496, 50257]) == "Hello"
    assert max(map(len, gpt2.piece_bytes)) == 128
    (added,) = json.loads(gpt2.model_bytes)["added_tokens"]
    assert (added["content"], added["special"]) == ("<|endoftext|>", True)


def test_a_gptbert_vocabulary_has_all_special_ids(gptbert: Tokenizer) -> None:
    assert gptbert.special == SpecialIds(unk=0, bos=1, eos=2, pad=3, mask=4)
    assert gptbert.vocab_size in (8192, 16384)
    assert gptbert.unpredictable == (1, 3, 4, *range(5, 16))
    assert gptbert.piece_bytes[16:272] == tuple(bytes([b]) for b in range(256))


def test_a_gptbert_vocabulary_rewrites_text(gptbert: Tokenizer) -> None:
    assert not gptbert.lossless
    text = "\u201cÅh ﬁne 😀\tno\n\n␥ ␣x "
    ids, num_bytes = gptbert.encode_aligned(text)
    assert ids.tolist() == gptbert.encode(text)
    assert num_bytes.sum() == len(text.encode())
    assert not {1, 2, 3, 4} & set(ids.tolist())
    assert gptbert.special.unk in ids  # the picture that stands for the mask
    assert gptbert.decode(gptbert.encode(" a  b\nc")) == " a  b\nc"
    assert gptbert.piece_bytes[gptbert.encode("the")[0]] == b" the"


def test_an_inserted_space_takes_no_byte(gptbert: Tokenizer) -> None:
    ids, num_bytes = gptbert.encode_aligned("😀")
    assert [gptbert.piece_bytes[i] for i in ids[:2]] == [b" ", b"\xf0"]
    assert num_bytes.tolist() == [0, 4, 0, 0, 0]


def test_aligned_bytes_are_those_of_the_librarys_offsets(
    gptbert: Tokenizer, shared_data: Path
) -> None:
    """Where pieces spell what they were read from, both must say so."""
    file = shared_data / "corpus" / "babylm" / "train" / "simple_wiki.train"
    text = file.read_bytes().decode()[:20_000]
    ids, num_bytes = gptbert.encode_aligned(text)
    ends = np.cumsum(num_bytes)
    data = text.encode()
    pieces = [gptbert.piece_bytes[i] for i in ids.tolist()]
    same = [
        data[end - size : end] == piece
        for end, size, piece in zip(ends, num_bytes, pieces, strict=True)
    ]
    assert len(ids) > 4000
    assert np.mean(same) > 0.99


def test_a_word_piece_vocabulary_is_decoded_text() -> None:
    made = _load_made(_word_piece("[UNK]", "[SEP]", "[CLS]", "[PAD]", "[MASK]"))
    assert made.special == SpecialIds(unk=1, bos=2, eos=3, pad=0, mask=4)
    assert not made.lossless
    ids, num_bytes = made.encode_aligned("The  cats zebra")
    assert [made.piece_bytes[i] for i in ids] == [b" the", b" cat", b"s", b""]
    assert num_bytes.tolist() == [3, 5, 1, 6]
    assert made.decode(ids) == "the cats"


@pytest.mark.parametrize("special", [(), ("[UNK]",), ("[UNK]", "[MASK]")])
def test_special_ids_are_never_text_however_they_are_declared(special) -> None:
    """Splitting at blanks hands the model a whole "[MASK]", which it has."""
    library = _word_piece(*special)
    library.normalizer = tokenizers.normalizers.Sequence([])
    assert library.encode("[MASK]", add_special_tokens=False).ids == [4]
    made = _load_made(library)
    assert made.special.mask == 4
    assert made.encode("cat [MASK] cat") == [6, 1, 6]
    assert made.encode_aligned("cat [MASK] cat")[1].tolist() == [3, 7, 4]


def test_a_whole_byte_vocabulary_spells_names_of_special_ids() -> None:
    """`ignore_merges` looks a whole text up first."""
    library = _byte_level(ignore_merges=True)
    assert library.encode("<mask>").ids == [259]
    made = _load_made(library)
    assert made.lossless
    assert made.special.mask == 259
    ids = made.encode("<mask>")
    assert [made.piece_bytes[i] for i in ids] == [b"<", b"m", b"a", b"s", b"k", b">"]
    assert made.encode_aligned("<mask>")[1].tolist() == [1] * 6


def test_nothing_is_added_cut_off_or_padded() -> None:
    library = _byte_level()
    plain = _load_made(library).encode("the the")
    library.add_special_tokens(["<s>", "</s>"])
    library.post_processor = tokenizers.processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", 260), ("</s>", 261)]
    )
    library.enable_truncation(1)
    library.enable_padding(length=9)
    assert len(library.encode("the the").ids) == 9
    assert _load_made(library).encode("the the") == plain == [257, 258]


def test_bytes_of_blanks_are_their_own() -> None:
    """A post-processor may leave blanks out of what it says was read."""
    library = _byte_level()
    library.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel()
    library.post_processor = tokenizers.processors.ByteLevel(trim_offsets=True)
    ids, num_bytes = _load_made(library).encode_aligned("a \n b")
    assert len(ids) == 6
    assert num_bytes.tolist() == [0, 1, 1, 1, 1, 1]


def test_the_model_knows_what_is_unknown() -> None:
    model = tokenizers.models.WordLevel({"[UNK]": 0, "a": 1, "?": 2}, unk_token="?")
    made = _load_made(tokenizers.Tokenizer(model))
    assert made.special.unk == 2
    assert made.encode("b") == [2]


def test_reserved_ids_are_unpredictable() -> None:
    library = _byte_level()
    library.add_special_tokens(["<mask>", "<tool>"])
    library.add_tokens(["éé"])
    made = _load_made(library)
    assert made.special == SpecialIds(mask=259, bos=262, pad=263, eos=264, unk=265)
    assert made.unpredictable == (259, 260, 262, 263, 265)
    assert made.piece_bytes[261] == "éé".encode()
    assert made.encode("aéé<tool>")[1] == 261
    assert made.decode(made.encode("aéé<tool>")) == "aéé<tool>"


def test_ids_without_a_token_are_unpredictable() -> None:
    content = json.loads(_byte_level().to_str())
    content["model"]["vocab"]["<mask>"] = 262
    made = HuggingFaceTokenizer(json.dumps(content).encode())
    assert made.special == SpecialIds(mask=262, bos=263, pad=264, eos=265, unk=266)
    assert made.unpredictable == (259, 260, 261, 262, 263, 264, 266)


@pytest.mark.parametrize(
    "change",
    [
        lambda made: setattr(made, "normalizer", tokenizers.normalizers.NFC()),
        lambda made: setattr(made, "normalizer", tokenizers.normalizers.Lowercase()),
        lambda made: setattr(made, "normalizer", tokenizers.normalizers.Strip()),
        lambda made: setattr(
            made, "normalizer", tokenizers.normalizers.Replace("\r\n", "\n")
        ),
        lambda made: setattr(
            made, "pre_tokenizer", tokenizers.pre_tokenizers.ByteLevel()
        ),
    ],
)
def test_a_vocabulary_that_changes_text_is_recognised(change: Callable) -> None:
    library = _byte_level()
    assert _load_made(library).lossless
    change(library)
    made = _load_made(library)
    assert not made.lossless
    text = " The\r\ne\u0301 the "
    ids, num_bytes = made.encode_aligned(text)
    assert num_bytes.sum() == len(text.encode())
    assert ids.tolist() == made.encode(text)


def test_a_folder_and_its_file_are_the_same(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_text(_byte_level().to_str(), "utf-8")
    from_folder = _load("huggingface", tmp_path)
    from_file = _load("huggingface", tmp_path / "tokenizer.json")
    assert from_folder.identity == from_file.identity


@pytest.mark.parametrize(
    "content", ["", "no json", "[]", "{}", '{"model": {}}', '{"model": {"type": "X"}}']
)
def test_a_file_that_is_no_tokenizer_is_an_error(tmp_path: Path, content: str) -> None:
    file = tmp_path / "tokenizer.json"
    file.write_text(content)
    with pytest.raises(UserError, match="is not one of Hugging Face") as caught:
        _load("huggingface", file)
    assert str(file) in caught.value.where
    assert "tokenizer.json" in caught.value.remedy


def test_broken_files_of_gpt2_are_an_error(tmp_path: Path) -> None:
    (tmp_path / "vocab.json").write_text("{}")
    with pytest.raises(UserError, match=r"can't be read.*merges.txt"):
        _load("gpt2", tmp_path)
    (tmp_path / "vocab.json").write_text("no json")
    (tmp_path / "merges.txt").write_text("")
    with pytest.raises(UserError, match="is not one of Hugging Face"):
        _load("gpt2", tmp_path)


def test_a_tokenizer_comes_from_the_hub(tmp_path: Path, monkeypatch) -> None:
    file = tmp_path / "x"
    file.write_text(_byte_level().to_str(), "utf-8")
    asked = []

    def download(repository: str, name: str, revision: str | None) -> str:
        asked.append((repository, name, revision))
        return str(file)

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    assert _load("hub", "owner/name").lossless
    _load("hub", "owner/name@v1")
    assert asked == [
        ("owner/name", "tokenizer.json", None),
        ("owner/name", "tokenizer.json", "v1"),
    ]


@pytest.mark.parametrize(
    ("error", "what"),
    [
        (errors.LocalEntryNotFoundError("no"), "can't be reached"),
        (errors.EntryNotFoundError("no"), "has no tokenizer.json"),
        (errors.HFValidationError("bad name\nx"), ": bad name$"),
        (OSError("broken pipe"), "can't be downloaded: broken pipe"),
    ],
)
def test_what_the_hub_does_not_give_is_explained(monkeypatch, error, what) -> None:
    def download(*_: object, **__: object) -> str:
        raise error

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    with pytest.raises(UserError) as caught:
        _load("hub", "owner/name")
    assert re.search(what, caught.value.what)
    assert "owner/name" in caught.value.where
    assert caught.value.remedy
