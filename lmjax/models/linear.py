"""The one linear projection all layers are made of, and dropout."""

import math

import jax
import jax.numpy as jnp
from flax import nnx


class Linear(nnx.Module):
    """y = x @ kernel (+ bias) over the trailing input dimensions.

    Args:
      inputs: sizes of the contracted trailing dimensions.
      outputs: sizes of the dimensions that replace them.
      names: logical name of each kernel dimension, for sharding.
      scale: standard deviation of the kernel times sqrt(fan-in); 0 starts at zero.
      use_bias: whether a zero-initialised bias is added.
      dtype: dtype of the product; parameters are float32.
      rngs: source of the initial values.
    """

    def __init__(
        self,
        inputs: tuple[int, ...],
        outputs: tuple[int, ...],
        *,
        names: tuple[str | None, ...],
        scale: float = 1.0,
        use_bias: bool = False,
        dtype: jnp.dtype,
        rngs: nnx.Rngs,
    ):
        shape = inputs + outputs
        if len(names) != len(shape):
            raise ValueError(f"{names=} must name the {len(shape)} dimensions {shape}")
        deviation = scale / math.sqrt(math.prod(inputs))
        if scale:
            kernel = deviation * jax.random.normal(rngs.params(), shape, jnp.float32)
        else:
            kernel = jnp.zeros(shape, jnp.float32)
        self.kernel = nnx.Param(kernel, names=names)
        bias = nnx.Param(jnp.zeros(outputs, jnp.float32), names=names[len(inputs) :])
        self.bias = bias if use_bias else None
        self.num_contracted = len(inputs)
        self.dtype = dtype

    def __call__(self, x: jax.Array) -> jax.Array:
        n = self.num_contracted
        y = jax.lax.dot_general(
            x.astype(self.dtype),
            self.kernel[...].astype(self.dtype),
            ((tuple(range(x.ndim - n, x.ndim)), tuple(range(n))), ((), ())),
        )
        if self.bias is not None:
            y = y + self.bias[...].astype(self.dtype)
        return y


@jax.custom_vjp
def wide_product(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """x [..., D] times kernel [V, D] transposed, in float32 whatever their dtype.

    The backward pass rounds what comes back to their dtype first, so that its products
    run on the matrix units as the forward one does.
    """
    return _contract(x, kernel, x.ndim - 1, 1, jnp.float32)


def _wide_product_forward(
    x: jax.Array, kernel: jax.Array
) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    return wide_product(x, kernel), (x, kernel)


def _wide_product_backward(
    saved: tuple[jax.Array, jax.Array], gradient: jax.Array
) -> tuple[jax.Array, jax.Array]:
    x, kernel = saved
    gradient = gradient.astype(x.dtype)
    by_x = _contract(gradient, kernel, gradient.ndim - 1, 0, x.dtype)
    rows = gradient.reshape(-1, gradient.shape[-1]), x.reshape(-1, x.shape[-1])
    return by_x, _contract(*rows, 0, 0, kernel.dtype)


wide_product.defvjp(_wide_product_forward, _wide_product_backward)


def _contract(
    a: jax.Array, b: jax.Array, a_axis: int, b_axis: int, dtype: jnp.dtype
) -> jax.Array:
    dimensions = (((a_axis,), (b_axis,)), ((), ()))
    return jax.lax.dot_general(a, b, dimensions, preferred_element_type=dtype)


def dropout(x: jax.Array, rate: float, key: jax.Array | None) -> jax.Array:
    """Zeroes a share `rate` of x and scales up the rest; nothing without a key."""
    if key is None or rate == 0.0:
        return x
    keep = jax.random.bernoulli(key, 1.0 - rate, x.shape)
    return jnp.where(keep, x / (1.0 - rate), 0).astype(x.dtype)
