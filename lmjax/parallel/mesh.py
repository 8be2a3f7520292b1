"""The device mesh."""

import math
from collections.abc import Sequence

import jax
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
    """The mesh over `devices` (default: all), laid out for their topology."""
    devices = jax.devices() if devices is None else devices
    shape = mesh_shape(config, len(devices))
    types = (AxisType.Auto,) * len(AXES)
    return jax.make_mesh(shape, AXES, axis_types=types, devices=devices)
