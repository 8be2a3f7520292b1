"""Scanning, unrolling and rematerialising layers change nothing but the cost."""

from collections.abc import Callable
from typing import Any

import jax
import numpy as np
import pytest

from lmjax.config.schema import Backbone, LayerLayout, Remat
from lmjax.models.build import Model
from lmjax.models.stack import UNROLL_LIMIT, use_scan

TOKENS = np.random.default_rng(0).integers(3, 31, size=(2, 7)).astype(np.int32)
ARGUMENTS = dict(
    lengths_B=np.array([7, 4], np.int32),
    segments_BL=np.array([[1] * 3 + [2] * 4, [1] * 2 + [2] * 2 + [0] * 3], np.int32),
    positions_BL=np.array([[0, 1, 2, 0, 1, 2, 3], [0, 1, 0, 1, 0, 1, 2]], np.int32),
    sigma_B=np.array([0.1, 2.0], np.float32),
    dropout_key=jax.random.key(3),
)


def _value_and_gradients(model: Model, params: Any) -> tuple[jax.Array, Any]:
    direction = np.random.default_rng(1).normal(size=(2, 7, 16)).astype(np.float32)

    @jax.jit
    def run(params: Any) -> tuple[jax.Array, Any]:
        def projected(params: Any) -> tuple[jax.Array, jax.Array]:
            hidden = model.bind(params)(TOKENS, **ARGUMENTS)
            return (hidden * direction).sum(), hidden

        gradients, hidden = jax.grad(projected, has_aux=True)(params)
        return hidden, gradients

    return run(params)


def _assert_close(one: Any, other: Any) -> None:
    def check(a: jax.Array, b: jax.Array) -> None:
        atol = 1e-5 * max(1.0, np.abs(b).max())
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=atol)

    jax.tree.map(check, one, other)


@pytest.mark.parametrize("backbone", list(Backbone))
def test_scanned_rematerialised_and_unrolled_layers_agree(
    make_model: Callable[..., Model],
    random_params: Callable[..., Any],
    backbone: Backbone,
) -> None:
    """Values and gradients, dropout included: each layer has the same key."""

    def make(scan: bool, remat: Remat) -> Model:
        return make_model(
            causal=False,
            backbone=backbone,
            time_conditioning=backbone is Backbone.DIT,
            dropout=0.2,
            scan=scan,
            remat=remat,
        )

    plain = make(False, Remat.NONE)
    params = random_params(plain)
    expected = _value_and_gradients(plain, params)
    leaves = jax.tree.leaves(expected[1]["blocks"])
    assert all(np.any(leaf != 0) for leaf in leaves), "a gradient is zero: no test"
    variants = [
        (True, Remat.NONE),
        (False, Remat.DOTS),
        (False, Remat.NAMED),
        (True, Remat.FULL),
    ]
    if backbone is Backbone.DIT:  # shares the code that rematerialises
        variants = variants[-1:]
    for scan, remat in variants:
        _assert_close(_value_and_gradients(make(scan, remat), params), expected)


def test_each_rematerialisation_keeps_less_for_the_backward_pass(
    make_model: Callable[..., Model], random_params: Callable[..., Any]
) -> None:
    def kept_bytes(remat: Remat) -> int:
        model = make_model(remat=remat, num_layers=4, scan=True)
        params = random_params(model)

        def forward(params: Any) -> jax.Array:
            return model.bind(params)(TOKENS).sum()

        kept = jax.eval_shape(lambda params: jax.vjp(forward, params)[1], params)
        return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(kept))

    kept = [kept_bytes(remat) for remat in Remat]  # from least to most work
    assert kept == sorted(kept, reverse=True)
    assert len(set(kept)) == len(Remat)


def test_the_compiler_plans_less_for_what_is_computed_again(
    make_model: Callable[..., Model],
) -> None:
    """Bytes of temporaries of a gradient: named lies between full and none."""

    def planned(remat: Remat) -> int:
        model = make_model(remat=remat, num_layers=4, scan=True)
        tokens = jax.ShapeDtypeStruct((16, 32), "int32")

        def loss(params: Any, tokens: jax.Array) -> jax.Array:
            return model.bind(params)(tokens).sum()

        compiled = jax.jit(jax.grad(loss)).lower(model.shapes, tokens).compile()
        return compiled.memory_analysis().temp_size_in_bytes

    assert planned(Remat.FULL) < planned(Remat.NAMED) < planned(Remat.NONE)


@pytest.mark.parametrize(
    ("layout", "num_layers", "platform", "expected"),
    [
        (LayerLayout.AUTO, UNROLL_LIMIT, "cpu", False),
        (LayerLayout.AUTO, UNROLL_LIMIT + 1, "gpu", True),
        (LayerLayout.AUTO, 2, "tpu", True),
        (LayerLayout.SCAN, 2, "cpu", True),
        (LayerLayout.UNROLLED, 99, "tpu", False),
    ],
)
def test_layers_are_scanned_when_deep_or_on_tpu_unless_forced(
    layout: LayerLayout, num_layers: int, platform: str, expected: bool
) -> None:
    assert use_scan(layout, num_layers, platform) is expected
