"""The training step: compiled once, in place, and whole whatever it is cut into."""

import dataclasses
import logging
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from lmjax.data.batch import Batch

MakeTraining = Callable[..., Any]


def test_a_step_is_compiled_once_and_feeds_on_its_own_output(
    make_training: MakeTraining, caplog: pytest.LogCaptureFixture
) -> None:
    training = make_training("autoregressive", mesh=(2, 2, 2))
    state, step = training.start(), training.compiled
    batches = [training.batch(number) for number in range(3)]
    before = jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype, leaf.sharding), state)

    def compilations() -> list[str]:
        return [text for text in caplog.messages if text.startswith("Compiling")]

    with jax.log_compiles(), caplog.at_level(logging.WARNING):
        given = state
        for batch in batches:
            state, metrics = step(state, batch)
        assert not compilations()
        jax.jit(lambda x: 3 * x + 1)(jnp.ones(7)).block_until_ready()
        assert compilations(), "this would not have noticed a compilation"
    assert all(leaf.is_deleted() for leaf in jax.tree.leaves(given)), "not donated"
    assert before == jax.tree.map(
        lambda leaf: (leaf.shape, leaf.dtype, leaf.sharding), state
    )
    assert int(state.step) == 3
    assert metrics["weight"] == 12 * 12 + 11 + 7 + 4 + 1
    assert not batches[0].tokens.is_deleted()


@pytest.mark.parametrize("objective", ["autoregressive", "masked_diffusion"])
def test_microbatches_change_neither_loss_nor_parameters(
    objective: str, make_training: MakeTraining
) -> None:
    """Rows differ in length, so a mean of means would show."""
    expected_state, expected = make_training(objective).run(3)
    state, figures = make_training(objective, num_microbatches=4).run(3)
    for name, values in expected.items():
        np.testing.assert_allclose(figures[name], values, rtol=1e-5, err_msg=name)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-5),
        jax.device_get(state.params),
        jax.device_get(expected_state.params),
    )


def test_dropout_is_a_function_of_seed_and_step(
    make_training: MakeTraining, random_params: Callable[..., Any]
) -> None:
    """The autoregressive objective draws nothing, so that only dropout is random."""
    training = make_training("autoregressive", dropout=0.3)
    params = random_params(training.model)
    state, batch = (
        dataclasses.replace(training.start(), params=params),
        training.batch(0),
    )

    @jax.jit
    def loss(state: Any, number: jax.Array) -> jax.Array:
        numbered = dataclasses.replace(state, step=number)
        return training.step(numbered, batch)[1]["loss_sum"]

    first = float(loss(state, jnp.int32(0)))
    assert float(loss(state, jnp.int32(0))) == first
    losses = [first, *(float(loss(state, jnp.int32(step))) for step in (1, 2))]
    assert len(set(losses)) == 3
    assert np.ptp(losses) < 0.2 * first, "not a matter of dropout alone"
    again = dataclasses.replace(training.step)
    repeated = jax.jit(again)(state, batch)[1]["loss_sum"]
    assert float(repeated) == pytest.approx(first, rel=1e-6)


def test_a_step_is_what_its_parts_say(make_training: MakeTraining) -> None:
    """Gradient of the mean loss, one optimizer update, one update of the average."""
    training = make_training("autoregressive")
    state, batch = training.start(), training.batch(0)
    step, optimizer = training.step, training.step.optimizer

    @jax.jit
    def by_hand(params: Any, batch: Batch) -> Any:
        def mean_loss(params: Any) -> jax.Array:
            loss = step.objective.loss(step.bind(params), batch, None, None)
            return loss.total / loss.weight

        value, gradients = jax.value_and_grad(mean_loss)(params)
        updates, _ = optimizer.update(gradients, optimizer.init(params), params)
        updated = jax.tree.map(jnp.add, params, updates)
        average = jax.tree.map(lambda p, q: 0.1 * p + 0.9 * q, params, updated)
        return value, optax.tree.norm(gradients), updated, average

    value, norm, updated, average = by_hand(state.params, batch)
    after, metrics = jax.jit(step)(state, batch)
    np.testing.assert_allclose(
        metrics["loss_sum"] / metrics["weight"], value, rtol=1e-6
    )
    np.testing.assert_allclose(metrics["gradient_norm"], norm, rtol=1e-5)
    assert metrics["learning_rate"] == np.float32(0.01)
    assert metrics["words"] == 167
    assert metrics["bytes"] == 2 * 167
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6),
        (after.params, after.ema),
        (updated, average),
    )


def test_a_batch_of_padding_alone_changes_no_parameter(
    make_training: MakeTraining, random_params: Callable[..., Any]
) -> None:
    """Nothing is divided by zero."""
    training = make_training("autoregressive")
    params = random_params(training.model)
    state = dataclasses.replace(training.start(), params=params)
    batch = jax.tree.map(jnp.zeros_like, training.batch(0))
    metrics = jax.jit(training.step)(state, batch)[1]
    assert metrics["weight"] == 0
    assert metrics["loss_sum"] == 0
    assert metrics["gradient_norm"] == 0
