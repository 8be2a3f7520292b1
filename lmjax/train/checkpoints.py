"""Checkpoints: Orbax writes them in the background, and only whole ones count."""

import base64
import contextlib
import dataclasses
import errno
import os
import pathlib
import shutil
from collections.abc import Iterator
from typing import Any

import jax
import orbax.checkpoint as ocp
from jax.sharding import SingleDeviceSharding

from lmjax.core import trees
from lmjax.core.errors import UserError
from lmjax.core.types import PyTree
from lmjax.train.state import TrainState

COUNTS = ("step", "tokens", "words", "seconds")  # of what weights have seen


class Checkpoints:
    """The checkpoints of one run, `<folder>/<step>/`.

    Each holds the device state, the progress (step, words, tokens, sums), the resolved
    config, the tokenizer and the name of the prepared corpus. A checkpoint is written
    under a temporary name and gets its own when it is complete.

    Args:
      folder: where they stand.
      keep: how many of the newest stay.
      read_only: open an existing folder without ever writing to it.
    """

    def __init__(self, folder: pathlib.Path, *, keep: int = 1, read_only: bool = False):
        self.folder = folder.absolute()
        options = ocp.CheckpointManagerOptions(
            max_to_keep=None if read_only else keep,
            step_format_fixed_length=8,
            create=not read_only,
            read_only=read_only,
            save_interval_steps=0 if read_only else 1,
            cleanup_tmp_directories=not read_only,
        )
        # Named here, for Orbax only guesses the handler of an item once it is restored,
        # and `param_shapes` asks before.
        handlers = ocp.handlers.create_default_handler_registry(
            state=ocp.PyTreeCheckpointHandler(), meta=ocp.JsonCheckpointHandler()
        )
        self._manager = ocp.CheckpointManager(
            self.folder, options=options, handler_registry=handlers
        )

    def latest(self) -> int | None:
        """Newest step, or None."""
        return self._manager.latest_step()

    def steps(self) -> list[int]:
        """All steps there are, oldest first."""
        return sorted(self._manager.all_steps())

    def save(
        self,
        state: TrainState,
        *,
        step: int,
        progress: dict[str, Any],
        config: dict[str, Any],
        tokenizer_model: bytes,
        mask_id: int,
        corpus: str,
    ) -> None:
        """Starts writing a checkpoint; a step that is saved already is left alone.

        Raises:
          UserError: when there is no space for it, or an earlier write failed for want
            of it.
        """
        if step in self._manager.all_steps():
            return
        meta = {
            "progress": progress,
            "config": config,
            "tokenizer": base64.b64encode(tokenizer_model).decode(),
            "mask_id": mask_id,
            "corpus": corpus,
        }
        with full_disk_explained(self.folder):
            require_space(self.folder, state)
            self._manager.save(
                step,
                args=ocp.args.Composite(
                    state=ocp.args.PyTreeSave(state), meta=ocp.args.JsonSave(meta)
                ),
            )

    def meta(self, step: int) -> dict[str, Any]:
        """Progress, config, tokenizer model (bytes), mask id and corpus."""
        args = ocp.args.Composite(meta=ocp.args.JsonRestore())
        meta = dict(self._manager.restore(step, args=args)["meta"])
        meta["tokenizer"] = base64.b64decode(meta["tokenizer"])
        return meta

    def restore(self, step: int, target: Any, *, partial: bool = False) -> Any:
        """The state, in the shapes and shardings of `target`.

        Args:
          target: an abstract TrainState; with `partial`, a dict of some of its parts.
        """
        args = ocp.args.PyTreeRestore(
            target,
            restore_args=ocp.checkpoint_utils.construct_restore_args(target),
            partial_restore=partial,
        )
        return self._manager.restore(step, args=ocp.args.Composite(state=args))["state"]

    def at(self, step: int) -> "SavedStep":
        """The weights of a step, and what was saved with them."""
        return SavedStep(self, step)

    def saved_tree(self, step: int) -> PyTree:
        """The saved state as nested dicts and lists, with shapes as its leaves."""
        return self._manager.item_metadata(step)["state"].tree

    def drop_after(self, step: int) -> None:
        """Deletes the checkpoints after `step`, when a run goes on from there."""
        for later in self.steps():
            if later > step:
                self._manager.delete(later)

    def wait(self) -> None:
        """Returns once everything is on disk; raises what the writer raised."""
        with full_disk_explained(self.folder):
            self._manager.wait_until_finished()

    def close(self) -> None:
        """Waits, then lets go of the folder."""
        self.wait()
        self._manager.close()


@dataclasses.dataclass(frozen=True)
class SavedStep:
    """One checkpoint, as far as its weights go; see `weights.SavedWeights`."""

    checkpoints: Checkpoints
    step: int

    @property
    def path(self) -> pathlib.Path:
        """Where it stands."""
        return self.checkpoints.folder / f"{self.step:08}"

    def meta(self) -> dict[str, Any]:
        """Counts, config, tokenizer model (bytes), mask id and corpus."""
        meta = self.checkpoints.meta(self.step)
        counts = meta.pop("progress")
        return meta | {name: counts[name] for name in COUNTS}

    def param_shapes(self) -> dict[str, tuple[int, ...]]:
        """Shapes of the saved parameters by path name."""
        shapes: dict[str, tuple[int, ...]] = {}
        trees.map_named(
            lambda name, leaf: shapes.update({name: tuple(leaf.shape)}),
            self.checkpoints.saved_tree(self.step)["params"],
        )
        return shapes

    def params(self, target: PyTree) -> PyTree:
        """The average where there is one, else the parameters, and nothing more.

        Args:
          target: shapes, dtypes and shardings.
        """
        tree = self.checkpoints.saved_tree(self.step)
        name = "ema" if tree["ema"] else "params"
        wanted = {name: target}
        return self.checkpoints.restore(self.step, wanted, partial=True)[name]


def require_space(folder: pathlib.Path, tree: PyTree) -> None:
    """Raises OSError where a tree does not fit the disk.

    Asked before it is written: a write that fails half-way fills the terminal with the
    tracebacks of its threads.
    """
    while not folder.exists():
        folder = folder.parent
    if shutil.disk_usage(folder).free < trees.num_bytes(tree):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def on_first_device(shapes: PyTree) -> PyTree:
    """Shapes and dtypes as arrays that are to lie on this process's first device."""
    sharding = SingleDeviceSharding(jax.local_devices()[0])
    return jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding),
        shapes,
    )


@contextlib.contextmanager
def full_disk_explained(folder: pathlib.Path) -> Iterator[None]:
    """Turns a full disk into a message; every other error passes through."""
    try:
        yield
    except (OSError, RuntimeError, ValueError) as error:
        if not _is_full_disk(error):
            raise
        raise UserError(
            "the disk is full: the checkpoint could not be written",
            where=str(folder),
            remedy="free some space or lower checkpoint.keep, then run the same "
            "command again: it goes on from the last whole checkpoint",
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
