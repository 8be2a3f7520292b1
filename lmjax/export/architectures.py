"""Classes of transformers that hold models of lmjax, and their config.json, both ways.

A class says which values of the model section it can hold at all, which key of its
config.json each other field stands under, and what else must stand there for the model
to compute the same.
"""

import dataclasses
import enum
from collections.abc import Mapping
from typing import Any

from lmjax.config.schema import (
    Architecture,
    Backbone,
    MLPKind,
    ModelConfig,
    NormKind,
    PositionKind,
)
from lmjax.core.errors import ConfigError
from lmjax.export.names import GPT2, LLAMA, Table
from lmjax.models.transformer import head_width

# What no class of transformers here can hold.
_PLAIN = {
    "backbone": Backbone.TRANSFORMER,
    "time_conditioning": False,
    "head_bias": False,
}
_LLAMA_LIKE = {
    **_PLAIN,
    "positions": PositionKind.ROPE,
    "norm": NormKind.RMS,
    "norm_bias": False,
}
_LLAMA_KEYS = {
    "vocab_size": "vocab_size",
    "hidden_size": "width",
    "intermediate_size": "mlp_width",
    "num_hidden_layers": "num_layers",
    "num_attention_heads": "num_heads",
    "num_key_value_heads": "num_kv_heads",
    "head_dim": "head_width",
    "max_position_embeddings": "max_length",
    "rms_norm_eps": "norm_epsilon",
    "rope_theta": "rope_theta",
    "attention_bias": "attention_bias",
    "tie_word_embeddings": "tied_embeddings",
}
# Without a key, transformers takes these.
_LLAMA_DEFAULTS = {
    "num_key_value_heads": 0,
    "head_dim": 0,
    "rope_theta": 10_000.0,
    "attention_bias": False,
    "mlp_bias": False,
    "tie_word_embeddings": False,
}
_TANH_GELU = ("gelu_new", "gelu_pytorch_tanh")


@dataclasses.dataclass(frozen=True, kw_only=True)
class StockClass:
    """A class of transformers.

    Attributes:
      kind: what the config calls it.
      model_type, class_name: what config.json calls it.
      table: its tensors.
      holds: fields of the model section, each with the one value that it can have.
      keys: of config.json, each with the field of the model section that stands there.
      defaults: values of keys that a config.json may lack.
      computes: further keys of what lmjax computes, with all values that mean it; the
        first is written, None means that the key may be absent.
      trains: further keys, which are written and change nothing that is computed.
      whole_heads: whether the width must be a multiple of the heads.
    """

    kind: Architecture
    model_type: str
    class_name: str
    table: Table
    holds: Mapping[str, Any]
    keys: Mapping[str, str]
    defaults: Mapping[str, Any]
    computes: Mapping[str, tuple[Any, ...]]
    trains: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    whole_heads: bool = True

    def obstacles(self, model: ModelConfig) -> list[str]:
        """What of a model this class cannot hold; empty where it can all."""
        found = [
            f"model.{field}={spell(getattr(model, field))}"
            for field, value in self.holds.items()
            if getattr(model, field) != value
        ]
        width = model.num_heads * head_width(model)
        if "num_kv_heads" not in self.keys.values():
            if model.num_kv_heads not in (0, model.num_heads):
                found.append(f"model.num_kv_heads={model.num_kv_heads}")
            if width != model.width:
                found.append(f"model.head_width={model.head_width}")
        elif self.whole_heads and model.width % model.num_heads:
            found.append(
                f"model.width={model.width}, no multiple of model.num_heads="
                f"{model.num_heads}"
            )
        return found

    def config_json(self, model: ModelConfig, *, num_ids: int) -> dict[str, Any]:
        """What config.json says of the model itself.

        Args:
          num_ids: rows of the exported vocabulary.
        """
        explicit = dataclasses.replace(
            model,
            vocab_size=num_ids,
            num_kv_heads=model.num_kv_heads or model.num_heads,
            head_width=head_width(model),
        )
        written = {key: getattr(explicit, field) for key, field in self.keys.items()}
        if "rope_theta" in written:  # the second form is that of transformers 5
            written["rope_parameters"] = {
                "rope_type": "default",
                "rope_theta": model.rope_theta,
            }
        computed = {
            key: values[0]
            for key, values in self.computes.items()
            if values[0] is not None
        }
        return {
            "architectures": [self.class_name],
            "model_type": self.model_type,
            **written,
            **computed,
            **self.trains,
        }


