"""Implementations of attention, and the choice among them.

Every implementation has the signature of `AttentionFunction`: queries
[B, L, N, H], keys and values [B, S, K, H] with N a multiple of K, scaled by
1/sqrt(H), softmax in float32. `lengths_B` counts the keys that exist in each row.

`segments_BL` (where L = S) numbers the documents side by side in a row, from 1 and 0 on
padding: a query sees the keys of its own segment alone. What lies behind `lengths_B`
joins segment 0 then, so that every query, of padding too, has at least itself to see.
"""

import dataclasses
import functools
from typing import Any, Protocol

import jax
import jax.numpy as jnp

from lmjax.config.schema import AttentionKind
from lmjax.core.errors import ConfigError

CHUNK = 128  # queries per block of the chunked causal attention
SPLASH_BLOCK = 128  # lengths the TPU kernel takes are multiples of this


class AttentionFunction(Protocol):
    """Attention as the models call it; returns [B, L, N, H] in the queries' dtype."""

    def __call__(
        self,
        q_BLNH: jax.Array,
        k_BSKH: jax.Array,
        v_BSKH: jax.Array,
        *,
        causal: bool,
        lengths_B: jax.Array | None = None,
        segments_BL: jax.Array | None = None,
    ) -> jax.Array: ...


@dataclasses.dataclass(frozen=True)
class AttentionChoice:
    """An implementation, and why it was taken (shown at start)."""

    kind: AttentionKind
    function: AttentionFunction
    reason: str


def library_attention(
    q_BLNH: jax.Array,
    k_BSKH: jax.Array,
    v_BSKH: jax.Array,
    *,
    causal: bool,
    lengths_B: jax.Array | None = None,
    segments_BL: jax.Array | None = None,
    implementation: str = "xla",
) -> jax.Array:
    """`jax.nn.dot_product_attention`: plain XLA, or cuDNN's fused kernel on GPU.

    cuDNN runs without segments alone; `choose_attention` sees to that.
    """
    mask = None
    if segments_BL is not None:
        segments_BL = _with_padding(segments_BL, lengths_B)
        mask = _same_segment(segments_BL, segments_BL)
        lengths_B = None
    return _dot_product_attention(
        q_BLNH,
        k_BSKH,
        v_BSKH,
        mask=mask,
        is_causal=causal,
        key_value_seq_lengths=lengths_B,
        implementation=implementation,
    )


def chunked_attention(
    q_BLNH: jax.Array,
    k_BSKH: jax.Array,
    v_BSKH: jax.Array,
    *,
    causal: bool,
    lengths_B: jax.Array | None = None,
    segments_BL: jax.Array | None = None,
) -> jax.Array:
    """Causal attention in blocks of queries that see only the keys before them.

    Skips the half of the score matrix that a mask would throw away, which is most of
    what XLA on CPU can save. Bidirectional attention has no such half: one block.
    """
    length = q_BLNH.shape[1]
    if not causal or length <= CHUNK:
        return library_attention(
            q_BLNH,
            k_BSKH,
            v_BSKH,
            causal=causal,
            lengths_B=lengths_B,
            segments_BL=segments_BL,
        )
    if segments_BL is not None:
        segments_BL, lengths_B = _with_padding(segments_BL, lengths_B), None
    blocks = []
    for start in range(0, length, CHUNK):
        end = min(start + CHUNK, length)
        seen = jnp.arange(end)[None, :] <= jnp.arange(start, end)[:, None]
        mask = seen[None, None]
        if lengths_B is not None:
            mask = mask & (jnp.arange(end) < lengths_B[:, None, None, None])
        if segments_BL is not None:
            mask = mask & _same_segment(segments_BL[:, start:end], segments_BL[:, :end])
        blocks.append(
            _dot_product_attention(
                q_BLNH[:, start:end],
                k_BSKH[:, :end],
                v_BSKH[:, :end],
                mask=mask,
                implementation="xla",
            )
        )
    return jnp.concatenate(blocks, axis=1)


def splash_attention(
    q_BLNH: jax.Array,
    k_BSKH: jax.Array,
    v_BSKH: jax.Array,
    *,
    causal: bool,
    lengths_B: jax.Array | None = None,
    segments_BL: jax.Array | None = None,
) -> jax.Array:
    """The TPU kernel of jax.experimental.pallas (block-sparse flash attention).

    Lengths that its blocks do not divide, as short evaluation rows have, take XLA.
    """
    from jax.experimental.pallas.ops.tpu import splash_attention as splash

    length, num_heads, head_width = q_BLNH.shape[1:]
    if length % SPLASH_BLOCK:
        return library_attention(
            q_BLNH,
            k_BSKH,
            v_BSKH,
            causal=causal,
            lengths_B=lengths_B,
            segments_BL=segments_BL,
        )
    shape = (length, k_BSKH.shape[1])
    head_mask = splash.CausalMask(shape) if causal else splash.FullMask(shape)
    mask = splash.MultiHeadMask([head_mask] * num_heads)
    segments = None
    if segments_BL is not None:
        segments_BL = _with_padding(segments_BL, lengths_B)
        segments = splash.SegmentIds(q=segments_BL, kv=segments_BL)
    elif lengths_B is not None:
        real_BS = jnp.arange(shape[1]) < lengths_B[:, None]
        segments = splash.SegmentIds(
            q=real_BS[:, :length].astype(jnp.int32), kv=real_BS.astype(jnp.int32)
        )
    repeats = num_heads // k_BSKH.shape[2]
    kernel = splash.make_splash_mha(mask, head_shards=1, q_seq_shards=1)
    q, k, v = (
        jnp.swapaxes(x, 1, 2)
        for x in (
            q_BLNH * head_width**-0.5,
            jnp.repeat(k_BSKH, repeats, axis=2),
            jnp.repeat(v_BSKH, repeats, axis=2),
        )
    )
    axes = (0, 0, 0, None if segments is None else 0)
    attended = jax.vmap(kernel, in_axes=axes)(q, k, v, segments)
    return jnp.swapaxes(attended, 1, 2).astype(q_BLNH.dtype)


