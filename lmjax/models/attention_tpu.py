"""Splash attention, the fused kernel for TPU, on one device and on a mesh."""

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from lmjax.models.attention_kernels import library_attention, segments_with_padding
from lmjax.parallel.rules import ONE_DEVICE, Layout

MULTIPLE = 128  # lengths the kernel takes are multiples of this
# Queries and keys per tile, the largest that divides the length: large ones cost few
# steps of the grid, and those of 2048 no longer fit the vector memory of a core.
BLOCKS = (512, 256, MULTIPLE)


@dataclasses.dataclass(frozen=True, kw_only=True)
class SplashAttention:
    """The TPU kernel of jax.experimental.pallas (block-sparse flash attention).

    XLA cannot split a kernel, so on a mesh of several devices each of them runs it on
    its own rows and heads. Heads of any width are taken. Lengths that no block divides,
    as short evaluation rows have, take XLA.

    Attributes:
      layout: where the arrays live.
      interpret: whether the kernel is interpreted, as on a CPU.
    """

    layout: Layout = ONE_DEVICE
    interpret: bool = False

    def __call__(
        self,
        q_BLNH: jax.Array,
        k_BSKH: jax.Array,
        v_BSKH: jax.Array,
        *,
        causal: bool,
        lengths_B: jax.Array | None = None,
        segments_BL: jax.Array | None = None,
    ) -> jax.Array:
        if q_BLNH.shape[1] % MULTIPLE:
            return library_attention(
                q_BLNH,
                k_BSKH,
                v_BSKH,
                causal=causal,
                lengths_B=lengths_B,
                segments_BL=segments_BL,
            )
        segments_BL = segments_with_padding(q_BLNH, lengths_B, segments_BL)
        attend = functools.partial(_attend, causal=causal, interpret=self.interpret)
        if not self.layout.is_split:
            return attend(q_BLNH, k_BSKH, v_BSKH, segments_BL)
        mesh = self.layout.mesh
        spec = self.layout.spec(q_BLNH.shape, "batch", None, "heads", None)
        if axis := spec[2]:
            # Each device needs the keys of its own queries: as few copies of the heads
            # as make their number one that the axis divides.
            num_kv_heads = k_BSKH.shape[2]
            copies = math.lcm(num_kv_heads, mesh.shape[axis]) // num_kv_heads
            k_BSKH, v_BSKH = (jnp.repeat(x, copies, axis=2) for x in (k_BSKH, v_BSKH))
        rows = None if segments_BL is None else PartitionSpec(spec[0], None)
        return jax.shard_map(
            attend,
            mesh=mesh,
            in_specs=(spec, spec, spec, rows),
            out_specs=spec,
            check_vma=False,  # the kernel does not say how its results vary
        )(q_BLNH, k_BSKH, v_BSKH, segments_BL)


def _attend(
    q_BLNH: jax.Array,
    k_BSKH: jax.Array,
    v_BSKH: jax.Array,
    segments_BL: jax.Array | None,
    *,
    causal: bool,
    interpret: bool,
) -> jax.Array:
    """The kernel on one device; the query heads of a key head stand side by side."""
    # Imported late: its imports are for TPU, and take longer than those of all models.
    from jax.experimental.pallas.ops.tpu import splash_attention as splash

    length, num_heads, head_width = q_BLNH.shape[1:]
    head_mask = (splash.CausalMask if causal else splash.FullMask)((length, length))
    block = next(block for block in BLOCKS if length % block == 0)
    kernel = splash.make_splash_mha(
        splash.MultiHeadMask([head_mask] * num_heads),
        block_sizes=splash.BlockSizes(
            block_q=block,
            block_kv=block,
            block_q_dkv=block,
            block_kv_dkv=block,
            block_q_dq=block,
            block_kv_dq=block,
        ),
        head_shards=1,
        q_seq_shards=1,
        interpret=interpret,
    )
    q_BNLH, k_BKLH, v_BKLH = (
        jnp.swapaxes(x, 1, 2) for x in (q_BLNH * head_width**-0.5, k_BSKH, v_BSKH)
    )
    if segments_BL is None:
        attended_BNLH = jax.vmap(kernel)(q_BNLH, k_BKLH, v_BKLH)
    else:
        segments = splash.SegmentIds(q=segments_BL, kv=segments_BL)
        attended_BNLH = jax.vmap(kernel)(q_BNLH, k_BKLH, v_BKLH, segments)
    return jnp.swapaxes(attended_BNLH, 1, 2).astype(q_BLNH.dtype)
