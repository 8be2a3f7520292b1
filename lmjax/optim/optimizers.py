"""The optimizer: optax does the work."""

import re
from typing import Any

import jax
import optax
from optax import contrib

from lmjax.config.schema import OptimConfig, OptimizerKind
from lmjax.core import trees
from lmjax.core.types import PyTree

# Weight decay acts on matrices alone: gains, biases and embeddings are left out.
NO_DECAY = r"(scale|bias|table)$"
# What Muon updates: matrices between hidden states. Embeddings and the head are none.
MATRICES = r"^blocks/(attention|mlp)/.*kernel$"
# Root mean square of Muon's updates, that of AdamW's, so that they share a learning
# rate (Liu et al. 2025, arXiv 2502.16982, section 2.2).
UPDATE_RMS = 0.2


def build_optimizer(
    config: OptimConfig, schedule: optax.Schedule, names: PyTree
) -> optax.GradientTransformation:
    """Clipping by global norm, then what `config.kind` says.

    AdamW (Loshchilov and Hutter 2019), or Muon (Jordan et al. 2024) with the update's
    root mean square held at AdamW's.

    Args:
      names: logical names of each parameter's dimensions, see `Model.names`.
    """
    clip = optax.identity()  # its state is that of clipping: either may be resumed
    if config.clip_norm:
        clip = optax.clip_by_global_norm(config.clip_norm)
    match config.kind:
        case OptimizerKind.ADAMW:
            return optax.chain(clip, _adamw(config, schedule))
        case OptimizerKind.MUON:
            return optax.chain(clip, _muon(config, schedule, names))


def _adamw(
    config: OptimConfig, schedule: optax.Schedule
) -> optax.GradientTransformation:
    def decayed(params: optax.Params) -> optax.Params:
        return jax.tree.map(lambda left_out: not left_out, trees.mask(params, NO_DECAY))

    return optax.adamw(
        schedule,
        b1=config.beta1,
        b2=config.beta2,
        eps=config.epsilon,
        weight_decay=config.weight_decay,
        mask=decayed,
    )


def _muon(
    config: OptimConfig, schedule: optax.Schedule, names: PyTree
) -> optax.GradientTransformation:
    return contrib.muon(
        schedule,
        beta=config.momentum,
        eps=config.epsilon,
        weight_decay=config.weight_decay,
        adam_b1=config.beta1,
        adam_b2=config.beta2,
        muon_weight_dimension_numbers=matrices(names),
        consistent_rms=UPDATE_RMS,
    )


def matrices(names: PyTree) -> PyTree:
    """What each parameter is as a matrix, for Muon; None where AdamW updates it.

    A kernel reads the embedding or writes it: the width is one side of the matrix, all
    other dimensions but the layers' are the other, as heads and their width are.
    """

    def numbers(path: str, dimensions: tuple[str | None, ...]) -> Any:
        if not re.search(MATRICES, path):
            return None
        width = dimensions.index("embed")
        others = tuple(
            axis
            for axis, name in enumerate(dimensions)
            if axis != width and name != "layers"
        )
        reads = width < others[0]
        return contrib.MuonDimensionNumbers(
            *((width,), others) if reads else (others, (width,))
        )

    return trees.map_named(numbers, names)
