"""The folder of prepared corpora: names in it, one writer at a time, and its errors."""

import contextlib
import errno
import hashlib
import json
import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO

from absl import logging

from lmjax.core.errors import UserError

_GENERIC_NAMES = ("train", "text", "data", "")  # of folders; say little of a corpus
_DISK_FULL = (errno.ENOSPC, errno.EDQUOT)


@contextlib.contextmanager
def locked(cache_dir: Path, name: str) -> Iterator[None]:
    """One preparation of a corpus at a time.

    So that none does another's work, and only for that: shards are the same whoever
    writes them. The system frees the lock of a process that was killed, and where it
    has no locks, nobody waits.
    """
    folder = cache_dir / "locks"
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / name).open("w") as handle:
        _lock(handle)
        yield


def _lock(handle: IO[str]) -> None:
    try:
        import fcntl

        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            logging.info("Another process prepares this corpus; waiting for it.")
            fcntl.flock(handle, fcntl.LOCK_EX)
    except (ImportError, OSError) as error:
        logging.info("No lock on %s: %s", handle.name, error)


@contextlib.contextmanager
def explained_write_errors(cache_dir: Path, corpus_bytes: int) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno in _DISK_FULL:
            what = (
                "The disk is full: the prepared corpus needs about "
                f"{max(2 * corpus_bytes // 10**6, 1)} MB."
            )
        else:
            what = f"The prepared corpus can't be written: {error.strerror or error}."
        raise UserError(
            what,
            where=str(cache_dir.absolute()),
            remedy="set data.cache_dir to a folder with space that you may write to.",
        ) from error


def corpus_name(files: Sequence[Path]) -> str:
    """A name for people: the file, or the folder that holds all files."""
    files = [file.resolve() for file in files]
    path = files[0].with_suffix("")
    if len(files) > 1:
        path = Path(os.path.commonpath([file.parent for file in files]))
    while path.name in _GENERIC_NAMES and path != path.parent:
        path = path.parent
    return re.sub(r"[^\w.-]+", "-", path.name, flags=re.ASCII).strip(".-") or "corpus"


def short_hash(value: object) -> str:
    text = json.dumps(value, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:12]
