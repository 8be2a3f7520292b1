"""What may be wrong with the place of a run: another run, a disk, a drive, a copy."""

import errno
import fcntl
import os
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import pytest

from lmjax.config.schema import Config, OptimizerKind
from lmjax.core.errors import ConfigError, UserError
from lmjax.parallel import hosts
from lmjax.run_folder import RunFolder
from lmjax.train import integrity, resuming, storage
from lmjax.train import lock as locks
from lmjax.train.lock import Lock
from lmjax.train.progress import Progress
from lmjax.train.writing import FolderWriter
from tests.faults import toy_runs
from tests.faults.toy_runs import assert_resumes, config, opened, train

HOLD = """
import pathlib, sys, time
from lmjax.train.lock import Lock
lock = Lock.take(pathlib.Path(sys.argv[1]))
print("held", flush=True)
time.sleep(60)
"""


@pytest.fixture
def other(tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    """Another process that holds the folder `run`."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(tmp_path / "run")],
        stdout=subprocess.PIPE,
        text=True,
        cwd=Path(__file__).parents[2],
    )
    with process:
        assert process.stdout.readline() == "held\n"
        yield process
        process.kill()


def test_a_second_run_refuses_at_once_until_the_first_is_dead(
    tmp_path: Path, other: subprocess.Popen[str]
) -> None:
    run = tmp_path / "run"
    with pytest.raises(UserError, match="another run is at work") as error:
        opened(run)
    assert f"process {other.pid} on {os.uname().nodename}" in error.value.what
    assert "since 20" in error.value.what and str(run) in error.value.where
    assert not (run / "checkpoints").exists()
    other.send_signal(signal.SIGKILL)
    other.wait()
    assert assert_resumes(run, 0) == []


def test_the_lock_is_let_go_of_however_a_start_ends(tmp_path: Path) -> None:
    run = tmp_path / "run"
    with pytest.raises(KeyError), opened(run):
        with pytest.raises(UserError, match=f"process {os.getpid()}"):
            opened(run)
        raise KeyError
    train(run, 1)
    with pytest.raises(ConfigError, match="has checkpoints up to"):
        opened(run, config(resume="none"))  # refused once the lock is held
    with opened(run), RunFolder.read(run, config()) as reader:
        assert reader.start_step == 1, "who only reads needs no lock"
    assert (run / locks.FILE).read_text() == ""


def test_a_lock_that_is_not_signed_yet_is_still_one(tmp_path: Path) -> None:
    with Lock.take(tmp_path):
        (tmp_path / locks.FILE).write_text("")
        with pytest.raises(UserError, match="one that has just begun"):
            Lock.take(tmp_path)


@pytest.mark.parametrize("code", [errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS])
def test_where_there_are_no_locks_a_run_is_told_and_goes_on(
    tmp_path: Path, code: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(fcntl, "flock", fail)
    (line,) = assert_resumes(tmp_path / "run", 0)
    assert "knows no locks" in line


def test_only_the_first_process_of_a_run_takes_the_lock(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And what it decides holds for all, also that there is nothing to go on from."""
    train(tmp_path / "run", 3)
    told = {"step": 3}
    monkeypatch.setattr(jax, "process_index", lambda: 1)
    monkeypatch.setattr(hosts, "sum_over_hosts", lambda n: n + told["step"] + 1)
    with Lock.take(tmp_path / "run"):
        assert resuming.agreed_step(lambda: pytest.fail("asked"), tmp_path) == 3
        told["step"] = -1
        with pytest.raises(UserError, match="the first process could not open"):
            resuming.agreed_step(lambda: 5, tmp_path)


def test_the_first_process_tells_the_others_before_it_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[int] = []
    monkeypatch.setattr(hosts, "sum_over_hosts", lambda n: told.append(n) or n)

    def fail() -> int:
        raise PermissionError(errno.EACCES, "Permission denied")

    with pytest.raises(PermissionError):
        resuming.agreed_step(fail, tmp_path)
    assert told == [0]
    assert resuming.agreed_step(lambda: 0, tmp_path) == 0
    assert told == [0, 1]


@pytest.mark.parametrize("code", [errno.EROFS, errno.EACCES, errno.EPERM])
def test_a_run_folder_that_cannot_be_written_is_told(
    tmp_path: Path, code: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, really = tmp_path / "run", os.open
    train(run, 1)

    def refuse(path: Any, flags: int, *rest: Any, **keywords: Any) -> int:
        if flags & (os.O_WRONLY | os.O_RDWR) and str(path).startswith(str(run)):
            raise OSError(code, os.strerror(code), str(path))
        return really(path, flags, *rest, **keywords)

    monkeypatch.setattr(os, "open", refuse)
    with pytest.raises(UserError, match="the run folder cannot be written") as error:
        opened(run)
    assert os.strerror(code) in error.value.what
    assert str(run) in error.value.where and "--workdir" in error.value.remedy
    with RunFolder.read(run, config()) as reader:
        assert reader.start_step == 1


def test_an_address_is_no_run_folder() -> None:
    for open_it in (opened, RunFolder.read):
        with pytest.raises(ConfigError, match="not an address") as error:
            open_it(Path("gs://bucket/run"), config())
        assert "gcsfuse bucket" in error.value.remedy
    assert not Path("gs:").exists()


def test_a_copied_run_folder_goes_on(tmp_path: Path) -> None:
    """Other path, other times, and no word of the first place in it."""
    run, copy = tmp_path / "run", tmp_path / "elsewhere" / "copy"
    train(run, 4, 5)
    copy.parent.mkdir()
    subprocess.run(["cp", "-r", run, copy], check=True)
    shutil.rmtree(run)
    assert assert_resumes(copy, 5) == []
    train(copy, 6)
    assert assert_resumes(copy, 6) == []


@pytest.fixture
def drive(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that passes for a Google Drive: it can't rename folders."""
    path, mounts = tmp_path / "drive", tmp_path / "mounts"
    path.mkdir()
    mounts.write_text(f"/dev/vda / ext4 rw 0 0\ndrive {path} fuse.drive rw 0 0\n")
    monkeypatch.setattr(storage, "MOUNTS", mounts)
    rename = Path.rename

    def refuse(source: Path, target: Path) -> Path:
        assert not str(source).startswith(str(path)), "renamed on the drive"
        return rename(source, target)

    monkeypatch.setattr(Path, "rename", refuse)
    return path


def test_on_a_drive_checkpoints_are_copied_there(drive: Path, tmp_path: Path) -> None:
    run = drive / "run"
    with opened(run) as folder:
        folder.begin()
        (line,) = folder.notices
        for step in (1, 2, 3):
            folder.save(toy_runs.state(step), Progress(step=step, words=10 * step))
            folder.wait()
    assert "on Google Drive" in line and "trash" in line
    assert sorted(os.listdir(run / "checkpoints")) == ["00000002", "00000003"]
    assert assert_resumes(run, 3) == [line]
    half = run / "checkpoints" / "00000004"
    shutil.copytree(run / "checkpoints" / "00000003", half)
    for name in storage.MARKERS:
        (half / name).unlink()
    assert assert_resumes(run, 3) == [line], "a half-copied one is not picked up"
    train(run, 4)
    assert assert_resumes(run, 4) == [line]


def test_milestones_on_a_drive_are_whole_or_absent(drive: Path) -> None:
    with opened(drive / "run") as folder:
        kept = folder.open_milestones((10,))
        kept.write(toy_runs.state(1).params, (10,), Progress(step=1, words=10))
        kept.close()
    with RunFolder.read(drive / "run", config(resume="chck_10")) as reader:
        assert reader.label == "chck_10"
    (drive / "run/milestones/chck_10/checksums.json").unlink()
    (drive / "run/milestones/chck_10/_CHECKPOINT_METADATA").unlink()
    with pytest.raises(ConfigError, match="no whole checkpoint to read"):
        RunFolder.read(drive / "run", config(resume="chck_10"))


def test_differences_of_the_config_are_told_and_those_of_meaning_refused(
    tmp_path: Path,
) -> None:
    run = tmp_path / "run"
    train(run, 2)
    changed = config(keep=5, resume="2")  # which this start alone is told
    changed.log.every = "7 steps"
    changed.train.microbatch_size = 8
    with opened(run, changed) as folder:
        told = folder.notices
    assert [line.partition(": ")[2] for line in told] == [
        "train.microbatch_size: 0 -> 8",
        "checkpoint.keep: 2 -> 5",
        'log.every: "10 steps" -> "7 steps"',
    ]
    for name, value in {
        "seed": 1,
        "train.batch_size": 512,
        "model.width": 64,
        "data.sequence_length": 512,
        "tokenizer.vocab_size": 99,
        "optim.kind": OptimizerKind.MUON,
    }.items():
        other = Config()
        section, _, field = name.rpartition(".")
        setattr(getattr(other, section) if section else other, field, value)
        with pytest.raises(ConfigError, match="of another run") as error:
            opened(run, other)
        assert name in error.value.what
        told = getattr(value, "value", value)
        assert f"now {told!r}" in error.value.what


def test_little_space_is_told_at_the_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    abstract, usage = toy_runs.maker().abstract(), shutil.disk_usage(tmp_path)
    for free, count in ((19_000_000, 1), (30_000_000, 0)):
        monkeypatch.setattr(
            shutil, "disk_usage", lambda _, free=free: usage._replace(free=free)
        )
        with opened(tmp_path / "run") as folder:
            folder.foresee_space(abstract)
            assert len(folder.notices) == count
    # and what is noticed later reaches whoever was told
    told: list[str] = []
    with opened(tmp_path / "run") as folder:
        folder.report(told.append)
        monkeypatch.setattr(
            shutil, "disk_usage", lambda _: usage._replace(free=19_000_000)
        )
        folder.foresee_space(abstract)
    assert len(told) == 1 and "0.0 GB are free" in told[0]


def test_a_failed_save_does_not_hide_why_a_run_ended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    closed: list[str] = []

    def fail(_: FolderWriter) -> None:
        closed.append("tried")
        raise UserError("the disk is full")

    monkeypatch.setattr(FolderWriter, "close", fail)
    with pytest.raises(ZeroDivisionError), opened(tmp_path / "run"):
        raise ZeroDivisionError
    with pytest.raises(UserError, match="the disk is full"), opened(tmp_path / "run"):
        pass
    assert closed == ["tried"] * 2
    monkeypatch.undo()
    with opened(tmp_path / "run"):
        pass  # the lock was let go of each time


def test_nothing_is_being_written_any_more_once_a_start_has_ended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However it ends: in a notebook the next one begins in the same process."""
    write, may_go_on = integrity.write, threading.Event()

    def slow(*arguments: Any, **keywords: Any) -> None:
        assert may_go_on.wait(60)
        write(*arguments, **keywords)

    monkeypatch.setattr(integrity, "write", slow)
    with pytest.raises(KeyError), opened(tmp_path / "run") as folder:
        kept = folder.open_milestones((10,))
        progress = Progress(step=1, words=10)
        kept.write(toy_runs.state(1).params, (10,), progress)
        folder.save(toy_runs.state(1), progress)
        threading.Timer(0.1, may_go_on.set).start()
        raise KeyError
    assert os.listdir(tmp_path / "run" / "checkpoints") == ["00000001"]
    assert sorted(os.listdir(tmp_path / "run" / "milestones")) == [
        "chck_10",
        "ledger.json",
    ]
