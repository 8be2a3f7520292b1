"""What build_model promises: shapes without arrays, and a name per dimension."""

import itertools
import math
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
import pytest

from lmjax.config import presets
from lmjax.config.schema import (
    Backbone,
    MLPKind,
    ModelConfig,
    NormKind,
    PositionKind,
)
from lmjax.core import trees
from lmjax.models.attention_kernels import library_attention
from lmjax.models.build import Model, build_model, padded_vocab_size
from lmjax.models.transformer import Setting
from lmjax.parallel.rules import RULES

BIASES = dict(attention_bias=True, mlp_bias=True, head_bias=True)
VARIANTS = [
    dict(backbone=backbone, mlp=mlp, norm=norm, **rest)
    for (backbone, rest), mlp, norm in itertools.product(
        [
            (Backbone.TRANSFORMER, {}),
            (Backbone.DIT, dict(tied_embeddings=True, qk_norm=True, **BIASES)),
        ],
        MLPKind,
        NormKind,
    )
]


LEARNED = dict(positions=PositionKind.LEARNED, head_width=6)
WITH_BIAS = dict(norm=NormKind.LAYER, norm_bias=True)


@pytest.mark.parametrize(
    "fields",
    [*VARIANTS, LEARNED | WITH_BIAS, LEARNED | dict(backbone=Backbone.DIT)],
)
def test_every_dimension_of_every_parameter_has_a_known_name(
    make_model: Callable[..., Model], fields: dict[str, Any]
) -> None:
    model = make_model(**fields)

    def check(shape: jax.ShapeDtypeStruct, names: tuple[str | None, ...]) -> None:
        assert len(names) == len(shape.shape)
        assert set(names) <= {*RULES, None}

    jax.tree.map(check, model.shapes, model.names)  # also: the same tree
    stacked = jax.tree.leaves(model.names["blocks"], is_leaf=_is_names)
    assert all(names[0] == "layers" for names in stacked)
    rest = [model.names[name] for name in model.names if name != "blocks"]
    assert all(
        "layers" not in names for names in jax.tree.leaves(rest, is_leaf=_is_names)
    )


def _is_names(leaf: Any) -> bool:
    return isinstance(leaf, tuple)


def test_names_say_which_size_a_dimension_has(
    make_model: Callable[..., Model],
) -> None:
    """All sizes differ, so that a swapped name shows."""
    model = make_model(
        num_layers=3, width=20, num_heads=10, num_kv_heads=5, mlp_width=7, **BIASES
    )
    sizes = dict(layers=3, embed=20, heads=10, kv_heads=5, mlp=7, vocab=32)

    def check(shape: jax.ShapeDtypeStruct, names: tuple[str | None, ...]) -> None:
        for size, name in zip(shape.shape, names, strict=True):
            assert size == (2 if name is None else sizes[name])

    jax.tree.map(check, model.shapes, model.names)


def test_heads_may_have_a_width_of_their_own(
    make_model: Callable[..., Model],
) -> None:
    model = make_model(head_width=6, qk_norm=True)  # of 4 heads, 2 for keys, width 16
    shapes = jax.tree.map(lambda leaf: leaf.shape, model.shapes["blocks"]["attention"])
    assert shapes["query"]["kernel"] == (2, 16, 4, 6)
    assert shapes["value"]["kernel"] == (2, 16, 2, 6)
    assert shapes["output"]["kernel"] == (2, 4, 6, 16)
    assert shapes["key_norm"]["scale"] == (2, 6)


@pytest.mark.parametrize("backbone", list(Backbone))
def test_rows_that_pad_the_vocabulary_start_at_zero_and_change_no_other(
    make_model: Callable[..., Model], backbone: Backbone
) -> None:
    whole, padded = (
        jax.jit(make_model(backbone=backbone, num_ids=number).init)(jax.random.key(0))
        for number in (0, 27)
    )
    table = whole["vocabulary"].pop("table")
    zeroed = padded["vocabulary"].pop("table")
    np.testing.assert_array_equal(zeroed[:27], table[:27])
    np.testing.assert_array_equal(zeroed[27:], 0.0)
    assert np.all(table[27:] != 0)
    jax.tree.map(np.testing.assert_array_equal, padded, whole)


