"""What a run folder stands on, and that folders appear and go there as a whole."""

import os
import shutil
from pathlib import Path

import pytest

from lmjax.core.errors import ConfigError
from lmjax.train import integrity, storage
from lmjax.train.storage import Storage

DRIVE = Storage("Google Drive", renames=False, has_trash=True)
DISK = Storage("disk")


@pytest.fixture
def mounts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    file = tmp_path / "mounts"
    file.write_text("")
    monkeypatch.setattr(storage, "MOUNTS", file)
    return file


@pytest.mark.parametrize(
    ("line", "name", "renames"),
    [
        ("drive {} fuse.drive rw,nosuid 0 0", "Google Drive", False),
        ("bucket {} fuse.gcsfuse rw 0 0", "gcsfuse", False),
        ("gcsfuse {} fuse rw 0 0", "gcsfuse", False),
        ("s3fs {} fuse.s3fs rw 0 0", "user space (fuse.s3fs)", False),
        ("x {} fuse.rclone rw 0 0", "user space (fuse.rclone)", False),
        ("/dev/sdb1 {} fuseblk rw 0 0", "disk", True),
        ("overlay {} fuse.fuse-overlayfs rw 0 0", "disk", True),
        ("/dev/vda {} ext4 rw 0 0", "disk", True),
        ("server:/home {} nfs4 rw 0 0", "disk", True),
        ("", "disk", True),
    ],
)
def test_mounts_tell_what_a_folder_stands_on(
    mounts: Path, tmp_path: Path, line: str, name: str, renames: bool
) -> None:
    spaced = tmp_path / "my runs"
    spaced.mkdir()
    place = str(spaced).replace(" ", "\\040")
    mounts.write_text(f"/dev/vda / ext4 rw 0 0\n{line.format(place)}\n")
    for folder in (spaced, spaced / "not" / "there" / "yet"):
        found = storage.storage_of(folder)
        assert name in found.name and found.renames == renames
    assert storage.storage_of(tmp_path / "other") == DISK
    assert found.has_trash == (name == "Google Drive")


def test_the_innermost_mount_and_the_last_of_equals_count(
    mounts: Path, tmp_path: Path
) -> None:
    mounts.write_text(
        f"b {tmp_path} fuse.gcsfuse rw 0 0\n/dev/vda / ext4 rw 0 0\n"
        f"x {tmp_path}/in tmpfs rw 0 0\n"
    )
    (tmp_path / "in").mkdir()
    (tmp_path / "inner").mkdir()
    assert storage.storage_of(tmp_path / "in") == DISK
    assert storage.storage_of(tmp_path / "inner").name == "gcsfuse"
    mounts.write_text(mounts.read_text() + f"y {tmp_path} ext4 rw 0 0\n")
    assert storage.storage_of(tmp_path / "inner") == DISK


def test_a_link_to_a_bucket_is_the_bucket(mounts: Path, tmp_path: Path) -> None:
    (tmp_path / "bucket").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "bucket")
    mounts.write_text(f"b {tmp_path}/bucket fuse.gcsfuse rw 0 0\n")
    assert not storage.storage_of(tmp_path / "link" / "run").renames


def test_a_synchronised_drive_is_known_by_its_place(
    mounts: Path, tmp_path: Path
) -> None:
    """On a Mac there are no mounts to read."""
    mounts.unlink()
    (tmp_path / "CloudStorage" / "GoogleDrive-me" / "My Drive").mkdir(parents=True)
    assert storage.storage_of(tmp_path / "CloudStorage/GoogleDrive-me/runs") == DRIVE
    assert storage.storage_of(tmp_path / "CloudStorage") == DISK


@pytest.mark.parametrize(
    ("address", "told"),
    [
        ("gs://bucket/runs/a", ("gcsfuse bucket /mnt/bucket", "/mnt/bucket/runs/a")),
        ("s3://bucket/a", ("mount-s3 bucket", "aws s3 sync")),
    ],
)
def test_an_address_is_refused_with_ways_around(
    address: str, told: tuple[str, ...]
) -> None:
    with pytest.raises(ConfigError) as error:
        storage.refuse_addresses(Path(address))
    assert address in error.value.where
    for part in told:
        assert part in error.value.remedy
    storage.refuse_addresses(Path("gs/run"))


