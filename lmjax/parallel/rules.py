"""The table from logical dimension names to mesh axes, and shardings from it."""

from typing import Any

import jax
import optax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

HOST = "pinned_host"  # the host's memory, as JAX calls the part that devices read
BATCH_AXES = ("data", "fsdp")

# Logical name of a parameter's dimension -> mesh axis that splits it.
RULES: dict[str, str | None] = {
    "layers": None,
    "vocab": "tensor",
    "embed": "fsdp",
    "heads": "tensor",
    "kv_heads": "tensor",
    "mlp": "tensor",
}


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Rows of a batch over the axes that split data."""
    return NamedSharding(mesh, PartitionSpec(BATCH_AXES))


def replicated(mesh: Mesh) -> NamedSharding:
    """The same array on every device."""
    return NamedSharding(mesh, PartitionSpec())


def param_sharding(
    shape: tuple[int, ...], names: tuple[str | None, ...], mesh: Mesh
) -> NamedSharding:
    """Sharding of one parameter by the names of its dimensions.

    A dimension that its mesh axis does not divide stays whole.

    Raises:
      ValueError: when there is not one name per dimension, or a name is unknown.
    """
    if len(names) != len(shape):
        raise ValueError(f"{names=} must name every dimension of {shape=}")
    axes = []
    for size, name in zip(shape, names, strict=True):
        axis = None if name is None else RULES[name]
        divides = axis is not None and size % mesh.shape[axis] == 0
        axes.append(axis if divides else None)
    return NamedSharding(mesh, PartitionSpec(*axes))


def param_shardings(params: Any, names: Any, mesh: Mesh) -> Any:
    """Shardings of all parameters; `names` is the tree of their dimension names."""
    return jax.tree.map(
        lambda leaf, leaf_names: param_sharding(leaf.shape, leaf_names, mesh),
        params,
        names,
    )


def has_host_memory(device: jax.Device) -> bool:
    """Whether programs of a device can keep arrays in the memory of its host."""
    return any(memory.kind == HOST for memory in device.addressable_memories())


def on_host(shardings: Any, shapes: Any) -> Any:
    """The same shardings in the hosts' memory, but for scalars."""

    def move(sharding: NamedSharding, leaf: Any) -> NamedSharding:
        return sharding.with_memory_kind(HOST) if leaf.ndim else sharding

    return jax.tree.map(move, shardings, shapes)


def optimizer_shardings(
    optimizer: optax.GradientTransformation, opt_state: Any, shardings: Any, mesh: Mesh
) -> Any:
    """Each moment sharded as its parameter, counters on every device."""
    return optax.tree_utils.tree_map_params(
        optimizer,
        lambda _, sharding: sharding,
        opt_state,
        shardings,
        transform_non_params=lambda _: replicated(mesh),
    )