@pytest.mark.parametrize("tied", [False, True])
def test_rows_that_pad_the_vocabulary_stay_at_zero(
    make_training: Callable[..., Any], tied: bool
) -> None:
    training = make_training(
        "autoregressive",
        tied_embeddings=tied,
        vocab_size=128,
        num_ids=31,
        unpredictable=(0, 1, 2, *range(31, 128)),
    )
    state, _ = training.run(3)
    for params in (state.params, state.ema):
        for rows in params["vocabulary"].values():
            np.testing.assert_array_equal(rows[31:], 0.0)
            assert np.any(rows[3:31] != 0)


def test_initial_parameters_have_the_promised_shapes_and_follow_the_key(
    make_model: Callable[..., Model],
) -> None:
    model = make_model(backbone=Backbone.DIT)
    init = jax.jit(model.init)
    params = init(jax.random.key(0))
    assert jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), params) == jax.tree.map(
        lambda leaf: (leaf.shape, leaf.dtype), model.shapes
    )
    assert all(leaf.dtype == np.float32 for leaf in jax.tree.leaves(params))
    again, other = init(jax.random.key(0)), init(jax.random.key(1))
    kernel = ("blocks", "mlp", "up", "kernel")
    values = []
    for tree in (params, again, other):
        for name in kernel:
            tree = tree[name]
        values.append(np.asarray(tree))
    np.testing.assert_array_equal(values[0], values[1])
    assert not np.array_equal(values[0], values[2])
    assert not np.array_equal(values[0][0], values[0][1]), "layers are alike"


def test_residual_branches_start_smaller_in_deeper_models(
    make_model: Callable[..., Model],
) -> None:
    for num_layers in (1, 4):
        model = make_model(num_layers=num_layers, width=64, mlp_width=64)
        mlp = jax.jit(model.init)(jax.random.key(0))["blocks"]["mlp"]
        ratio = np.std(mlp["down"]["kernel"]) / np.std(mlp["up"]["kernel"])
        assert ratio == pytest.approx((2 * num_layers) ** -0.5, rel=0.1)


def test_binding_parameters_leaves_the_model_unchanged(
    make_model: Callable[..., Model], random_params: Callable[..., Any]
) -> None:
    model = make_model()
    one, other = random_params(model, 0), random_params(model, 1)
    module = model.bind(one)
    model.bind(other)
    table = module.vocabulary.table[...]
    np.testing.assert_array_equal(table, one["vocabulary"]["table"])


@pytest.mark.parametrize("backbone", list(Backbone))
def test_the_embedding_starts_as_its_backbone_wants(
    make_model: Callable[..., Model], backbone: Backbone
) -> None:
    """Normal with deviation 1 / sqrt(64), and uniform up to 1 / sqrt(64) in a DiT."""
    model = make_model(backbone=backbone, width=64, vocab_size=512)
    table = np.asarray(jax.jit(model.init)(jax.random.key(0))["vocabulary"]["table"])
    dit = backbone is Backbone.DIT
    assert np.std(table) == pytest.approx(
        1 / 8 / (math.sqrt(3) if dit else 1), rel=0.03
    )
    assert np.mean(table) == pytest.approx(0.0, abs=0.003)
    most = np.abs(table).max()
    assert 0.124 < most <= 0.125 if dit else most > 0.35


def _expected_count(config: ModelConfig, vocab_size: int) -> int:
    """Parameters by the closed formula; no biases, no head norms."""
    width, layers = config.width, config.num_layers
    head_width = width // config.num_heads
    kv_heads = config.num_kv_heads or config.num_heads
    attention = 2 * width * width + 2 * width * kv_heads * head_width
    matrices = 3 if config.mlp is MLPKind.SWIGLU else 2
    block = attention + matrices * width * config.mlp_width + 2 * width
    rest = (1 if config.tied_embeddings else 2) * vocab_size * width + width
    if config.backbone is Backbone.DIT:
        condition = config.condition_width
        block += 6 * width * (condition + 1)
        rest += 2 * width * (condition + 1)
        rest += condition * (256 + 1) + condition * (condition + 1)
    return layers * block + rest


