"""What devices can do by their vendors' figures, and targets that name them.

Rates are dense ones in bfloat16, or in float16 where a device has no bfloat16. Memory
is what a program may use: on TPU the HBM that the compiler grants it, on GPU what the
driver reports. Bandwidths between devices are of one direction, all links of a device
together. Sources: the system architecture pages of Google's Cloud TPU documentation
(v4, v5e, v5p, v6e) and the data sheets of NVIDIA's A100, H100, H200, L4, T4 and V100.
"""

import dataclasses
import math
import os
import re
from typing import Any

from lmjax.config.fields import nearest
from lmjax.core.errors import ConfigError

_GIB, _MIB = 2.0**30, 2.0**20
_TARGET = re.compile(r"([a-z0-9-]+?)(?::(\d+(?:x\d+)*))?")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Hardware:
    """One kind of device.

    Attributes:
      name: what `plan.target` calls it.
      kind: a regular expression that finds it in `device_kind`.
      platform: "tpu" or "gpu".
      memory_bytes: of one device.
      peak_flops: matrix products, FLOP/s.
      memory_bandwidth: bytes per second between its memory and its units.
      link_bandwidth: bytes per second that it sends to other devices of its kind.
      dimensions: of the topologies that it comes in; 0: a plain number of devices.
      compute_capability: of a GPU.
    """

    name: str
    kind: str
    platform: str
    memory_bytes: float
    peak_flops: float
    memory_bandwidth: float
    link_bandwidth: float
    dimensions: int = 0
    compute_capability: str = ""


def _tpu(name: str, kind: str, *figures: float, dimensions: int) -> Hardware:
    memory, peak, memory_bandwidth, link_bandwidth = figures
    return Hardware(
        name=name,
        kind=kind,
        platform="tpu",
        memory_bytes=memory * _GIB,
        peak_flops=peak * 1e12,
        memory_bandwidth=memory_bandwidth * 1e9,
        link_bandwidth=link_bandwidth * 1e9,
        dimensions=dimensions,
    )


def _gpu(name: str, kind: str, *figures: float, capability: str) -> Hardware:
    memory, peak, memory_bandwidth, link_bandwidth = figures
    return Hardware(
        name=name,
        kind=kind,
        platform="gpu",
        memory_bytes=memory * _MIB,
        peak_flops=peak * 1e12,
        memory_bandwidth=memory_bandwidth * 1e9,
        link_bandwidth=link_bandwidth * 1e9,
        compute_capability=capability,
    )


# The first whose kind fits a device is its own, so narrow kinds stand before wide ones.
# Memory (GiB of a TPU, MiB of a GPU), TFLOP/s, GB/s of memory, GB/s of links.
HARDWARE: tuple[Hardware, ...] = (
    _tpu("v4", r"TPU v4", 30.75, 275, 1228, 300, dimensions=3),
    _tpu("v5e", r"TPU v5( lite|e)", 15.75, 197, 819, 200, dimensions=2),
    _tpu("v5p", r"TPU v5p?", 95.73, 459, 2765, 600, dimensions=3),
    _tpu("v6e", r"TPU v6( lite|e)?", 31.24, 918, 1640, 400, dimensions=2),
    _gpu("a100-80gb", r"A100.*80GB", 81920, 312, 2039, 300, capability="8.0"),
    _gpu("a100-40gb", r"A100", 40960, 312, 1555, 300, capability="8.0"),
    _gpu("h100-80gb", r"H100", 81559, 989, 3350, 450, capability="9.0"),
    _gpu("h200", r"H200", 143771, 989, 4800, 450, capability="9.0"),
    _gpu("l4", r"L4", 23034, 121, 300, 32, capability="8.9"),
    _gpu("t4", r"T4", 15360, 65, 320, 16, capability="7.5"),
    _gpu("v100", r"V100", 16384, 125, 900, 150, capability="7.0"),
)


def find_hardware(device_kind: str) -> Hardware | None:
    """The hardware of a device by its kind; None where it is unknown."""
    for hardware in HARDWARE:
        if re.search(rf"{hardware.kind}(?![\da-z])", device_kind, re.IGNORECASE):
            return hardware
    return None


def granted_bytes(hardware: Hardware) -> float:
    """Memory that a program gets: JAX takes a share of a GPU's, by default 75 %."""
    if hardware.platform == "tpu":
        return hardware.memory_bytes
    share = os.environ.get("XLA_PYTHON_CLIENT_MEM_FRACTION", "0.75")
    return float(share) * hardware.memory_bytes


@dataclasses.dataclass(frozen=True)
class Target:
    """Devices of one kind that a plan is made for.

    Attributes:
      topology: of TPU devices, such as "4x4"; empty for GPU.
      count: devices in all.
    """

    hardware: Hardware
    topology: str
    count: int


def parse_target(text: str) -> Target:
    """Reads "v5e:4x4", "a100-40gb", "h100-80gb:8".

    Raises:
      ConfigError: it names no hardware, or a TPU without its topology.
    """
    where = f"plan.target={text!r}"
    known = {hardware.name: hardware for hardware in HARDWARE}
    match = _TARGET.fullmatch(text.strip().lower())
    if not match or match[1] not in known:
        name = match[1] if match else text
        guess = next((each for each in known if each.startswith(name)), "")
        guess = guess or nearest(name, known)
        raise ConfigError(
            f"no hardware is known as {text!r}",
            where=where,
            remedy=f"did you mean {guess}? "
            * bool(guess)
            + f"there are {', '.join(known)}; with a topology or a number of devices, "
            "such as v5e:4x4, v4:4x4x4, h100-80gb:8",
        )
    hardware, sizes = known[match[1]], [int(n) for n in (match[2] or "1").split("x")]
    count = math.prod(sizes)
    if hardware.dimensions and (len(sizes) != hardware.dimensions or not match[2]):
        example = "x".join("2" * hardware.dimensions)
        raise ConfigError(
            f"a {hardware.name} slice has a topology of {hardware.dimensions} "
            "dimensions",
            where=where,
            remedy=f"write {hardware.name}:{example}, for example",
        )
    if (not hardware.dimensions and len(sizes) > 1) or not count:
        raise ConfigError(
            f"{hardware.name} takes a number of devices from 1 on",
            where=where,
            remedy=f"write {hardware.name}:8, for example",
        )
    return Target(hardware, match[2] if hardware.dimensions else "", count)


def device_hardware(device: Any) -> Hardware | None:
    """The hardware of a device of JAX; None for a CPU and where it is unknown."""
    return None if device.platform == "cpu" else find_hardware(device.device_kind)