def _dot_product_attention(
    q_BLNH: jax.Array,
    k_BSKH: jax.Array,
    v_BSKH: jax.Array,
    *,
    implementation: str,
    **keywords: Any,
) -> jax.Array:
    """`jax.nn.dot_product_attention`, on CPU in float16 too.

    It asks for products of float16 that are summed in float32, which XLA has for all
    GPUs and not for CPU.
    """
    attend = functools.partial(
        jax.nn.dot_product_attention, implementation=implementation, **keywords
    )
    if q_BLNH.dtype != jnp.float16 or implementation != "xla":
        return attend(q_BLNH, k_BSKH, v_BSKH)

    def widened(*arrays: jax.Array) -> jax.Array:
        y_BLNH = attend(*(array.astype(jnp.float32) for array in arrays))
        return y_BLNH.astype(jnp.float16)

    return jax.lax.platform_dependent(
        q_BLNH, k_BSKH, v_BSKH, cpu=widened, default=attend
    )


def _with_padding(segments_BL: jax.Array, lengths_B: jax.Array | None) -> jax.Array:
    """The segments, with all that is behind the lengths in segment 0."""
    if lengths_B is None:
        return segments_BL
    real_BL = jnp.arange(segments_BL.shape[1]) < lengths_B[:, None]
    return jnp.where(real_BL, segments_BL, 0)


def _same_segment(queries_BL: jax.Array, keys_BS: jax.Array) -> jax.Array:
    """Which keys are of a query's segment: bool [B, 1, L, S], alike for all heads."""
    return queries_BL[:, None, :, None] == keys_BS[:, None, None, :]


def choose_attention(
    kind: AttentionKind,
    *,
    device: jax.Device,
    causal: bool,
    head_width: int,
    length: int,
    dtype: jnp.dtype,
    segments: bool,
) -> AttentionChoice:
    """The implementation for this device, mask and head width, or the forced one.

    `segments` says whether attention stays within documents.

    Raises:
      ConfigError: when a forced implementation cannot run here; says why.
    """
    obstacles = _obstacles(device, head_width, length, dtype, segments)
    if kind is not AttentionKind.AUTO:
        if kind in obstacles:
            raise ConfigError(
                f"model.attention={kind.value} cannot run here: {obstacles[kind]}",
                where=f"device {device.device_kind}, head width {head_width}, "
                f"{length} tokens, {dtype.name}",
                remedy="--config.model.attention=auto picks one that can",
            )
        return AttentionChoice(kind, _FUNCTIONS[kind], "forced by model.attention")
    if AttentionKind.SPLASH not in obstacles:
        return _choice(AttentionKind.SPLASH, "fused kernel for TPU")
    if AttentionKind.CUDNN not in obstacles:
        return _choice(AttentionKind.CUDNN, "fused kernel for GPU")
    if device.platform == "cpu" and causal and length > CHUNK:
        return _choice(AttentionKind.CHUNKED, "skips the future on CPU")
    reason = {
        "tpu": obstacles[AttentionKind.SPLASH],
        "gpu": obstacles[AttentionKind.CUDNN],
    }.get(device.platform, "fastest on CPU for this mask and length")
    return _choice(AttentionKind.XLA, reason)


def _choice(kind: AttentionKind, reason: str) -> AttentionChoice:
    return AttentionChoice(kind, _FUNCTIONS[kind], reason)


def _obstacles(
    device: jax.Device, head_width: int, length: int, dtype: jnp.dtype, segments: bool
) -> dict[AttentionKind, str]:
    """Why each implementation that cannot run here cannot."""
    obstacles = {}
    if device.platform != "tpu":
        obstacles[AttentionKind.SPLASH] = "it needs a TPU"
    elif length % SPLASH_BLOCK:
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


_FUNCTIONS: dict[AttentionKind, AttentionFunction] = {
    AttentionKind.XLA: library_attention,
    AttentionKind.CHUNKED: chunked_attention,
    AttentionKind.CUDNN: functools.partial(library_attention, implementation="cudnn"),
    AttentionKind.SPLASH: splash_attention,
}
