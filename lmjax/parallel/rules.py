"""The table from logical names of dimensions to mesh axes, and shardings from it."""

import dataclasses
import math
from typing import Any

import jax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from lmjax.core import trees

HOST = "pinned_host"  # the host's memory, as JAX calls the part that devices read

# Logical name of a dimension -> mesh axes that split it, of parameters and activations.
RULES: dict[str, tuple[str, ...]] = {
    "layers": (),
    "vocab": ("tensor",),
    "embed": ("fsdp",),  # width of a parameter; that of an activation stays whole
    "heads": ("tensor",),
    "kv_heads": ("tensor",),
    "mlp": ("tensor",),
    "batch": ("data", "fsdp"),
    "sequence": ("tensor",),  # length of the residual stream, where only norms read it
}
BATCH_AXES = RULES["batch"]


@dataclasses.dataclass(frozen=True)
class Layout:
    """Where activations lie on a mesh, told to the compiler by names of dimensions.

    The one without a mesh, or with a single device, tells nothing.

    Attributes:
      mesh: the devices; None where there is only one.
      replica_axis: mesh axis over which the program maps as a whole, see
        `train.step.TrainStep`; so it isn't free to split a batch inside. Empty: none.
    """

    mesh: Mesh | None = None
    replica_axis: str = ""

    @property
    def is_split(self) -> bool:
        """Whether there is more than one device."""
        return self.mesh is not None and self.mesh.size > 1

    @property
    def num_replicas(self) -> int:
        """Equal parts of a batch that are mapped over."""
        if self.mesh is None or not self.replica_axis:
            return 1
        return self.mesh.shape[self.replica_axis]

    def __call__(self, x: jax.Array, *names: str | None) -> jax.Array:
        """x, with the dimensions that have a name split over the axes of that name."""
        if not self.is_split:
            return x
        sharding = NamedSharding(self.mesh, self.spec(x.shape, *names))
        return jax.lax.with_sharding_constraint(x, sharding)

    def spec(self, shape: tuple[int, ...], *names: str | None) -> PartitionSpec:
        """Mesh axes of each dimension of an array, where there is a mesh."""
        return _spec(shape, names, self.mesh, taken=(self.replica_axis,))

    def split(self, tree: Any) -> Any:
        """Arrays [B, ...] as [replicas, B / replicas, ...], each where its rows are."""
        count = self.num_replicas
        return jax.tree.map(
            lambda x: x.reshape(count, x.shape[0] // count, *x.shape[1:]), tree
        )

    def of_replicas(self, params: Any, names: Any) -> Any:
        """Arrays [replicas, *shape of a parameter], each with its replica, as that."""

        def constrain(x: jax.Array, names: tuple[str | None, ...]) -> jax.Array:
            spec = _spec(x.shape[1:], names, self.mesh)
            sharding = NamedSharding(self.mesh, PartitionSpec(self.replica_axis, *spec))
            return jax.lax.with_sharding_constraint(x, sharding)

        return jax.tree.map(constrain, params, names)


ONE_DEVICE = Layout()


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
    return NamedSharding(mesh, _spec(shape, names, mesh))


def _spec(
    shape: tuple[int, ...],
    names: tuple[str | None, ...],
    mesh: Mesh,
    taken: tuple[str, ...] = (),
) -> PartitionSpec:
    """Axes of each dimension by its name, but those that are taken."""
    if len(names) != len(shape):
        raise ValueError(f"{names=} must name every dimension of {shape=}")
    dimensions: list[tuple[str, ...] | str | None] = []
    for size, name in zip(shape, names, strict=True):
        axes = () if name is None else RULES[name]
        axes = tuple(axis for axis in axes if axis not in taken)
        whole = not axes or size % math.prod(mesh.shape[axis] for axis in axes)
        dimensions.append(None if whole else axes if len(axes) > 1 else axes[0])
    return PartitionSpec(*dimensions)


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


def optimizer_shardings(opt_state: Any, shardings: Any, mesh: Mesh) -> Any:
    """Each moment sharded as its parameter, all else on every device.

    An optimizer keeps a moment in a tree of the parameters' names, which its path then
    ends with, whatever transformations surround it.
    """
    of_params = {
        trees.path_name(path): sharding
        for path, sharding in jax.tree_util.tree_leaves_with_path(shardings)
    }

    def shard(name: str, _: Any) -> NamedSharding:
        parts = name.split("/")
        ends = ("/".join(parts[start:]) for start in range(len(parts)))
        return next(
            (of_params[end] for end in ends if end in of_params), replicated(mesh)
        )

    return trees.map_named(shard, opt_state)