SIZES = {
    "gpt2": dict(num_layers=12, width=768, num_heads=12, mlp_width=3072),
    "grouped": dict(
        num_layers=30,
        width=576,
        num_heads=9,
        num_kv_heads=3,
        mlp_width=1536,
        mlp=MLPKind.SWIGLU,
        tied_embeddings=True,
    ),
}


@pytest.mark.parametrize("backbone", list(Backbone))
@pytest.mark.parametrize("size", SIZES)
def test_parameter_counts_follow_the_closed_formula(
    size: str, backbone: Backbone
) -> None:
    config = ModelConfig(**SIZES[size], backbone=backbone)
    vocab_size = padded_vocab_size(16_384 + 1)
    setting = Setting(
        vocab_size=vocab_size,
        unpredictable=(0,),
        causal=backbone is Backbone.TRANSFORMER,
        attend=library_attention,
    )
    shapes = build_model(config, setting).shapes
    assert all(isinstance(x, jax.ShapeDtypeStruct) for x in jax.tree.leaves(shapes))
    assert trees.count(shapes) == _expected_count(config, vocab_size)


# Millions of parameters, by rows of the vocabulary, the mask among them: in the blocks,
# in all, and in all of the guide's autoregressive twin. Ours is of Llama's kind, which
# transformers holds: it has as many to within 1 %.
GUIDE = {
    ("tiny", 16_384): (28.36, 45.34, None),
    ("tiny", 32_000): (28.36, 61.35, 58.00),
    ("tiny", 50_258): (28.36, 80.06, None),
    ("small", 16_384): (92.13, 117.56, None),
    ("small", 32_000): (92.13, 141.56, 134.18),
    ("small", 50_258): (92.13, 169.63, None),
    ("medium", 16_384): (321.18, 355.07, None),
    ("medium", 32_000): (321.18, 387.07, 367.73),
    ("medium", 50_258): (321.18, 424.48, None),
}


@pytest.mark.parametrize(("size", "vocab_size"), GUIDE)
def test_sizes_of_the_guide_have_its_parameter_counts(
    size: str, vocab_size: int
) -> None:
    blocks, total, twin = GUIDE[size, vocab_size]

    def millions(objective: str, pattern: str = "") -> float:
        setting = Setting(
            vocab_size=vocab_size,
            unpredictable=(0,),
            causal=objective == "ar",
            attend=library_attention,
        )
        shapes = build_model(presets.babylm([size, objective]).model, setting).shapes
        return round(trees.count(shapes, pattern) / 1e6, 2)

    assert millions("diffusion", "^blocks/") == blocks
    assert millions("diffusion") == total
    if twin is not None:
        assert millions("ar") == pytest.approx(twin, rel=0.01)


def test_the_gpt2_sized_transformer_has_85_million_parameters_in_its_blocks() -> None:
    """12 * 12 * 768^2 matrices and 24 norms: the number everyone knows."""
    setting = Setting(
        vocab_size=128, unpredictable=(0,), causal=True, attend=library_attention
    )
    shapes = build_model(ModelConfig(**SIZES["gpt2"]), setting).shapes
    assert trees.count(shapes["blocks"], "kernel$") == 84_934_656
    assert trees.count(shapes["blocks"]) == 84_934_656 + 24 * 768


@pytest.mark.parametrize(
    ("size", "padded"), [(1, 128), (128, 128), (129, 256), (50_257, 50_304)]
)
def test_vocabularies_are_padded_to_a_multiple_of_128(size: int, padded: int) -> None:
    assert padded_vocab_size(size) == padded
    assert math.remainder(padded, 128) == 0
