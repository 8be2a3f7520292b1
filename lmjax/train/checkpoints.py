"""Checkpoints: Orbax writes them in the background, and only whole ones count."""

import base64
import contextlib
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
        with _full_disk_explained(self.folder):
            # Asked before: a write that fails half-way fills the terminal with the
            # tracebacks of its threads.
            if shutil.disk_usage(self.folder).free < trees.num_bytes(state):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
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

    def restore(self, step: int, abstract: TrainState) -> TrainState:
        """The state, in the shapes and shardings of `abstract`."""
        return self._restore_state(step, abstract)

    def param_shapes(self, step: int) -> dict[str, tuple[int, ...]]:
        """Shapes of the saved parameters by path name."""
        shapes: dict[str, tuple[int, ...]] = {}
        trees.map_named(
            lambda name, leaf: shapes.update({name: tuple(leaf.shape)}),
            self._saved_tree(step)["params"],
        )
        return shapes

    def restore_params(self, step: int, shapes: PyTree) -> PyTree:
        """The average where there is one, else the parameters, and nothing more."""
        name = "ema" if self._saved_tree(step)["ema"] else "params"
        device = jax.local_devices()[0]
        target = jax.tree.map(
            lambda leaf: jax.ShapeDtypeStruct(
                leaf.shape, leaf.dtype, sharding=SingleDeviceSharding(device)
            ),
            shapes,
        )
        return self._restore_state(step, {name: target}, partial=True)[name]

    def _saved_tree(self, step: int) -> PyTree:
        """The saved state as nested dicts and lists, with shapes as its leaves."""
        return self._manager.item_metadata(step)["state"].tree

    def _restore_state(self, step: int, target: PyTree, partial: bool = False) -> Any:
        args = ocp.args.PyTreeRestore(
            target,
            restore_args=ocp.checkpoint_utils.construct_restore_args(target),
            partial_restore=partial,
        )
        return self._manager.restore(step, args=ocp.args.Composite(state=args))["state"]

    def drop_after(self, step: int) -> None:
        """Deletes the checkpoints after `step`, when a run goes on from there."""
        for later in self.steps():
            if later > step:
                self._manager.delete(later)

    def wait(self) -> None:
        """Returns once everything is on disk; raises what the writer raised."""
        with _full_disk_explained(self.folder):
            self._manager.wait_until_finished()

    def close(self) -> None:
        """Waits, then lets go of the folder."""
        self.wait()
        self._manager.close()


@contextlib.contextmanager
def _full_disk_explained(folder: pathlib.Path) -> Iterator[None]:
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
