"""What a backward pass needs of the forward pass, by tracing: nothing is compiled."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp


def saved_bytes(
    loss: Callable[[Any, Any], jax.Array],
    params: Any,
    inputs: Callable[[int], Any],
    rows: int,
) -> int:
    """Bytes that the forward pass over `rows` sequences leaves for the backward pass.

    Of what is saved the parameters, and what is computed from them alone, do not grow
    with the rows; the rest does, in proportion: so two traces tell one from the other.
    XLA may save less, where it computes something cheap again.

    Args:
      loss: (params, inputs) -> the summed loss; by shapes alone.
      params: shapes of the parameters.
      inputs: shapes of the inputs for a number of rows.
    """

    def saved(rows: int) -> int:
        _, pull_back = jax.eval_shape(
            lambda params, given: jax.vjp(lambda p: loss(p, given), params),
            params,
            inputs(rows),
        )
        return sum(
            leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(pull_back)
        )

    return saved(2 * rows) - saved(rows)


@jax.custom_vjp
def _fused(q_BLNH: jax.Array, k_BSKH: jax.Array, v_BSKH: jax.Array) -> jax.Array:
    del k_BSKH, v_BSKH
    return q_BLNH


def _fused_forward(
    q_BLNH: jax.Array, k_BSKH: jax.Array, v_BSKH: jax.Array
) -> tuple[jax.Array, Any]:
    y_BLNH = q_BLNH * 1
    normalisers_BLN = jnp.sum(q_BLNH, axis=-1, dtype=jnp.float32)
    return y_BLNH, (q_BLNH, k_BSKH, v_BSKH, y_BLNH, normalisers_BLN)


def _fused_backward(saved: Any, y_BLNH: jax.Array) -> Any:
    del y_BLNH
    return saved[:3]


_fused.defvjp(_fused_forward, _fused_backward)


def fused_shapes(
    q_BLNH: jax.Array, k_BSKH: jax.Array, v_BSKH: jax.Array, **_: Any
) -> jax.Array:
    """Saves what a fused kernel saves, in place of one that cannot be traced here.

    Its inputs, its output and one number per query and head. No attention: shapes alone
    mean something.
    """
    return _fused(q_BLNH, k_BSKH, v_BSKH)
