"""Checksums see every way in which a folder may have changed."""

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from lmjax.core.errors import UserError
from lmjax.train import integrity


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    path = tmp_path / "weights"
    (path / "state" / "d").mkdir(parents=True)
    (path / "state" / "d" / "0a").write_bytes(bytes(range(200)))
    (path / "state" / "empty").write_bytes(b"")
    (path / "meta").write_text("{}")
    integrity.write(path, step=3, score=1.5)
    return path


def _flip(file: Path) -> None:
    data = bytearray(file.read_bytes())
    data[100] ^= 1
    file.write_bytes(data)


def test_what_was_written_is_whole(folder: Path) -> None:
    assert integrity.damage(folder) == ""
    integrity.require_whole(folder)
    files = json.loads((folder / integrity.FILE).read_text())["files"]
    assert set(files) == {"meta", "state/d/0a", "state/empty"}
    assert files["state/empty"] == {
        "bytes": 0,
        # Of nothing, as everyone knows it.
        "sha256": "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855",
    }
    assert (integrity.about(folder)["step"], integrity.about(folder)["score"]) == (
        3,
        1.5,
    )


def test_a_folder_may_move_and_its_times_may_change(folder: Path) -> None:
    moved = folder.rename(folder.with_name("moved"))
    os.utime(moved / "meta", (1, 1))
    assert integrity.damage(moved) == ""


CHANGES: dict[str, tuple[Callable[[Path], object], str]] = {
    "truncated": (
        lambda path: os.truncate(path / "state/d/0a", 150),
        "state/d/0a has 150 bytes, not 200",
    ),
    "emptied": (lambda path: os.truncate(path / "meta", 0), "meta has 0 bytes, not 2"),
    "longer": (
        lambda path: (path / "state/empty").write_bytes(b"x"),
        "state/empty has 1 bytes, not 0",
    ),
    "removed": (lambda path: (path / "state/d/0a").unlink(), "state/d/0a is missing"),
    "a folder instead": (
        lambda path: ((path / "meta").unlink(), (path / "meta").mkdir()),
        "meta has",
    ),
    "flipped": (
        lambda path: _flip(path / "state/d/0a"),
        "state/d/0a holds other bytes than were written",
    ),
    "no checksums": (
        lambda path: (path / integrity.FILE).write_text("[1]"),
        "checksums.json cannot be read",
    ),
    "half the checksums": (
        lambda path: os.truncate(path / integrity.FILE, 20),
        "checksums.json cannot be read",
    ),
    "checksums of another form": (
        lambda path: (path / integrity.FILE).write_text('{"files": {"meta": 3}}'),
        "meta has no checksum",
    ),
    "a way out": (
        lambda path: (path / integrity.FILE).write_text(
            '{"files": {"../outside": {"bytes": 1}}}'
        ),
        "../outside lies outside the folder",
    ),
}


@pytest.mark.parametrize("name", CHANGES)
def test_every_change_is_seen_and_named(folder: Path, name: str) -> None:
    change, told = CHANGES[name]
    assert integrity.damage(folder) == ""  # and what is remembered does not hide it
    change(folder)
    assert told in integrity.damage(folder)
    with pytest.raises(UserError, match="the weights are damaged") as error:
        integrity.require_whole(folder)
    assert error.value.where == str(folder)


def test_sizes_alone_are_told_without_reading(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delattr(integrity, "_digest")
    assert integrity.damage(folder, contents=False) == ""
    os.truncate(folder / "state" / "d" / "0a", 199)
    assert "199 bytes" in integrity.damage(folder, contents=False)


def test_a_file_that_cannot_be_read_is_damage(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> str:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(integrity, "_digest", fail)
    assert integrity.damage(folder) == "meta cannot be read: Input/output error"


def test_what_has_no_checksums_says_so(tmp_path: Path) -> None:
    assert not integrity.has_checksums(tmp_path)
    assert integrity.about(tmp_path) == {}
    assert integrity.damage(tmp_path) == "checksums.json is missing"
    integrity.require_whole(tmp_path)  # there is nothing to hold it to
