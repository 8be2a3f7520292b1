"""Ids are split into documents, checked, and their number type is found."""

import gzip
import json
import pickle
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lmjax.config.schema import DataFormat, TokenDtype
from lmjax.core.errors import UserError
from lmjax.data.reading import token_readers
from lmjax.data.reading.formats import ReadOptions, open_reader
from lmjax.data.reading.token_readers import IdBlock, IdRules, split_documents
from lmjax.data.tokenization.vocabulary import SpecialIds

REPEATABLE = settings(derandomize=True, deadline=None)
BOS, EOS, PAD, MASK = 1, 2, 3, 4
RULES = IdRules(
    vocab_size=50,
    special=SpecialIds(unk=0, bos=BOS, eos=EOS, pad=PAD, mask=MASK),
    unpredictable=(1, 3, 4),
)
LARGE = IdRules(
    vocab_size=100_000,
    special=SpecialIds(unk=0, bos=1, eos=2, pad=3, mask=4),
    unpredictable=(1, 3, 4),
)
TWO_DOCUMENTS = Path(__file__).parent / "fixtures" / "two_documents.bin"


def _split(ids, rules=RULES, block=1000, ends=False):
    ids = np.array(ids, np.int64)
    starts = range(0, max(len(ids), 1), block)
    blocks = [IdBlock(ids[i : i + block], "", i, False) for i in starts]
    if ends:
        blocks[-1] = blocks[-1]._replace(ends=True)
    return _join(split_documents(blocks, rules, Path("x")))


def _join(documents):
    whole, parts = [], []
    for document in documents:
        assert document.content.dtype == np.int64
        parts += document.content.tolist()
        if not document.continues:
            whole.append(parts)
            parts = []
    assert not parts
    return whole


def _open(path, content, rules=RULES, **options):
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return open_reader(path, ReadOptions(ids=rules, **options))


def _read(path, content, rules=RULES, **options):
    return _join(_open(path, content, rules, **options).read())


@pytest.mark.parametrize(
    ("ids", "expected"),
    [
        ([], []),
        ([EOS, EOS], []),
        ([BOS, EOS, BOS], []),
        ([5], [[5]]),
        ([5, 6, EOS, 7], [[5, 6], [7]]),
        ([BOS, 5, EOS, BOS, BOS, 6, EOS, EOS], [[5], [6]]),
        ([5, 6, PAD, PAD, EOS, 7, EOS, PAD, PAD], [[5, 6], [7]]),
        ([PAD, PAD, EOS, 5, PAD], [[5]]),
        ([0, 49], [[0, 49]]),
    ],
)
@pytest.mark.parametrize("block", [1, 2, 1000])
@pytest.mark.parametrize("ends", [False, True])
def test_documents_end_at_eos_and_lose_what_surrounds_them(ids, expected, block, ends):
    assert _split(ids, block=block, ends=ends) == expected


def test_one_id_may_be_bos_and_eos():
    rules = IdRules(
        vocab_size=9,
        special=SpecialIds(unk=0, bos=0, eos=0, pad=0, mask=8),
        unpredictable=(0, 8),
    )
    assert _split([0, 5, 6, 0, 0, 7, 0], rules) == [[5, 6], [7]]


@REPEATABLE
@given(
    documents=st.lists(st.lists(st.integers(5, 49), min_size=1, max_size=20)),
    block=st.integers(1, 9),
    size=st.integers(1, 9),
    pads=st.integers(0, 12),
)
def test_blocks_and_pieces_do_not_show(documents, block, size, pads):
    ids = [i for d in documents for i in [BOS, *d, *[PAD] * pads, EOS]]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(token_readers, "MAX_PIECE_IDS", size)
        assert _split(ids, block=block) == documents
        starts = range(0, len(ids), block)
        blocks = [IdBlock(np.array(ids[i : i + block]), "", i, False) for i in starts]
        pieces = split_documents(blocks, RULES, Path("x"))
        assert max((len(p.content) for p in pieces), default=0) <= size


@pytest.mark.parametrize("block", [1, 3, 1000])
@pytest.mark.parametrize(
    ("ids", "what", "place"),
    [
        ([5, 6, 50], "The id 50 is not one of the 50 of the tokenizer", 3),
        ([5, -1], "The id -1 is not one of the 50", 2),
        ([5, 6, EOS, 7, MASK, 8], "the special id 4 in its midst", 5),
        ([BOS, 5, BOS, 6], "the special id 1 in its midst", 3),
        ([5, PAD, PAD, 6, EOS], "the special id 3 in its midst", 2),
        ([PAD, 5], "the special id 3 in its midst", 1),
        ([5, 6, 7, 8, BOS, 9], "the special id 1 in its midst", 5),
        ([5, *[PAD] * 9, 6], "the special id 3 in its midst", 2),
    ],
)
def test_wrong_ids_are_located(monkeypatch, ids, what, place, block):
    monkeypatch.setattr(token_readers, "MAX_PIECE_IDS", 4)
    with pytest.raises(UserError) as caught:
        _split(ids, block=block)
    assert what in caught.value.what
    assert caught.value.where == f"x, id {place}"
    assert "tokenizer.path" in caught.value.remedy


