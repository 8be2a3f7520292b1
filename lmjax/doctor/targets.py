"""Devices to plan for that are not there: TPU topologies, and stand-ins of GPUs."""

import contextlib
import dataclasses
import os
from collections.abc import Iterator, Sequence
from typing import Any

import jax

from lmjax.core.errors import ConfigError, UserError
from lmjax.doctor.hardware import Target

# Without the first three libtpu asks the cloud which machine this is; without the last
# it refuses to be loaded by two processes, as it must where there is a TPU.
_ENVIRONMENT = {
    "TPU_ACCELERATOR_TYPE": "v5litepod-16",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "TPU_SKIP_MDS_QUERY": "1",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
}


@dataclasses.dataclass(frozen=True)
class AbsentDevice:
    """Stands for a GPU in a mesh: arrays can be laid out over it, and nothing run."""

    id: int
    device_kind: str
    compute_capability: str
    platform: str = "gpu"
    process_index: int = 0


@contextlib.contextmanager
def compiling_for(device: Any) -> Iterator[None]:
    """Hides XLA_FLAGS from libtpu, which ends the process at one that it does not know.

    They are for the devices of this machine, whose compiler has read them. What libtpu
    is to be told stands in LIBTPU_INIT_ARGS.
    """
    given = os.environ.get("XLA_FLAGS")
    if given is None or not is_absent(device):
        yield
        return
    del os.environ["XLA_FLAGS"]
    try:
        yield
    finally:
        os.environ["XLA_FLAGS"] = given


def is_absent(device: Any) -> bool:
    """Whether a device is planned for, and not there."""
    known = isinstance(device, jax.Device)
    return isinstance(device, AbsentDevice) or (known and device not in jax.devices())


def target_devices(target: Target) -> Sequence[Any]:
    """Devices of a target; those of a TPU can be compiled for.

    Raises:
      UserError: libtpu is not installed.
      ConfigError: the TPU does not come in this topology.
    """
    hardware = target.hardware
    if hardware.platform == "gpu":
        return [
            AbsentDevice(number, hardware.name.upper(), hardware.compute_capability)
            for number in range(target.count)
        ]
    from jax.experimental import topologies

    for name, value in _ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    # A chip of v4 has two cores that work as one device.
    keywords = {"chip_config_name": "megacore"} if hardware.name == "v4" else {}
    name = f"{hardware.name}:{target.topology}"
    try:
        found = topologies.get_topology_desc(
            platform="tpu", topology_name=name, **keywords
        )
    except jax.errors.JaxRuntimeError as error:
        raise ConfigError(
            f"a TPU {hardware.name} does not come in the topology {target.topology}: "
            f"{str(error).splitlines()[0]}",
            where=f"plan.target={name!r}",
            remedy="take one of the vendor's, such as "
            + ("4x4, 8x8 or 16x16" if hardware.dimensions == 2 else "2x2x2 or 4x4x4"),
        ) from error
    except (RuntimeError, ImportError) as error:
        raise UserError(
            "planning for a TPU without one needs its compiler, libtpu",
            where=f"plan.target={name!r}",
            remedy="pip install 'lmjax[plan]'",
        ) from error
    return found.devices
