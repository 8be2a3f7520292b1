"""Weights that a run begins with rather than draws: another run's, or imported."""

import dataclasses
import enum
import pathlib
from typing import Any

import jax
import numpy as np

from lmjax.config import serialize
from lmjax.config.schema import (
    Backbone,
    Config,
    ModelConfig,
    PositionKind,
    TokenizerConfig,
)
from lmjax.core import trees
from lmjax.core.errors import ConfigError
from lmjax.core.types import PyTree
from lmjax.data.tokenization.tokenizers import Tokenizer, load_tokenizer
from lmjax.experiment import System
from lmjax.export import importing
from lmjax.models.transformer import head_width
from lmjax.run_folder import RunFolder, check_shapes
from lmjax.train.checkpoints import SavedStep, on_first_device
from lmjax.train.state import TrainState
from lmjax.train.weights import SavedWeights


def read(config: Config, system: System) -> PyTree | None:
    """The weights that `checkpoint.init_from` names, on the host; None: it names none.

    Raises:
      ConfigError: there are none, or they are of another model or tokenizer.
      UserError: a Hugging Face folder is not whole, or without its tokenizer.
    """
    if not config.checkpoint.init_from:
        return None
    path = pathlib.Path(config.checkpoint.init_from).expanduser()
    return jax.tree.map(np.asarray, _params(path, config.model, system))


def begin_with(state: TrainState, weights: PyTree) -> TrainState:
    """A fresh state with what `read` gave.

    The optimizer begins anew, and the average with these weights.
    """
    params = jax.tree.map(
        lambda old, new: jax.device_put(np.asarray(new, old.dtype), old.sharding),
        state.params,
        weights,
    )
    ema = jax.tree.map(jax.numpy.copy, params) if state.ema else state.ema
    return dataclasses.replace(state, params=params, ema=ema)


def _params(path: pathlib.Path, model: ModelConfig, system: System) -> PyTree:
    shapes = system.model.shapes
    if _is_of_transformers(path):
        imported = importing.import_model(path)
        _check_tokenizer(imported.tokenizer, system.tokenizer, path)
        _check_model(imported.model, model, path)
        params = imported.params
        found: dict[str, tuple[int, ...]] = {}
        trees.map_named(lambda name, leaf: found.update({name: leaf.shape}), params)
        check_shapes(found, shapes, where=str(path), remedy=_REMEDY)
        return params
    saved = _saved(path)
    if saved.meta()["tokenizer"] != system.tokenizer.model_bytes:
        raise ConfigError(
            "these weights were trained with another tokenizer",
            where=f"checkpoint.init_from={path}",
            remedy="set tokenizer.path to that tokenizer",
        )
    trained = serialize.from_dict({"model": saved.meta()["config"]["model"]})
    _check_model(trained.model, model, path)
    check_shapes(saved.param_shapes(), shapes, where=str(path), remedy=_REMEDY)
    return saved.params(on_first_device(shapes))


_REMEDY = (
    "begin with the config of that model: --config FOLDER/config.json, and "
    "the changes on top"
)


# Fields of the model section that its weights do not depend on; the rows of the
# vocabulary are compared as shapes.
_FREE = {"dropout", "layers", "attention", "vocab_size"}
_PROBE = "The quick  brown Fox, don't you?\n12345 caf\u00e9 \u8a9e \U0001f600 <mask>"


def _check_model(there: ModelConfig, here: ModelConfig, path: pathlib.Path) -> None:
    """Weights of the same shapes may be of a model that computes something else."""
    old, new = _computation(there), _computation(here)
    different = [
        f"model.{name} is {_spell(old[name])} there and {_spell(new[name])} here"
        for name in old
        if name in new and old[name] != new[name]
    ]
    if different:
        raise ConfigError(
            f"these weights are of another model: {'; '.join(different)}",
            where=f"checkpoint.init_from={path}",
            remedy="set these fields as they are there",
        )


def _computation(model: ModelConfig) -> dict[str, Any]:
    """What the weights of a model mean, field by field."""
    found = dataclasses.asdict(model)
    found["num_kv_heads"] = model.num_kv_heads or model.num_heads
    found["head_width"] = head_width(model)
    unused = set(_FREE)
    if model.positions is not PositionKind.LEARNED:
        unused.add("max_length")
    if model.positions is not PositionKind.ROPE:
        unused.add("rope_theta")
    if model.backbone is not Backbone.DIT:
        unused.add("condition_width")
    return {name: found[name] for name in found if name not in unused}


def _spell(value: Any) -> Any:
    return value.value if isinstance(value, enum.Enum) else value


def _check_tokenizer(
    section: TokenizerConfig, here: Tokenizer, path: pathlib.Path
) -> None:
    """The folder's tokenizer must be ours, or write the same ids.

    An export writes tokenizers of other kinds as a tokenizer.json, in other bytes.
    """
    there = load_tokenizer(section)
    if there.model_bytes == here.model_bytes or (
        there.special == here.special
        and list(there.piece_bytes) == list(here.piece_bytes)
        and there.encode(_PROBE) == here.encode(_PROBE)
    ):
        return
    raise ConfigError(
        "these weights were trained with another tokenizer",
        where=f"checkpoint.init_from={path}",
        remedy=f"set --config.tokenizer.kind={section.kind.value} "
        f"--config.tokenizer.path={section.path}, or make a run folder of that model "
        "with --mode import",
    )


def _is_of_transformers(path: pathlib.Path) -> bool:
    """Whether a folder is a model of transformers, rather than a run folder."""
    file = path / "config.json"
    return file.exists() and '"model_type"' in file.read_text(encoding="utf-8")


def _saved(path: pathlib.Path) -> SavedWeights | SavedStep:
    if SavedWeights.is_at(path):
        return SavedWeights(path)
    if (path / "config.json").exists():
        return RunFolder.read(path, serialize.load(path / "config.json")).saved
    raise ConfigError(
        "there are no weights to begin with",
        where=f"checkpoint.init_from={path}",
        remedy="name a run folder, one of its milestones, or a Hugging Face folder "
        "with config.json and model.safetensors",
    )
