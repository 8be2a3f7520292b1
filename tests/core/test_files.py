"""A file is there whole or not at all, and what a killed process left goes."""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from lmjax.core import files


def test_a_file_appears_when_it_is_whole(tmp_path: Path) -> None:
    file = tmp_path / "a.txt"
    file.write_text("old")
    with files.replacing(file) as temporary:
        temporary.write_text("new")
        assert file.read_text() == "old"
    assert file.read_text() == "new"
    assert list(tmp_path.iterdir()) == [file]


def test_an_error_leaves_the_old_file(tmp_path: Path) -> None:
    file = tmp_path / "a.txt"
    file.write_text("old")
    with pytest.raises(KeyError), files.replacing(file) as temporary:
        temporary.write_text("half")
        raise KeyError
    assert file.read_text() == "old"
    assert list(tmp_path.iterdir()) == [file]


def test_what_a_killed_process_left_is_swept(tmp_path: Path) -> None:
    program = (
        "import os, pathlib, sys; from lmjax.core import files\n"
        "with files.replacing(pathlib.Path(sys.argv[1])) as temporary:\n"
        "    temporary.write_text('half'); os._exit(9)\n"
    )
    command = [sys.executable, "-c", program, str(tmp_path / "a.b.txt")]
    done = subprocess.run(command, cwd=Path(__file__).parents[2], check=False)
    assert done.returncode == 9
    (left,) = tmp_path.iterdir()
    with files.replacing(tmp_path / "mine.txt") as temporary:
        temporary.write_text("going on")
        files.sweep(tmp_path)
        assert not left.exists() and temporary.exists()


def test_what_a_process_left_is_swept_before_its_parent_asks_for_it(
    tmp_path: Path,
) -> None:
    process = subprocess.Popen([sys.executable, "-c", ""])
    stat = Path(f"/proc/{process.pid}/stat")
    if not stat.exists():
        process.wait()
        pytest.skip("needs Linux, to see a process that has ended and is still there")
    deadline = time.monotonic() + 30
    while ") Z " not in stat.read_text() and time.monotonic() < deadline:
        time.sleep(0.01)
    name = f".a.{files._host()}.{process.pid}.x.tmp"
    (tmp_path / name).touch()
    files.sweep(tmp_path)
    process.wait()
    assert not list(tmp_path.iterdir())


def test_of_another_machine_only_what_is_old_is_swept(tmp_path: Path) -> None:
    for name in (".a.elsewhere.1.x.tmp", ".b.elsewhere.1.x.tmp"):
        (tmp_path / name).touch()
    os.utime(tmp_path / ".a.elsewhere.1.x.tmp", (0, 0))
    files.sweep(tmp_path)
    assert [file.name for file in tmp_path.iterdir()] == [".b.elsewhere.1.x.tmp"]
