"""What a token costs, by hand, and what hardware is known to do."""

import dataclasses

import jax
import pytest

from lmjax.config.schema import ModelConfig
from lmjax.doctor.flops import flops_per_token, peak_flops


def test_a_token_costs_six_flops_per_parameter_and_its_attention() -> None:
    """Two layers of width 8 over 10 keys: 12 * 2 * 8 * 10 = 1920, and 6 * 100."""
    config = ModelConfig(num_layers=2, width=8, num_heads=2)
    both_ways = flops_per_token(config, matmul_params=100, length=10, causal=False)
    assert both_ways == 600 + 1920
    causal = flops_per_token(config, matmul_params=100, length=10, causal=True)
    assert causal == 600 + 960


@dataclasses.dataclass(frozen=True)
class Device:
    device_kind: str
    platform: str = "gpu"


@pytest.mark.parametrize(
    ("kind", "peak"),
    [
        ("NVIDIA H200", 989e12),
        ("NVIDIA A100-SXM4-80GB", 312e12),
        ("NVIDIA L4", 121e12),
        ("Tesla T4", 65e12),
        ("TPU v5 lite", 197e12),
        ("TPU v5p", 459e12),
        ("TPU v6e", 918e12),
        ("NVIDIA L40S", 0.0),
        ("a device of tomorrow", 0.0),
    ],
)
def test_peaks_are_those_of_the_device_and_0_where_unknown(
    kind: str, peak: float
) -> None:
    assert peak_flops(Device(kind)) == peak


def test_the_peak_of_a_cpu_is_measured() -> None:
    assert 1e8 < peak_flops(jax.devices("cpu")[0]) < 1e14
