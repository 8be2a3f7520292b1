"""A format is recognised by content, and what is not read is named."""

import gzip
import io
import pickle
import zipfile

import numpy as np
import pytest

from lmjax.config.schema import DataFormat, DocumentUnit, TokenDtype
from lmjax.core.errors import UserError
from lmjax.data.reading.formats import IdRules, ReadOptions, open_reader
from lmjax.data.tokenization.vocabulary import SpecialIds

RULES = IdRules(
    vocab_size=40_000,
    special=SpecialIds(unk=0, bos=1, eos=2, pad=3, mask=4),
    unpredictable=(1, 3, 4),
)
OPTIONS = ReadOptions(ids=RULES)
IDS = np.array([5, 6, 600, 2, 700, 8, 9, 10], np.uint16).tobytes()
LATIN1 = "Où sont les neiges d'antan, où çà ?\n".encode("latin-1") * 20
CYRILLIC = "Все счастливые семьи похожи\n".encode("cp1251") * 20


def _zip(*names):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name in names:
            archive.writestr(zipfile.ZipInfo(name), b"x")
    return buffer.getvalue()


def _open(path, content, options=OPTIONS):
    path.write_bytes(content)
    return open_reader(path, options)


@pytest.mark.parametrize(
    ("name", "content", "kind"),
    [
        ("empty.bin", b"", "text"),
        ("a.txt", b"\n", "text"),
        ("a.txt", b"one line", "text"),
        ("a.parquet", b"[not JSON] but text", "text"),
        ("a.txt", b"\x00e", "text"),
        ("a.txt", b"{'a': 1}\n", "text"),
        ("a.txt", b"- - -\n", "text"),
        ("a.txt", b"1999 was a year\n", "text"),
        ("a.txt", b"good text\n" * 10 + b"caf\xe9 here\n", "text"),
        ("a.txt", LATIN1, "text"),
        ("a.txt", CYRILLIC, "text"),
        (
            "a.bin",
            b"This is text, whatever the name of its file says, you see.\n" * 2,
            0,
        ),
        ("a.txt", b'\n\n {"text": "a"}\n{', "json_lines"),
        ("a.txt", b'\xef\xbb\xbf{"text": "a"}', "json_lines"),
        ("a.txt", gzip.compress(b'{"text": "a"}\n', mtime=0), "json_lines"),
        ("a.jsonl", b"{broken\n", "json_lines"),
        ("a.json.gz", b'{"text": "' + b"x" * 2_000_000, "json_lines"),
        ("a.txt", b" 1 2\n-3\n", "token_text"),
        ("a.bin", b"17\n", "token_text"),
        ("a.bin", IDS, "token_ids"),
        ("a.ids.gz", gzip.compress(IDS, mtime=0), "token_ids"),
        ("a.u16", b"\x80\x02" + IDS, "token_ids"),
        ("a.bin", b"\xff\xfe" + IDS[:-2], "token_ids"),
    ],
)
def test_the_content_says_what_a_file_is(tmp_path, name, content, kind):
    options = ReadOptions(ids=RULES, token_dtype=TokenDtype.UINT16)
    reader = _open(tmp_path / name, content, options)
    assert reader.describe()["format"] == (kind or "text")


@pytest.mark.parametrize(
    ("content", "kind"),
    [
        (b"%PDF-1.7\n", "a PDF file"),
        (b"\x93NUMPY\x01\x00", "a NumPy array"),
        (_zip("a.npy", "b.npy"), "an archive of NumPy arrays"),
        (_zip("a.txt"), "a zip archive"),
        (gzip.compress(_zip("x/data.pkl"), mtime=0), "unpack it first"),
        (b"\xfd7zXZ\x00\x00", "an xz archive"),
        (b"x" * 257 + b"ustar", "a tar archive"),
        (bytes(range(256)) * 10, "binary data"),
    ],
)
@pytest.mark.parametrize("name", ["a.txt", "a.train"])
def test_what_is_not_read_is_named(tmp_path, content, kind, name):
    with pytest.raises(UserError, match=kind) as caught:
        _open(tmp_path / name, content)
    assert caught.value.where == str(tmp_path / name)
    assert "JSON Lines, Parquet" in caught.value.remedy


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
@pytest.mark.parametrize("name", ["a.txt", "a.bin"])
def test_pickles_are_refused(tmp_path, protocol, name):
    content = pickle.dumps([[1, 2], [3]], protocol)
    with pytest.raises(UserError, match="is a pickle: loading it could run") as caught:
        _open(tmp_path / name, content)
    assert "torch.save" in caught.value.remedy
    with pytest.raises(UserError, match="is a pickle"):
        _open(tmp_path / name, content, ReadOptions(format=DataFormat.TORCH, ids=RULES))


def test_utf16_is_named(tmp_path):
    with pytest.raises(UserError, match="UTF-16") as caught:
        _open(tmp_path / "a.txt", "text".encode("utf-16"))
    assert "iconv -f UTF-16" in caught.value.remedy


def test_a_json_document_is_not_json_lines(tmp_path):
    with pytest.raises(UserError, match="not JSON Lines") as caught:
        _open(tmp_path / "a.json", b'[\n{"text": "a"}\n]')
    assert "jq -c" in caught.value.remedy


@pytest.mark.parametrize(("name", "content"), [("a.bin", IDS), ("a.txt", b"1 2\n")])
def test_ids_need_their_tokenizer(tmp_path, name, content):
    with pytest.raises(UserError, match="needs its tokenizer") as caught:
        _open(tmp_path / name, content, ReadOptions())
    assert "tokenizer.kind and tokenizer.path" in caught.value.remedy


@pytest.mark.parametrize(
    ("kind", "described"),
    [
        (DataFormat.TEXT, {"format": "text", "documents": "block"}),
        (DataFormat.JSON_LINES, {"format": "json_lines", "text_field": "text"}),
        (DataFormat.TOKEN_TEXT, {"format": "token_text", "documents": "line"}),
        (DataFormat.TOKEN_IDS, {"format": "token_ids", "dtype": "uint16"}),
    ],
)
def test_the_config_is_stronger_than_the_content(tmp_path, kind, described):
    options = ReadOptions(format=kind, ids=RULES, token_dtype=TokenDtype.UINT16)
    assert _open(tmp_path / "a", b"12 3\n", options).describe() == described


def test_options_reach_the_readers(tmp_path):
    options = ReadOptions(documents=DocumentUnit.LINE, replace_invalid_utf8=True)
    reader = _open(tmp_path / "a", b"a\nb\xff", options)
    assert [d.content for d in reader.read()] == ["a", "b\ufffd"]
    options = ReadOptions(text_field="body", replace_invalid_utf8=True)
    reader = _open(tmp_path / "a", b'{"body": "b\xff"}', options)
    assert [d.content for d in reader.read()] == ["b\ufffd"]


def test_a_sample_cut_in_a_character_is_text(tmp_path):
    content = ("x" + "é" * 700_000).encode()
    assert _open(tmp_path / "a.bin", content).describe()["documents"] == "passage"
