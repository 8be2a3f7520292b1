"""Multi-head attention with grouped queries, rotary positions and a cache."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from lmjax.models.attention_kernels import AttentionFunction
from lmjax.models.linear import Linear
from lmjax.models.norms import RMSNorm
from lmjax.models.positions import rotate


class Rows(NamedTuple):
    """What the rows of a batch hold, as far as attention must know.

    Attributes:
      lengths_B: real tokens of each row; None: there is no padding.
      segments_BL: number of the document each position belongs to, 0 on padding;
        None: a row is one document.
      positions_BL: position of each token in its document; None: counted from the
        start of the row.
    """

    lengths_B: jax.Array | None = None
    segments_BL: jax.Array | None = None
    positions_BL: jax.Array | None = None


class Attention(nnx.Module):
    """Self-attention [B, L, D] -> [B, L, D].

    Args:
      width: D.
      num_heads: N, query heads; num_kv_heads K must divide it.
      causal: whether position i sees only positions up to i.
      attend: implementation, see `attention_kernels`.
      output_scale: multiplies the initial output projection.
      qk_norm: RMSNorm of queries and keys over H, before the rotation.
    """

    def __init__(
        self,
        *,
        width: int,
        num_heads: int,
        num_kv_heads: int,
        causal: bool,
        attend: AttentionFunction,
        rope_theta: float,
        qk_norm: bool,
        norm_epsilon: float,
        use_bias: bool,
        output_scale: float,
        dtype: jnp.dtype,
        rngs: nnx.Rngs,
    ):
        head_width = width // num_heads
        self.causal, self.attend, self.rope_theta = causal, attend, rope_theta

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
        positions_BL = rows.positions_BL
        if positions_BL is None:
            positions_BL = jnp.arange(x_BLD.shape[1])[None]
        q_BLNH, k_BLKH, v_BLKH = self._project(x_BLD, positions_BL)
        y_BLNH = self.attend(
            q_BLNH,
            k_BLKH,
            v_BLKH,
            causal=self.causal,
            lengths_B=rows.lengths_B,
            segments_BL=rows.segments_BL,
        )
        return self.output(y_BLNH)

    def extend(
        self,
        x_BLD: jax.Array,
        positions_BL: jax.Array,
        keys_BSKH: jax.Array,
        values_BSKH: jax.Array,
    ) -> tuple[jax.Array, jax.Array, jax.Array]:
        """Writes new tokens into the cache and attends to all before them.

        Each row has its own positions, so prompts of different lengths share a batch:
        what padding left behind a prompt is overwritten before it is ever seen.

        Returns:
          The output [B, L, D] and the extended keys and values.
        """
        q_BLNH, k_BLKH, v_BLKH = self._project(x_BLD, positions_BL)
        rows_B1 = jnp.arange(x_BLD.shape[0])[:, None]
        keys_BSKH = keys_BSKH.at[rows_B1, positions_BL].set(
            k_BLKH.astype(keys_BSKH.dtype)
        )
        values_BSKH = values_BSKH.at[rows_B1, positions_BL].set(
            v_BLKH.astype(values_BSKH.dtype)
        )
        seen_BLS = jnp.arange(keys_BSKH.shape[1]) <= positions_BL[..., None]
        y_BLNH = jax.nn.dot_product_attention(
            q_BLNH, keys_BSKH, values_BSKH, mask=seen_BLS[:, None], implementation="xla"
        )
        return self.output(y_BLNH), keys_BSKH, values_BSKH

    def _project(
        self, x_BLD: jax.Array, positions_BL: jax.Array
    ) -> tuple[jax.Array, jax.Array, jax.Array]:
        q_BLNH, k_BLKH, v_BLKH = self.query(x_BLD), self.key(x_BLD), self.value(x_BLD)
        if self.query_norm is not None:
            q_BLNH, k_BLKH = self.query_norm(q_BLNH), self.key_norm(k_BLKH)
        q_BLNH = rotate(q_BLNH, positions_BL, self.rope_theta)
        k_BLKH = rotate(k_BLKH, positions_BL, self.rope_theta)
        return q_BLNH, k_BLKH, v_BLKH
