"""The TPU kernel, interpreted, is attention: on one device and on a mesh."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding

from lmjax.config.schema import ParallelConfig
from lmjax.models.attention_kernels import library_attention
from lmjax.models.attention_tpu import MULTIPLE, SplashAttention
from lmjax.parallel import rules
from lmjax.parallel.mesh import build_mesh

LENGTH = 128
# A query of padding sees padding in the kernel, and keys in XLA: it gets no weight.
LENGTHS = np.array([LENGTH, 77, 100, 1], np.int32)
# A document that ends with the row, one of a single token, and padding.
SEGMENTS = np.where(
    np.arange(LENGTH) < LENGTHS[:, None], 1 + (np.arange(LENGTH) >= 50), 0
).astype(np.int32)


def _mesh(data: int, fsdp: int, tensor: int) -> Mesh:
    parallel = ParallelConfig(data=data, fsdp=fsdp, tensor=tensor)
    return build_mesh(parallel, jax.devices()[: data * fsdp * tensor])


def _inputs(
    mesh: Mesh, num_heads: int, num_kv_heads: int, rows: int = 4, head_width: int = 8
) -> list[jax.Array]:
    generator = np.random.default_rng(num_heads)
    inputs = []
    for heads in (num_heads, num_kv_heads, num_kv_heads):
        values = generator.normal(size=(rows, LENGTH, heads, head_width))
        spec = rules.Layout(mesh).spec(values.shape, "batch", None, "heads", None)
        sharding = NamedSharding(mesh, spec)
        inputs.append(jax.device_put(values.astype(np.float32), sharding))
    return inputs


def _values_and_gradients(
    attend: Callable[..., jax.Array], inputs: list[jax.Array], **keywords: Any
) -> list[np.ndarray]:
    """Of all real queries; the sum that is derived weighs every number differently."""
    real_BL = np.arange(LENGTH) < LENGTHS[: len(inputs[0]), None]
    weights = np.random.default_rng(1).normal(size=inputs[0].shape)
    weights = np.where(real_BL[:, :, None, None], weights, 0.0)

    @functools.partial(jax.value_and_grad, argnums=(0, 1, 2), has_aux=True)
    def total(*arrays: jax.Array) -> tuple[jax.Array, jax.Array]:
        output = attend(*arrays, **keywords)
        return jnp.sum(weights * output), output

    (_, output), gradients = jax.jit(total)(*inputs)
    return [np.where(weights != 0, output, 0.0), *jax.device_get(gradients)]


@pytest.mark.parametrize(
    ("mesh", "num_heads", "num_kv_heads", "causal"),
    [
        ((1, 1, 1), 2, 1, False),
        ((2, 2, 2), 4, 2, True),  # a key head for each half of the heads
        ((2, 1, 4), 4, 2, False),  # fewer key heads than devices on the axis
        ((1, 1, 4), 12, 6, True),  # more of them, and not divided by it
        ((1, 2, 4), 6, 2, False),  # heads that the axis does not divide stay whole
    ],
)
def test_the_kernel_agrees_with_xla_on_every_mesh(
    mesh: tuple[int, int, int], num_heads: int, num_kv_heads: int, causal: bool
) -> None:
    """Causal with documents, and bidirectional with lengths."""
    mesh = _mesh(*mesh)
    inputs = _inputs(mesh, num_heads, num_kv_heads)
    keywords = {"segments_BL": SEGMENTS} if causal else {"lengths_B": LENGTHS}
    splash = SplashAttention(layout=rules.Layout(mesh), interpret=True)
    found = _values_and_gradients(splash, inputs, causal=causal, **keywords)
    wanted = _values_and_gradients(library_attention, inputs, causal=causal, **keywords)
    for array, expected in zip(found, wanted, strict=True):
        np.testing.assert_allclose(array, expected, atol=2e-5)


def test_replicas_of_a_model_run_the_kernel_on_their_own_rows() -> None:
    """As the training step maps over them: rows go to the axis fsdp alone inside."""
    mesh = _mesh(2, 2, 2)
    inputs = _inputs(mesh, 4, 2)
    layout = rules.Layout(mesh, replica_axis="data")
    splash = SplashAttention(layout=layout, interpret=True)

    def by_replica(*arrays: jax.Array, causal: bool) -> jax.Array:
        attend = functools.partial(splash, causal=causal)
        mapped = jax.vmap(attend, spmd_axis_name="data")(*layout.split(arrays))
        return mapped.reshape(arrays[0].shape)

    found = _values_and_gradients(by_replica, inputs, causal=True)
    wanted = _values_and_gradients(library_attention, inputs, causal=True)
    for array, expected in zip(found, wanted, strict=True):
        np.testing.assert_allclose(array, expected, atol=2e-5)


@pytest.mark.parametrize("causal", [True, False])
def test_blocks_that_are_left_out_are_those_that_nobody_sees(causal: bool) -> None:
    """Three blocks each way, and a batch that the mesh does not split."""
    mesh, length = _mesh(2, 1, 1), 3 * MULTIPLE
    generator = np.random.default_rng(0)
    q, k, v = generator.normal(size=(3, 1, length, 1, 64)).astype(np.float32)
    splash = SplashAttention(layout=rules.Layout(mesh), interpret=True)
    output = jax.jit(splash, static_argnames="causal")(q, k, v, causal=causal)
    expected = library_attention(q, k, v, causal=causal)
    np.testing.assert_allclose(output, expected, atol=2e-5)


def test_a_length_that_no_block_divides_takes_xla() -> None:
    q, k, v = np.random.default_rng(0).normal(size=(3, 2, 130, 2, 8)).astype(np.float32)
    segments = np.where(np.arange(130) < 60, 1, 2)[None].repeat(2, axis=0)
    keywords = {"causal": True, "segments_BL": segments}
    output = SplashAttention(layout=rules.Layout(_mesh(2, 1, 1)))(q, k, v, **keywords)
    assert np.array_equal(output, library_attention(q, k, v, **keywords))
