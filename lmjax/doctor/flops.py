"""Floating-point operations: what a token costs, what the hardware could do."""

import functools
import time

import jax
import jax.numpy as jnp

from lmjax.config.schema import ModelConfig
from lmjax.doctor.hardware import device_hardware
from lmjax.models.transformer import head_width


def flops_per_token(
    config: ModelConfig, *, matmul_params: int, length: int, causal: bool
) -> float:
    """Training FLOPs per token: 6 per matmul parameter, and attention's products.

    Attention does 2 * 2 * S * N * H per layer forward over S seen keys, three times
    that with the backward pass; a causal model sees half of them on average.
    """
    seen = length / 2 if causal else length
    heads_width = config.num_heads * head_width(config)
    return 6.0 * matmul_params + 12.0 * config.num_layers * heads_width * seen


def peak_flops(device: jax.Device) -> float:
    """Peak FLOP/s of one device: from the table, measured on CPU, 0 if unknown."""
    if device.platform == "cpu":
        return _measured_matmul_flops()
    hardware = device_hardware(device)
    return hardware.peak_flops if hardware else 0.0


@functools.cache
def _measured_matmul_flops(size: int = 1024, repeats: int = 3) -> float:
    """Best rate of a float32 matrix product on the default CPU device.

    Measured once: what is told at the start and what counts at the end are the same.
    """
    matrix = jnp.ones((size, size), jnp.float32)
    product = jax.jit(jnp.matmul)
    product(matrix, matrix).block_until_ready()
    best = float("inf")
    for _ in range(repeats):
        started = time.perf_counter()
        product(matrix, matrix).block_until_ready()
        best = min(best, time.perf_counter() - started)
    return 2.0 * size**3 / best
