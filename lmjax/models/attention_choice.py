"""The choice among the implementations of attention."""

import dataclasses
import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from lmjax.config.schema import AttentionKind
from lmjax.core.errors import ConfigError
from lmjax.models.attention_cpu import blockwise_attention
from lmjax.models.attention_kernels import (
    CHUNK,
    AttentionFunction,
    chunked_attention,
    library_attention,
)
from lmjax.models.attention_tpu import MULTIPLE, SplashAttention
from lmjax.parallel.rules import Layout

CUDNN_ATTENTION = functools.partial(library_attention, implementation="cudnn")
# Fused kernels, as they run on one device.
_FUSED: dict[AttentionKind, AttentionFunction] = {
    AttentionKind.SPLASH: SplashAttention(),
    AttentionKind.CUDNN: CUDNN_ATTENTION,
}


@dataclasses.dataclass(frozen=True)
class AttentionChoice:
    """An implementation, and why it was taken (shown at start)."""

    kind: AttentionKind
    function: AttentionFunction
    reason: str


# What is wrong with an implementation on the device at hand; empty where nothing is.
FindFault = Callable[[AttentionFunction], str]


def choose_attention(
    kind: AttentionKind,
    *,
    device: jax.Device,
    causal: bool,
    head_width: int,
    length: int,
    dtype: jnp.dtype,
    segments: bool,
    mesh: Mesh | None = None,
    find_fault: FindFault | None = None,
) -> AttentionChoice:
    """The implementation for this device, mask and head width, or the forced one.

    Args:
      segments: whether attention stays within documents.
      mesh: where the arrays will live, for kernels that XLA cannot split; None is one
        device.
      find_fault: tries the fused kernel that would be taken; None trusts it.

    Raises:
      ConfigError: when a forced implementation cannot run here; says why.
    """
    functions: dict[AttentionKind, AttentionFunction] = {
        AttentionKind.XLA: library_attention,
        AttentionKind.CHUNKED: chunked_attention,
        AttentionKind.BLOCKWISE: blockwise_attention,
        AttentionKind.CUDNN: CUDNN_ATTENTION,
        AttentionKind.SPLASH: SplashAttention(layout=Layout(mesh)),
    }
    obstacles = _obstacles(device, head_width, length, dtype, segments)
    if mesh is not None and mesh.size > 1:
        obstacles[AttentionKind.BLOCKWISE] = "it goes row by row on a single device"
    for fused, attend in _FUSED.items():
        wanted = kind in (AttentionKind.AUTO, fused) and fused not in obstacles
        if wanted and find_fault and (fault := find_fault(attend)):
            obstacles[fused] = f"{fused.value} failed its test here: {fault}"
    if kind is not AttentionKind.AUTO:
        if kind in obstacles:
            raise ConfigError(
                f"model.attention={kind.value} cannot run here: {obstacles[kind]}",
                where=f"device {device.device_kind}, head width {head_width}, "
                f"{length} tokens, {dtype.name}",
                remedy="--config.model.attention=auto picks one that can",
            )
        reason = "forced by model.attention"
    elif AttentionKind.SPLASH not in obstacles:
        kind, reason = AttentionKind.SPLASH, "fused kernel for TPU"
    elif AttentionKind.CUDNN not in obstacles:
        kind, reason = AttentionKind.CUDNN, "fused kernel for GPU"
    elif (
        device.platform == "cpu"
        and length > CHUNK
        and AttentionKind.BLOCKWISE not in obstacles
    ):
        kind, reason = AttentionKind.BLOCKWISE, "keeps to the caches of the CPU"
    elif device.platform == "cpu" and causal and length > CHUNK:
        kind, reason = AttentionKind.CHUNKED, "skips the future on CPU"
    else:
        kind = AttentionKind.XLA
        reason = {
            "tpu": obstacles[AttentionKind.SPLASH],
            "gpu": obstacles[AttentionKind.CUDNN],
        }.get(device.platform, "fastest on CPU for this mask and length")
    return AttentionChoice(kind, functions[kind], reason)


def _obstacles(
    device: jax.Device, head_width: int, length: int, dtype: jnp.dtype, segments: bool
) -> dict[AttentionKind, str]:
    """Why each implementation that cannot run here cannot."""
    obstacles = {}
    if device.platform != "tpu":
        obstacles[AttentionKind.SPLASH] = "it needs a TPU"
    elif length % MULTIPLE:
        obstacles[AttentionKind.SPLASH] = "it needs a length that 128 divides"
    if device.platform != "gpu":
        obstacles[AttentionKind.CUDNN] = "it needs an NVIDIA GPU"
    elif float(getattr(device, "compute_capability", 0)) < 8.0:
        obstacles[AttentionKind.CUDNN] = "it needs compute capability 8.0 or newer"
    elif dtype not in (jnp.bfloat16, jnp.float16):
        obstacles[AttentionKind.CUDNN] = "it needs bfloat16 or float16"
    elif head_width % 8 or head_width > 128:
        obstacles[AttentionKind.CUDNN] = (
            "it needs a head width that 8 divides, at most 128"
        )
    elif segments:
        # A mask would go to cuDNN as a bias [B, 1, L, L], in even lengths alone; jax
        # before 0.12 has its backward pass write a gradient of that size, too.
        obstacles[AttentionKind.CUDNN] = (
            "it has no mask that keeps attention within documents (data.document_mask)"
        )
    return obstacles
