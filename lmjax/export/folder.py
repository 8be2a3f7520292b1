"""A model as a folder that transformers loads: whole and checked, or not at all."""

import contextlib
import dataclasses
import importlib.metadata
import json
import os
import shutil
import uuid
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from lmjax.config.schema import (
    Architecture,
    AutoregressiveConfig,
    ExportDtype,
)
from lmjax.core import trees
from lmjax.core.errors import ConfigError, UserError
from lmjax.core.types import PyTree
from lmjax.data.tokenization.tokenizers import SpecialIds, Tokenizer
from lmjax.export import remote
from lmjax.export.architectures import BY_KIND, choose_architecture
from lmjax.export.check import Check, Exported, check_export
from lmjax.export.importing import CONFIG, OWN
from lmjax.export.names import tensor_shapes, to_tensors
from lmjax.export.remote import Objective
from lmjax.export.weights import SHARD_BYTES, convert, read_json, write_weights
from lmjax.models.build import Model

GENERATION_CONFIG = "generation_config.json"
_OF_A_RUN = ("checkpoints", "milestones")  # folders of a run folder


@dataclasses.dataclass(frozen=True)
class ExportedModel:
    """A folder that was written and checked.

    Attributes:
      architecture: the class of transformers that it is for.
      num_params: numbers in the files.
      num_bytes: bytes of the weights.
      check: how it was held against the model.
    """

    folder: Path
    architecture: Architecture
    num_params: int
    num_bytes: int
    check: Check


def export_model(
    model: Model,
    objective: Objective,
    params: PyTree,
    tokenizer: Tokenizer,
    folder: Path,
    *,
    opening_id: int,
    architecture: Architecture = Architecture.AUTO,
    dtype: ExportDtype = ExportDtype.FLOAT32,
    overwrite: bool = False,
    files: Mapping[str, bytes] | None = None,
    shard_bytes: int = SHARD_BYTES,
) -> ExportedModel:
    """Writes weights, config.json, generation_config.json and further files.

    What is written is loaded again and compared with the model before it stands under
    its name: see `check`.

    Args:
      model: its setting says which ids it has and predicts; see `build_system`.
      params: as trained.
      folder: must not be there; its parent is made, and is no export.
      opening_id: what stands before a text, as the tokenizer's files say it too.
      overwrite: whether an export that is there is replaced.
      files: further files by name, such as those of the tokenizer.
      shard_bytes: weights of more bytes are split into several files.

    Raises:
      ConfigError: no such class holds the model, or the folder is there, or it would
        stand in another export.
      UserError: weights are not finite, or what was written is not the model.
    """
    kind = choose_architecture(architecture, model.config, causal=model.setting.causal)
    _check_target(folder, overwrite)
    facts = _Facts(model, objective, tokenizer.special, opening_id)
    if kind is Architecture.REMOTE:
        table, code = remote.TABLE, remote.modeling_files()
    else:
        table, code = BY_KIND[kind].table, {}
    num_ids = facts.num_ids
    shapes = tensor_shapes(table, params, num_ids=num_ids)
    with _new_folder(folder) as unfinished:
        num_bytes = write_weights(
            unfinished,
            to_tensors(table, params, num_ids=num_ids),
            shapes,
            dtype,
            shard_bytes=shard_bytes,
        )
        _write_json(unfinished / CONFIG, facts.config_json(kind, dtype))
        _write_json(unfinished / GENERATION_CONFIG, facts.generation_config())
        for name, content in {**code, **(files or {})}.items():
            (unfinished / name).write_bytes(content)
        check = check_export(
            unfinished,
            Exported(
                architecture=kind,
                dtype=dtype,
                model=model,
                table=table,
                params=params,
                rounded=_rounded(params, dtype, num_ids),
                num_ids=num_ids,
                opening_id=opening_id,
                mask_id=tokenizer.special.mask,
            ),
        )
    return ExportedModel(
        folder=folder,
        architecture=kind,
        num_params=sum(int(np.prod(shape)) for shape in shapes.values()),
        num_bytes=num_bytes,
        check=check,
    )


