"""Which class of transformers holds a model, and what is said where none does."""

from typing import Any

import pytest

from lmjax.config.schema import (
    Architecture,
    Backbone,
    MLPKind,
    ModelConfig,
    NormKind,
    PositionKind,
)
from lmjax.core.errors import ConfigError
from lmjax.export.architectures import BY_KIND, choose_architecture
from tests.export.exports import FIELDS

AUTO = Architecture.AUTO


@pytest.mark.parametrize("kind", list(FIELDS))
def test_the_stock_class_that_fits_is_taken(kind: Architecture) -> None:
    model = ModelConfig(**FIELDS[kind])
    assert choose_architecture(AUTO, model, causal=True) is kind
    assert choose_architecture(kind, model, causal=True) is kind
    assert choose_architecture(AUTO, model, causal=False) is Architecture.REMOTE
    remote = choose_architecture(Architecture.REMOTE, model, causal=True)
    assert remote is Architecture.REMOTE
    others = {stock: BY_KIND[stock].obstacles(model) for stock in set(FIELDS) - {kind}}
    assert all(others.values())


@pytest.mark.parametrize(
    ("kind", "change", "named"),
    [
        (Architecture.LLAMA, dict(head_bias=True), "model.head_bias=True"),
        (Architecture.LLAMA, dict(norm=NormKind.LAYER), "model.norm=layer"),
        (Architecture.LLAMA, dict(backbone=Backbone.DIT), "model.backbone=dit"),
        (Architecture.LLAMA, dict(width=770, head_width=64), "model.width=770"),
        (Architecture.QWEN3, dict(mlp_bias=True), "model.mlp_bias=True"),
        (Architecture.ARCEE, dict(mlp=MLPKind.SWIGLU), "model.mlp=swiglu"),
        (Architecture.GPT2, dict(num_kv_heads=4), "model.num_kv_heads=4"),
        (Architecture.GPT2, dict(head_width=32), "model.head_width=32"),
        (Architecture.GPT2, dict(positions=PositionKind.ROPE), "model.positions=rope"),
        (Architecture.GPT2, dict(norm_bias=False), "model.norm_bias=False"),
        (Architecture.GPT2, dict(attention_bias=False), "model.attention_bias=False"),
    ],
)
def test_a_class_names_what_it_does_not_hold(
    kind: Architecture, change: dict[str, Any], named: str
) -> None:
    model = ModelConfig(**(FIELDS[kind] | change))
    with pytest.raises(ConfigError, match=f"{kind.value} does not hold .*{named}"):
        choose_architecture(kind, model, causal=True)


def test_where_no_class_fits_every_class_says_why() -> None:
    model = ModelConfig(norm=NormKind.LAYER, head_bias=True)
    with pytest.raises(ConfigError) as caught:
        choose_architecture(AUTO, model, causal=True)
    message = str(caught.value)
    for kind in FIELDS:
        assert f"{kind.value} does not hold" in message
    assert "gpt2 does not hold model.head_bias=True, model.positions=rope" in message
    assert "--config.export.architecture=remote" in message


def test_a_stock_class_is_not_for_diffusion() -> None:
    with pytest.raises(ConfigError, match="llama holds causal models"):
        model = ModelConfig(**FIELDS[Architecture.LLAMA])
        choose_architecture(Architecture.LLAMA, model, causal=False)


def test_the_base_of_rotation_is_written_for_old_and_new_transformers() -> None:
    model = ModelConfig(**FIELDS[Architecture.LLAMA], rope_theta=500.0)
    config = BY_KIND[Architecture.LLAMA].config_json(model, num_ids=99)
    assert config["rope_theta"] == 500.0
    assert config["rope_parameters"] == {"rope_type": "default", "rope_theta": 500.0}
    assert config["vocab_size"] == 99
    assert config["num_key_value_heads"] == 12
    assert config["head_dim"] == 64
