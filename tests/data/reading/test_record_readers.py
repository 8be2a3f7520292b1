"""Texts in records are read whole, and errors name line, row and field."""

import gzip
import json
import pickle

import pytest

from lmjax.core.errors import UserError
from lmjax.data.reading import documents, record_readers
from lmjax.data.reading.documents import Document, Prompt
from lmjax.data.reading.formats import ReadOptions, open_reader
from lmjax.data.reading.record_readers import (
    DATASET_KEY,
    JSONLinesReader,
    ParquetReader,
)


def _lines(path, *lines, field="text", **options):
    data = [line if isinstance(line, bytes) else line.encode() for line in lines]
    path.write_bytes(b"\n".join(data))
    return list(JSONLinesReader(path, field, **options).read())


def _error(path, *lines, **options):
    with pytest.raises(UserError) as caught:
        _lines(path, *lines, **options)
    return caught.value


def test_each_line_holds_a_document(tmp_path):
    lines = [
        '{"text": "a\\n\\nb", "n": 1}',
        "",
        " ",
        '{"n": 2, "text": "é\\ud83d\\ude00"}',
    ]
    assert _lines(tmp_path / "x", *lines) == [Document("a\n\nb"), Document("é😀")]
    assert _lines(tmp_path / "x", "\ufeff" + lines[0] + "\r", "") == [
        Document("a\n\nb")
    ]
    assert _lines(tmp_path / "x", '{"a": "", "b": "x"}', field="b") == [Document("x")]
    assert _lines(tmp_path / "x", gzip.compress(b'{"text": "z"}')) == [Document("z")]


def test_blank_lines_around_a_text_are_dropped(tmp_path):
    texts = ["\n \n a \n\n", "", " \n", "b\n"]
    lines = [json.dumps({"text": text}) for text in texts]
    assert _lines(tmp_path / "x", *lines) == [Document(" a "), Document("b")]
    assert _lines(tmp_path / "x") == []


def test_long_texts_come_in_pieces(tmp_path, monkeypatch):
    monkeypatch.setattr(documents, "MAX_PIECE_BYTES", 8)
    assert _lines(tmp_path / "x", '{"text": "line 1\\nline 2\\nx"}') == [
        Document("line 1\n", True),
        Document("line 2\nx"),
    ]


@pytest.mark.parametrize(
    ("line", "what", "remedy"),
    [
        ('{"body": "a", "n": 1}', "'text' is missing", "has 'body', 'n'"),
        ("{}", "'text' is missing", "has none"),
        ('{"text": 3}', "'text' is a JSON number instead of a string", "text_field"),
        ('{"text": null}', "'text' is a JSON null instead", "text_field"),
        ('{"text": ["a"]}', "'text' is a JSON array instead", "text_field"),
        ('["a"]', "A line is a JSON array instead of an object", '{"text": "..."}'),
        ('{"text": "a"', "not JSON", "jq -c"),
        ("[" * 100_000, "not JSON", "jq -c"),
        ('{"text": "\\ud800"}', "half a surrogate pair", "replace_invalid_utf8"),
    ],
)
def test_what_is_wrong_with_a_line_is_said(tmp_path, line, what, remedy):
    error = _error(tmp_path / "x", '{"text": "a"}', "", line)
    assert what in error.what
    assert remedy in error.remedy
    assert error.where == f"{tmp_path / 'x'}, line 3"


def test_invalid_utf8_is_located_or_replaced(tmp_path):
    lines = ["", b'{"text": "a\xff"}']
    where = _error(tmp_path / "x", b"\xef\xbb\xbf" + lines[1]).where
    assert where == f"{tmp_path / 'x'}, line 1, byte 14"
    error = _error(tmp_path / "x", *lines)
    assert "0xff" in error.what
    assert error.where == f"{tmp_path / 'x'}, line 2, byte 12"
    assert _lines(tmp_path / "x", lines[1], replace_invalid_utf8=True) == [
        Document("a\ufffd")
    ]
    assert _lines(
        tmp_path / "x", '{"text": "a\\ud800"}', replace_invalid_utf8=True
    ) == [Document("a\ufffd")]


def test_an_endless_line_is_an_error(tmp_path, monkeypatch):
    monkeypatch.setattr(record_readers, "_MAX_LINE_BYTES", 20)
    assert "too long" in _error(tmp_path / "x", '{"text": "aaaaaaaaaaaa"}').what


def test_prompts_are_read_as_they_are(tmp_path):
    lines = [
        json.dumps({"q": " \n why?\n", "text": "\n because\n\n"}),
        "",
        json.dumps({"text": "b", "q": ""}),
    ]
    where = f"{tmp_path / 'x'}, line"
    assert _lines(tmp_path / "x", *lines, prompt_field="q") == [
        Document("\n because\n\n", prompt=Prompt(" \n why?\n", f"{where} 1")),
        Document("b", prompt=Prompt("", f"{where} 3")),
    ]


def test_only_the_first_piece_has_the_prompt(tmp_path, monkeypatch):
    monkeypatch.setattr(documents, "MAX_PIECE_BYTES", 8)
    line = '{"text": "line 1\\nline 2\\nx", "q": "longer than a piece"}'
    assert _lines(tmp_path / "x", line, prompt_field="q") == [
        Document(
            "line 1\n", True, Prompt("longer than a piece", f"{tmp_path / 'x'}, line 1")
        ),
        Document("line 2\nx"),
    ]