@dataclasses.dataclass(frozen=True)
class _Facts:
    """What the JSON files are made from."""

    model: Model
    objective: Objective
    special: SpecialIds
    opening_id: int

    @property
    def num_ids(self) -> int:
        return self.model.setting.num_ids or self.model.setting.vocab_size

    @property
    def unpredictable(self) -> list[int]:
        return [i for i in self.model.setting.unpredictable if i < self.num_ids]

    def config_json(self, kind: Architecture, dtype: ExportDtype) -> dict[str, Any]:
        if kind is Architecture.REMOTE:
            config = remote.config_json(
                self.model.config,
                self.objective,
                special=self.special,
                opening_id=self.opening_id,
                vocab_size=self.num_ids,
                unpredictable=self.unpredictable,
            )
        else:
            config = BY_KIND[kind].config_json(self.model.config, num_ids=self.num_ids)
            config |= self._token_ids() | {"use_cache": True}
        own: dict[str, Any] = {"version": importlib.metadata.version("lmjax")}
        if isinstance(self.objective, AutoregressiveConfig):
            own["first_input"] = self.objective.first_input.value
        # transformers 5 would write "dtype", and reads both.
        return config | {"torch_dtype": dtype.value, OWN: own}

    def generation_config(self) -> dict[str, Any]:
        """Suppresses what texts of lmjax never hold."""
        never = {"suppress_tokens": self.unpredictable} if self.unpredictable else {}
        return self._token_ids() | never

    def _token_ids(self) -> dict[str, int]:
        return {
            "bos_token_id": self.opening_id,
            "eos_token_id": self.special.eos,
            "pad_token_id": self.special.pad,
        }


def _rounded(params: PyTree, dtype: ExportDtype, num_ids: int) -> PyTree:
    """Parameters as the files hold them, in float32: no rows for padding."""

    def rounded(name: str, leaf: jax.Array) -> np.ndarray:
        array = convert(name, leaf, dtype).astype(np.float32)
        if name.startswith("vocabulary/"):
            array = array.copy()
            array[num_ids:] = 0.0
        return array

    return trees.map_named(rounded, params)


def _check_target(folder: Path, overwrite: bool) -> None:
    """A folder that is there may only be replaced if it is an export, or empty.

    Nothing is written into an export: whoever replaces that would lose it.
    """
    parent = folder.absolute().parent
    if _is_export(parent):
        raise ConfigError(
            "the folder above is an exported model, and holds nothing but that",
            where=str(parent),
            remedy="name another --config.export.folder, beside it",
        )
    if not folder.exists():
        return
    if not _may_be_replaced(folder):
        raise ConfigError(
            "there is something that is no exported model, which stays as it is",
            where=str(folder),
            remedy="name another --config.export.folder",
        )
    if not overwrite:
        raise ConfigError(
            "there is something already",
            where=str(folder),
            remedy="name another --config.export.folder, or replace it with "
            "--config.export.overwrite=true",
        )


def _may_be_replaced(folder: Path) -> bool:
    """Whether a folder is empty, or one of our exports and nothing more."""
    if not folder.is_dir():
        return False
    if not any(folder.iterdir()):
        return True
    holds_more = any((folder / name).exists() for name in _OF_A_RUN)
    return _is_export(folder) and not holds_more and not any(folder.glob("*/" + CONFIG))


def _is_export(folder: Path) -> bool:
    if not (folder / CONFIG).is_file():
        return False
    try:
        return OWN in read_json(folder / CONFIG)
    except UserError:
        return False


@contextlib.contextmanager
def _new_folder(target: Path) -> Iterator[Path]:
    """A folder to write to, which becomes `target` at the end, and is gone on an error.

    What was there before is gone only when the new one stands.
    """
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        # Its name may become that of a Python module, which has no dots.
        unique = f"{os.getpid()}_{uuid.uuid4().hex}"
        unfinished = target.parent / f"unfinished_{unique}"
        unfinished.mkdir()
    except OSError as error:
        raise UserError(
            f"the folder cannot be made: {error.strerror or error}",
            where=str(target),
            remedy="name another --config.export.folder",
        ) from error
    before = target.parent / f"replaced_{unique}"
    try:
        yield unfinished
        if target.exists():
            os.replace(target, before)
        os.replace(unfinished, target)
    finally:
        if before.exists() and not target.exists():
            os.replace(before, target)
        for folder in (unfinished, before):
            if folder.exists():
                shutil.rmtree(folder)


def _write_json(path: Path, content: Mapping[str, Any]) -> None:
    text = json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False)
    path.write_text(text + "\n", encoding="utf-8")
