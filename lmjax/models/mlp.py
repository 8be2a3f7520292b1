"""Feed-forward blocks."""

import jax
import jax.numpy as jnp
from flax import nnx

from lmjax.config.schema import MLPKind
from lmjax.models.linear import Linear


class MLP(nnx.Module):
    """SwiGLU (Shazeer 2020) or GELU (tanh form), [.., D] -> [.., D].

    `output_scale` multiplies the initial output projection, so that the residual
    stream does not grow with depth.
    """

    def __init__(
        self,
        kind: MLPKind,
        *,
        width: int,
        mlp_width: int,
        use_bias: bool,
        output_scale: float,
        dtype: jnp.dtype,
        rngs: nnx.Rngs,
    ):
        self.kind = kind

        def expand() -> Linear:
            return Linear(
                (width,),
                (mlp_width,),
                names=("embed", "mlp"),
                use_bias=use_bias,
                dtype=dtype,
                rngs=rngs,
            )

        self.up = expand()
        self.gate = expand() if kind is MLPKind.SWIGLU else None
        self.down = Linear(
            (mlp_width,),
            (width,),
            names=("mlp", "embed"),
            scale=output_scale,
            use_bias=use_bias,
            dtype=dtype,
            rngs=rngs,
        )

    def __call__(self, x: jax.Array) -> jax.Array:
        up = self.up(x)
        if self.gate is not None:
            return self.down(nnx.silu(self.gate(x)) * up)
        return self.down(nnx.gelu(up, approximate=True))
