"""Words are those of `wc -w`, and begin where they do."""

import os
import shutil
import subprocess
import unicodedata
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lmjax.data.tokenization.words import count_words, word_starts

REPEATABLE = settings(derandomize=True, deadline=None, max_examples=200)
ODD = (
    "\x00\x01\t\x0b\x1b\x1c\x1f\x7f\x80\x85\x9f\xa0\u1680\u2007\u2028\u202f\u205f\u2060"
)
NEAR = "\u200b\u200c\ufeff\u00ad\u180e\u2063\u3000\u3001\u2013\u201c\xc2\xe2"
LETTERS = st.sampled_from("ab é語😀 \n\r" + ODD + NEAR)


def _separates(character: str) -> bool:
    if character in "\x1c\x1d\x1e\x1f\x85":
        return False
    return character.isspace() or character == "\u2060"


def _naive_starts(text: str) -> list[int]:
    """One character after the other."""
    starts, position, in_word = [], 0, False
    for character in text:
        if _separates(character):
            in_word = False
        elif unicodedata.category(character) != "Cc":
            if not in_word:
                starts.append(position)
            in_word = True
        position += len(character.encode("utf-8", "surrogateescape"))
    return starts


@pytest.mark.parametrize(
    ("text", "starts"),
    [
        ("", []),
        (" \n\t", []),
        ("a", [0]),
        ("ab cd", [0, 3]),
        ("  é à\n", [2, 5]),
        ("a\u00a0b\u3000c", [0, 3, 7]),
        ("a\u2060b", [0, 4]),  # the word joiner separates
        ("a\u200bb\ufeffc", [0]),  # the zero-width space does not
        ("a\x1cb\x85c", [0]),  # nor do these
        ("a\x01b", [0]),
        ("\x01\x02", []),
        ("a \x01 b", [0, 4]),
        (" \x01ab", [2]),
        ("\x00\x9fa", [3]),
        ("😀 語", [0, 5]),
    ],
)
def test_words_begin_where_they_do(text: str, starts: list[int]) -> None:
    assert word_starts(text).tolist() == starts == _naive_starts(text)
    assert count_words(text) == len(starts)


@REPEATABLE
@given(st.text(LETTERS | st.characters(exclude_categories=["Cs"])))
def test_any_text_has_the_words_of_a_naive_count(text: str) -> None:
    starts = word_starts(text)
    assert starts.dtype == "int64"
    assert starts.tolist() == word_starts(text.encode()).tolist() == _naive_starts(text)
    assert count_words(text) == len(starts)


def test_every_character_is_of_the_right_class() -> None:
    for low in range(0, 0x20000, 0x800):
        if low == 0xD800:
            continue
        text = "".join(f"a{chr(low + i)}b {chr(low + i)} " for i in range(0x800))
        assert word_starts(text).tolist() == _naive_starts(text), hex(low)


@REPEATABLE
@given(st.lists(st.sampled_from([*b"a \x01\x80\x8a\x9a\xa0\xc2\xe1\xe2\xe3\xf0"])))
def test_broken_utf8_belongs_to_words(data: list[int]) -> None:
    text = bytes(data).decode("utf-8", "surrogateescape")
    assert word_starts(bytes(data)).tolist() == _naive_starts(text)
    assert word_starts(text).tolist() == _naive_starts(text)
    assert count_words(text) == len(word_starts(text))


def test_each_broken_byte_is_one_byte() -> None:
    text = b"\xe2\x80 \xff b".decode("utf-8", "surrogateescape")
    assert word_starts(text).tolist() == [0, 3, 5]
    with pytest.raises(UnicodeEncodeError):
        word_starts("\ud800")


def _wc(path: Path) -> int:
    done = subprocess.run(
        ["wc", "-w", path],
        env={**os.environ, "LC_ALL": "C.UTF-8"},
        capture_output=True,
        check=True,
    )
    return int(done.stdout.split()[0])


@pytest.fixture(scope="module")
def wc(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Skips where wc is another, or knows no UTF-8."""
    if not shutil.which("wc"):
        pytest.skip("needs wc")
    version = subprocess.run(["wc", "--version"], capture_output=True).stdout
    file = tmp_path_factory.mktemp("wc") / "probe"
    file.write_text("a\u3000b \x01 c", encoding="utf-8")
    if b"GNU coreutils" not in version or _wc(file) != 3:
        pytest.skip("needs GNU wc with a UTF-8 locale, as of coreutils 9.1")


@pytest.mark.usefixtures("wc")
def test_wc_counts_the_same(tmp_path: Path) -> None:
    texts = ["a\x1cb\x85c d\x01", "a\u00a0b\u2060c\u202fd", " \x7f \x9f a\x0cb\x0bc"]
    for i, text in enumerate(texts):
        file = tmp_path / str(i)
        file.write_bytes(text.encode())
        assert _wc(file) == count_words(text), text


@pytest.mark.usefixtures("wc")
def test_wc_counts_the_same_in_a_real_corpus(shared_data: Path) -> None:
    files = sorted((shared_data / "corpus" / "babylm" / "train").glob("*.train"))
    assert len(files) == 6
    for file in files:
        text = file.read_bytes().decode()
        assert count_words(text) == len(word_starts(text)) == _wc(file), file.name
