"""Documents hold every word of their file, and errors say where to look."""

import subprocess
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lmjax.core.errors import UserError
from lmjax.data import readers

REPEATABLE = settings(derandomize=True, deadline=None)
BABYLM_WORDS = {"switchboard.train": 146_789, "childes.train": 747_537}


def _texts(path: Path, content: str | bytes) -> list[str]:
    data = content.encode() if isinstance(content, str) else content
    path.write_bytes(data)
    return [document.text for document in readers.read_documents(path)]


def _touch(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(name)


def test_blank_lines_and_headings_open_documents(tmp_path):
    text = "a\nb\n\n \t\nc\n= = = Title = = =\nd\n= = = Next = = =\n= not one\n\n"
    assert _texts(tmp_path / "x", text) == [
        "a\nb",
        "c",
        "= = = Title = = =\nd",
        "= = = Next = = =\n= not one",
    ]


def test_lines_keep_their_text(tmp_path):
    text = "\ufeff a  b \r\nc\x0b\u2028d\t\r\n\r\n\x00e"
    assert _texts(tmp_path / "x", text) == ["\ufeff a  b \r\nc\x0b\u2028d\t\r", "\x00e"]


def test_the_source_is_the_file_name(tmp_path):
    file = tmp_path / "some.train"
    file.write_text("a")
    assert list(readers.read_documents(file)) == [readers.Document("a", "some.train")]
    assert next(readers.read_documents(file, "other")).source == "other"


@REPEATABLE
@given(
    st.text(st.sampled_from("ab=é\u3000 \n\r\t\x1c\x85"), max_size=200),
    st.integers(4, 40),
)
def test_words_are_those_of_the_file(tmp_path_factory, text, limit):
    file = tmp_path_factory.mktemp("words") / "x"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(readers, "MAX_DOCUMENT_BYTES", limit)
        documents = _texts(file, text)
    assert [word for text in documents for word in text.split()] == text.split()


def test_long_documents_are_cut_at_line_ends(tmp_path):
    lines = [f"line {i} " + "x" * 1000 for i in range(100)]
    documents = _texts(tmp_path / "x", "\n".join(lines))
    assert "\n".join(documents) == "\n".join(lines)
    assert len(documents) == 4
    assert max(len(text) for text in documents) <= readers.MAX_DOCUMENT_BYTES


def test_long_lines_are_cut_before_spaces(tmp_path):
    line = " ".join(f"wörd{i}" for i in range(20_000))
    documents = _texts(tmp_path / "x", f"before\n{line}\nafter")
    assert "".join(documents) == f"before\n{line}\nafter"
    sizes = [len(text.encode()) for text in documents]
    assert min(sizes[:-1]) > readers.MAX_DOCUMENT_BYTES - 20
    assert max(sizes) <= readers.MAX_DOCUMENT_BYTES
    assert all(text.startswith(" ") for text in documents[1:])


@REPEATABLE
@given(st.lists(st.text("aé", min_size=1, max_size=5), min_size=1), st.integers(8, 50))
def test_a_line_is_the_sum_of_its_parts(tmp_path_factory, words, limit):
    line = " ".join(words)
    file = tmp_path_factory.mktemp("line") / "x"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(readers, "MAX_DOCUMENT_BYTES", limit)
        assert "".join(_texts(file, line)) == line


@pytest.mark.parametrize("start", ["", " "])
def test_a_word_without_end_is_cut_between_characters(tmp_path, start):
    text = start + "語" * 800_000
    documents = _texts(tmp_path / "x", text)
    assert "".join(documents) == text
    assert len(documents) == 3


def test_invalid_utf8_is_located(tmp_path):
    file = tmp_path / "latin1.txt"
    with pytest.raises(UserError) as caught:
        _texts(file, b"good\n\nalso good" + b" long" * 9000 + b"\ncaf\xe9 au lait\n")
    assert "0xe9" in caught.value.what
    assert caught.value.where == f"{file}, line 4, byte 45019"
    assert "iconv" in caught.value.remedy


def test_an_unreadable_file_is_explained(tmp_path):
    with pytest.raises(UserError, match="can't be read"):
        list(readers.read_documents(tmp_path / "missing"))


def test_a_folder_is_searched_by_role(tmp_path):
    _touch(tmp_path, "train/b.train", "train/a.train.txt", "dev/a.dev", "dev/b.valid")
    _touch(tmp_path, "readme.txt", ".hidden.train", ".git/c.train")

    def names(role):
        return [f.name for f in readers.find_files((str(tmp_path),), role)]

    assert names("train") == ["a.train.txt", "b.train"]
    assert names("valid") == ["a.dev", "b.valid"]


def test_text_files_are_the_second_choice(tmp_path):
    _touch(tmp_path, "a.txt", "b.txt", "c.md", "d.test.txt", "e.dev.txt")
    assert [f.name for f in readers.find_files((str(tmp_path),), "train")] == [
        "a.txt",
        "b.txt",
    ]
    (tmp_path / "e.dev.txt").unlink()
    assert [f.name for f in readers.find_files((str(tmp_path),), "valid")] == [
        "a.txt",
        "b.txt",
    ]


def test_files_and_globs_are_taken_as_named_and_once(tmp_path):
    _touch(tmp_path, "a.weird", "b.weird", "sub/c.train")
    paths = (f"{tmp_path}/*.weird", f"{tmp_path}/a.weird", f"{tmp_path}/sub")
    files = readers.find_files(paths, "train")
    assert [f.name for f in files] == ["a.weird", "b.weird", "c.train"]


@pytest.mark.parametrize("path", ["missing", "missing/*.txt", "."])
def test_nothing_found_is_an_error(tmp_path, path):
    with pytest.raises(UserError) as caught:
        readers.find_files((str(tmp_path / path),), "valid", field="data.valid")
    assert "data.valid" in caught.value.where
    assert caught.value.remedy


def test_no_path_is_an_error():
    with pytest.raises(UserError, match="No corpus"):
        readers.find_files((), "train")


def test_equal_names_are_told_apart(tmp_path):
    _touch(tmp_path, "a/x.train", "b/x.train", "b/y.train")
    files = readers.find_files((str(tmp_path),), "train")
    assert readers.source_names(files) == ["a/x.train", "b/x.train", "b/y.train"]
    assert readers.source_names(files[1:]) == ["x.train", "y.train"]


@pytest.mark.parametrize("name", BABYLM_WORDS)
def test_babylm_files_have_as_many_words_as_wc_says(shared_data, name):
    file = shared_data / "corpus" / "babylm" / "train" / name
    words = sum(len(d.text.split()) for d in readers.read_documents(file))
    assert words == len(file.read_text("utf-8").split()) == BABYLM_WORDS[name]


def test_slices_of_babylm_keep_their_words(shared_data, tmp_path):
    files = sorted((shared_data / "corpus" / "babylm" / "dev").glob("*.dev"))
    assert len(files) == 6
    for file in files:
        with file.open(encoding="utf-8", newline="\n") as handle:
            text = handle.read(100_000)
        texts = _texts(tmp_path / file.name, text)
        counted = subprocess.run(
            ["wc", "-w", tmp_path / file.name],
            env={"LC_ALL": "C.UTF-8"},
            capture_output=True,
            check=True,
        )
        words = sum(len(text.split()) for text in texts)
        assert words == len(text.split()) == int(counted.stdout.split()[0])
        assert len(texts) > 3  # so that something can be held out