def _folder(path: Path, value: bytes = b"array") -> Path:
    (path / "state").mkdir(parents=True)
    (path / "state" / "0a").write_bytes(value)
    (path / "_CHECKPOINT_METADATA").write_text("{}")
    integrity.write(path)
    return path


@pytest.mark.parametrize("stands_on", [DISK, DRIVE])
def test_a_folder_appears_in_the_place_of_another(
    tmp_path: Path, stands_on: Storage
) -> None:
    target = _folder(tmp_path / "there" / "00000003", b"old")
    source = _folder(tmp_path / "local" / "new")
    storage.publish(source, target, stands_on)
    assert integrity.damage(target) == "" and storage.is_published(target)
    assert (target / "state" / "0a").read_bytes() == b"array"
    assert not source.exists()
    assert [path.name for path in target.parent.iterdir()] == ["00000003"]


@pytest.mark.parametrize("stop_at", range(4))
def test_a_copy_that_is_cut_off_is_never_picked_up_half(
    tmp_path: Path, stop_at: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It counts once what the arrays are read from is there."""
    target, copied = tmp_path / "00000003", []
    source, copy = _folder(tmp_path / "local" / "new"), shutil.copyfile

    def cut_off(file: Path, to: Path) -> None:
        if len(copied) == stop_at:
            raise KeyboardInterrupt
        copied.append(copy(file, to))

    with monkeypatch.context() as patch:
        patch.setattr(shutil, "copyfile", cut_off)
        if stop_at < 3:
            with pytest.raises(KeyboardInterrupt):
                storage.publish(source, target, DRIVE)
        else:
            storage.publish(source, target, DRIVE)
    whole = (target / "state" / "0a").exists()
    assert whole == (stop_at > 0)
    assert storage.is_published(target) == (stop_at > 1)
    if stop_at < 3:
        storage.publish(source, target, DRIVE)
    assert integrity.damage(target) == ""


def test_a_copy_that_differs_does_not_count(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, copy = _folder(tmp_path / "local" / "new"), shutil.copyfile

    def lossy(file: Path, to: Path) -> None:
        copy(file, to)
        if to.name == "0a":
            to.write_bytes(b"arraX")

    monkeypatch.setattr(shutil, "copyfile", lossy)
    with pytest.raises(OSError, match="state/0a holds other bytes"):
        storage.publish(source, tmp_path / "00000003", DRIVE)
    assert not (tmp_path / "00000003" / integrity.FILE).exists()


@pytest.mark.parametrize("stands_on", [DISK, DRIVE])
def test_what_is_being_deleted_counts_no_more(
    tmp_path: Path, stands_on: Storage, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = _folder(tmp_path / "runs" / "00000003")
    sizes, unlink = {}, Path.unlink

    def noting(file: Path, **keywords: bool) -> None:
        sizes[file.name] = file.stat().st_size
        if file.name == "0a":
            assert not storage.is_published(path)
        unlink(file, **keywords)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "unlink", noting)
        storage.remove(path, stands_on)
    assert list(path.parent.iterdir()) == []
    if stands_on is DRIVE:
        # The trash counts against the quota, and empty files take nothing.
        assert set(sizes.values()) == {0} and len(sizes) == 3


def test_what_killed_processes_left_is_swept_and_nothing_else(tmp_path: Path) -> None:
    _folder(tmp_path / "00000003")
    (tmp_path / "damaged").mkdir()
    for name in ("00000004.unverified", "00000002.deleted"):
        _folder(tmp_path / name)
    half = tmp_path / "00000005.unverified.orbax-checkpoint-tmp"
    half.mkdir()
    assert [p.name for p in tmp_path.iterdir() if storage.is_published(p)] == [
        "00000003"
    ]
    storage.sweep(tmp_path)
    assert sorted(os.listdir(tmp_path)) == ["00000003", "damaged"]
