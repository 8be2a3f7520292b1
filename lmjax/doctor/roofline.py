"""The least time that a step can take: by its products, its memory, and its links."""

import dataclasses
from collections.abc import Sequence

from lmjax.doctor.collectives import Collective
from lmjax.doctor.hardware import Hardware


@dataclasses.dataclass(frozen=True, kw_only=True)
class Roofline:
    """Seconds that one device needs for each part of a step, if nothing else were.

    Attributes:
      compute: matrix products at their peak.
      memory: bytes that must pass between memory and units.
      links: bytes that must pass between devices.
    """

    compute: float
    memory: float
    links: float

    @property
    def seconds(self) -> float:
        """Of the whole step, where all parts overlap."""
        return max(self.compute, self.memory, self.links)

    @property
    def bound(self) -> str:
        """The part that takes longest."""
        parts = {
            "matrix products": self.compute,
            "memory": self.memory,
            "links between devices": self.links,
        }
        return max(parts, key=parts.__getitem__)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Traffic:
    """Bytes on one device in one step.

    Attributes:
      state: parameters, moments and average, which are read and written once.
      weights: parameters in the dtype of the products, whole where they are gathered:
        read by the forward pass and twice by the backward pass.
      gradients: float32, written and read.
      activations: of one pass, which are written and read.
      passes: forward passes per step.
    """

    state: float
    weights: float
    gradients: float
    activations: float
    passes: int

    @property
    def num_bytes(self) -> float:
        per_pass = 3 * self.weights + 2 * self.gradients + 2 * self.activations
        return 2 * self.state + self.passes * per_pass


def roofline(
    hardware: Hardware,
    *,
    flops: float,
    traffic: Traffic,
    collectives: Sequence[Collective],
) -> Roofline:
    """What `hardware` needs at best; `flops` are those of one device.

    In a ring an all-reduce sends its array twice, every other collective once.
    """
    sent = sum(
        each.num_bytes * (2 if each.kind == "all-reduce" else 1) for each in collectives
    )
    return Roofline(
        compute=flops / hardware.peak_flops,
        memory=traffic.num_bytes / hardware.memory_bandwidth,
        links=sent / hardware.link_bandwidth,
    )
