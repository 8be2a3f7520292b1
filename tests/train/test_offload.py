"""Moments in the host's memory: the same bits, and checkpoints as without."""

import dataclasses
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from lmjax import training_run
from lmjax.config.schema import TrainConfig
from lmjax.core.errors import ConfigError
from lmjax.parallel import rules
from lmjax.train.checkpoints import Checkpoints


def _offloaded(training: Any) -> Any:
    return dataclasses.replace(
        training,
        maker=dataclasses.replace(training.maker, offload=True),
        step=dataclasses.replace(training.step, offload=True),
    )


def _kinds(tree: Any) -> set[str]:
    """Memory of the arrays that are no scalars."""
    return {leaf.sharding.memory_kind for leaf in jax.tree.leaves(tree) if leaf.ndim}


def test_offloaded_moments_change_no_bit(
    make_training: Callable[..., Any], tmp_path: Path
) -> None:
    training = make_training("autoregressive", mesh=(1, 2, 1), num_layers=1)
    expected, figures = training.run(2)
    offloaded = _offloaded(training)
    state, found = offloaded.run(2)
    assert _kinds(state.opt_state) == {rules.HOST}
    assert rules.HOST not in _kinds((state.params, state.ema))
    jax.tree.map(np.testing.assert_array_equal, (state, found), (expected, figures))

    # What was saved from the host goes on either way.
    checkpoints = Checkpoints(tmp_path / "checkpoints")
    about = dict(progress={}, config={}, tokenizer_model=b"", mask_id=2, corpus="")
    checkpoints.save(state, step=2, **about)
    checkpoints.wait()
    for each, kinds in ((training, _kinds(expected.params)), (offloaded, {rules.HOST})):
        restored = checkpoints.restore_state(2, each.maker.abstract())
        assert _kinds(restored.opt_state) == kinds
        jax.tree.map(np.testing.assert_array_equal, restored, expected)
    checkpoints.close()


def test_a_device_that_reads_no_memory_of_its_host_is_an_error() -> None:
    memory = types.SimpleNamespace(kind="device")
    device: Any = types.SimpleNamespace(
        device_kind="toy", addressable_memories=lambda: [memory]
    )
    mesh: Any = types.SimpleNamespace(devices=np.array([device]))
    mesh.local_mesh = mesh
    training_run._check_offload(TrainConfig(), mesh)
    with pytest.raises(ConfigError, match="toy reads no memory") as error:
        training_run._check_offload(TrainConfig(offload_optimizer=True), mesh)
    assert "parallel.fsdp" in error.value.remedy
