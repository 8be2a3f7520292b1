"""Weights alone, in a folder that explains itself: for milestones and imported models.

A folder holds the parameters, and beside them what they mean: config, tokenizer, mask
id. It is there whole or not at all.
"""

import base64
import dataclasses
import pathlib
from collections.abc import Iterator
from typing import Any

import orbax.checkpoint as ocp

from lmjax.core import trees
from lmjax.core.errors import ConfigError, UserError
from lmjax.core.types import PyTree
from lmjax.train import integrity, storage
from lmjax.train.writing import FolderWriter


class WeightsWriter:
    """Writes folders of weights in the background, one after another."""

    def __init__(self) -> None:
        self._writer = FolderWriter(
            params=ocp.PyTreeCheckpointHandler(), meta=ocp.JsonCheckpointHandler()
        )

    def write(self, path: pathlib.Path, params: PyTree, meta: dict[str, Any]) -> None:
        """Starts writing a folder in the place of what may be there.

        Args:
          meta: JSON values, but "tokenizer", which is bytes.

        Raises:
          UserError: when there is no space for it, or an earlier one failed.
        """
        encoded = base64.b64encode(meta["tokenizer"]).decode()
        path.parent.mkdir(parents=True, exist_ok=True)
        self._writer.write(
            path,
            params,
            {
                "params": ocp.args.PyTreeSave(params),
                "meta": ocp.args.JsonSave(meta | {"tokenizer": encoded}),
            },
        )

    def wait(self) -> None:
        """Returns once everything is on disk and verified; raises what went wrong."""
        self._writer.wait()

    def close(self) -> None:
        """Waits, then ends the writer's threads."""
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
        """Whether a folder is one, and was written to its end."""
        has_parts = (path / "meta").is_dir() and (path / "params").is_dir()
        return has_parts and storage.is_published(path)

    def meta(self) -> dict[str, Any]:
        """What was saved with the weights; the tokenizer as bytes."""
        # By its handler alone: a checkpointer has all processes wait for each other.
        try:
            meta = ocp.JsonCheckpointHandler().restore((self.path / "meta").absolute())
            return dict(meta) | {"tokenizer": base64.b64decode(meta["tokenizer"])}
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise UserError(
                "the weights are damaged: what explains them cannot be read",
                where=str(self.path / "meta"),
                remedy="copy the folder again from where it came, or choose others",
            ) from error

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

        Raises:
          UserError: a file is not what was written.
        """
        integrity.require_whole(self.path)
        args = ocp.args.PyTreeRestore(
            target, restore_args=ocp.checkpoint_utils.construct_restore_args(target)
        )
        handler = ocp.PyTreeCheckpointHandler()
        return handler.restore((self.path / "params").absolute(), args=args)


def check_shapes(
    saved: dict[str, tuple[int, ...]], params: PyTree, *, where: str, remedy: str
) -> None:
    """Raises ConfigError where saved parameters are not those that are wanted."""
    wanted: dict[str, tuple[int, ...]] = {}
    trees.map_named(lambda name, leaf: wanted.update({name: leaf.shape}), params)
    wrong = [
        f"{name} is {saved.get(name, 'absent')} there and "
        f"{wanted.get(name, 'absent')} here"
        for name in sorted(saved.keys() | wanted.keys())
        if saved.get(name) != wanted.get(name)
    ]
    if wrong:
        more = f" (and {len(wrong) - 1} more)" if len(wrong) > 1 else ""
        raise ConfigError(
            f"the checkpoint is of another model: {wrong[0]}{more}",
            where=where,
            remedy=remedy,
        )
