"""What stays float32 in a step whose matrix products are bfloat16, by its program."""

import collections
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.extend.core
import jax.numpy as jnp
import numpy as np
import pytest

from lmjax.config.schema import Backbone, MLPKind, NormKind

BFLOAT16 = jnp.dtype("bfloat16")
# Norms and Adam (rsqrt, sqrt), softmax and losses (exp, log, and the largest of a row),
# rotary angles (cos, sin), learning rates and averages (pow), and the gradients of
# vectors that are looked up, summed over all places (scatter-add).
ISLANDS = {
    *("rsqrt", "sqrt", "exp", "log", "log1p", "cos", "sin", "pow", "reduce_max"),
    *("cumsum", "scatter-add"),
}
FLOAT32 = {jnp.dtype("float32")}
MODELS = {
    "autoregressive": dict(mlp=MLPKind.SWIGLU, qk_norm=True),
    "masked_diffusion": dict(
        backbone=Backbone.DIT, time_conditioning=True, norm=NormKind.LAYER
    ),
}


def _equations(jaxpr: Any) -> Iterator[Any]:
    """All of a program, also those of the programs that it calls."""
    for equation in jaxpr.eqns:
        yield equation
        for inner in jax.extend.core.jaxprs_in_params(equation.params):
            yield from _equations(inner)


@pytest.fixture(scope="module", params=MODELS)
def program(
    request: pytest.FixtureRequest, make_training: Callable[..., Any]
) -> tuple[Any, Any]:
    """The step's program, and the state that it leaves."""
    name = request.param
    training = make_training(name, dtype=BFLOAT16, **MODELS[name])
    jaxpr, (state, _) = jax.make_jaxpr(training.step, return_shape=True)(
        training.maker.abstract(), training.batch(0)
    )
    return jaxpr.jaxpr, state


def _dtypes(jaxpr: Any) -> dict[str, set[jnp.dtype]]:
    """Dtypes of the real numbers that each primitive is given."""
    found = collections.defaultdict(set)
    for equation in _equations(jaxpr):
        dtypes = {value.aval.dtype for value in equation.invars}
        found[equation.primitive.name] |= {
            dtype for dtype in dtypes if jnp.issubdtype(dtype, jnp.floating)
        }
    return found


def test_the_islands_are_float32(program: tuple[Any, Any]) -> None:
    dtypes = _dtypes(program[0])
    assert BFLOAT16 in dtypes["dot_general"], "no product is bfloat16: no test"
    assert {name: dtypes[name] for name in ISLANDS if dtypes[name] - FLOAT32} == {}
    assert {"rsqrt", "sqrt", "exp", "log", "reduce_max", "scatter-add"} <= dtypes.keys()


def test_scores_and_logits_are_products_summed_in_float32(
    program: tuple[Any, Any],
) -> None:
    """Two per layer and pass of the former, and the head's."""
    wide = [
        equation.outvars[0].aval.shape
        for equation in _equations(program[0])
        if equation.primitive.name == "dot_general"
        and {value.aval.dtype for value in equation.invars} == {BFLOAT16}
        and equation.outvars[0].aval.dtype == jnp.float32
    ]
    assert any(shape[-1] == 32 for shape in wide)  # ids
    assert any(shape[-1] == 12 for shape in wide)  # keys


def test_what_the_step_keeps_is_float32(program: tuple[Any, Any]) -> None:
    state = program[1]
    leaves = jax.tree.leaves((state.params, state.opt_state, state.ema))
    floating = {x.dtype for x in leaves if jnp.issubdtype(x.dtype, jnp.floating)}
    assert floating == FLOAT32


def test_a_token_that_comes_often_gets_its_whole_gradient(
    make_model: Callable[..., Any], random_params: Callable[..., Any]
) -> None:
    """Summed in bfloat16, thousands of equal terms would end at 256 of them."""
    vocabulary = make_model(dtype=BFLOAT16).bind
    params = random_params(make_model())

    def total(params: Any) -> jax.Array:
        tokens = jnp.full((4, 1024), 5)
        vectors = vocabulary(params).vocabulary.embed(tokens)
        assert vectors.dtype == BFLOAT16
        return vectors.astype(jnp.float32).sum()

    gradient = jax.grad(total)(params)["vocabulary"]["table"]
    np.testing.assert_array_equal(gradient[5], 4096.0)
