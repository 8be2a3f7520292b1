"""From this host's rows to arrays over the whole mesh."""

from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
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


def sum_over_hosts(number: int) -> int:
    """The sum of each host's number; all hosts must ask, and wait for each other."""
    if jax.process_count() == 1:
        return number
    return int(np.sum(multihost_utils.process_allgather(np.int64(number))))
