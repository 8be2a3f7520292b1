"""Folders of transformers become models of lmjax; its own exports come back too."""

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from absl import logging

from lmjax.config import checks
from lmjax.config.schema import (
    AutoregressiveConfig,
    Config,
    FirstInput,
    ModelConfig,
    TokenizerConfig,
    TokenizerKind,
)
from lmjax.core.errors import UserError
from lmjax.core.types import PyTree
from lmjax.data.tokenization.tokenizers import Tokenizer, load_tokenizer
from lmjax.export import architectures, remote
from lmjax.export.architectures import StockClass, spell
from lmjax.export.names import Table, from_tensors
from lmjax.export.weights import WeightFiles, read_json
from lmjax.models.attention_kernels import library_attention
from lmjax.models.build import build_model, padded_vocab_size
from lmjax.models.transformer import Setting

CONFIG = "config.json"
OWN = "lmjax"  # key of config.json that only our exports have
# Above these a config.json is wrong: shapes must fit into what JAX counts with.
_WIDEST, _MOST_IDS = 2**20, 2**24


@dataclasses.dataclass(frozen=True, kw_only=True)
class ImportedModel:
    """What a folder holds, as sections of a config and parameters.

    Attributes:
      params: float32; rows of the vocabulary for padding and for ids that only our
        tokenizer has are zero.
    """

    model: ModelConfig
    objective: remote.Objective
    tokenizer: TokenizerConfig
    params: PyTree


def import_model(folder: Path, tokenizer: Tokenizer | None = None) -> ImportedModel:
    """Reads a model of Llama's kind, of Qwen3's, Arcee's or GPT-2's, or our own.

    Args:
      folder: as transformers saves it, with safetensors.
      tokenizer: that of the model; None takes what is in the folder.

    Raises:
      UserError: it is no such folder, the model does what lmjax's models do not, or its
        files do not fit each other.
    """
    config = read_config(folder)
    where = str(folder / CONFIG)
    objective: remote.Objective = AutoregressiveConfig()
    if config.get("model_type") == remote.MODEL_TYPE:
        table, model = remote.TABLE, remote.model_section(config, where)
        objective = remote.objective_section(config, where)
    else:
        stock = _stock_class(config, where)
        table, model = stock.table, model_section(stock, config, where)
    weights = WeightFiles(folder)
    _check_model(model, objective, where)
    if model.num_layers > len(weights.shapes):  # or building it would take for ever
        raise UserError(
            f"the weights are {len(weights.shapes):,} tensors, too few for "
            f"{model.num_layers:,} layers",
            where=where,
            remedy="fetch the folder again: it is not whole",
        )
    section = _tokenizer_config(folder, config) if tokenizer is None else None
    if tokenizer is None:
        tokenizer = load_tokenizer(section)
    num_ids = model.vocab_size
    _check_tokenizer(tokenizer, num_ids, folder)
    if isinstance(objective, AutoregressiveConfig):
        objective.first_input = _first_input(config, tokenizer, folder)
    setting = Setting(
        vocab_size=padded_vocab_size(max(num_ids, tokenizer.vocab_size)),
        unpredictable=(),
        causal=True,
        attend=library_attention,
    )
    shapes = build_model(model, setting).shapes
    return ImportedModel(
        model=model,
        objective=objective,
        tokenizer=section or TokenizerConfig(),
        params=from_tensors(table, weights, shapes, num_ids=num_ids, where=str(folder)),
    )


def read_params(folder: Path, table: Table, shapes: PyTree, *, num_ids: int) -> PyTree:
    """The parameters of a folder in these shapes, float32.

    Args:
      num_ids: rows of the vocabulary in the folder; further ones are zero.
    """
    return from_tensors(
        table, WeightFiles(folder), shapes, num_ids=num_ids, where=str(folder)
    )


def read_config(folder: Path) -> dict[str, Any]:
    """The config.json of a folder.

    Raises:
      UserError: there is none.
    """
    if not (folder / CONFIG).is_file():
        raise UserError(
            f"there is no model: no {CONFIG} is there",
            where=str(folder),
            remedy="name a folder that transformers saved, or that "
            "`huggingface-cli download OWNER/NAME --local-dir FOLDER` fetched",
        )
    return read_json(folder / CONFIG)


def model_section(stock: StockClass, config: dict[str, Any], where: str) -> ModelConfig:
    """The model section of a config.json.

    Raises:
      UserError: it asks for what lmjax does not compute, or lacks a size.
    """
    if problems := list(_differences(stock, config)):
        raise UserError(
            f"lmjax does not compute what this model does: {'; '.join(problems)}",
            where=where,
            remedy="import a model without these",
        )
    fields: dict[str, Any] = {"dropout": 0.0, **stock.holds}
    for key, field in stock.keys.items():
        value = config.get(key, stock.defaults.get(key))
        if key == "rope_theta":
            value = _rope(config).get(key, value)
        if value is None and key not in stock.defaults:
            raise UserError(
                f"{CONFIG} lacks {key}",
                where=where,
                remedy="fetch the folder again: it is not whole",
            )
        fields[field] = value
    for field in ("num_kv_heads", "head_width"):
        fields[field] = fields.get(field) or 0  # which may be null
    default_width = fields["mlp_width"] is None
    model = ModelConfig(**fields | {"mlp_width": 1} if default_width else fields)
    _check_model(model, AutoregressiveConfig(), where)
    if default_width:
        model.mlp_width = 4 * model.width
    if model.num_kv_heads == model.num_heads:
        model.num_kv_heads = 0
    if model.head_width * model.num_heads == model.width:
        model.head_width = 0
    return model