def test_a_list_of_tensors_is_read():
    rules = IdRules(
        vocab_size=40_001,
        special=SpecialIds(unk=0, bos=1, eos=2, pad=3, mask=4),
        unpredictable=(1, 3, 4),
    )
    reader = open_reader(TWO_DOCUMENTS, ReadOptions(ids=rules))
    assert reader.describe() == {"format": "torch", "dtype": "uint16"}
    reader = pickle.loads(pickle.dumps(reader))
    assert _join(reader.read()) == [[5, 6, 7], [8, 40_000]] == _join(reader.read())


def test_a_wrong_id_in_a_tensor_is_located():
    reader = open_reader(TWO_DOCUMENTS, ReadOptions(ids=RULES))
    with pytest.raises(UserError, match="40000 is not one of the 50") as caught:
        list(reader.read())
    assert caught.value.where == f"{TWO_DOCUMENTS}, document 2, id 2"


def test_tensors_are_documents(tmp_path):
    torch = pytest.importorskip("torch")
    documents = [[BOS, 5, 6, EOS], [], [EOS], [7, PAD, PAD], [8, EOS, 9]]
    torch.save([torch.tensor(d, dtype=torch.int64) for d in documents], tmp_path / "x")
    reader = open_reader(tmp_path / "x", ReadOptions(ids=RULES))
    assert _join(reader.read()) == [[5, 6], [7], [8], [9]]
    torch.save(
        [torch.tensor([1])], tmp_path / "x", _use_new_zipfile_serialization=False
    )
    with pytest.raises(UserError, match="torch's old format") as caught:
        open_reader(tmp_path / "x", ReadOptions(ids=RULES))
    assert "save it again with a current torch" in caught.value.remedy


@pytest.mark.parametrize(
    ("text", "expected", "unit"),
    [
        ("5\n6\n2\n7\n", [[5, 6], [7]], "stream"),
        ("5", [[5]], "stream"),
        ("\n\n5\r\n\r\n6", [[5, 6]], "stream"),
        ("5 6\n7\n\n8 9 2 10\n", [[5, 6], [7], [8, 9], [10]], "line"),
        ("1 5 6 2 3\r\n1 7", [[5, 6], [7]], "line"),
        ("\ufeff5 6 2 007", [[5, 6], [7]], "line"),
        (" \t5\t6 ", [[5, 6]], "line"),
    ],
)
@pytest.mark.parametrize("block", [4, 5, 1_000_000])
def test_ids_in_decimal_are_read(tmp_path, monkeypatch, text, expected, unit, block):
    monkeypatch.setattr(token_readers, "_BLOCK_BYTES", block)
    reader = _open(tmp_path / "x.txt", text)
    assert reader.describe() == {"format": "token_text", "documents": unit}
    assert _join(reader.read()) == expected
    assert _read(tmp_path / "x.txt", gzip.compress(text.encode())) == expected


@pytest.mark.parametrize(
    ("text", "word", "byte"),
    [
        ("5\n6\nword\n", "word", 4),
        ("5 6\n7 8.5", "8.5", 6),
        ("\ufeff5 -", "-", 5),
        ("5 3-4", "3-4", 2),
        ("5 1_0", "1_0", 2),
        ("5 +1", "+1", 2),
        ("5 " + "1" * 20, "1" * 20, 2),
        ("5 ٣", "٣", 2),
        ("1" * 5000, "1" * 40, 0),
    ],
)
@pytest.mark.parametrize("block", [4, 1_000_000])
def test_what_is_no_number_is_located(tmp_path, monkeypatch, text, word, byte, block):
    monkeypatch.setattr(token_readers, "_BLOCK_BYTES", block)
    reader = _open(tmp_path / "x", text, format=DataFormat.TOKEN_TEXT)
    with pytest.raises(UserError, match="is not a token id") as caught:
        list(reader.read())
    assert caught.value.where == f"{tmp_path / 'x'}, byte {byte}"
    if block > 4:
        assert repr(word) in caught.value.what
    assert "data.format=text" in caught.value.remedy


@pytest.mark.parametrize(
    ("text", "place"),
    [
        ("5 6\n7 -8\n", "line 2, id 2"),
        ("5 6 7 8 9 50\n", "line 1, id 6"),
        ("5\n6\n50\n", "id 3"),
    ],
)
@pytest.mark.parametrize("block", [4, 1_000_000])
def test_a_wrong_id_in_decimal_is_located(tmp_path, monkeypatch, text, place, block):
    monkeypatch.setattr(token_readers, "_BLOCK_BYTES", block)
    with pytest.raises(UserError, match="is not one of the 50") as caught:
        _read(tmp_path / "x", text, format=DataFormat.TOKEN_TEXT)
    assert caught.value.where == f"{tmp_path / 'x'}, {place}"


def _ids16(*ids):
    return np.array(ids, "<u2").tobytes()


def _ids32(*ids):
    return np.array(ids, "<u4").tobytes()


