"""Windows of several documents are trained on as a whole, however they are cut."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
import pytest

from lmjax.config.schema import Backbone
from lmjax.data.batch import Batch, synthetic
from lmjax.parallel import hosts, rules

MakeTraining = Callable[..., Any]
LENGTH = 12


def _packed(batch: Batch, number: int) -> Batch:
    """The same windows, padded as they are, each cut into two documents."""
    border = np.random.default_rng(number).integers(2, 9, size=(16, 1))
    column = np.arange(LENGTH)
    first = column < border
    real = np.asarray(batch.weights) > 0
    return dataclasses.replace(
        batch,
        segments=np.where(real, np.where(first, 1, 2), 0).astype(np.int32),
        positions=np.where(first, column, column - border).astype(np.int32),
    )


def _run(training: Any, *, document_mask: bool = True) -> tuple[Any, dict[str, Any]]:
    """Two steps, in the program that was planned for batches of this kind."""
    mesh = training.maker.mesh
    state = training.start()
    planned = synthetic(16, LENGTH, document_mask=document_mask)
    step = training.step.compile(state, planned, mesh)
    figures = []
    for number in range(2):
        batch = jax.device_get(training.batch(number))
        batch = _packed(batch, number) if document_mask else batch
        state, metrics = step(state, hosts.to_global(batch, rules.batch_sharding(mesh)))
        figures.append(jax.device_get(metrics))
    params = jax.device_get(state.params)
    return params, {name: np.stack([f[name] for f in figures]) for name in figures[0]}


@pytest.mark.parametrize("objective", ["autoregressive", "masked_diffusion"])
def test_neither_devices_nor_microbatches_change_a_step(
    objective: str, make_training: MakeTraining
) -> None:
    fields = {}
    if objective == "masked_diffusion":
        fields = dict(backbone=Backbone.DIT, time_conditioning=True)
    expected_params, expected = _run(make_training(objective, **fields))
    for changes in (dict(num_microbatches=4), dict(mesh=(2, 2, 2), num_microbatches=2)):
        params, figures = _run(make_training(objective, **fields, **changes))
        for name, values in expected.items():
            np.testing.assert_allclose(
                figures[name], values, rtol=1e-5, err_msg=f"{name}, {changes}"
            )
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-4),
            params,
            expected_params,
        )


def test_the_mask_reaches_the_step(make_training: MakeTraining) -> None:
    """A fresh model costs the same either way; after one step it does not."""
    training = make_training("autoregressive")
    (_, masked), (_, plain) = (
        _run(training, document_mask=document_mask) for document_mask in (True, False)
    )
    assert masked["loss_sum"][0] == pytest.approx(plain["loss_sum"][0], rel=1e-6)
    assert abs(masked["loss_sum"][1] - plain["loss_sum"][1]) > 1e-2
    np.testing.assert_array_equal(masked["weight"], plain["weight"])


def test_a_planned_batch_has_the_leaves_of_a_real_one(
    make_training: MakeTraining,
) -> None:
    """One document fills each row; without the mask there is nothing to fill."""
    planned = synthetic(16, LENGTH, document_mask=True)
    real = _packed(jax.device_get(make_training("autoregressive").batch(0)), 0)
    assert jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), planned) == jax.tree.map(
        lambda leaf: (leaf.shape, leaf.dtype), real
    )
    np.testing.assert_array_equal(planned.segments, 1)
    np.testing.assert_array_equal(planned.positions[3], np.arange(LENGTH))
    plain = synthetic(16, LENGTH)
    assert plain.segments is None
    assert plain.positions is None