_PLAIN_ROPE = {
    "rope_scaling": (None,),
    "partial_rotary_factor": (None, 1.0),
    "sliding_window": (None,),
    "quantization_config": (None,),
}
STOCK_CLASSES = (
    StockClass(
        kind=Architecture.LLAMA,
        model_type="llama",
        class_name="LlamaForCausalLM",
        table=LLAMA,
        holds={**_LLAMA_LIKE, "qk_norm": False, "mlp": MLPKind.SWIGLU},
        keys={**_LLAMA_KEYS, "mlp_bias": "mlp_bias"},
        defaults={
            **_LLAMA_DEFAULTS,
            "rms_norm_eps": 1e-6,
            "max_position_embeddings": 2048,
        },
        computes={**_PLAIN_ROPE, "hidden_act": ("silu", "swish", None)},
    ),
    StockClass(
        kind=Architecture.QWEN3,
        model_type="qwen3",
        class_name="Qwen3ForCausalLM",
        table=LLAMA,
        holds={
            **_LLAMA_LIKE,
            "qk_norm": True,
            "mlp": MLPKind.SWIGLU,
            "mlp_bias": False,
        },
        keys=_LLAMA_KEYS,
        defaults={
            **_LLAMA_DEFAULTS,
            "num_key_value_heads": 32,
            "head_dim": 128,
            "rms_norm_eps": 1e-6,
            "max_position_embeddings": 32768,
        },
        computes={
            **_PLAIN_ROPE,
            "hidden_act": ("silu", "swish", None),
            "use_sliding_window": (False, None),
        },
        trains={"sliding_window": None},  # or old versions warn that it is not done
        whole_heads=False,
    ),
    StockClass(
        kind=Architecture.ARCEE,
        model_type="arcee",
        class_name="ArceeForCausalLM",
        table=LLAMA,
        holds={**_LLAMA_LIKE, "qk_norm": False, "mlp": MLPKind.GELU},
        keys={**_LLAMA_KEYS, "mlp_bias": "mlp_bias"},
        defaults={
            **_LLAMA_DEFAULTS,
            "rms_norm_eps": 1e-5,
            "max_position_embeddings": 4096,
        },
        computes={**_PLAIN_ROPE, "hidden_act": _TANH_GELU},
    ),
    StockClass(
        kind=Architecture.GPT2,
        model_type="gpt2",
        class_name="GPT2LMHeadModel",
        table=GPT2,
        holds={
            **_PLAIN,
            "positions": PositionKind.LEARNED,
            "norm": NormKind.LAYER,
            "norm_bias": True,
            "qk_norm": False,
            "mlp": MLPKind.GELU,
            "attention_bias": True,
            "mlp_bias": True,
        },
        keys={
            "vocab_size": "vocab_size",
            "n_embd": "width",
            "n_inner": "mlp_width",
            "n_layer": "num_layers",
            "n_head": "num_heads",
            "n_positions": "max_length",
            "layer_norm_epsilon": "norm_epsilon",
            "embd_pdrop": "dropout",
            "resid_pdrop": "dropout",
            "tie_word_embeddings": "tied_embeddings",
        },
        defaults={
            "n_embd": 768,
            "n_inner": None,
            "n_layer": 12,
            "n_head": 12,
            "n_positions": 1024,
            "layer_norm_epsilon": 1e-5,
            "embd_pdrop": 0.1,
            "resid_pdrop": 0.1,
            "tie_word_embeddings": True,
        },
        computes={
            "activation_function": (*_TANH_GELU, None),
            "scale_attn_weights": (True, None),
            "scale_attn_by_inverse_layer_idx": (False, None),
            "add_cross_attention": (False, None),
            "quantization_config": (None,),
        },
        trains={"attn_pdrop": 0.0},
    ),
)
BY_KIND = {stock.kind: stock for stock in STOCK_CLASSES}
BY_MODEL_TYPE = {stock.model_type: stock for stock in STOCK_CLASSES}


def is_stock(model: ModelConfig) -> bool:
    """Whether a class of transformers holds a causal model of this section."""
    return any(not stock.obstacles(model) for stock in STOCK_CLASSES)


def choose_architecture(
    wanted: Architecture, model: ModelConfig, *, causal: bool
) -> Architecture:
    """The class that a model is exported for.

    Raises:
      ConfigError: the class that is wanted, or any where that is left open, does not
        hold the model; says feature by feature why.
    """
    remedy = (
        "--config.export.architecture=remote writes the model with its own code, which "
        "transformers runs with trust_remote_code=True"
    )
    if wanted is Architecture.REMOTE or (wanted is Architecture.AUTO and not causal):
        return Architecture.REMOTE
    where = f"export.architecture={wanted.value}"
    if not causal:
        raise ConfigError(
            f"{wanted.value} holds causal models, and this is one of diffusion",
            where=where,
            remedy="--config.export.architecture=auto",
        )
    if wanted is not Architecture.AUTO:
        if obstacles := BY_KIND[wanted].obstacles(model):
            raise ConfigError(
                f"{wanted.value} does not hold {', '.join(obstacles)}",
                where=where,
                remedy=f"--config.export.architecture=auto finds what does; {remedy}",
            )
        return wanted
    reasons = []
    for stock in STOCK_CLASSES:
        obstacles = stock.obstacles(model)
        if not obstacles:
            return stock.kind
        reasons.append(f"{stock.kind.value} does not hold {', '.join(obstacles)}")
    raise ConfigError(
        "no class of transformers holds this model: " + "; ".join(reasons),
        where=where,
        remedy=remedy,
    )


def spell(value: Any) -> str:
    """A field's value as one types it."""
    return str(value.value if isinstance(value, enum.Enum) else value)