def test_prompts_are_described(tmp_path):
    reader = JSONLinesReader(tmp_path / "x", "body", prompt_field="q")
    assert reader.describe() == {
        "format": "json_lines",
        "text_field": "body",
        "prompt_field": "q",
    }


def test_the_decision_is_described(tmp_path):
    reader = JSONLinesReader(tmp_path / "x", "body", replace_invalid_utf8=True)
    assert reader.describe() == {
        "format": "json_lines",
        "text_field": "body",
        "invalid_utf8": "replaced",
    }


@pytest.fixture
def write_parquet(tmp_path):
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")

    def write(columns, metadata=None, types=None):
        table = pyarrow.table(columns)
        for name, kind in (types or {}).items():
            index = table.column_names.index(name)
            column = table.column(name).cast(getattr(pyarrow, kind)())
            table = table.set_column(index, name, column)
        table = table.replace_schema_metadata(metadata)
        parquet.write_table(table, tmp_path / "x.parquet", row_group_size=2)
        return tmp_path / "x.parquet"

    return write


def _open(path, field="text", **options):
    return open_reader(path, ReadOptions(text_field=field, **options))


def test_a_column_is_read(write_parquet, monkeypatch):
    monkeypatch.setattr(record_readers, "_BATCH_ROWS", 2)
    monkeypatch.setattr(documents, "MAX_PIECE_BYTES", 8)
    path = write_parquet({"n": [1, 2, 3], "text": ["a\n\nb\n", " ", "a word"]})
    reader = pickle.loads(pickle.dumps(_open(path)))
    assert list(reader.read()) == [Document("a\n\nb"), Document("a word")]
    assert reader.describe() == {"format": "parquet", "text_field": "text"}
    path = write_parquet({"text": ["line 1\nline 2"]})
    assert [d.continues for d in _open(path).read()] == [True, False]


@pytest.mark.parametrize("kind", ["large_string", "string_view"])
def test_any_type_of_text_is_read(write_parquet, kind):
    path = write_parquet({"text": ["a", "b"]}, types={"text": kind})
    assert [d.content for d in _open(path).read()] == ["a", "b"]


def test_categories_are_read(write_parquet):
    pyarrow = pytest.importorskip("pyarrow")
    path = write_parquet({"text": pyarrow.array(["a", "b", "a"]).dictionary_encode()})
    assert [d.content for d in _open(path).read()] == ["a", "b", "a"]


def test_an_empty_table_has_no_documents(write_parquet):
    pyarrow = pytest.importorskip("pyarrow")
    path = write_parquet({"text": pyarrow.array([], pyarrow.string())})
    assert list(_open(path).read()) == []


def test_null_texts_are_counted(write_parquet, caplog):
    path = write_parquet({"text": ["a", None, "b", None]})
    with caplog.at_level("INFO"):
        assert len(list(_open(path).read())) == 2
    assert "2 rows without a text are left out" in caplog.text


def test_a_missing_column_is_an_error(write_parquet):
    path = write_parquet({"body": ["a"], "n": [1]})
    with pytest.raises(UserError, match="The column 'text' is missing") as caught:
        _open(path)
    assert "'body' (string), 'n' (int64)" in caught.value.remedy
    with pytest.raises(UserError, match="'n' holds int64, not strings"):
        _open(path, "n")


def test_a_fetched_dataset_has_its_text_in_a_column_of_its_own(write_parquet):
    path = write_parquet({"text": ["a"]}, {DATASET_KEY: b"{}"})
    assert [d.content for d in _open(path, "body").read()] == ["a"]


def test_invalid_utf8_in_a_column(write_parquet):
    pyarrow = pytest.importorskip("pyarrow")
    offsets = pyarrow.py_buffer(b"\0\0\0\0\1\0\0\0\3\0\0\0")
    data = pyarrow.py_buffer(b"ab\xff")
    array = pyarrow.StringArray.from_buffers(2, offsets, data)
    path = write_parquet({"text": array})
    with pytest.raises(UserError, match="0xff") as caught:
        list(_open(path).read())
    assert caught.value.where == f"{path}, row 2, byte 1 of the text"
    reader = _open(path, replace_invalid_utf8=True)
    assert [d.content for d in reader.read()] == ["a", "b\ufffd"]


def test_damage_is_explained(write_parquet):
    path = write_parquet({"text": ["some text " * 50, "b"] * 100})
    data = path.read_bytes()
    for damaged in (data[:-20], data[:50], data[:60] + bytes(60) + data[120:]):
        path.write_bytes(damaged)
        with pytest.raises(UserError, match="damaged or incomplete") as caught:
            list(_open(path).read())
        assert caught.value.where == str(path)


def test_a_packed_parquet_file_is_refused(write_parquet):
    path = write_parquet({"text": ["a"]})
    path.write_bytes(gzip.compress(path.read_bytes()))
    with pytest.raises(UserError, match="compressed Parquet") as caught:
        _open(path)
    assert "unpack" in caught.value.remedy


def test_parquet_needs_an_extra(tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "pyarrow.types", None)
    (tmp_path / "x").write_bytes(b"PAR1")
    with pytest.raises(UserError, match="pyarrow") as caught:
        ParquetReader.open(tmp_path / "x", "text", False)
    assert "hf" in caught.value.remedy
