"""One run in a folder at a time."""

import contextlib
import dataclasses
import datetime
import errno
import fcntl
import json
import os
import pathlib
import socket

from lmjax.core.errors import UserError

FILE = ".lock"
_UNKNOWN = (errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOTSUP, errno.ENOSYS, errno.EINVAL)


@dataclasses.dataclass
class Lock:
    """A run folder that is held; use as a context manager.

    The system lets go of it when the process ends, however it does.

    Attributes:
      notice: why it is not really held, where the file system knows no locks.
    """

    descriptor: int
    notice: str = ""

    @classmethod
    def take(cls, folder: pathlib.Path) -> "Lock":
        """Holds a folder, which is made where it is missing.

        Raises:
          UserError: another process holds it.
          OSError: the folder cannot be written.
        """
        folder.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(folder / FILE, os.O_RDWR | os.O_CREAT, 0o644)
        lock = cls(descriptor)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            holder = _describe(os.pread(descriptor, 4096, 0))
            os.close(descriptor)
            raise UserError(
                f"another run is at work in this folder: {holder}",
                where=str(folder),
                remedy="wait for it, stop it, or train into another --workdir",
            ) from error
        except OSError as error:
            if error.errno not in _UNKNOWN:
                os.close(descriptor)
                raise
            lock.notice = (
                f"{folder}: this file system knows no locks, so make sure that no "
                "other run works in the same folder"
            )
        lock._sign()
        return lock

    def __enter__(self) -> "Lock":
        return self

    def __exit__(self, *_: object) -> None:
        self.release()

    def release(self) -> None:
        """Lets go of the folder; a second time does nothing."""
        if self.descriptor >= 0:
            with contextlib.suppress(OSError):
                os.ftruncate(self.descriptor, 0)
            os.close(self.descriptor)
            self.descriptor = -1

    def _sign(self) -> None:
        holder = {
            "host": socket.gethostname(),
            "pid": os.getpid(),
            "since": datetime.datetime.now().astimezone().isoformat(" ", "seconds"),
        }
        with contextlib.suppress(OSError):  # a full disk, which is told when it matters
            os.ftruncate(self.descriptor, 0)
            os.pwrite(self.descriptor, json.dumps(holder).encode(), 0)


def _describe(text: bytes) -> str:
    try:
        holder = json.loads(text)
        return f"process {holder['pid']} on {holder['host']}, since {holder['since']}"
    except (ValueError, KeyError, TypeError):
        return "one that has just begun"
