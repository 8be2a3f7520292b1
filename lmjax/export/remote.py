"""Models that no class of transformers holds: their config.json and tensors, both ways.

Such a folder carries its code, `templates/modeling_lmjax.py`, which transformers runs
with trust_remote_code=True.
"""

import dataclasses
import enum
import types
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lmjax.config.schema import (
    AutoregressiveConfig,
    DiffusionConfig,
    MaskedDiffusionConfig,
    ModelConfig,
    Parameterization,
    ScheduleKind,
    UniformDiffusionConfig,
)
from lmjax.core.errors import UserError
from lmjax.data.tokenization.vocabulary import SpecialIds
from lmjax.export.names import Layout, Table, Tensor, linear, norm
from lmjax.models.transformer import head_width

MODEL_TYPE = "lmjax"
MODULE = "modeling_lmjax"  # the file that a folder carries, without its ending

Objective = MaskedDiffusionConfig | UniformDiffusionConfig | AutoregressiveConfig

TABLE = Table(
    (
        Tensor("embed_tokens.weight", ("vocabulary/table",), Layout.ROWS),
        Tensor("embed_positions.weight", ("positions/table",), Layout.AS_IS),
        *linear("noise_embedding.first", "noise_embedding/first"),
        *linear("noise_embedding.second", "noise_embedding/second"),
        *norm("layers.{layer}.attention_norm", "blocks/attention_norm"),
        *linear("layers.{layer}.attention.q_proj", "blocks/attention/query"),
        *linear("layers.{layer}.attention.k_proj", "blocks/attention/key"),
        *linear("layers.{layer}.attention.v_proj", "blocks/attention/value"),
        *linear(
            "layers.{layer}.attention.o_proj", "blocks/attention/output", num_inputs=2
        ),
        *norm("layers.{layer}.attention.q_norm", "blocks/attention/query_norm"),
        *norm("layers.{layer}.attention.k_norm", "blocks/attention/key_norm"),
        *norm("layers.{layer}.mlp_norm", "blocks/mlp_norm"),
        *linear("layers.{layer}.mlp.gate_proj", "blocks/mlp/gate"),
        *linear("layers.{layer}.mlp.up_proj", "blocks/mlp/up"),
        *linear("layers.{layer}.mlp.down_proj", "blocks/mlp/down"),
        *linear("layers.{layer}.modulation", "blocks/modulation/linear"),
        *norm("final_norm", "final_norm"),
        *linear("final_modulation", "final_modulation/linear"),
        Tensor("lm_head.weight", ("vocabulary/head",), Layout.ROWS),
        Tensor("lm_head.bias", ("vocabulary/head_bias",), Layout.ROWS),
    ),
    prefix="model.",
    heads=("lm_head.weight", "lm_head.bias"),
)

# Keys of config.json, and the field of the model section that stands there.
_KEYS = types.MappingProxyType(
    {
        "hidden_size": "width",
        "num_hidden_layers": "num_layers",
        "num_attention_heads": "num_heads",
        "num_key_value_heads": "num_kv_heads",
        "head_dim": "head_width",
        "intermediate_size": "mlp_width",
        "max_position_embeddings": "max_length",
        "backbone": "backbone",
        "mlp": "mlp",
        "norm": "norm",
        "norm_epsilon": "norm_epsilon",
        "norm_bias": "norm_bias",
        "qk_norm": "qk_norm",
        "attention_bias": "attention_bias",
        "mlp_bias": "mlp_bias",
        "head_bias": "head_bias",
        "positions": "positions",
        "rotary_base": "rope_theta",
        "dropout": "dropout",
        "time_conditioning": "time_conditioning",
        "condition_width": "condition_width",
        "tie_word_embeddings": "tied_embeddings",
    }
)
# Numbers of each schedule, and the field of the objective that they are.
_SCHEDULES: Mapping[ScheduleKind, Mapping[str, str]] = types.MappingProxyType(
    {
        ScheduleKind.LINEAR: {},
        ScheduleKind.COSINE_LIGHT: {},
        ScheduleKind.COSINE_HEAVY: {},
        ScheduleKind.COSINE_SQUARED: {},
        ScheduleKind.POLYNOMIAL: {"power": "schedule_power"},
        ScheduleKind.GEOMETRIC: {"sigma_min": "sigma_min", "sigma_max": "sigma_max"},
        ScheduleKind.BIMODAL_GAUSSIAN: {
            "low_mean": "low_mean",
            "low_std": "low_std",
            "low_share": "low_share",
            "high_mean": "high_mean_end",  # as it is at the end of the run
            "high_std": "high_std",
            "uniform_share": "uniform_share",
        },
    }
)


