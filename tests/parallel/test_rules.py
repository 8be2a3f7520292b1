"""Shardings follow dimension names; optimizer moments follow their parameters."""

from collections.abc import Callable
from typing import Any

import jax
import numpy as np
import optax
import pytest
from jax.sharding import Mesh, PartitionSpec

from lmjax.config.schema import Backbone, OptimConfig, OptimizerKind, ParallelConfig
from lmjax.core import trees
from lmjax.data.batch import synthetic
from lmjax.models.build import Model
from lmjax.optim.optimizers import build_optimizer
from lmjax.parallel import hosts, rules
from lmjax.parallel.mesh import build_mesh


@pytest.fixture(scope="module")
def mesh() -> Mesh:
    return build_mesh(ParallelConfig(data=2, fsdp=2, tensor=2))


@pytest.mark.parametrize(
    ("shape", "names", "spec"),
    [
        ((4, 6), ("embed", "mlp"), ("fsdp", "tensor")),
        (
            (3, 4, 2, 5),
            ("layers", "embed", "heads", None),
            (None, "fsdp", "tensor", None),
        ),
        ((8, 4), ("vocab", "embed"), ("tensor", "fsdp")),
        ((4, 1, 5), ("embed", "kv_heads", None), ("fsdp", None, None)),  # 1 head
        ((5,), ("embed",), (None,)),  # 2 does not divide 5
    ],
)
def test_each_dimension_goes_to_the_axis_of_its_name(
    mesh: Mesh, shape: tuple, names: tuple, spec: tuple
) -> None:
    sharding = rules.param_sharding(shape, names, mesh)
    assert sharding.spec == PartitionSpec(*spec)


def test_names_must_fit_the_shape(mesh: Mesh) -> None:
    with pytest.raises(ValueError, match="must name every dimension"):
        rules.param_sharding((4, 4), ("embed",), mesh)


@pytest.mark.parametrize("backbone", list(Backbone))
def test_moments_have_the_sharding_of_their_parameter(
    make_model: Callable[..., Model], mesh: Mesh, backbone: Backbone
) -> None:
    model = make_model(
        backbone=backbone,
        attention_bias=True,
        mlp_bias=True,
        head_bias=True,
        qk_norm=True,
    )
    shardings = rules.param_shardings(model.shapes, model.names, mesh)
    optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(1e-3))
    state = jax.eval_shape(optimizer.init, model.shapes)
    found = rules.optimizer_shardings(state, shardings, mesh)
    adam = found[1][0]
    assert adam.mu == shardings
    assert adam.nu == shardings
    assert adam.count == rules.replicated(mesh)
    assert jax.tree.structure(found) == jax.tree.structure(state)


def _named(tree: Any) -> dict[str, Any]:
    flat = jax.tree_util.tree_leaves_with_path(tree)
    return {trees.path_name(path): leaf for path, leaf in flat}


def test_a_parameter_s_momentum_is_found_inside_any_optimizer(
    make_model: Callable[..., Model], mesh: Mesh
) -> None:
    """Muon keeps matrices and the rest apart, in trees with holes."""
    model = make_model()
    shardings = rules.param_shardings(model.shapes, model.names, mesh)
    config = OptimConfig(kind=OptimizerKind.MUON)
    optimizer = build_optimizer(config, optax.constant_schedule(0.1), model.names)
    state = jax.eval_shape(optimizer.init, model.shapes)
    found = _named(rules.optimizer_shardings(state, shardings, mesh))
    of_params = _named(shardings)
    for name, sharding in of_params.items():
        held = [found[path] for path in found if path.endswith(f"/{name}")]
        matrix = name.endswith("kernel")
        assert held == [sharding] * (1 if matrix else 2), name
    others = [
        sharding
        for path, sharding in found.items()
        if not any(path.endswith(f"/{name}") for name in of_params)
    ]
    assert set(others) == {rules.replicated(mesh)}


def test_rows_of_a_batch_are_split_over_data_and_fsdp(mesh: Mesh) -> None:
    batch = synthetic(8, 3)
    tokens = np.arange(24, dtype=np.int32).reshape(8, 3)
    array = hosts.to_global(tokens, rules.batch_sharding(mesh))
    np.testing.assert_array_equal(array, tokens)
    assert {shard.data.shape for shard in array.addressable_shards} == {(2, 3)}
    sources: Any = hosts.to_global(batch, rules.batch_sharding(mesh)).source
    assert {shard.data.shape for shard in sources.addressable_shards} == {(2,)}
