"""A stack of equal layers: stored once, run as a scan or unrolled.

Parameters of all layers stand in one array with a leading layer dimension, whichever
way the layers run, so a checkpoint fits both.
"""

from collections.abc import Callable
from typing import Any, TypeVar

import jax
from flax import nnx

from lmjax.config.schema import LayerLayout, Remat

Layer = TypeVar("Layer", bound=nnx.Module)

# The name of what Remat.NAMED keeps: rotated queries, keys and values, and what
# attention adds to the residual stream.
KEPT = "kept"
UNROLL_LIMIT = 24  # deeper stacks are scanned: unrolling them compiles too long

_REMAT_POLICIES = {
    Remat.NAMED: jax.checkpoint_policies.save_only_these_names(KEPT),
    Remat.DOTS: jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
    Remat.FULL: jax.checkpoint_policies.nothing_saveable,
}


def make_stack(
    make_layer: Callable[[nnx.Rngs], Layer], num_layers: int, rngs: nnx.Rngs
) -> Layer:
    """A layer whose parameters carry a leading dimension of `num_layers`."""
    keys = jax.random.split(rngs.params(), num_layers)
    return nnx.vmap(lambda key: make_layer(nnx.Rngs(key)))(keys)


def run_stack(
    stack: Layer,
    call: Callable[[Layer, jax.Array, Any], tuple[jax.Array, Any]],
    x: jax.Array,
    per_layer: Any = None,
    *,
    scan: bool,
    remat: Remat,
) -> tuple[jax.Array, Any]:
    """Feeds x through all layers.

    Args:
      stack: what `make_stack` returned.
      call: (layer, x, inputs of this layer) -> (x, outputs of this layer).
      x: the residual stream.
      per_layer: pytree of arrays with a leading layer dimension (caches, keys).
      scan: one compiled layer in a loop, rather than all layers one by one.
      remat: what the backward pass computes again.

    Returns:
      The last x, and the layers' outputs stacked.
    """
    graph, state = nnx.split(stack)

    def layer(x: jax.Array, inputs: Any) -> tuple[jax.Array, Any]:
        layer_state, layer_inputs = inputs
        return call(nnx.merge(graph, layer_state), x, layer_inputs)

    if remat is not Remat.NONE:
        layer = jax.checkpoint(layer, policy=_REMAT_POLICIES[remat])
    if scan:
        return jax.lax.scan(layer, x, (state, per_layer))
    outputs = []
    for inputs in unstack((state, per_layer)):
        x, output = layer(x, inputs)
        outputs.append(output)
    return x, jax.tree.map(lambda *leaves: jax.numpy.stack(leaves), *outputs)


def use_scan(layout: LayerLayout, num_layers: int, platform: str) -> bool:
    """Whether layers are scanned: TPU and deep stacks are, unless forced."""
    if layout is LayerLayout.AUTO:
        return platform == "tpu" or num_layers > UNROLL_LIMIT
    return layout is LayerLayout.SCAN


def unstack(tree: Any) -> list[Any]:
    """One tree per layer.

    Uses split, whose transpose is one concatenation; the transpose of indexing would
    add up one zero-padded array per layer.
    """
    leaves, structure = jax.tree.flatten(tree)
    num_layers = leaves[0].shape[0]
    parts = [jax.lax.split(leaf, (1,) * num_layers) for leaf in leaves]
    return [
        structure.unflatten([part[i].squeeze(0) for part in parts])
        for i in range(num_layers)
    ]
