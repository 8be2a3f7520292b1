"""The initial state is what was planned, and its average stands apart."""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from lmjax.train.checkpoints import Checkpoints


def _leaf_facts(leaf: Any) -> tuple:
    return leaf.shape, leaf.dtype, leaf.sharding


@pytest.mark.parametrize("ema_decay", [0.0, 0.9])
def test_the_state_is_made_as_planned(
    ema_decay: float, make_training: Callable[..., Any]
) -> None:
    maker = make_training("masked_diffusion", mesh=(2, 2, 2), ema_decay=ema_decay).maker
    planned = maker.abstract()
    assert all(isinstance(x, jax.ShapeDtypeStruct) for x in jax.tree.leaves(planned))
    state = maker.make(jax.random.key(0))
    assert jax.tree.map(_leaf_facts, state) == jax.tree.map(_leaf_facts, planned)
    assert int(state.step) == 0
    assert bool(state.ema) == (ema_decay > 0)


def test_a_model_is_traced_once_for_its_shapes_and_its_parameters(
    make_training: Callable[..., Any],
) -> None:
    maker, traced = make_training("autoregressive").maker, []

    def init(key: jax.Array) -> Any:
        traced.append(key)
        return maker.init(key)

    again = dataclasses.replace(maker, init=init)
    shapes = again.abstract()
    state = again.make(jax.random.key(0))
    assert len(traced) == 1
    jax.tree.map(np.testing.assert_array_equal, state, maker.make(jax.random.key(0)))
    assert jax.tree.structure(shapes) == jax.tree.structure(state)


def test_evaluation_takes_the_average_where_there_is_one(
    make_training: Callable[..., Any],
) -> None:
    averaged = make_training("autoregressive").start()
    assert averaged.evaluation_params is averaged.ema
    plain = make_training("autoregressive", ema_decay=0.0).start()
    assert plain.evaluation_params is plain.params


def test_the_average_starts_as_a_copy(make_training: Callable[..., Any]) -> None:
    """A buffer that stood for both could not be donated."""
    state = make_training("autoregressive").maker.make(jax.random.key(0))

    def check(param: jax.Array, average: jax.Array) -> None:
        np.testing.assert_array_equal(param, average)
        assert param.unsafe_buffer_pointer() != average.unsafe_buffer_pointer()

    jax.tree.map(check, state.params, state.ema)


def test_the_guard_begins_anew_where_an_earlier_version_saved_none(
    make_training: Callable[..., Any], tmp_path: Path
) -> None:
    maker = make_training("autoregressive").maker
    state = maker.make(jax.random.key(0))
    parts: Any = {name: part for name, part in vars(state).items() if name != "guard"}
    checkpoints = Checkpoints(tmp_path / "checkpoints")
    about = dict(progress={}, config={}, tokenizer_model=b"", mask_id=2, corpus="")
    checkpoints.save(parts, step=1, **about)
    checkpoints.wait()
    found = checkpoints.restore_state(1, maker.abstract())
    checkpoints.close()
    jax.tree.map(np.testing.assert_array_equal, found, state)
    assert jax.tree.map(_leaf_facts, found) == jax.tree.map(_leaf_facts, state)