@pytest.mark.parametrize(
    ("content", "rules", "dtype"),
    [
        (_ids16(5, 6, 2, 7), RULES, "uint16"),
        (_ids16(5, 6, 7), RULES, "uint16"),
        (_ids32(5, 6, 2, 7), RULES, "uint32"),
        (_ids32(5, 6, 2, 7), LARGE, "uint32"),
        (_ids32(*[5] * 19, 70_000), LARGE, "uint32"),
        (_ids16(5, 60_000, 2, 7), LARGE, "uint16"),
    ],
)
@pytest.mark.parametrize("compress", [bytes, gzip.compress])
def test_the_number_type_is_found(tmp_path, content, rules, dtype, compress):
    reader = _open(tmp_path / "x.bin", compress(content), rules)
    assert reader.describe() == {"format": "token_ids", "dtype": dtype}
    ids = np.frombuffer(content, dtype).tolist()
    assert [i for document in _join(reader.read()) for i in document] == [
        i for i in ids if i != EOS
    ]


@pytest.mark.parametrize(
    ("content", "rules"),
    [
        (bytes(40), RULES),
        (_ids32(*[5] * 3, 70_000), LARGE),
        (_ids16(60, 70), RULES),
    ],
)
def test_an_unclear_number_type_is_asked_for(tmp_path, content, rules):
    with pytest.raises(UserError, match="can't be told") as caught:
        _open(tmp_path / "x.bin", content, rules)
    assert "data.token_dtype" in caught.value.remedy


@pytest.mark.parametrize("name", ["x.bin.json", "meta.json"])
def test_a_sidecar_names_the_number_type(tmp_path, name):
    content = _ids32(5, 6)
    (tmp_path / name).write_text(json.dumps({"dtype": "uint16"}))
    assert _open(tmp_path / "x.bin", content).describe()["dtype"] == "uint16"
    assert _open(tmp_path / "x.bin", content, token_dtype=TokenDtype.UINT16)
    with pytest.raises(UserError, match=r"Mixed dtypes.* uint32, uint16") as caught:
        _open(tmp_path / "x.bin", content, token_dtype=TokenDtype.UINT32)
    assert caught.value.where == str(tmp_path / name)
    (tmp_path / name).write_text('{"vocab_size": 50}')
    assert _open(tmp_path / "x.bin", content).describe()["dtype"] == "uint32"


def test_the_sidecar_of_a_packed_file_may_be_that_of_the_file(tmp_path):
    (tmp_path / "x.bin.json").write_text('{"dtype": "uint32"}')
    path = tmp_path / "x.bin.gz"
    assert _open(path, gzip.compress(_ids16(5, 6))).describe()["dtype"] == "uint32"


@pytest.mark.parametrize(
    ("content", "what"),
    [("{", "is not JSON"), ('{"dtype": "int32"}', "type 'int32' are not known")],
)
def test_a_wrong_sidecar_is_an_error(tmp_path, content, what):
    (tmp_path / "x.bin.json").write_text(content)
    with pytest.raises(UserError, match=what) as caught:
        _open(tmp_path / "x.bin", _ids16(5, 6))
    assert "x.bin.json" in caught.value.where
    assert "uint16" in caught.value.remedy


@pytest.mark.parametrize("compress", [bytes, gzip.compress])
@pytest.mark.parametrize(
    ("content", "dtype"),
    [
        (_ids16(5) + b"\1", TokenDtype.AUTO),
        (_ids16(5) + b"\1", TokenDtype.UINT16),
        (_ids16(5, 6, 7), TokenDtype.UINT32),
    ],
)
def test_a_size_that_does_not_fit_is_an_error(tmp_path, content, dtype, compress):
    with pytest.raises(UserError, match="no multiple") as caught:
        _read(tmp_path / "x.bin", compress(content), token_dtype=dtype)
    assert "complete" in caught.value.remedy


def test_raw_ids_are_one_stream(tmp_path, monkeypatch):
    monkeypatch.setattr(token_readers, "_BLOCK_BYTES", 4)
    monkeypatch.setattr(token_readers, "MAX_PIECE_IDS", 3)
    reader = _open(tmp_path / "x.bin", _ids16(5, 6, 7, 8, 9, 2, 10))
    pieces = list(pickle.loads(pickle.dumps(reader)).read())
    assert [(p.content.tolist(), p.continues) for p in pieces] == [
        ([5, 6, 7], True),
        ([8, 9], False),
        ([10], False),
    ]
    with pytest.raises(UserError, match="id 60 is not one") as caught:
        _read(tmp_path / "x.bin", _ids16(5, 6, 7, 60), token_dtype=TokenDtype.UINT16)
    assert caught.value.where.endswith("x.bin, id 4")


def test_an_empty_file_of_ids_has_no_documents(tmp_path):
    assert _read(tmp_path / "x.bin", b"", format=DataFormat.TOKEN_IDS) == []
    assert _read(tmp_path / "x.bin", b"", format=DataFormat.TOKEN_TEXT) == []


def test_numbers_of_the_file_are_little_endian(tmp_path):
    reader = _open(
        tmp_path / "x.bin", b"\x05\x00\x06\x00", token_dtype=TokenDtype.UINT16
    )
    assert _join(reader.read()) == [[5, 6]]
