"""What is decayed, what is clipped, and that a step is AdamW's or Muon's."""

from collections.abc import Callable
from typing import Any

import jax
import numpy as np
import optax
import pytest

from lmjax.config.schema import Backbone, OptimConfig, OptimizerKind, ParallelConfig
from lmjax.core import trees
from lmjax.models.build import DimensionNames, Model
from lmjax.optim.optimizers import NO_DECAY, UPDATE_RMS, build_optimizer, matrices
from lmjax.parallel import rules
from lmjax.parallel.mesh import build_mesh

PARAMS = {
    "block": {
        "kernel": np.float32([[1.0, -2.0], [3.0, 4.0]]),
        "bias": np.float32([1.0, -1.0]),
        "scale": np.float32([2.0, 3.0]),
    },
    "vocabulary": {
        "table": np.float32([[5.0]]),
        "head": np.float32([[6.0]]),
        "head_bias": np.float32([7.0]),
    },
}
NAMES = jax.tree.map(lambda leaf: DimensionNames([None] * leaf.ndim), PARAMS)


def _step(config: OptimConfig, gradients: dict, rate: float = 0.1) -> dict:
    optimizer = build_optimizer(config, optax.constant_schedule(rate), NAMES)
    state = optimizer.init(PARAMS)
    updates, _ = optimizer.update(gradients, state, PARAMS)
    return jax.tree.map(np.asarray, updates)


def test_weight_decay_touches_kernels_and_the_head_and_nothing_else() -> None:
    zeros = jax.tree.map(np.zeros_like, PARAMS)
    updates = _step(OptimConfig(weight_decay=0.5), zeros)
    for name in ("bias", "scale"):
        np.testing.assert_array_equal(updates["block"][name], 0.0)
    for name in ("table", "head_bias"):
        np.testing.assert_array_equal(updates["vocabulary"][name], 0.0)
    decayed = (updates["block"]["kernel"], updates["vocabulary"]["head"])
    weights = (PARAMS["block"]["kernel"], PARAMS["vocabulary"]["head"])
    for update, weight in zip(decayed, weights, strict=True):
        np.testing.assert_allclose(update, -0.1 * 0.5 * weight, rtol=1e-6)


@pytest.mark.parametrize("backbone", list(Backbone))
def test_the_mask_fits_every_parameter_of_real_models(
    make_model: Callable[..., Model], backbone: Backbone
) -> None:
    model = make_model(
        backbone=backbone,
        attention_bias=True,
        mlp_bias=True,
        head_bias=True,
        qk_norm=True,
    )
    left_out = trees.mask(model.shapes, NO_DECAY)

    def check(name: str, out: bool) -> None:
        last = name.rsplit("/", 1)[-1]
        assert last in ("kernel", "head", "scale", "bias", "head_bias", "table")
        assert out == (last not in ("kernel", "head")), name

    trees.map_named(check, left_out)


def test_two_steps_are_adamw_by_hand() -> None:
    config = OptimConfig(
        beta1=0.8, beta2=0.9, epsilon=0.01, weight_decay=0.2, clip_norm=0.0
    )
    optimizer = build_optimizer(config, optax.constant_schedule(0.1), NAMES)
    state, params = optimizer.init(PARAMS), PARAMS
    weight = PARAMS["block"]["kernel"].astype(np.float64)
    mean, square = np.zeros((2, 2)), np.zeros((2, 2))
    for step, factor in ((1, 0.3), (2, -0.7)):
        gradients = jax.tree.map(lambda leaf, factor=factor: factor * leaf, PARAMS)
        updates, state = optimizer.update(gradients, state, params)
        params = optax.apply_updates(params, updates)
        gradient = factor * PARAMS["block"]["kernel"].astype(np.float64)
        mean = 0.8 * mean + 0.2 * gradient
        square = 0.9 * square + 0.1 * gradient**2
        direction = mean / (1 - 0.8**step)
        direction /= np.sqrt(square / (1 - 0.9**step)) + 0.01
        weight = weight - 0.1 * (direction + 0.2 * weight)
        np.testing.assert_allclose(params["block"]["kernel"], weight, rtol=1e-5)


def test_gradients_are_clipped_by_their_global_norm() -> None:
    """A large epsilon makes the step proportional to the gradient, so it shows."""
    fields = dict(weight_decay=0.0, epsilon=1e6, beta1=0.0)
    gradients = jax.tree.map(lambda leaf: 10 * leaf, PARAMS)
    norm = float(optax.tree.norm(gradients))
    free = _step(OptimConfig(clip_norm=0.0, **fields), gradients)
    clipped = _step(OptimConfig(clip_norm=2.0, **fields), gradients)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b * 2.0 / norm, rtol=1e-3),
        clipped,
        free,
    )
    loose = _step(OptimConfig(clip_norm=2 * norm, **fields), gradients)
    jax.tree.map(np.testing.assert_array_equal, loose, free)


