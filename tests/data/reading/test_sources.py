"""Paths stand for files, and files for sources."""

from pathlib import Path

import pytest

from lmjax.core.errors import UserError
from lmjax.data.reading.sources import Source, find_sources, source_names


def _touch(folder, *names):
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(name)


def _names(*paths, role="train", **options):
    return [s.name for s in find_sources([str(p) for p in paths], role, **options)]


def test_a_folder_is_searched_by_role(tmp_path):
    _touch(tmp_path, "train/b.train", "train/a.train.txt", "dev/a.dev", "dev/b.valid")
    _touch(tmp_path, "c.train.gz", "c.dev.txt.zst", "other.txt", "train.bin")
    _touch(tmp_path, ".hidden.train", ".git/c.train")
    assert _names(tmp_path) == ["a.train.txt", "b.train", "c.train.gz"]
    assert _names(tmp_path, role="valid") == ["a.dev", "b.valid", "c.dev.txt.zst"]


@pytest.mark.parametrize(
    ("train", "valid"),
    [
        ("train.bin", "val.bin"),
        ("train.ids.zst", "valid.ids.zst"),
        ("en.train.jsonl", "en.validation.jsonl"),
        ("train-00000-of-00002.parquet", "validation-00000-of-00001.parquet"),
    ],
)
def test_files_named_after_a_role_are_the_second_choice(tmp_path, train, valid):
    _touch(tmp_path, train, valid, "input.txt", "test.txt")
    assert _names(tmp_path) == [train]
    assert _names(tmp_path, role="valid") == [valid]


def test_files_of_known_suffixes_are_the_last_choice(tmp_path):
    known = [
        "a.txt",
        "b.txt.gz",
        "c.jsonl.zst",
        "d.parquet",
        "e.bin",
        "f.ids",
        "g.json",
    ]
    _touch(tmp_path, *known, "h.md", "i.test.txt", "dev.txt", "val.jsonl", "j.py")
    assert _names(tmp_path) == known
    (tmp_path / "dev.txt").unlink()
    (tmp_path / "val.jsonl").unlink()
    assert _names(tmp_path, role="valid") == known


def test_descriptions_and_tokenizers_are_no_corpus(tmp_path):
    _touch(tmp_path, "a.bin", "a.bin.json", "b.ids.gz", "b.ids.json", "meta.json")
    _touch(tmp_path, "tokenizer.json", "vocab.json", "merges.txt")
    assert _names(tmp_path) == ["a.bin", "b.ids.gz"]
    assert _names(tmp_path / "merges.txt") == ["merges.txt"]


def test_files_and_globs_are_taken_as_named_and_once(tmp_path):
    _touch(tmp_path, "a.weird", "b.weird", "sub/c.train")
    paths = [f"{tmp_path}/*.weird", f"{tmp_path}/a.weird", f"{tmp_path}/sub"]
    assert _names(*paths) == ["a.weird", "b.weird", "c.train"]


def test_each_file_is_a_source_of_its_own(tmp_path):
    _touch(tmp_path, "b.train", "a.train")
    assert find_sources([str(tmp_path)], "train") == [
        Source("a.train", (tmp_path / "a.train",)),
        Source("b.train", (tmp_path / "b.train",)),
    ]


def test_equal_names_are_told_apart(tmp_path):
    _touch(tmp_path, "a/x.train", "b/x.train", "b/y.train")
    assert _names(tmp_path) == ["a/x.train", "b/x.train", "b/y.train"]
    assert _names(tmp_path / "b") == ["x.train", "y.train"]
    assert source_names([]) == []


def test_a_named_path_is_one_source(tmp_path):
    _touch(tmp_path, "wiki/b.txt", "wiki/a.txt", "c.txt")
    named = f"Wiki-2.0={tmp_path}/wiki"
    assert find_sources([str(tmp_path / "c.txt"), named], "train") == [
        Source("Wiki-2.0", (tmp_path / "wiki/a.txt", tmp_path / "wiki/b.txt")),
        Source("c.txt", (tmp_path / "c.txt",)),
    ]


@pytest.mark.parametrize("first", [True, False])
def test_a_name_is_stronger_than_a_folder(tmp_path, first):
    _touch(tmp_path, "a.txt", "b.txt")
    paths = [f"named={tmp_path}/b.txt", str(tmp_path)]
    assert _names(*(paths if first else paths[::-1])) == ["a.txt", "named"]


def test_several_paths_of_one_name_are_one_source(tmp_path):
    _touch(tmp_path, "a.txt", "b.txt")
    paths = [f"x={tmp_path}/a.txt", f"x={tmp_path}/b.txt"]
    assert [len(s.files) for s in find_sources(paths, "train")] == [2]


def test_a_file_named_like_a_named_path_is_itself(tmp_path, monkeypatch):
    _touch(tmp_path, "name=a.txt", "a.txt")
    monkeypatch.chdir(tmp_path)
    assert _names("name=a.txt") == ["name=a.txt"]


def test_two_sources_of_one_name_are_an_error(tmp_path):
    _touch(tmp_path, "a.txt", "b/c.txt")
    with pytest.raises(
        UserError, match=r"Two sources have the name 'a\.txt'"
    ) as caught:
        _names(tmp_path / "a.txt", f"a.txt={tmp_path}/b")
    assert "c.txt" in caught.value.where
    assert "other_name=path" in caught.value.remedy


def test_a_file_in_two_sources_is_an_error(tmp_path):
    _touch(tmp_path, "a.txt")
    with pytest.raises(UserError, match="in two sources, 'x' and 'y'") as caught:
        _names(f"x={tmp_path}", f"y={tmp_path}/a.txt")
    assert str(tmp_path / "a.txt") in caught.value.where


def test_datasets_are_fetched(tmp_path):
    _touch(tmp_path, "cache/1.parquet", "cache/2.parquet")
    files = {
        "hf://roneneldan/TinyStories?split=train": tmp_path / "cache/1.parquet",
        "hf://owner/other?revision=a=b": tmp_path / "cache/2.parquet",
    }
    first, second = files
    sources = find_sources([first, f"mine={second}"], "train", fetch=files.__getitem__)
    assert [s.name for s in sources] == ["mine", "roneneldan/TinyStories"]
    assert sources[1].files == (tmp_path / "cache/1.parquet",)
    with pytest.raises(UserError, match="can't be fetched here"):
        find_sources([first], "train")


@pytest.mark.parametrize("path", ["missing", "missing/*.txt", ".", "x=missing"])
def test_nothing_found_is_an_error(tmp_path, monkeypatch, path):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError) as caught:
        find_sources([path], "valid", field="data.valid")
    assert "data.valid" in caught.value.where
    assert caught.value.remedy


def test_no_path_is_an_error():
    with pytest.raises(UserError, match="No corpus is given") as caught:
        find_sources((), "train")
    assert caught.value.where == "data.train"


def test_links_to_one_file_are_one_file(tmp_path):
    _touch(tmp_path, "a.txt")
    Path(tmp_path / "b.txt").symlink_to(tmp_path / "a.txt")
    assert len(_names(tmp_path)) == 1


def test_configs_of_a_dataset_are_sources_of_their_own(tmp_path):
    (tmp_path / "a.parquet").touch()
    (tmp_path / "b.parquet").touch()
    files = {
        "hf://o/n?config=a&split=train": tmp_path / "a.parquet",
        "hf://o/n?config=b": tmp_path / "b.parquet",
    }
    sources = find_sources(list(files), "train", fetch=files.__getitem__)
    assert [source.name for source in sources] == ["o/n:a", "o/n:b"]
