"""How many devices there are, and how they share the work, changes nothing."""

from collections.abc import Callable
from typing import Any

import jax
import numpy as np
import pytest

from lmjax.config.schema import Backbone
from lmjax.core import trees
from lmjax.doctor import memory
from lmjax.doctor.collectives import collectives

# Sizes of the axes data, fsdp and tensor.
MESHES = {
    "data": (8, 1, 1),
    "fsdp": (1, 8, 1),
    "data, tensor": (2, 1, 4),
    "all axes": (2, 2, 2),
}
DIFFUSION = dict(backbone=Backbone.DIT, time_conditioning=True)
# Nothing that the axis tensor would split is a multiple of its size: 12 tokens, and:
ODD = dict(
    vocab_size=34,
    width=18,
    num_heads=6,
    num_kv_heads=3,
    head_width=4,
    mlp_width=20,
    qk_norm=True,
)


def _assert_alike(training: Any, expected: Any, where: str) -> None:
    """Four steps: the same losses, gradient norms, masks and parameters."""
    state, figures = training.run(4)
    for name, values in expected[1].items():
        np.testing.assert_allclose(
            figures[name], values, rtol=1e-5, err_msg=f"{name}, {where}"
        )
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-4),
        jax.device_get((state.params, state.ema)),
        jax.device_get((expected[0].params, expected[0].ema)),
    )


# A program of diffusion is slower to compile: two of the meshes have all axes.
@pytest.mark.parametrize(
    ("where", "objective"),
    [
        *((where, "autoregressive") for where in MESHES),
        *((where, "masked_diffusion") for where in ("data, tensor", "all axes")),
    ],
)
def test_eight_devices_train_as_one(
    where: str, objective: str, make_training: Callable[..., Any]
) -> None:
    fields = {"scan": True, "num_layers": 2}
    if objective == "masked_diffusion":
        fields |= DIFFUSION
    expected = make_training(objective, **fields).run(4)
    assert len(set(expected[1]["loss_sum"].tolist())) == 4
    training = make_training(objective, mesh=MESHES[where], **fields)
    _assert_alike(training, expected, where)


def test_sizes_that_an_axis_does_not_divide_stay_whole(
    make_training: Callable[..., Any],
) -> None:
    expected = make_training("autoregressive", **ODD).run(4)
    training = make_training("autoregressive", mesh=(1, 1, 8), **ODD)
    _assert_alike(training, expected, "tensor")


@pytest.mark.parametrize("backbone", list(Backbone))
def test_parameters_moments_and_average_are_really_split(
    backbone: Backbone, make_training: Callable[..., Any]
) -> None:
    kind = "masked_diffusion" if backbone is Backbone.DIT else "autoregressive"
    training = make_training(
        kind,
        mesh=(2, 2, 2),
        attention_bias=True,
        mlp_bias=True,
        head_bias=True,
        backbone=backbone,
        time_conditioning=backbone is Backbone.DIT,
    )
    state = training.start()
    adam = state.opt_state[1][0]

    def check(name: str, param: jax.Array, *others: jax.Array) -> None:
        shard = param.addressable_shards[0].data
        share = param.size // shard.size
        if name.endswith(("kernel", "table", "head")) and "noise" not in name:
            # Modulations have no dimension for the tensor axis.
            assert share == (2 if "modulation" in name else 4), name
        for other in others:
            assert other.sharding == param.sharding, name

    jax.tree.map(
        check,
        trees.map_named(lambda name, _: name, state.params),
        state.params,
        state.ema,
        adam.mu,
        adam.nu,
    )
    assert state.step.sharding.is_fully_replicated


def test_no_device_ever_holds_the_whole_state(
    make_training: Callable[..., Any],
) -> None:
    """Made where it stays: an eighth each and little beside it, nothing sent."""
    maker = make_training(
        "autoregressive", mesh=(1, 8, 1), width=64, mlp_width=256, vocab_size=512
    ).maker
    compiled = jax.jit(maker.make).lower(jax.random.key(0)).compile()
    whole = trees.num_bytes(maker.abstract())
    assert whole / 8 < memory.program_bytes(compiled) < 1.2 * whole / 8
    assert not collectives(compiled.as_text())


def test_initial_parameters_do_not_depend_on_the_mesh(
    make_training: Callable[..., Any],
) -> None:
    one, eight = (
        jax.device_get(maker.make(jax.random.key(0)).params)
        for mesh in ((1, 1, 1), (2, 2, 2))
        if (maker := make_training("autoregressive", mesh=mesh).maker)
    )
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), one, eight)
