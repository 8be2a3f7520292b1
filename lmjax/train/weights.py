"""Weights alone, in a folder that explains itself: for milestones and imported models.

A folder holds the parameters, and beside them what they mean: config, tokenizer, mask
id. It is there whole or not at all.
"""

import base64
import dataclasses
import pathlib
import shutil
from collections.abc import Iterator
from typing import Any

import orbax.checkpoint as ocp

from lmjax.core import trees
from lmjax.core.types import PyTree
from lmjax.train.checkpoints import full_disk_explained, require_space

UNFINISHED = ".orbax-checkpoint-tmp"  # in the names of what is still being written


class WeightsWriter:
    """Writes folders of weights in the background, one after another."""

    def __init__(self) -> None:
        self._writer = ocp.AsyncCheckpointer(ocp.CompositeCheckpointHandler())
        self._folder = pathlib.Path()  # of the last write, for errors

    def write(self, path: pathlib.Path, params: PyTree, meta: dict[str, Any]) -> None:
        """Starts writing a folder in the place of what may be there.

        Args:
          meta: JSON values, but "tokenizer", which is bytes.

        Raises:
          UserError: when there is no space for it, or for an earlier one.
        """
        self._folder = path.parent
        encoded = base64.b64encode(meta["tokenizer"]).decode()
        path = path.absolute()
        with full_disk_explained(path.parent):
            require_space(path.parent, params)
            self._writer.save(
                path,
                args=ocp.args.Composite(
                    params=ocp.args.PyTreeSave(params),
                    meta=ocp.args.JsonSave(meta | {"tokenizer": encoded}),
                ),
                force=True,
            )

    def wait(self) -> None:
        """Returns once everything is on disk; raises what the writer raised."""
        with full_disk_explained(self._folder):
            self._writer.wait_until_finished()

    def close(self) -> None:
        """Waits, then ends the writer's threads."""
        self.wait()
        self._writer.close()


@dataclasses.dataclass(frozen=True)
class SavedWeights:
    """A folder that `WeightsWriter` wrote."""

    path: pathlib.Path

    @classmethod
    def all_in(cls, folder: pathlib.Path) -> Iterator["SavedWeights"]:
        """Every whole one in a folder, by name."""
        for path in sorted(folder.glob("*")):
            if cls.is_at(path):
                yield cls(path)

    @staticmethod
    def is_at(path: pathlib.Path) -> bool:
        """Whether a folder is one, and whole."""
        whole = (path / "meta").is_dir() and (path / "params").is_dir()
        return whole and UNFINISHED not in path.name

    def meta(self) -> dict[str, Any]:
        """What was saved with the weights; the tokenizer as bytes."""
        # By its handler alone: a checkpointer has all processes wait for each other.
        meta = ocp.JsonCheckpointHandler().restore((self.path / "meta").absolute())
        return dict(meta) | {"tokenizer": base64.b64decode(meta["tokenizer"])}

    def param_shapes(self) -> dict[str, tuple[int, ...]]:
        """Shapes of the parameters by path name."""
        shapes: dict[str, tuple[int, ...]] = {}
        handler = ocp.PyTreeCheckpointHandler()
        saved = handler.metadata((self.path / "params").absolute())
        trees.map_named(
            lambda name, leaf: shapes.update({name: tuple(leaf.shape)}), saved.tree
        )
        return shapes

    def params(self, target: PyTree) -> PyTree:
        """The parameters.

        Args:
          target: shapes, dtypes and shardings of all of them.
        """
        args = ocp.args.PyTreeRestore(
            target, restore_args=ocp.checkpoint_utils.construct_restore_args(target)
        )
        composite = ocp.args.Composite(params=args)
        reader = ocp.Checkpointer(ocp.CompositeCheckpointHandler())
        return reader.restore(self.path.absolute(), args=composite)["params"]


def sweep(folder: pathlib.Path) -> None:
    """Deletes what killed processes left half-written."""
    for path in folder.glob(f"*{UNFINISHED}*"):
        shutil.rmtree(path)
