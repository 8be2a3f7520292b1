"""An objective whose numbers go wrong where a batch says so."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from lmjax.core.types import LanguageModel
from lmjax.data.batch import Batch
from lmjax.objectives.base import Loss, Objective

NAN, STEEP, SPIKE = 1, 2, 3  # what the source of a row stands for


def spoil(batch: Batch, fault: int, rows: slice = slice(5, 6)) -> Batch:
    """The batch with a fault in some of its rows."""
    source = batch.source.at[rows].set(fault)
    return dataclasses.replace(
        batch, source=jax.device_put(source, batch.source.sharding)
    )


@dataclasses.dataclass(frozen=True)
class Faulty:
    """`objective`, but for batches with rows of a faulty source.

    NAN makes the loss NaN. STEEP leaves it as it is, with an infinite gradient in the
    second layer of `mlp.up` alone. SPIKE makes it 30 times as large.
    """

    objective: Objective

    def __getattr__(self, name: str) -> Any:
        return getattr(self.objective, name)

    def loss(
        self,
        model: LanguageModel,
        batch: Batch,
        draws: Any,
        dropout_key: jax.Array | None,
    ) -> Loss:
        loss = self.objective.loss(model, batch, draws, dropout_key)

        def has(fault: int) -> jax.Array:
            return jnp.any(batch.source == fault)

        factor = jnp.where(has(NAN), jnp.nan, jnp.where(has(SPIKE), 30.0, 1.0))
        weight = model.blocks.mlp.up.kernel[...][1, 3, 2]
        zero = weight - jax.lax.stop_gradient(weight)
        root = jnp.sqrt(jnp.where(has(STEEP), zero, 1.0))
        nothing = root - jax.lax.stop_gradient(root)
        return loss._replace(total=loss.total * factor + nothing)
