"""Checkpoints: written in the background, verified, and only whole ones count."""

import base64
import dataclasses
import json
import math
import pathlib
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from jax.sharding import SingleDeviceSharding

from lmjax.core import trees
from lmjax.core.errors import UserError
from lmjax.core.types import PyTree
from lmjax.train import guard, integrity, retention, storage
from lmjax.train.state import TrainState
from lmjax.train.writing import FolderWriter

COUNTS = ("step", "tokens", "words", "seconds")  # of what weights have seen
DAMAGED = "damaged"  # folder of what was set aside
_UNREADABLE = (OSError, ValueError, KeyError, TypeError)  # what bad bytes lead to


class Checkpoints:
    """The checkpoints of one run, `<folder>/<step>/`.

    Each holds the device state, the progress (step, words, tokens, sums), the resolved
    config, the tokenizer and the name of the prepared corpus. What is read is read by
    the handlers named here, whatever the files say: they can hold arrays and JSON, and
    nothing that runs.

    Args:
      folder: where they stand.
      keep: how many of the newest stay.
      keep_every: those at multiples of so many steps stay too; 0: none for that.
      keep_best: how many of the lowest scores stay too.
      read_only: open an existing folder without ever writing to it.

    Attributes:
      notices: what went wrong without harm, a line each.
    """

    def __init__(
        self,
        folder: pathlib.Path,
        *,
        keep: int = 1,
        keep_every: int = 0,
        keep_best: int = 0,
        read_only: bool = False,
    ):
        self.folder = folder.absolute()
        self.notices: list[str] = []
        self._keep = {"newest": keep, "every": keep_every, "best": keep_best}
        self._state = ocp.PyTreeCheckpointHandler()
        self._meta = ocp.JsonCheckpointHandler()
        self._writer: FolderWriter | None = None
        if not read_only:
            self.folder.mkdir(parents=True, exist_ok=True)
            if jax.process_index() == 0:
                storage.sweep(self.folder)
            self._writer = FolderWriter(
                state=ocp.PyTreeCheckpointHandler(), meta=ocp.JsonCheckpointHandler()
            )
        # What this process knows of: all processes must agree on what is there, and
        # the folder is only changed by the first one.
        self._known = set(self.steps())

    def latest(self) -> int | None:
        """Newest step, or None."""
        return max(self.steps(), default=None)

    def steps(self) -> list[int]:
        """All steps that are there, oldest first."""
        if not self.folder.is_dir():
            return []
        return sorted(
            int(path.name)
            for path in self.folder.iterdir()
            if path.name.isdecimal() and storage.is_published(path)
        )

    def path(self, step: int) -> pathlib.Path:
        """Where a step stands."""
        return self.folder / f"{step:08}"

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
        score: float | None = None,
    ) -> None:
        """Starts writing a checkpoint; a step that is saved already is left alone.

        Older ones that are not to stay are deleted once this one is verified.

        Args:
          score: of held-out text at this step, lower is better.

        Raises:
          UserError: when there is no space for it, or an earlier write failed.
        """
        if step in self._known:
            return
        meta = {
            "progress": progress,
            "config": config,
            "tokenizer": base64.b64encode(tokenizer_model).decode(),
            "mask_id": mask_id,
            "corpus": corpus,
        }
        if score is not None and not math.isfinite(score):
            score = None
        self._writer.write(
            self.path(step),
            state,
            {"state": ocp.args.PyTreeSave(state), "meta": ocp.args.JsonSave(meta)},
            about={"step": step, "score": score},
            then=self._delete_old,
        )
        self._known.add(step)

    def meta(self, step: int) -> dict[str, Any]:
        """Progress, config, tokenizer model (bytes), mask id and corpus."""
        path = self.path(step)
        try:
            meta = dict(self._meta.restore(path / "meta"))
            meta["tokenizer"] = base64.b64decode(meta["tokenizer"])
        except _UNREADABLE as error:
            raise _unreadable(path, error) from error
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
        path = self.path(step)
        try:
            return self._state.restore(path / "state", args=args)
        except _UNREADABLE as error:
            raise _unreadable(path, error) from error

    def restore_state(self, step: int, target: TrainState) -> TrainState:
        """The whole state; of the guard, what another config saved will do, or nothing.

        Args:
          target: an abstract one.
        """
        parts = dict(vars(target))
        wanted, saved = parts.pop("guard"), self.saved_tree(step).get("guard")
        if saved:
            parts["guard"] = jax.tree.map(
                lambda leaf: jax.ShapeDtypeStruct(
                    leaf.shape, leaf.dtype, sharding=target.step.sharding
                ),
                saved,
            )
        found = self.restore(step, parts)
        memory = guard.carried_over(found.pop("guard", {}), wanted)
        return TrainState(**found, guard=memory)

    def at(self, step: int) -> "SavedStep":
        """The weights of a step, and what was saved with them."""
        return SavedStep(self, step)

    def saved_tree(self, step: int) -> PyTree:
        """The saved state as nested dicts and lists, with shapes as its leaves."""
        path = self.path(step)
        try:
            return self._state.metadata(path / "state").tree
        except _UNREADABLE as error:
            raise _unreadable(path, error) from error

    def damage(self, step: int) -> str:
        """What is wrong with a step; empty where nothing is.

        One without checksums, of an earlier version, is read as a whole instead.
        """
        path = self.path(step)
        if integrity.has_checksums(path):
            return integrity.damage(path)
        try:
            self.meta(step)
            every = jax.tree.map(
                lambda _: ocp.RestoreArgs(restore_type=np.ndarray),
                self.saved_tree(step),
            )
            args = ocp.args.PyTreeRestore(restore_args=every)
            self._state.restore(path / "state", args=args)
        except UserError as error:
            return error.what
        except _UNREADABLE as error:
            return _reason(error)
        return ""

    def set_aside(self, step: int) -> pathlib.Path:
        """Moves a damaged step to where nothing looks for it, and says where."""
        self._known.discard(step)
        return set_aside(self.path(step))

    def num_set_aside(self) -> int:
        """How many damaged ones were."""
        folder = self.folder / DAMAGED
        return len(list(folder.iterdir())) if folder.is_dir() else 0

    def drop_after(self, step: int) -> None:
        """Deletes the checkpoints after `step`, when a run goes on from there."""
        stands_on = storage.storage_of(self.folder)
        for later in self.steps() if jax.process_index() == 0 else ():
            if later > step:
                storage.remove(self.path(later), stands_on)
        self._known = {known for known in self._known if known <= step}

    def wait(self) -> None:
        """Returns once everything is on disk and verified; raises what went wrong."""
        if self._writer is not None:
            self._writer.wait()

    def close(self) -> None:
        """Waits, then lets go of the folder."""
        try:
            if self._writer is not None:
                self._writer.close()
        finally:
            self._state.close()

    def _delete_old(self) -> None:
        """Runs behind the loop, once a newer one is verified."""
        scores = {
            step: integrity.about(self.path(step)).get("score") for step in self.steps()
        }
        stands_on = storage.storage_of(self.folder)
        for step in sorted(scores.keys() - retention.to_keep(scores, **self._keep)):
            try:
                storage.remove(self.path(step), stands_on)
            except OSError as error:
                self.notices.append(
                    f"the old checkpoint {self.path(step)} could not be deleted: "
                    f"{error.strerror or error}"
                )


