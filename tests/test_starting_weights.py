"""What a run begins with is of its own model and tokenizer, or it does not begin."""

import json
from pathlib import Path
from typing import Any
from unittest import mock

import jax
import numpy as np
import pytest

from lmjax import experiment
from lmjax.config import serialize
from lmjax.config.schema import (
    Architecture,
    AutoregressiveConfig,
    Config,
    LayerLayout,
    MLPKind,
    PositionKind,
)
from lmjax.core.errors import ConfigError
from lmjax.data.tokenization.byte_tokenizer import ByteTokenizer
from lmjax.export import folder as folder_module
from lmjax.export.check import Check
from lmjax.export.folder import export_model
from lmjax.export.tokenizer_files import tokenizer_files
from lmjax.starting_weights import begin_with, read
from lmjax.train.checkpoints import COUNTS
from lmjax.train.state import TrainState
from lmjax.train.weights import WeightsWriter
from tests.export.exports import assert_same, random_params

TOKENIZER = ByteTokenizer()
FREE = dict(dropout=0.3, max_length=64, layers=LayerLayout.SCAN, num_kv_heads=2)


def _config(**fields: Any) -> Config:
    config = Config(objective=AutoregressiveConfig())
    sizes = dict(
        num_layers=1, width=16, num_heads=2, mlp_width=24, max_length=32, dropout=0.0
    )
    for name, value in (sizes | dict(mlp=MLPKind.SWIGLU) | fields).items():
        setattr(config.model, name, value)
    config.data.sequence_length = 16
    return config


def _system(config: Config) -> experiment.System:
    return experiment.build_system(config, TOKENIZER, jax.devices()[:1])


def _exported(config: Config, folder: Path) -> Any:
    """Parameters, which the folder holds with a tokenizer of transformers."""
    pytest.importorskip("safetensors")
    pytest.importorskip("tokenizers")
    model, opening = _system(config).model, TOKENIZER.special.bos
    params = random_params(model)
    with mock.patch.object(
        folder_module, "check_export", lambda *_: Check("weights", 0.0, 0.0, None)
    ):
        export_model(
            model,
            config.objective,
            params,
            TOKENIZER,
            folder,
            opening_id=opening,
            architecture=Architecture.AUTO
            if config.model.positions is PositionKind.ROPE
            else Architecture.REMOTE,
            files=tokenizer_files(TOKENIZER, opening_id=opening, max_length=32),
        )
    return params


def _saved(config: Config, folder: Path) -> Any:
    """Parameters, which the folder holds as a milestone does."""
    params = random_params(_system(config).model)
    writer = WeightsWriter()
    meta = dict.fromkeys(COUNTS, 0) | {
        "config": serialize.to_dict(config),
        "tokenizer": TOKENIZER.model_bytes,
        "mask_id": TOKENIZER.special.mask,
        "corpus": "",
    }
    writer.write(folder, params, meta)
    writer.close()
    return params


SOURCES = pytest.mark.parametrize("make", [_exported, _saved])


def _begin(config: Config, folder: Path) -> Any:
    config.checkpoint.init_from = str(folder)
    system = _system(config)
    fresh = system.model.init(jax.random.key(0))
    state = TrainState(np.int32(0), fresh, {}, {})
    return begin_with(state, read(config, system)).params


@SOURCES
def test_what_weights_do_not_depend_on_may_be_another(
    make: Any, tmp_path: Path
) -> None:
    params = make(_config(), tmp_path / "model")
    assert_same(_begin(_config(**FREE), tmp_path / "model"), params)


@SOURCES
def test_weights_of_the_same_shapes_and_another_computation_are_refused(
    make: Any, tmp_path: Path
) -> None:
    make(_config(), tmp_path / "model")
    other = _config(rope_theta=500.0, norm_epsilon=0.01)
    with pytest.raises(ConfigError, match="another model") as error:
        _begin(other, tmp_path / "model")
    for told in (
        "model.rope_theta is 10000.0 there and 500.0 here",
        "model.norm_epsilon is 1e-06 there and 0.01 here",
    ):
        assert told in str(error.value)
    for same in ("max_length", "num_kv_heads", "head_width", "vocab_size"):
        assert same not in str(error.value)
    with pytest.raises(ConfigError, match="mlp is swiglu there and gelu here"):
        _begin(_config(mlp=MLPKind.GELU), tmp_path / "model")


@SOURCES
def test_learned_positions_are_as_many(make: Any, tmp_path: Path) -> None:
    learned = dict(positions=PositionKind.LEARNED)
    params = make(_config(**learned), tmp_path / "model")
    same = _config(**learned, rope_theta=500.0)  # which nothing rotates by
    assert_same(_begin(same, tmp_path / "model"), params)
    with pytest.raises(ConfigError, match="max_length is 32 there and 64 here"):
        _begin(_config(**learned, max_length=64), tmp_path / "model")


def test_ids_that_mean_other_text_are_refused(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    _exported(_config(), folder)
    file = folder / "tokenizer.json"
    content = json.loads(file.read_text(encoding="utf-8"))
    vocab = content["model"]["vocab"]
    vocab["a"], vocab["b"] = vocab["b"], vocab["a"]
    file.write_text(json.dumps(content), encoding="utf-8")
    with pytest.raises(ConfigError, match="another tokenizer") as error:
        _begin(_config(), folder)
    assert "tokenizer.kind=huggingface" in error.value.remedy
    assert f"tokenizer.path={folder}" in error.value.remedy
