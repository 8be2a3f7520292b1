"""From this host's rows to arrays over the whole mesh."""

from typing import Any

import jax
from jax.sharding import NamedSharding


def to_global(batch: Any, sharding: NamedSharding) -> Any:
    """Global arrays from each host's own slice of the batch (numpy leaves)."""
    return jax.tree.map(
        lambda leaf: jax.make_array_from_process_local_data(sharding, leaf), batch
    )
