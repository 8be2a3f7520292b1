"""From this host's rows to arrays over the whole mesh."""

from typing import Any

import jax
from jax.sharding import Mesh, NamedSharding


def local_rows(mesh: Mesh, num_rows: int) -> slice:
    """This host's part of a batch of so many rows; all of it on a mesh of its own."""
    hosts = sorted({device.process_index for device in mesh.devices.flat})
    part = num_rows // len(hosts)
    place = hosts.index(jax.process_index())
    return slice(place * part, (place + 1) * part)


def to_global(batch: Any, sharding: NamedSharding) -> Any:
    """Global arrays from each host's own slice of the batch (numpy leaves)."""
    return jax.tree.map(
        lambda leaf: jax.make_array_from_process_local_data(sharding, leaf), batch
    )