def config_json(
    model: ModelConfig,
    objective: Objective,
    *,
    special: SpecialIds,
    opening_id: int,
    vocab_size: int,
    unpredictable: Sequence[int],
) -> dict[str, Any]:
    """The content of config.json, but for the dtype of the weights.

    Args:
      opening_id: id before a text, declared as BOS; see `tokenizer_files`.
      vocab_size: rows of the exported vocabulary, without padding.
      unpredictable: ids that text never holds; those of padding don't matter. D3PM
        predicts the mask all the same.
    """
    never = {i for i in unpredictable if i < vocab_size}
    if _predicts_mask(objective):
        never.discard(special.mask)
    explicit = dataclasses.replace(
        model,
        num_kv_heads=model.num_kv_heads or model.num_heads,
        head_width=head_width(model),
    )
    causal = isinstance(objective, AutoregressiveConfig)
    task = "AutoModelForCausalLM" if causal else "AutoModelForMaskedLM"
    class_name = "LmjaxForCausalLM" if causal else "LmjaxForMaskedLM"
    return {
        "architectures": [class_name],
        "auto_map": {
            "AutoConfig": f"{MODULE}.LmjaxConfig",
            "AutoModel": f"{MODULE}.LmjaxModel",
            task: f"{MODULE}.{class_name}",
        },
        "model_type": MODEL_TYPE,
        "vocab_size": vocab_size,
        **{key: _plain(getattr(explicit, name)) for key, name in _KEYS.items()},
        "causal": causal,
        "use_cache": causal,
        **process_json(objective),
        "bos_token_id": opening_id,
        "eos_token_id": special.eos,
        "pad_token_id": special.pad,
        "mask_token_id": special.mask,
        "unpredictable_token_ids": sorted(never),
    }


def modeling_files() -> dict[str, bytes]:
    """The code that such a folder carries, by file name."""
    file = f"{MODULE}.py"
    return {file: (Path(__file__).parent / "templates" / file).read_bytes()}


def model_section(config: Mapping[str, Any], where: str) -> ModelConfig:
    """The model section of such a folder's config.json.

    Raises:
      UserError: it lacks a key, or has what is none of a model's choices.
    """
    kinds = {field.name: field.default for field in dataclasses.fields(ModelConfig)}
    fields = {
        name: _read(config, key, type(kinds[name]), where)
        for key, name in _KEYS.items()
    }
    if fields["num_kv_heads"] == fields["num_heads"]:
        fields["num_kv_heads"] = 0
    if fields["head_width"] * fields["num_heads"] == fields["width"]:
        fields["head_width"] = 0
    return ModelConfig(**fields, vocab_size=_read(config, "vocab_size", int, where))


def objective_section(config: Mapping[str, Any], where: str) -> Objective:
    """The objective section of such a folder's config.json, as far as it is there.

    Raises:
      UserError: it lacks a key, or names what lmjax does not have.
    """
    process = _read(config, "process", str, where)
    if process == "none":
        return AutoregressiveConfig()
    schedule = _read(config, "schedule", dict, where)
    kind = _read(schedule, "kind", ScheduleKind, where)
    fields = {
        name: _read(schedule, key, float, where)
        for key, name in _SCHEDULES[kind].items()
    }
    steps = _read(config, "process_steps", int, where)
    if process == "uniform":
        return UniformDiffusionConfig(schedule=kind, steps=steps, **fields)
    parameterization = _read(config, "parameterization", Parameterization, where)
    return MaskedDiffusionConfig(
        schedule=kind, steps=steps, parameterization=parameterization, **fields
    )


def _predicts_mask(objective: Objective) -> bool:
    return (
        isinstance(objective, MaskedDiffusionConfig)
        and objective.parameterization is Parameterization.D3PM
    )


def process_json(objective: Objective) -> dict[str, Any]:
    """What the sampler of an exported model must know of its objective."""
    if isinstance(objective, AutoregressiveConfig):
        return {"process": "none"}
    found: dict[str, Any] = {
        "process": "uniform",
        "process_steps": objective.steps,
        "schedule": _schedule(objective),
    }
    if isinstance(objective, MaskedDiffusionConfig):
        found["process"] = "mask"
        found["parameterization"] = objective.parameterization.value
    return found


def _schedule(objective: DiffusionConfig) -> dict[str, Any]:
    numbers = _SCHEDULES[objective.schedule]
    return {"kind": objective.schedule.value} | {
        key: getattr(objective, name) for key, name in numbers.items()
    }


def _plain(value: Any) -> Any:
    return value.value if isinstance(value, enum.Enum) else value


def _read(config: Mapping[str, Any], key: str, kind: type, where: str) -> Any:
    """A value of config.json, as a field of this type."""
    remedy = "fetch the folder again: its config.json is not one that lmjax wrote"
    if key not in config:
        raise UserError(f"config.json lacks {key}", where=where, remedy=remedy)
    try:
        return kind(config[key])
    except (TypeError, ValueError, OverflowError) as error:
        raise UserError(
            f"config.json has {key}={config[key]!r}", where=where, remedy=remedy
        ) from error
