"""Chunks of the cross-entropy change its memory and nothing else."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lmjax.objectives.cross_entropy import (
    TokenCosts,
    cross_entropy,
    default_chunk_tokens,
)

BATCH_SIZE, LENGTH, WIDTH, VOCAB_SIZE = 3, 7, 4, 11
UNPREDICTABLE = (0, 10)

_generator = np.random.default_rng(0)
HIDDEN = _generator.normal(size=(BATCH_SIZE, LENGTH, WIDTH)).astype(np.float32)
HEAD = 2 * _generator.normal(size=(VOCAB_SIZE, WIDTH)).astype(np.float32)
TARGETS = _generator.integers(1, 10, size=(BATCH_SIZE, LENGTH)).astype(np.int32)
COUNTED = _generator.uniform(size=(BATCH_SIZE, LENGTH)) < 0.7
TARGETS[~COUNTED] = 0  # never predicted, as padding is
EVERY_CHUNK = pytest.mark.parametrize("chunk_tokens", [1, 3, 6, 9, 12, 20, 21, 1000])


@dataclasses.dataclass(frozen=True)
class Head:
    """The part of a model that cross-entropy asks for."""

    head: jax.Array

    def logits(self, hidden: jax.Array) -> jax.Array:
        logits = hidden @ self.head.T
        return logits.at[..., jnp.array(UNPREDICTABLE)].set(-jnp.inf)


def _reference() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Values and the gradients of their weighted sum, in float64."""
    logits = HIDDEN.astype(np.float64) @ HEAD.T.astype(np.float64)
    logits[..., UNPREDICTABLE] = -np.inf
    probabilities = np.exp(logits - logits.max(axis=-1, keepdims=True))
    probabilities /= probabilities.sum(axis=-1, keepdims=True)
    target = np.eye(VOCAB_SIZE)[TARGETS]
    chosen = np.where(COUNTED, (probabilities * target).sum(axis=-1), 1.0)
    error = (probabilities - target) * (COUNTED * WEIGHTS)[..., None]
    hidden_gradient = error @ HEAD
    head_gradient = np.einsum("blv,bld->vd", error, HIDDEN)
    return -np.log(chosen), hidden_gradient, head_gradient


WEIGHTS = _generator.uniform(0.5, 2, size=(BATCH_SIZE, LENGTH)).astype(np.float32)


def _costs(
    hidden: jax.Array,
    head: jax.Array,
    chunk_tokens: int,
    *,
    targets: np.ndarray = TARGETS,
    counted: np.ndarray = COUNTED,
) -> TokenCosts:
    return TokenCosts(
        model=Head(head),
        cost=cross_entropy,
        hidden_BLD=hidden,
        targets_BL=targets,
        counted_BL=counted,
        weights_BL=WEIGHTS,
        chunk_tokens=chunk_tokens,
    )


@EVERY_CHUNK
def test_every_chunk_size_gives_the_float64_values_and_gradients(
    chunk_tokens: int,
) -> None:
    @jax.jit
    def run(hidden: jax.Array, head: jax.Array) -> tuple:
        def total(hidden: jax.Array, head: jax.Array) -> tuple[jax.Array, Any]:
            costs = _costs(hidden, head, chunk_tokens)
            return costs.total() / 3, (costs.of_tokens(), costs.of_rows())

        return jax.value_and_grad(total, argnums=(0, 1), has_aux=True)(hidden, head)

    (third, (nll, nll_B)), gradients = run(HIDDEN, HEAD)
    hidden_gradient, head_gradient = (3 * gradient for gradient in gradients)
    expected, expected_hidden, expected_head = _reference()
    assert nll.dtype == jnp.float32
    assert nll.shape == (BATCH_SIZE, LENGTH)
    np.testing.assert_allclose(nll, expected, atol=2e-6)
    np.testing.assert_allclose(nll_B, (expected * WEIGHTS).sum(axis=1), rtol=1e-6)
    np.testing.assert_allclose(3 * third, (expected * WEIGHTS).sum(), rtol=1e-6)
    np.testing.assert_array_equal(np.asarray(nll)[~COUNTED], 0.0)
    np.testing.assert_allclose(hidden_gradient, expected_hidden, atol=5e-6)
    np.testing.assert_allclose(head_gradient, expected_head, atol=5e-6)
    np.testing.assert_array_equal(np.asarray(hidden_gradient)[~COUNTED], 0.0)


def test_an_uncounted_target_that_is_never_predicted_leaves_no_nan() -> None:
    def total(hidden: jax.Array) -> jax.Array:
        nobody = np.zeros((BATCH_SIZE, LENGTH), bool)
        targets = np.zeros((BATCH_SIZE, LENGTH), np.int32)
        return _costs(hidden, HEAD, 6, targets=targets, counted=nobody).total()

    value, gradient = jax.jit(jax.value_and_grad(total))(HIDDEN)
    assert value == 0.0
    np.testing.assert_array_equal(gradient, 0.0)


def test_a_counted_target_that_is_never_predicted_is_infinite() -> None:
    """Rather that than a wrong figure."""
    everybody = np.ones((BATCH_SIZE, LENGTH), bool)
    targets = np.zeros((BATCH_SIZE, LENGTH), np.int32)
    costs = _costs(HIDDEN, HEAD, 100, targets=targets, counted=everybody)
    np.testing.assert_array_equal(costs.of_tokens(), np.inf)
    assert costs.total() == np.inf


def test_large_logits_do_not_overflow() -> None:
    @jax.jit
    def run(hidden: jax.Array) -> tuple[jax.Array, jax.Array]:
        return jax.value_and_grad(lambda h: _costs(h, HEAD, 6).total())(hidden)

    value, gradient = run(HIDDEN * 1e4)
    assert np.isfinite(value)
    assert np.isfinite(gradient).all()


@pytest.mark.parametrize("chunk_tokens", [6, 1000])
def test_no_more_logits_exist_at_once_than_a_chunk_holds(chunk_tokens: int) -> None:
    """Looks at the shapes in the program, backward pass included."""
    program = jax.make_jaxpr(jax.grad(lambda h: _costs(h, HEAD, chunk_tokens).total()))
    text = str(program(HIDDEN))
    assert f"[{BATCH_SIZE},2,{VOCAB_SIZE}]" in text or chunk_tokens == 1000
    whole = f"[{BATCH_SIZE},{LENGTH},{VOCAB_SIZE}]" in text
    assert whole == (chunk_tokens == 1000)
    assert f"[4,{BATCH_SIZE},2,{VOCAB_SIZE}]" not in text, "logits of all chunks kept"


def test_default_chunks_are_small_on_a_cpu() -> None:
    assert default_chunk_tokens("cpu") == 512
    assert default_chunk_tokens("gpu") == 8192
