"""Folders written in the background: each appears whole and verified, or never."""

import contextlib
import errno
import os
import pathlib
import shutil
import tempfile
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import jax
import orbax.checkpoint as ocp

from lmjax.core import trees
from lmjax.core.errors import UserError
from lmjax.core.types import PyTree
from lmjax.train import integrity, storage
from lmjax.train.storage import Storage

_SHARE = 1.05  # of the arrays' bytes that a folder takes, with what surrounds them
_MARGIN = 10_000_000  # bytes for tokenizer, config and log


class FolderWriter:
    """Writes one folder after another.

    Orbax copies the arrays to the host and writes them behind the training loop, under
    another name. Then, still behind it, every file is read back for its checksum, and
    the folder gets its place. What fails there is raised at the next call.

    Args:
      **handlers: what writes each item of a folder.
    """

    def __init__(self, **handlers: ocp.CheckpointHandler):
        self._writer = ocp.AsyncCheckpointer(ocp.CompositeCheckpointHandler(**handlers))
        self._pool = ThreadPoolExecutor(1, "finish_checkpoint")
        self._finishing: Future[None] | None = None
        self._path = pathlib.Path()  # of the last write, for errors
        self._beside = contextlib.ExitStack()  # holds the local folder for copies
        self._local: pathlib.Path | None = None
        self._closed = False

    def write(
        self,
        path: pathlib.Path,
        tree: PyTree,
        items: dict[str, ocp.args.CheckpointArgs],
        *,
        about: dict[str, Any] | None = None,
        then: Callable[[], None] = lambda: None,
    ) -> None:
        """Starts writing a folder, in the place of what may be there.

        Args:
          tree: the arrays among the items, for their size.
          items: what to write.
          about: kept with the checksums.
          then: called behind the loop once the folder has its place.

        Raises:
          UserError: when there is no space for it, or when an earlier one failed.
        """
        self.wait()
        self._path = path = path.absolute()
        stands_on = storage.storage_of(path.parent)
        unverified = self._unverified(path, stands_on)
        with failures_explained(path.parent):
            for folder in {path.parent, unverified.parent}:
                require_space(folder, tree)
            self._writer.save(unverified, args=ocp.args.Composite(**items), force=True)
        self._finishing = self._pool.submit(
            self._finish, unverified, path, stands_on, about or {}, then
        )

    def wait(self) -> None:
        """Returns once everything has its place; raises what went wrong behind us."""
        finishing, self._finishing = self._finishing, None
        with failures_explained(self._path.parent):
            if finishing is not None:
                finishing.result()

    def close(self) -> None:
        """Waits, then ends the writer's threads; a second time does nothing."""
        if self._closed:
            return
        self._closed = True
        try:
            self.wait()
        finally:
            self._pool.shutdown()
            self._beside.close()
            with failures_explained(self._path.parent):
                self._writer.close()

    def _finish(
        self,
        unverified: pathlib.Path,
        path: pathlib.Path,
        stands_on: Storage,
        about: dict[str, Any],
        then: Callable[[], None],
    ) -> None:
        self._writer.wait_until_finished()
        if jax.process_index() > 0:
            return
        integrity.write(unverified, **about)
        storage.publish(unverified, path, stands_on)
        then()

    def _unverified(self, path: pathlib.Path, stands_on: Storage) -> pathlib.Path:
        """Where a folder is written before it gets its place.

        That is beside it, so that a rename is all that is left to do; a local folder
        where a copy is needed anyway. Several processes need one that all of them see.
        """
        name = path.name + storage.UNVERIFIED
        if stands_on.renames or jax.process_count() > 1:
            return path.with_name(name)
        if self._local is None:
            made = tempfile.TemporaryDirectory(prefix="lmjax-")
            self._local = pathlib.Path(self._beside.enter_context(made))
        return self._local / name


def bytes_on_disk(tree: PyTree) -> int:
    """What a folder with these arrays takes, and a margin."""
    return round(_SHARE * trees.num_bytes(tree)) + _MARGIN


def free_bytes(folder: pathlib.Path) -> int:
    """What is left on the disk of a folder that may not exist yet."""
    while not folder.exists():
        folder = folder.parent
    return shutil.disk_usage(folder).free


def require_space(folder: pathlib.Path, tree: PyTree) -> None:
    """Raises OSError where a tree does not fit the disk, beside all that stands there.

    Asked before it is written: a write that fails half-way fills the terminal with the
    tracebacks of its threads.
    """
    if free_bytes(folder) < bytes_on_disk(tree):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@contextlib.contextmanager
def failures_explained(folder: pathlib.Path) -> Iterator[None]:
    """Turns what Orbax and the system raise while writing into a message."""
    try:
        yield
    except UserError:
        raise
    except (OSError, RuntimeError, ValueError) as error:
        if _is_full_memory(error):
            raise  # the loop knows what to advise
        again = "it goes on from the last whole checkpoint"
        if _is_full_disk(error):
            raise UserError(
                "the disk is full: the checkpoint could not be written",
                where=str(folder),
                remedy="free some space or lower checkpoint.keep, then run the same "
                f"command again: {again}",
            ) from error
        reason = getattr(error, "strerror", None) or str(error).strip() or repr(error)
        raise UserError(
            f"the checkpoint could not be written: {reason.splitlines()[0]}",
            where=str(folder),
            remedy="see that the folder is there and can be written, then run the same "
            f"command again: {again}",
        ) from error


def _is_full_disk(error: BaseException | None) -> bool:
    """Whether an error, or one that led to it, says so by number or in words."""
    while error is not None:
        if getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT):
            return True
        if any(sign in str(error) for sign in ("No space left", "RESOURCE_EXHAUSTED")):
            return True
        error = error.__cause__ or error.__context__
    return False


def _is_full_memory(error: BaseException) -> bool:
    """Whether it is the device that was full, while arrays were copied from it."""
    return "RESOURCE_EXHAUSTED" in str(error) and "memory" in str(error)