def _check_model(model: ModelConfig, objective: remote.Objective, where: str) -> None:
    """Raises UserError for a model that nobody could build."""
    config = Config(model=model, objective=objective)
    problems = checks.problems_within(config, ("model", "objective"))
    told = [str(problem) for problem in problems]
    for name, value in dataclasses.asdict(model).items():
        most = _MOST_IDS if name in ("vocab_size", "max_length") else _WIDEST
        if type(value) is int and value > most:
            told.append(f"model.{name}={value}: more than lmjax reads")
    if told:
        raise UserError(
            f"lmjax has no such model: {'; '.join(told)}",
            where=where,
            remedy="fetch the folder again, or correct what stands there",
        )


def _stock_class(config: dict[str, Any], where: str) -> StockClass:
    kind = config.get("model_type")
    if not isinstance(kind, str) or kind not in architectures.BY_MODEL_TYPE:
        known = ", ".join(architectures.BY_MODEL_TYPE)
        raise UserError(
            f"lmjax has no models of the type {kind!r}",
            where=where,
            remedy=f"import a model of one of these types: {known}",
        )
    return architectures.BY_MODEL_TYPE[kind]


def _differences(stock: StockClass, config: dict[str, Any]) -> Iterator[str]:
    """What config.json asks for and lmjax does not compute."""
    for key, allowed in stock.computes.items():
        if (value := config.get(key)) not in allowed:
            known = " or ".join(spell(each) for each in allowed if each is not None)
            yield f"{key}={value!r}" + (f" (only {known})" if known else "")
    rope = _rope(config)
    for key in sorted(rope.keys() - {"rope_theta", "rope_type"}):
        yield f"rope_parameters.{key}={rope[key]!r}"
    if (kind := rope.get("rope_type", "default")) != "default":
        yield f"rope_parameters.rope_type={kind!r} (only default)"
    kinds = config.get("layer_types") or []
    kinds = kinds if isinstance(kinds, list) else [kinds]
    if others := sorted({str(kind) for kind in kinds} - {"full_attention"}):
        yield f"layer_types {', '.join(others)} (only full_attention)"


def _rope(config: dict[str, Any]) -> dict[str, Any]:
    """How transformers 5 writes what concerns rotation."""
    rope = config.get("rope_parameters") or {}
    return rope if isinstance(rope, dict) else {"rope_parameters": rope}


def _tokenizer_config(folder: Path, config: dict[str, Any]) -> TokenizerConfig:
    """What reads the folder's tokenizer; of our own exports the one of the run."""
    if OWN in config and (folder / "tokenizer.model").is_file():
        return TokenizerConfig(path=str(folder / "tokenizer.model"))
    if (folder / "tokenizer.json").is_file():
        return TokenizerConfig(kind=TokenizerKind.HUGGINGFACE, path=str(folder))
    if (folder / "vocab.json").is_file() and (folder / "merges.txt").is_file():
        return TokenizerConfig(kind=TokenizerKind.GPT2, path=str(folder))
    if (folder / "tokenizer.model").is_file():
        return TokenizerConfig(path=str(folder / "tokenizer.model"))
    raise UserError(
        "the model comes without a tokenizer: there is no tokenizer.json, no "
        "vocab.json with merges.txt, and no tokenizer.model",
        where=str(folder),
        remedy="put the tokenizer of the model there",
    )


def _check_tokenizer(tokenizer: Tokenizer, num_ids: int, folder: Path) -> None:
    """Ids beyond the embedding may only be special ones, which lmjax appended."""
    special = dataclasses.astuple(tokenizer.special)
    beyond = set(range(num_ids, tokenizer.vocab_size)) - set(special)
    if beyond:
        raise UserError(
            f"the tokenizer has {tokenizer.vocab_size} ids, and the model's vocabulary "
            f"{num_ids}",
            where=str(folder),
            remedy="put the tokenizer of this very model there",
        )


def _first_input(
    config: dict[str, Any], tokenizer: Tokenizer, folder: Path
) -> FirstInput:
    """What the model reads before a text: what our export says, or its BOS."""
    own = config.get(OWN)
    if isinstance(own, dict) and "first_input" in own:
        kinds = {kind.value: kind for kind in FirstInput}
        if own["first_input"] not in list(kinds):
            raise UserError(
                f"{CONFIG} has the unknown first_input {own['first_input']!r}",
                where=str(folder / CONFIG),
                remedy=f"write one of {', '.join(kinds)}",
            )
        return kinds[own["first_input"]]
    bos = config.get("bos_token_id")
    if bos == tokenizer.special.bos:
        return FirstInput.BOS
    if bos not in (None, tokenizer.special.eos):
        logging.warning(
            "%s: the model's BOS is id %s, but the tokenizer has BOS %s and EOS %s: "
            "texts will begin with EOS",
            folder,
            bos,
            tokenizer.special.bos,
            tokenizer.special.eos,
        )
    return FirstInput.EOS
