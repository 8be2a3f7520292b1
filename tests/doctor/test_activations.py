"""What is saved for the backward pass, counted by hand."""

import jax
import jax.numpy as jnp
import pytest

from lmjax.doctor.activations import fused_shapes, saved_bytes


def _inputs(rows: int) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct((rows, 8), jnp.float32)


PARAMS = {"w": jax.ShapeDtypeStruct((8, 16), jnp.float32)}


@pytest.mark.parametrize("rows", [1, 5])
def test_inputs_of_a_product_and_of_a_sine_are_saved_and_weights_are_not(
    rows: int,
) -> None:
    """x [rows, 8] for the weights, the cosine [rows, 16] for the sine."""

    def loss(params: dict, x: jax.Array) -> jax.Array:
        return jnp.sum(jnp.sin(x @ params["w"]))

    assert saved_bytes(loss, PARAMS, _inputs, rows) == rows * (8 + 16) * 4


def test_what_is_computed_again_is_not_saved() -> None:
    def loss(params: dict, x: jax.Array) -> jax.Array:
        sine = jax.checkpoint(lambda params, x: jnp.sin(x @ params["w"]))
        return jnp.sum(sine(params, x))

    assert saved_bytes(loss, PARAMS, _inputs, 3) == 3 * 8 * 4


def test_fused_attention_saves_no_scores() -> None:
    """q, k, v and the output in bfloat16, and a float32 per query and head."""
    length, heads, kv_heads, width = 64, 4, 2, 8

    def loss(scale: jax.Array, x: jax.Array) -> jax.Array:
        shape = (len(x), length, heads, width)
        q = (x.reshape(shape) * scale).astype(jnp.bfloat16)
        k = q[:, :, :kv_heads]
        v = 2 * k
        return jnp.sum(fused_shapes(q, k, v, causal=True).astype(jnp.float32))

    def inputs(rows: int) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct((rows, length * heads * width), jnp.float32)

    saved = saved_bytes(loss, jax.ShapeDtypeStruct((), jnp.float32), inputs, 2)
    attention = 2 * (2 * heads + 2 * kv_heads) * width + 4 * heads
    scaled = 4 * heads * width  # x, for the scale
    assert saved == 2 * length * (attention + scaled)
