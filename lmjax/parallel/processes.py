"""The start and the end of a run of several processes."""

import contextlib
import math
import time
from collections.abc import Iterator

import jax
from absl import logging
from jax._src import cloud_tpu_init, clusters  # no public way to ask who takes part

from lmjax.config.schema import ParallelConfig
from lmjax.core import durations
from lmjax.core.errors import ConfigError, UserError
from lmjax.parallel import peers
from lmjax.parallel.peer_watch import PeerWatch
from lmjax.parallel.peers import Coordinates

AUTO = "auto"


@contextlib.contextmanager
def together(config: ParallelConfig, *, command: str = "") -> Iterator[None]:
    """Inside it, this process is one of those that the config speaks of.

    Must be entered before JAX is asked for a device, and by all processes; they leave
    it together. When another is lost, this one ends with `PEER_LOST_STATUS`. Where
    there is only one process, nothing happens.

    Args:
      command: what starts this process again, for messages.

    Raises:
      UserError: when not all come in time.
      ConfigError: when they do not belong together, or nothing says who takes part.
    """
    here = find_coordinates(config)
    if here is None:
        yield
        return
    with _start(here, config, command):
        yield


def find_coordinates(config: ParallelConfig) -> Coordinates | None:
    """Who this process is by the config, or by what started it; None where alone.

    Raises:
      ConfigError: when the environment is asked and does not say.
    """
    if config.coordinator not in ("", AUTO):
        if config.num_processes == 1:
            return None
        return Coordinates(
            address=config.coordinator,
            count=config.num_processes,
            index=config.process_index,
        )
    if not config.coordinator and not _may_be_tpu_pod():
        return None
    seconds = math.ceil(durations.to_seconds(config.start_timeout))
    try:
        found = clusters.ClusterEnv.auto_detect_unset_distributed_params(
            None, None, None, None, None, seconds
        )
    except (OSError, RuntimeError, ImportError) as error:
        # A TPU VM need not have a metadata server; then it stands alone.
        if not config.coordinator:
            logging.info("No TPU pod: %s", error)
            return None
        raise _undetected(str(error)) from error
    address, count, index, local_device_ids = found
    if None in (address, count, index):
        if not config.coordinator:
            return None
        raise _undetected("neither a TPU pod, Slurm, Open MPI nor Kubernetes is seen")
    if count == 1:
        return None
    return Coordinates(
        address=address, count=count, index=index, local_device_ids=local_device_ids
    )


def _may_be_tpu_pod() -> bool:
    platforms = _platforms()
    return cloud_tpu_init.running_in_cloud_tpu_vm and (
        not platforms or "tpu" in platforms
    )


def _platforms() -> str:
    """What JAX is told to use; empty where it chooses."""
    return jax.config.jax_platforms or ""


def _undetected(cause: str) -> ConfigError:
    return ConfigError(
        f"what started this process does not say who takes part: {cause}",
        where=f"parallel.coordinator={AUTO}",
        remedy="start it with srun or mpirun, or give parallel.coordinator=host:port, "
        "parallel.num_processes and parallel.process_index",
    )


def _start(here: Coordinates, config: ParallelConfig, command: str) -> PeerWatch:
    """Meets the others, starts JAX's service among them, and watches them."""
    start_seconds = durations.to_seconds(config.start_timeout)
    peer_seconds = durations.to_seconds(config.peer_timeout)
    began = time.monotonic()
    logging.info("%s; coordinator %s", here.name, here.address)
    lines = peers.meet(here, start_seconds)
    # Its handler would take SIGTERM before ours is there; our votes do its work.
    jax.config.update("jax_enable_preemption_service", False)
    try:
        jax.distributed.initialize(
            here.address,
            here.count,
            here.index,
            here.local_device_ids,
            cluster_detection_method="deactivate",
            initialization_timeout=math.ceil(start_seconds),
            heartbeat_timeout_seconds=math.ceil(peer_seconds),
            shutdown_timeout_seconds=math.ceil(peer_seconds),
        )
    except RuntimeError as error:
        raise UserError(
            f"JAX could not start with the other processes: {error}",
            where=f"coordinator {here.address}; this is {here.name}",
            remedy="start all processes again; see what the others have printed",
        ) from error
    logging.info(
        "all %d processes are here after %.1f s; %d of %d devices are of this one",
        here.count,
        time.monotonic() - began,
        jax.local_device_count(),
        jax.device_count(),
    )
    return PeerWatch(here, lines, seconds=peer_seconds, command=command)