def test_the_schedule_sets_the_size_of_the_step() -> None:
    gradients = jax.tree.map(np.ones_like, PARAMS)
    config = OptimConfig(weight_decay=0.0)
    small, large = (_step(config, gradients, rate) for rate in (0.1, 0.3))
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(3 * a, b, rtol=1e-5), small, large
    )


@pytest.mark.parametrize("backbone", list(Backbone))
def test_muon_has_the_matrices_of_the_blocks(
    make_model: Callable[..., Model], backbone: Backbone
) -> None:
    """Width 16 on one side, all else but the two layers on the other."""
    model = make_model(backbone=backbone, attention_bias=True, qk_norm=True)
    found = {}

    def note(name: str, leaf: jax.ShapeDtypeStruct, numbers: Any) -> None:
        if numbers is not None:
            sides = (numbers.reduction_axis, numbers.output_axis)
            found[name] = [tuple(leaf.shape[axis] for axis in side) for side in sides]
            assert sorted(sides[0] + sides[1]) == list(range(1, len(leaf.shape)))

    jax.tree.map(
        lambda name, leaf, numbers: note(name, leaf, numbers),
        trees.map_named(lambda name, _: name, model.shapes),
        model.shapes,
        matrices(model.names),
    )
    gate = {"blocks/mlp/gate/kernel": [(16,), (24,)]}
    mlp = model.shapes["blocks"]["mlp"]
    assert found == {
        "blocks/attention/query/kernel": [(16,), (4, 4)],
        "blocks/attention/key/kernel": [(16,), (2, 4)],
        "blocks/attention/value/kernel": [(16,), (2, 4)],
        "blocks/attention/output/kernel": [(4, 4), (16,)],
        "blocks/mlp/up/kernel": [(16,), (24,)],
        "blocks/mlp/down/kernel": [(24,), (16,)],
    } | (gate if "gate" in mlp else {})


def test_muon_s_update_is_orthogonal_in_each_layer() -> None:
    """U V^T of the gradient's singular vectors, heads side by side, by float64's SVD.

    Five iterations bring singular values to between 0.7 and 1.2 (Jordan et al. 2024).
    """
    params = {"blocks": {"attention": {"query": {"kernel": np.zeros((2, 6, 2, 4))}}}}
    names = {
        "blocks": {
            "attention": {
                "query": {"kernel": DimensionNames(["layers", "embed", "heads", None])}
            }
        }
    }
    generator = np.random.default_rng(0)
    params = jax.tree.map(lambda leaf: leaf.astype(np.float32), params)
    gradients = jax.tree.map(
        lambda leaf: generator.normal(size=leaf.shape).astype(np.float32), params
    )
    config = OptimConfig(kind=OptimizerKind.MUON, weight_decay=0.0, clip_norm=0.0)
    optimizer = build_optimizer(config, optax.constant_schedule(0.5), names)
    updates, _ = optimizer.update(gradients, optimizer.init(params), params)
    kernel = updates["blocks"]["attention"]["query"]["kernel"]
    gradient = gradients["blocks"]["attention"]["query"]["kernel"]
    for update, slope in zip(kernel, gradient, strict=True):
        left, _, right = np.linalg.svd(
            slope.reshape(6, 8).astype(np.float64), full_matrices=False
        )
        rms = -0.5 * UPDATE_RMS * np.sqrt(8)
        turned = left.T @ np.asarray(update).reshape(6, 8) @ right.T / rms
        values = np.diag(turned)
        assert np.all((values > 0.65) & (values < 1.25)), values
        np.testing.assert_allclose(turned, np.diag(values), atol=2e-3)


def test_muon_s_updates_are_the_same_on_a_mesh(
    make_model: Callable[..., Model], random_params: Callable[..., Any]
) -> None:
    """Also where heads and widths of one matrix lie on several devices."""
    model = make_model()
    config = OptimConfig(kind=OptimizerKind.MUON)
    optimizer = build_optimizer(config, optax.constant_schedule(0.1), model.names)

    @jax.jit
    def update(gradients: Any, params: Any) -> Any:
        return optimizer.update(gradients, optimizer.init(params), params)[0]

    trees_of = [random_params(model, seed) for seed in (0, 1)]
    mesh = build_mesh(ParallelConfig(data=2, fsdp=2, tensor=2))
    shardings = rules.param_shardings(model.shapes, model.names, mesh)
    whole = update(*trees_of)
    split = update(*(jax.device_put(tree, shardings) for tree in trees_of))
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6),
        jax.device_get(whole),
        jax.device_get(split),
    )