@dataclasses.dataclass(frozen=True)
class SavedStep:
    """One checkpoint, as far as its weights go; see `weights.SavedWeights`."""

    checkpoints: Checkpoints
    step: int

    @property
    def path(self) -> pathlib.Path:
        """Where it stands."""
        return self.checkpoints.path(self.step)

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


def set_aside(path: pathlib.Path) -> pathlib.Path:
    """Moves a damaged folder of weights to `damaged/`, and says where it is now."""
    folder, number = path.parent / DAMAGED, 1
    folder.mkdir(exist_ok=True)
    while (target := folder / f"{path.name}-{number}").exists():
        number += 1
    return path.rename(target)


def on_first_device(shapes: PyTree) -> PyTree:
    """Shapes and dtypes as arrays that are to lie on this process's first device."""
    sharding = SingleDeviceSharding(jax.local_devices()[0])
    return jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding),
        shapes,
    )


def _unreadable(path: pathlib.Path, error: BaseException) -> UserError:
    return UserError(
        f"the checkpoint cannot be read: {_reason(error)}",
        where=str(path),
        remedy="if the config was changed, use that of the run (leave --config out); "
        "else choose another checkpoint with --config.checkpoint.resume",
    )


def _reason(error: BaseException) -> str:
    """The first line of an error, which for bad JSON says nothing without its kind."""
    if isinstance(error, json.JSONDecodeError | UnicodeDecodeError):
        return f"its metadata is no JSON ({error.args[0]})"
    if isinstance(error, KeyError):
        return f"{error.args[0]} is missing"
    text = getattr(error, "strerror", None) or str(error).strip() or repr(error)
    file = getattr(error, "filename", None)
    return text.splitlines()[0] + (f": {file}" if file else "")
