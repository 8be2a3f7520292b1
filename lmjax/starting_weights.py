"""Weights that a run begins with rather than draws: another run's, or imported."""

import pathlib

import jax
import numpy as np

from lmjax.config import serialize
from lmjax.config.schema import Config
from lmjax.core import trees
from lmjax.core.errors import ConfigError
from lmjax.core.types import PyTree
from lmjax.experiment import System
from lmjax.export import importing
from lmjax.run_folder import RunFolder, check_shapes
from lmjax.train.checkpoints import SavedStep, on_first_device
from lmjax.train.state import TrainState
from lmjax.train.weights import SavedWeights


def begin_with(state: TrainState, config: Config, system: System) -> TrainState:
    """A fresh state with the weights that `checkpoint.init_from` names.

    The optimizer begins anew, and the average with these weights.

    Raises:
      ConfigError: there are none, or they are of another model or tokenizer.
    """
    params = _params(pathlib.Path(config.checkpoint.init_from).expanduser(), system)
    params = jax.tree.map(
        lambda old, new: jax.device_put(np.asarray(new, old.dtype), old.sharding),
        state.params,
        params,
    )
    ema = jax.tree.map(jax.numpy.copy, params) if state.ema else state.ema
    return TrainState(state.step, params, state.opt_state, ema)


def _params(path: pathlib.Path, system: System) -> PyTree:
    shapes = system.model.shapes
    if _is_of_transformers(path):
        params = importing.import_model(path, system.tokenizer).params
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
    check_shapes(saved.param_shapes(), shapes, where=str(path), remedy=_REMEDY)
    return saved.params(on_first_device(shapes))


_REMEDY = (
    "begin with the config of that model: --config FOLDER/config.json, and "
    "the changes on top"
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
