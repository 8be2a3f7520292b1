"""Prompts from files: lines, records, and everything that can be wrong with them."""

import io
import sys
from pathlib import Path

import pytest

from lmjax.core.errors import UserError
from lmjax.sampling.prompt_files import read_prompts


def _file(folder: Path, data: bytes, name: str = "prompts.txt") -> str:
    path = folder / name
    path.write_bytes(data)
    return str(path)


@pytest.mark.parametrize(
    ("data", "prompts"),
    [
        (b"one\ntwo\n", ["one", "two"]),
        (b"one\r\n\n  two \r\n\n", ["one", "  two "]),
        ("\ufefföne\x0b\u2028end".encode(), ["öne\x0b\u2028end"]),
        (b'{"a brace": 1\n{"prompt"\n', ['{"a brace": 1', '{"prompt"']),
        (b'{"prompt": "a\\nb"}\n\n{"id": 1, "prompt": ""}\n', ["a\nb", ""]),
    ],
)
def test_a_line_is_a_prompt_and_so_is_the_field_of_a_record(
    data: bytes, prompts: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert read_prompts(_file(tmp_path, data)) == prompts
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(data)))
    assert read_prompts("-") == prompts


@pytest.mark.parametrize(
    ("name", "data", "told"),
    [
        ("p.txt", b"", "no prompt"),
        ("p.txt", b"\n \n", "no prompt"),
        ("p.txt", b"one\nt\xffo\n", "line 2"),
        ("p.jsonl", b"one\n", "line 1"),
        ("p.jsonl", b'{"prompt": "a"}\n\n{"prompt": "b"\n', "line 3"),
        ("p.jsonl", b'{"prompt": "a"}\n{"text": "b"}\n', "line 2"),
        ("p.jsonl", b'{"prompt": "a"}\n{"prompt": 1}\n', "line 2"),
        ("p.txt", b'{"prompt": "a"}\n["b"]\n', "line 2"),
    ],
)
def test_what_is_wrong_is_told_with_its_line(
    name: str, data: bytes, told: str, tmp_path: Path
) -> None:
    file = _file(tmp_path, data, name)
    with pytest.raises(UserError) as error:
        read_prompts(file)
    assert told in str(error.value) and file in error.value.where
    assert error.value.remedy


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    for file in (tmp_path, tmp_path / "nowhere.txt"):
        with pytest.raises(UserError) as error:
            read_prompts(str(file))
        assert str(file) in error.value.where
