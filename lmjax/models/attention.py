"""Multi-head attention with grouped queries, rotary positions and a cache."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jax.ad_checkpoint import checkpoint_name

from lmjax.core.types import KeyValueCache
from lmjax.models.attention_kernels import AttentionFunction, chunked_attention
from lmjax.models.linear import Linear
from lmjax.models.norms import RMSNorm
from lmjax.models.positions import Rotation, rotate
from lmjax.models.stack import KEPT
from lmjax.parallel.rules import ONE_DEVICE, Layout


class Rows(NamedTuple):
    """What the rows of a batch hold, as far as attention must know.

    Attributes:
      lengths_B: real tokens of each row; None: there is no padding.
      segments_BL: number of the document each position belongs to, 0 on padding;
        None: a row is one document.
      rotation: by how much queries and keys are turned; None: positions are no matter
        of attention.
    """

    lengths_B: jax.Array | None = None
    segments_BL: jax.Array | None = None
    rotation: Rotation | None = None


class Attention(nnx.Module):
    """Self-attention [B, L, D] -> [B, L, D].

    Args:
      width: D.
      num_heads: N, query heads; num_kv_heads K must divide it.
      head_width: H.
      causal: whether position i sees only positions up to i.
      attend: implementation, see `attention_kernels`.
      output_scale: multiplies the initial output projection.
      layout: where activations lie: heads apart from each other, the width whole.
      qk_norm: RMSNorm of queries and keys over H, before the rotation.
    """

    def __init__(
        self,
        *,
        width: int,
        num_heads: int,
        num_kv_heads: int,
        head_width: int,
        causal: bool,
        attend: AttentionFunction,
        qk_norm: bool,
        norm_epsilon: float,
        use_bias: bool,
        output_scale: float,
        dtype: jnp.dtype,
        layout: Layout = ONE_DEVICE,
        rngs: nnx.Rngs,
    ):
        self.causal, self.attend, self.layout = causal, attend, layout

        def project(heads: int, name: str) -> Linear:
            return Linear(
                (width,),
                (heads, head_width),
                names=("embed", name, None),
                use_bias=use_bias,
                dtype=dtype,
                rngs=rngs,
            )

        self.query = project(num_heads, "heads")
        self.key = project(num_kv_heads, "kv_heads")
        self.value = project(num_kv_heads, "kv_heads")
        self.output = Linear(
            (num_heads, head_width),
            (width,),
            names=("heads", None, "embed"),
            scale=output_scale,
            use_bias=use_bias,
            dtype=dtype,
            rngs=rngs,
        )

        def head_norm() -> RMSNorm | None:
            if not qk_norm:
                return None
            return RMSNorm(head_width, epsilon=norm_epsilon, name=None)

        self.query_norm, self.key_norm = head_norm(), head_norm()

    def __call__(self, x_BLD: jax.Array, rows: Rows) -> jax.Array:
        x_BLD = self.layout(x_BLD, "batch", None, None)
        q_BLNH, k_BLKH, v_BLKH = checkpoint_name(
            self._project(x_BLD, rows.rotation), KEPT
        )
        y_BLNH = self.attend(
            q_BLNH,
            k_BLKH,
            v_BLKH,
            causal=self.causal,
            lengths_B=rows.lengths_B,
            segments_BL=rows.segments_BL,
        )
        y_BLNH = self.layout(y_BLNH, "batch", None, "heads", None)
        y_BLD = self.layout(self.output(y_BLNH), "batch", "sequence", None)
        return checkpoint_name(y_BLD, KEPT)

    def read(
        self, x_BLD: jax.Array, rows: Rows
    ) -> tuple[jax.Array, jax.Array, jax.Array]:
        """Causal attention within segments, and what a cache is to hold.

        Returns:
          The output [B, L, D], and keys and values [B, K, L, H].
        """
        q_BLNH, k_BLKH, v_BLKH = self._project(x_BLD, rows.rotation)
        y_BLNH = chunked_attention(
            q_BLNH, k_BLKH, v_BLKH, causal=True, segments_BL=rows.segments_BL
        )
        keys_BKLH, values_BKLH = (jnp.swapaxes(x, 1, 2) for x in (k_BLKH, v_BLKH))
        return self.output(y_BLNH), keys_BKLH, values_BKLH

    def extend(
        self,
        x_B1D: jax.Array,
        rotation: Rotation | None,
        pads_B: jax.Array,
        slot: jax.Array,
        cache: KeyValueCache,
    ) -> tuple[jax.Array, KeyValueCache]:
        """Writes one token of each row at `slot`; attends to it and those before it.

        The first `pads_B` slots of a row hold no tokens.
        """
        q_B1NH, k_B1KH, v_B1KH = self._project(x_B1D, rotation)
        keys_BKSH, values_BKSH = (
            jax.lax.dynamic_update_slice_in_dim(
                whole, jnp.swapaxes(new, 1, 2).astype(whole.dtype), slot, axis=2
            )
            for whole, new in zip(cache, (k_B1KH, v_B1KH), strict=True)
        )
        batch_size, num_kv_heads, length, head_width = keys_BKSH.shape
        q_BKGH = q_B1NH.reshape(batch_size, num_kv_heads, -1, head_width)
        scores_BKGS = jnp.einsum(
            "bkgh,bksh->bkgs", q_BKGH, keys_BKSH, preferred_element_type=jnp.float32
        )
        slots_S = jnp.arange(length)
        seen_BS = (slots_S <= slot) & (slots_S >= pads_B[:, None])
        scores_BKGS = jnp.where(
            seen_BS[:, None, None], scores_BKGS * head_width**-0.5, -jnp.inf
        )
        weights_BKGS = jax.nn.softmax(scores_BKGS, axis=-1).astype(values_BKSH.dtype)
        y_BKGH = jnp.einsum("bkgs,bksh->bkgh", weights_BKGS, values_BKSH)
        y_B1D = self.output(y_BKGH.reshape(q_B1NH.shape))
        return y_B1D, KeyValueCache(keys_BKSH, values_BKSH)

    def _project(
        self, x_BLD: jax.Array, rotation: Rotation | None
    ) -> tuple[jax.Array, jax.Array, jax.Array]:
        q_BLNH, k_BLKH, v_BLKH = self.query(x_BLD), self.key(x_BLD), self.value(x_BLD)
        if self.query_norm is not None:
            q_BLNH, k_BLKH = self.query_norm(q_BLNH), self.key_norm(k_BLKH)
        if rotation is not None:
            q_BLNH, k_BLKH = rotate(q_BLNH, rotation), rotate(k_BLKH, rotation)
        q_BLNH = self.layout(q_BLNH, "batch", None, "heads", None)
        k_BLKH = self.layout(k_BLKH, "batch", None, "kv_heads", None)
        return q_BLNH, k_BLKH, self.layout(v_BLKH, "batch", None, "kv_heads", None)
