"""The device mesh."""

import math
from collections.abc import Sequence

import jax
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import AxisType, Mesh

from lmjax.config.schema import ParallelConfig
from lmjax.core.errors import ConfigError

AXES = ("data", "fsdp", "tensor")


def mesh_shape(config: ParallelConfig, num_devices: int) -> tuple[int, int, int]:
    """Sizes of the axes "data", "fsdp" and "tensor"; data 0 takes what is left over.

    Raises:
      ConfigError: when the axes do not multiply to the number of devices.
    """
    rest = config.fsdp * config.tensor
    data = config.data or num_devices // rest
    shape = (data, config.fsdp, config.tensor)
    if math.prod(shape) != num_devices:
        raise ConfigError(
            f"a mesh of data={data}, fsdp={config.fsdp}, tensor={config.tensor} has "
            f"{math.prod(shape)} places for {num_devices} devices",
            where="parallel.data, parallel.fsdp, parallel.tensor",
            remedy="choose sizes whose product is the number of devices; "
            "parallel.data=0 takes what is left over",
        )
    return shape


def build_mesh(
    config: ParallelConfig, devices: Sequence[jax.Device] | None = None
) -> Mesh:
    """The mesh over `devices` (default: all), laid out for their topology.

    Several TPU slices have the data axis alone between them, see `across_slices`.
    """
    devices = jax.devices() if devices is None else devices
    shape = mesh_shape(config, len(devices))
    types = (AxisType.Auto,) * len(AXES)
    if num_slices(devices) > 1:
        return Mesh(across_slices(shape, devices), AXES, axis_types=types)
    return jax.make_mesh(shape, AXES, axis_types=types, devices=devices)


def num_slices(devices: Sequence[jax.Device]) -> int:
    """TPU slices that devices are of: between them the network is far slower."""
    if devices[0].platform != "tpu":
        return 1
    return len({getattr(device, "slice_index", 0) for device in devices})


def across_slices(
    shape: tuple[int, int, int], devices: Sequence[jax.Device]
) -> np.ndarray:
    """Devices of several slices as an array of `shape`; the first axis goes across.

    Each slice has equally many consecutive places of the data axis, so that what goes
    between slices is the sum of gradients, once a step.

    Raises:
      ConfigError: when the slices do not divide the data axis.
    """
    data, fsdp, tensor = shape
    count = num_slices(devices)
    if data % count:
        raise ConfigError(
            f"{count} TPU slices do not divide the data axis of a mesh of "
            f"data={data}, fsdp={fsdp}, tensor={tensor}",
            where="parallel.data, parallel.fsdp, parallel.tensor",
            remedy=f"choose fsdp and tensor whose product divides the "
            f"{len(devices) // count} devices of a slice, and parallel.data=0",
        )
    return mesh_utils.create_hybrid_device_mesh(
        (data // count, fsdp, tensor), (count, 1, 1), devices=devices
    )
