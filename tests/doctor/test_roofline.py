"""The least time of a step, by hand."""

import pytest

from lmjax.doctor.collectives import Collective
from lmjax.doctor.hardware import Hardware
from lmjax.doctor.roofline import Traffic, roofline

HARDWARE = Hardware(
    name="slow",
    kind="slow",
    platform="gpu",
    memory_bytes=1e3,
    peak_flops=100.0,
    memory_bandwidth=10.0,
    link_bandwidth=4.0,
)
# 2 * 5 bytes of state, and twice 3 * 1 + 2 * 2 + 2 * 4 in the passes: 40 in all.
TRAFFIC = Traffic(state=5, weights=1, gradients=2, activations=4, passes=2)


@pytest.mark.parametrize(
    ("flops", "sent", "seconds", "bound"),
    [
        (500.0, (), 5.0, "matrix products"),
        (50.0, (), 4.0, "memory"),
        (50.0, (("all-reduce", 10),), 5.0, "links between devices"),
        (50.0, (("all-gather", 10), ("reduce-scatter", 10)), 5.0, "links"),
        (50.0, (("all-gather", 10),), 4.0, "memory"),
    ],
)
def test_a_step_takes_as_long_as_its_longest_part(
    flops: float, sent: tuple, seconds: float, bound: str
) -> None:
    collectives = [Collective(kind, 1, size) for kind, size in sent]
    least = roofline(HARDWARE, flops=flops, traffic=TRAFFIC, collectives=collectives)
    assert least.seconds == seconds
    assert least.bound.startswith(bound)
