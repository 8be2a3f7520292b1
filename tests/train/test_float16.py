"""Training in float16: as good as in float32, with a scale that finds its place."""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lmjax.config.schema import Backbone, MLPKind, NormKind, PositionKind
from lmjax.train.checkpoints import Checkpoints
from lmjax.train.guard import FIRST_SCALE, Guard
from lmjax.train.state import TrainState

FLOAT16 = dict(dtype=jnp.dtype("float16"), guard=Guard(scales_loss=True))
MODELS = {
    "autoregressive": dict(
        mlp=MLPKind.GELU,
        norm=NormKind.LAYER,
        positions=PositionKind.LEARNED,
        attention_bias=True,
        mlp_bias=True,
    ),
    "masked_diffusion": dict(backbone=Backbone.DIT, time_conditioning=True),
}
STEPS = 20
TOLERANCE = 2e-3  # of the loss: float16 holds three digits


@pytest.fixture(scope="module", params=MODELS)
def trainings(
    request: pytest.FixtureRequest, make_training: Callable[..., Any]
) -> tuple[Any, Any]:
    """The same training in float32 and in float16, the latter in microbatches."""
    name = request.param
    single = make_training(name, **MODELS[name])
    half = make_training(name, num_microbatches=2, **MODELS[name], **FLOAT16)
    return single, half


def test_losses_are_those_of_float32(trainings: tuple[Any, Any]) -> None:
    (_, expected), (state, figures) = (each.run(STEPS) for each in trainings)
    assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(state.params))
    assert not figures["skipped"].any()
    np.testing.assert_array_equal(figures["loss_scale"], FIRST_SCALE)
    np.testing.assert_allclose(
        figures["loss_sum"], expected["loss_sum"], rtol=TOLERANCE
    )
    assert (figures["loss_sum"] != expected["loss_sum"]).any(), "this was float32"
    np.testing.assert_allclose(
        figures["gradient_norm"], expected["gradient_norm"], rtol=0.05
    )


def test_an_overflow_lowers_the_scale_until_the_run_recovers(
    trainings: tuple[Any, Any],
) -> None:
    _, training = trainings
    state, _ = training.run(2)  # until then a zero head lets no gradient into the model
    memory = dataclasses.replace(
        state.guard, scale=jax.device_put(jnp.float32(2.0**30), state.step.sharding)
    )
    state = dataclasses.replace(state, guard=memory)
    before = jax.device_get(state.params)
    scale, skipped = 2.0**30, 0
    for number in range(STEPS):
        state, metrics = training.compiled(state, training.batch(number))
        if not metrics["skipped"]:
            break
        scale, skipped = scale / 2, skipped + 1
        assert metrics["loss_scale"] == scale
        assert metrics["bad_in_a_row"] == 0
        told = training.step.explain(metrics)
        assert told.startswith("float16 overflow, the gradient of ")
        assert told.endswith(f"is not finite: loss scale lowered to {scale:g}")
        jax.tree.map(np.testing.assert_array_equal, state.params, before)
    assert 3 < skipped < STEPS - 1
    assert int(state.guard.skipped) == skipped
    assert metrics["loss_scale"] == scale
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(state.params))


def test_the_scale_comes_back_from_a_checkpoint(
    make_training: Callable[..., Any], tmp_path: Path
) -> None:
    maker = make_training("autoregressive", mesh=(2, 1, 1), **FLOAT16).maker
    state = maker.make(jax.random.key(0))
    sharding = state.step.sharding
    memory = dataclasses.replace(
        state.guard,
        scale=jax.device_put(jnp.float32(512.0), sharding),
        good_steps=jax.device_put(jnp.int32(77), sharding),
        skipped=jax.device_put(jnp.int32(6), sharding),
    )
    found = _saved_and_restored(
        dataclasses.replace(state, guard=memory), maker.abstract(), tmp_path
    )
    assert found.guard == memory
    other = make_training("autoregressive", mesh=(2, 2, 2)).maker.abstract()
    moved = _saved_and_restored(found, other, tmp_path / "other")
    assert jax.tree.map(lambda leaf: leaf.sharding, moved) == jax.tree.map(
        lambda leaf: leaf.sharding, other
    )
    assert (int(moved.guard.skipped), moved.guard.scale) == (6, {})


def _saved_and_restored(
    state: TrainState, target: TrainState, folder: Path
) -> TrainState:
    checkpoints = Checkpoints(folder / "checkpoints", keep=1)
    checkpoints.save(
        state,
        step=1,
        progress={"step": 1},
        config={},
        tokenizer_model=b"",
        mask_id=2,
        corpus="",
    )
    checkpoints.wait()
    found = checkpoints.restore_state(1, target)
    checkpoints.close()
    return found
