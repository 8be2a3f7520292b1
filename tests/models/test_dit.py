"""The diffusion transformer starts as the identity and is conditioned on sigma."""

from collections.abc import Callable
from typing import Any

import jax
import numpy as np
import pytest

from lmjax.models.build import Model

TOKENS = np.random.default_rng(0).integers(3, 31, size=(2, 6)).astype(np.int32)


@pytest.fixture(scope="module")
def model(make_model: Callable[..., Model]) -> Model:
    return make_model(causal=False, time_conditioning=True)


@pytest.fixture(scope="module")
def hidden(model: Model) -> Callable[..., jax.Array]:
    run = jax.jit(lambda params, sigma: model.bind(params)(TOKENS, sigma_B=sigma))
    return lambda params, sigma: run(params, np.array(sigma, np.float32))


def test_a_fresh_dit_is_the_normed_embedding(
    model: Model,
    hidden: Callable[..., jax.Array],
    random_params: Callable[..., Any],
) -> None:
    """Whatever is in its attention and feed-forward blocks, and whatever sigma."""
    params = jax.jit(model.init)(jax.random.key(0))
    table = np.asarray(params["vocabulary"]["table"], np.float64)
    embedded = table[TOKENS]
    rms = np.sqrt(np.mean(embedded**2, axis=-1, keepdims=True) + 1e-6)
    other = random_params(model)["blocks"]
    blocks = params["blocks"] | {"attention": other["attention"], "mlp": other["mlp"]}
    for variant in (params, params | {"blocks": blocks}):
        for sigma in ([0.0, 0.0], [0.5, 20.0]):
            states = hidden(variant, sigma)
            np.testing.assert_allclose(states, embedded / rms, atol=1e-5)


def test_a_trained_dit_depends_on_the_sigma_of_its_own_row(
    model: Model, hidden: Callable[..., jax.Array], random_params: Callable[..., Any]
) -> None:
    params = random_params(model)
    low, high = hidden(params, [0.1, 0.1]), hidden(params, [0.1, 3.0])
    np.testing.assert_array_equal(low[0], high[0])
    assert np.abs(low[1] - high[1]).max() > 1e-2


def test_a_fresh_dit_learns_through_its_gates(model: Model) -> None:
    """Identity blocks must not be dead: the modulation has a gradient."""
    params = jax.jit(model.init)(jax.random.key(0))

    @jax.jit
    def gradients(params: Any) -> Any:
        def loss(params: Any) -> jax.Array:
            return (model.bind(params)(TOKENS, sigma_B=np.float32([1, 2])) ** 3).sum()

        return jax.grad(loss)(params)

    kernel = gradients(params)["blocks"]["modulation"]["linear"]["kernel"]
    gates = np.abs(np.asarray(kernel)[:, :, [2, 5]])
    assert gates.max(axis=(1, 3)).min() > 1e-6


def test_a_dit_refuses_to_run_without_sigma(model: Model) -> None:
    module = model.bind(jax.jit(model.init)(jax.random.key(0)))
    with pytest.raises(ValueError, match="needs sigma_B"):
        module(TOKENS)
