"""The autoregressive objective predicts every token of a window, exactly once."""

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lmjax.data.batch import Batch, synthetic
from lmjax.models.build import Model
from lmjax.objectives.autoregressive import Autoregressive

BOS = 1
NUM_PREDICTABLE = 28  # of the fixture's vocabulary of 32


def _batch(weights: np.ndarray, tokens: np.ndarray) -> Batch:
    batch = synthetic(*tokens.shape)
    return dataclasses.replace(
        batch, tokens=tokens.astype(np.int32), weights=weights.astype(np.float32)
    )


@pytest.fixture(scope="module")
def batch() -> Batch:
    tokens = np.random.default_rng(0).integers(3, 31, size=(3, 6))
    weights = np.ones((3, 6))
    tokens[2, 4:], weights[2, 4:] = 0, 0  # padding
    return _batch(weights, tokens)


@pytest.fixture(scope="module")
def objective() -> Autoregressive:
    return Autoregressive(bos_id=BOS, chunk_tokens=6)


@pytest.fixture(scope="module")
def nll(
    make_model: Callable[..., Model], objective: Autoregressive
) -> Callable[..., np.ndarray]:
    model = make_model(causal=True)

    @jax.jit
    def run(params: Any, batch: Batch) -> jax.Array:
        return objective.nll_B(model.bind(params), batch, None)

    return run


@pytest.fixture(scope="module")
def params(
    make_model: Callable[..., Model], random_params: Callable[..., Any]
) -> dict[str, Any]:
    return random_params(make_model(causal=True))


def test_likelihoods_follow_the_chain_rule_from_bos(
    make_model: Callable[..., Model],
    nll: Callable[..., np.ndarray],
    params: dict[str, Any],
    batch: Batch,
) -> None:
    """Each token from its own prefix, with nothing to find behind it."""
    model = make_model(causal=True)

    @jax.jit
    def next_logits(params: Any, inputs: jax.Array, position: jax.Array) -> jax.Array:
        module = model.bind(params)
        return module.logits(module(inputs))[:, position]

    expected = np.zeros(3)
    for position in range(6):
        inputs = np.full((3, 6), BOS, np.int32)
        inputs[:, 1 : position + 1] = batch.tokens[:, :position]
        logits = np.asarray(next_logits(params, inputs, position), np.float64)
        log_partition = np.log(np.exp(logits).sum(axis=-1))
        chosen = logits[np.arange(3), batch.tokens[:, position]]
        counted = batch.weights[:, position] > 0
        expected[counted] += (log_partition - chosen)[counted]
    np.testing.assert_allclose(nll(params, batch), expected, rtol=1e-5)


def test_the_first_loss_is_the_log_of_the_number_of_predictable_ids(
    make_model: Callable[..., Model], objective: Autoregressive, batch: Batch
) -> None:
    model = make_model(causal=True)

    @jax.jit
    def first(key: jax.Array) -> Any:
        module = model.bind(model.init(key))
        return objective.loss(module, batch, objective.draw(batch, key), None)

    loss = first(jax.random.key(0))
    assert loss.weight == 16
    assert float(loss.total) / 16 == pytest.approx(math.log(NUM_PREDICTABLE), rel=1e-6)


def test_the_loss_is_the_sum_of_the_rows(
    make_model: Callable[..., Model],
    objective: Autoregressive,
    nll: Callable[..., np.ndarray],
    params: dict[str, Any],
    batch: Batch,
) -> None:
    model = make_model(causal=True)
    loss = jax.jit(
        lambda params: objective.loss(model.bind(params), batch, None, None)
    )(params)
    assert float(loss.total) == pytest.approx(
        float(np.sum(nll(params, batch))), rel=1e-6
    )


def test_padding_and_what_it_holds_change_nothing(
    nll: Callable[..., np.ndarray], params: dict[str, Any], batch: Batch
) -> None:
    expected = nll(params, batch)
    tokens = batch.tokens.copy()
    tokens[2, 4:] = 17
    np.testing.assert_array_equal(nll(params, _batch(batch.weights, tokens)), expected)
    wider = _batch(
        np.pad(batch.weights, ((0, 0), (0, 3))), np.pad(batch.tokens, ((0, 0), (0, 3)))
    )
    np.testing.assert_allclose(nll(params, wider), expected, rtol=1e-5)


def test_rows_do_not_depend_on_their_place_in_the_batch(
    nll: Callable[..., np.ndarray], params: dict[str, Any], batch: Batch
) -> None:
    order = np.array([2, 0, 1])
    permuted = jax.tree.map(lambda leaf: leaf[order], batch)
    expected = np.asarray(nll(params, batch))[order]
    np.testing.assert_allclose(nll(params, permuted), expected, rtol=1e-6)


def test_context_without_weight_conditions_what_follows_and_does_not_count(
    nll: Callable[..., np.ndarray], params: dict[str, Any], batch: Batch
) -> None:
    """log p(x) - log p(context) = log p(rest | context)."""
    row = jax.tree.map(lambda leaf: leaf[:1], batch)
    given = np.arange(6) < 2
    context = dataclasses.replace(row, weights=np.float32(given[None]))
    rest = dataclasses.replace(row, weights=np.float32(~given[None]))
    whole, first, last = (nll(params, part)[0] for part in (row, context, rest))
    assert float(whole - first) == pytest.approx(float(last), rel=1e-5)


def test_it_calls_itself_exact_and_draws_nothing(objective: Autoregressive) -> None:
    batch = synthetic(2, 3)
    assert (objective.causal, objective.kind) == (True, "exact")
    assert objective.draw(batch, jax.random.key(0)) is None
    positions = jnp.zeros(2)
    assert objective.draw_evaluation(batch, jax.random.key(0), positions) is None
