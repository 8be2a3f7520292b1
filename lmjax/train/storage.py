"""Where folders stand, and how they appear and go there: at once, or not at all.

On a local disk a folder gets its name by a rename. Google Drive, gcsfuse and most other
file systems in user space rename file by file, so there a folder is written elsewhere
and copied, and what makes it count is copied last.
"""

import contextlib
import dataclasses
import os
import pathlib
import re
import shutil
from collections.abc import Iterator

from lmjax.core.errors import ConfigError, UserError
from lmjax.train import integrity

MOUNTS = pathlib.Path("/proc/mounts")
# Orbax's part of the names of what it is writing, then ours: of what is written and not
# verified yet, and of what is being deleted.
UNFINISHED, UNVERIFIED, DELETED = ".orbax-checkpoint-tmp", ".unverified", ".deleted"
# What makes a folder a checkpoint; the last is written last and deleted first.
MARKERS = ("_CHECKPOINT_METADATA", integrity.FILE)
_DRIVE = re.compile(r"/content/(drive|gdrive)(/|$)|GoogleDrive|Google Drive")
# File systems in user space that rename as the disk below them does.
_RENAMING = re.compile(
    r"fuse\.(fuse-overlayfs|overlayfs|mergerfs|lxcfs|juicefs|ceph-fuse|glusterfs|sshfs"
    r"|bindfs|gocryptfs|encfs|ntfs-3g|portal)|fuseblk|fusectl"
)
_REMOTE = re.compile(r"(gs|s3|az|abfs|hdfs|https?):/")


@dataclasses.dataclass(frozen=True)
class Storage:
    """What a folder stands on.

    Attributes:
      name: for people.
      renames: whether a folder is renamed at once.
      has_trash: whether deleted files go on taking space.
    """

    name: str
    renames: bool = True
    has_trash: bool = False


def storage_of(folder: pathlib.Path) -> Storage:
    """What a folder stands on, or will once it is made."""
    path = folder.absolute()
    while not path.exists() and path != path.parent:
        path = path.parent
    path = path.resolve()
    kind, source = _mount_of(path)
    if _DRIVE.search(str(path)) or kind == "fuse.drive":
        return Storage("Google Drive", renames=False, has_trash=True)
    if "gcsfuse" in kind or (kind == "fuse" and "gcsfuse" in source):
        return Storage("gcsfuse", renames=False)
    if kind.startswith("fuse") and not _RENAMING.fullmatch(kind):
        return Storage(f"a file system in user space ({kind})", renames=False)
    return Storage("disk")


def notices(path: pathlib.Path) -> list[str]:
    """What a user should know of the storage of a run folder, a line each."""
    stands_on = storage_of(path)
    if stands_on.renames:
        return []
    trash = ", and old ones are emptied before they go to the trash"
    return [
        f"the run folder is on {stands_on.name}: checkpoints are written to a local "
        f"folder and copied{trash if stands_on.has_trash else ''}"
    ]


def refuse_addresses(path: pathlib.Path) -> None:
    """Raises ConfigError for a run folder in an object store, which is no folder."""
    if not _REMOTE.match(str(path)):
        return
    scheme, _, rest = str(path).partition(":/")
    bucket, _, inner = rest.strip("/").partition("/")
    mount = {"gs": "gcsfuse", "s3": "mount-s3"}.get(scheme, "its file system driver")
    address = f"{scheme}://{bucket}/{inner}"
    sync = "gcloud storage rsync -r" if scheme == "gs" else "aws s3 sync"
    raise ConfigError(
        "a run folder is a folder of this machine, not an address",
        where=f"--workdir {address}",
        remedy=f"mount it ({mount} {bucket} /mnt/{bucket}) and give --workdir "
        f"/mnt/{bucket}/{inner}, or train into a local folder and copy it: "
        f"{sync} RUN {address}",
    )


@contextlib.contextmanager
def unwritable_explained(path: pathlib.Path) -> Iterator[None]:
    """Turns errors of the system about a run folder into a message."""
    try:
        yield
    except OSError as error:
        raise UserError(
            f"the run folder cannot be written: {error.strerror or error}",
            where=str(error.filename or path),
            remedy="choose another folder with --workdir",
        ) from error


def publish(source: pathlib.Path, path: pathlib.Path, storage: Storage) -> None:
    """Gives a folder with checksums its place, whatever stood there before.

    Raises:
      OSError: among others when a copy is not what was written.
    """
    if path.exists():
        remove(path, storage)
    if storage.renames:
        source.rename(path)
        _sync_folder(path.parent)
        return
    for file in _files(source):
        target = path / file.relative_to(source)
        if file.name == integrity.FILE and (wrong := integrity.damage(path, source)):
            raise OSError(f"the copy differs from what was written: {wrong}")
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(file, target)
    shutil.rmtree(source)


def remove(path: pathlib.Path, storage: Storage) -> None:
    """Deletes a folder: it no longer counts from the first moment on."""
    if not storage.renames:
        for file in reversed(list(_files(path))):
            if storage.has_trash:
                os.truncate(file, 0)
            file.unlink()
    elif not _is_left_over(path):
        doomed = path.with_name(path.name + DELETED)
        if doomed.exists():
            shutil.rmtree(doomed)
        path = path.rename(doomed)
    shutil.rmtree(path)


def is_published(path: pathlib.Path) -> bool:
    """Whether a folder was written to its end, and is not being deleted."""
    marked = any((path / name).is_file() for name in MARKERS)
    return marked and not _is_left_over(path)


def sweep(folder: pathlib.Path) -> None:
    """Deletes what killed processes left half-written, or half-deleted."""
    storage = storage_of(folder)
    for path in folder.glob("*"):
        if path.is_dir() and _is_left_over(path):
            remove(path, storage)


def _is_left_over(path: pathlib.Path) -> bool:
    return path.name.endswith((UNVERIFIED, DELETED)) or UNFINISHED in path.name


def _files(folder: pathlib.Path) -> Iterator[pathlib.Path]:
    """All files of a folder, those that make it count at the end."""
    files = sorted(file for file in folder.rglob("*") if file.is_file())
    last = [folder / name for name in MARKERS]
    yield from (file for file in files if file not in last)
    yield from (file for file in last if file.is_file())


def _sync_folder(folder: pathlib.Path) -> None:
    """Makes a rename last through a loss of power."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _mount_of(path: pathlib.Path) -> tuple[str, str]:
    """Kind and source of the file system a path is on; empty where nothing tells."""
    if not MOUNTS.is_file():
        return "", ""
    best, found = -1, ("", "")
    for line in MOUNTS.read_text(encoding="utf-8", errors="replace").splitlines():
        fields = [
            re.sub(r"\\([0-7]{3})", lambda code: chr(int(code[1], 8)), field)
            for field in line.split()
        ]
        if len(fields) < 3 or not path.is_relative_to(fields[1]):
            continue
        # The last of equals is what was mounted over the others.
        if len(fields[1]) >= best:
            best, found = len(fields[1]), (fields[2], fields[0])
    return found
