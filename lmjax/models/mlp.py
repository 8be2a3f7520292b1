"""Feed-forward blocks."""

import jax
import jax.numpy as jnp
from flax import nnx

from lmjax.config.schema import MLPKind
from lmjax.models.linear import Linear
from lmjax.parallel.rules import ONE_DEVICE, Layout


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
        layout: Layout = ONE_DEVICE,
        rngs: nnx.Rngs,
    ):
        self.kind, self.layout = kind, layout

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

    def __call__(self, x_BLD: jax.Array) -> jax.Array:
        # As one long list of tokens: XLA on CPU computes activations of
        # three-dimensional arrays two to three times slower.
        x_BLD = self.layout(x_BLD, "batch", None, None)
        x = x_BLD.reshape(-1, x_BLD.shape[-1])
        hidden = self.up(x)
        if self.gate is None:
            # Its cube leaves the range of float16, and then its gradient is NaN.
            wide = jnp.float32 if hidden.dtype == jnp.float16 else hidden.dtype
            hidden = nnx.gelu(hidden.astype(wide), approximate=True)
        else:
            hidden = nnx.silu(self.gate(x)) * hidden
        hidden = self.layout(hidden, "batch", "mlp")
        y_BLD = self.down(hidden).reshape(x_BLD.shape)
        return self.layout(y_BLD, "batch", "sequence", None)
