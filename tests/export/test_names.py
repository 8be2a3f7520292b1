"""The tables of tensors, both ways, without any library."""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pytest

from lmjax.config.schema import Architecture, Backbone
from lmjax.core import trees
from lmjax.core.errors import UserError
from lmjax.export import names, remote
from lmjax.models.build import Model
from tests.export.exports import FIELDS, assert_same, build, random_params

MakeModel = Callable[..., Model]
TABLES = {"llama": names.LLAMA, "gpt2": names.GPT2, "remote": remote.TABLE}
IDS = 37


class Loaded:
    """Tensors in memory: `names.Weights`."""

    def __init__(self, tensors: Mapping[str, np.ndarray]):
        self.tensors = dict(tensors)
        self.shapes = {name: tensor.shape for name, tensor in tensors.items()}

    def read(self, name: str) -> np.ndarray:
        return self.tensors[name]


def _read(table: names.Table, tensors: Mapping[str, np.ndarray], model: Model) -> Any:
    return names.from_tensors(
        table, Loaded(tensors), model.shapes, num_ids=IDS, where="here"
    )


def _written(table: names.Table, model: Model, params: Any) -> dict[str, np.ndarray]:
    return dict(names.to_tensors(table, params, num_ids=IDS))


@pytest.fixture
def gpt2(make_model: MakeModel) -> Model:
    return build(make_model, **FIELDS[Architecture.GPT2])


@pytest.fixture
def llama(make_model: MakeModel) -> Model:
    return build(make_model)


@pytest.mark.parametrize(
    ("table", "fields"),
    [
        ("llama", dict(attention_bias=True, mlp_bias=True, qk_norm=True)),
        ("llama", dict(tied_embeddings=True, num_kv_heads=0, head_width=6)),
        ("gpt2", FIELDS[Architecture.GPT2]),
        ("remote", dict(backbone=Backbone.DIT, head_bias=True)),
    ],
)
def test_reading_what_was_written_gives_the_same_parameters(
    make_model: MakeModel, table: str, fields: dict[str, Any]
) -> None:
    model = build(make_model, **fields)
    params = random_params(model)
    written = _written(TABLES[table], model, params)
    shapes = names.tensor_shapes(TABLES[table], model.shapes, num_ids=IDS)
    assert {name: tensor.shape for name, tensor in written.items()} == shapes
    assert list(written) == list(shapes)
    rows = 128 - IDS
    padding = sum(
        rows * leaf.shape[-1] if leaf.ndim == 2 else rows
        for leaf in params["vocabulary"].values()
    )
    assert sum(each.size for each in written.values()) + padding == trees.count(params)
    assert_same(_read(TABLES[table], written, model), params)


def test_a_projection_stands_as_torch_wants_it(llama: Model) -> None:
    """W[o, i], the outputs head by head; checked by hand on one layer."""
    params = random_params(llama)
    written = _written(names.LLAMA, llama, params)
    attention = params["blocks"]["attention"]
    weight = written["model.layers.1.self_attn.q_proj.weight"]
    assert weight.shape == (16, 16)
    assert weight[4 * 2 + 3, 5] == attention["query"]["kernel"][1, 5, 2, 3]
    weight = written["model.layers.1.self_attn.k_proj.weight"]
    assert weight.shape == (8, 16)
    weight = written["model.layers.0.self_attn.o_proj.weight"]
    assert weight[7, 4 * 2 + 3] == attention["output"]["kernel"][0, 2, 3, 7]
    head = params["vocabulary"]["head"]
    np.testing.assert_array_equal(written["lm_head.weight"], head[:IDS])


def test_gpt2_has_queries_keys_and_values_side_by_side(gpt2: Model) -> None:
    params = random_params(gpt2)
    written = _written(names.GPT2, gpt2, params)
    attention = params["blocks"]["attention"]
    weight = written["transformer.h.1.attn.c_attn.weight"]
    bias = written["transformer.h.1.attn.c_attn.bias"]
    for number, name in enumerate(("query", "key", "value")):
        column = 16 * number + 4 * 2 + 3
        assert weight[5, column] == attention[name]["kernel"][1, 5, 2, 3]
        assert bias[column] == attention[name]["bias"][1, 2, 3]


def test_a_tensor_that_no_parameter_fits_is_our_own_mistake(
    make_model: MakeModel,
) -> None:
    model = build(make_model, head_bias=True)
    assert names.unheld(names.LLAMA, model.shapes) == ["vocabulary/head_bias"]
    with pytest.raises(ValueError, match="no tensor holds vocabulary/head_bias"):
        _written(names.LLAMA, model, random_params(model))


def test_files_of_models_without_a_head_and_of_old_versions_are_read(
    make_model: MakeModel,
) -> None:
    """The names lack their prefix; masks stand beside the weights; the head is tied."""
    model = build(make_model, **FIELDS[Architecture.GPT2], tied_embeddings=True)
    params = random_params(model)
    written = {
        name.removeprefix("transformer."): tensor
        for name, tensor in _written(names.GPT2, model, params).items()
    }
    written["h.0.attn.bias"] = np.tri(16)
    written["h.0.attn.masked_bias"] = np.float32(-1e4)
    assert_same(_read(names.GPT2, written, model), params)
    written["lm_head.weight"] = written["wte.weight"].copy()
    assert_same(_read(names.GPT2, written, model), params)
    written["lm_head.weight"][0, 0] += 1
    with pytest.raises(UserError, match=r"lm_head\.weight has no place"):
        _read(names.GPT2, written, model)


def test_a_missing_a_surplus_and_a_misshapen_tensor_are_told(llama: Model) -> None:
    written = _written(names.LLAMA, llama, random_params(llama))
    norm = written.pop("model.norm.weight")
    with pytest.raises(UserError, match=r"model\.norm\.weight is missing") as caught:
        _read(names.LLAMA, written, llama)
    assert "where: here" in str(caught.value)
    surplus = {"model.layers.2.mlp.up_proj.weight": np.zeros((24, 16), np.float32)}
    with pytest.raises(UserError, match=r"layers\.2\.mlp\.up_proj.* has no place"):
        _read(names.LLAMA, {**written, **surplus, "model.norm.weight": norm}, llama)
    with pytest.raises(UserError, match=r"\(8,\), must be \(16,\)"):
        _read(names.LLAMA, {**written, "model.norm.weight": norm[:8]}, llama)
    del written["lm_head.weight"]
    with pytest.raises(UserError, match=r"is missing \(and 1 more\)"):
        _read(names.LLAMA, written, llama)
