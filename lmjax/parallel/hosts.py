"""From this host's rows to arrays over the whole mesh."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

_NUM_BITS = 8  # of a vote


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


def all_agree(yes: bool) -> bool:
    """Whether every host says yes; all must ask, and wait for each other."""
    return sum_over_hosts(int(yes)) == jax.process_count()


class Votes:
    """Agreements on what to do next, at which no process waits for another.

    Each call starts a tiny computation over all devices and reads that of the call
    before, which is long done: so all learn the same, one call late.
    """

    def __init__(self, mesh: Mesh):
        devices = mesh.devices.reshape(-1)
        here = [d for d in devices if d.process_index == jax.process_index()]
        self._alone = len(here) == devices.size
        self._shape = (len(here), _NUM_BITS)
        # With axes of this kind the result is whole on every device by its type.
        line = Mesh(devices, ("devices",), axis_types=(AxisType.Explicit,))
        self._sharding = NamedSharding(line, PartitionSpec("devices"))
        self._pending: jax.Array | None = None

    def cast(self, bits: int) -> int:
        """Gives this process's bits; returns those any gave at the call before.

        All processes must call it equally often. One alone gets its own at once.
        """
        if self._alone:
            return bits
        counted = self._pending
        votes = np.broadcast_to(bits >> np.arange(_NUM_BITS) & 1, self._shape)
        self._pending = jnp.max(
            jax.make_array_from_process_local_data(
                self._sharding, votes.astype(np.int32)
            ),
            axis=0,
        )
        if counted is None:
            return 0
        return int(jax.device_get(counted) @ (1 << np.arange(_NUM_BITS)))
