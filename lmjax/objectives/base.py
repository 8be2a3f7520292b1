"""What the training step and the evaluators ask of an objective.

All randomness of a batch is drawn first, for the global batch and outside the model:
so the loss does not depend on how the batch is cut over devices or microbatches.
"""

from typing import Any, NamedTuple, Protocol

import jax

from lmjax.core.types import LanguageModel
from lmjax.data.batch import Batch

Draws = Any  # pytree of arrays with a leading batch dimension


class Loss(NamedTuple):
    """Sums over a batch; the step divides once, by the weight of the global batch.

    Attributes:
      total: nats, an unbiased estimate of the loss summed over counted tokens.
      weight: number of counted tokens.
      metrics: further sums by name, each shown divided by the weight.
    """

    total: jax.Array
    weight: jax.Array
    metrics: dict[str, jax.Array]


class Objective(Protocol):
    """How a model is trained, and what its likelihood is worth."""

    causal: bool  # whether the model must not see the future
    loss_is_bound: bool  # whether the training loss is no less than the likelihood's
    kind: str  # "exact" or "upper bound": what nll_B gives
    estimator: str  # how nll_B is found, in words

    def draw(self, batch: Batch, key: jax.Array, progress: jax.Array) -> Draws:
        """Randomness of one training batch; `progress` in [0, 1] of the run is done."""
        ...

    def draw_evaluation(
        self, batch: Batch, key: jax.Array, position_B: jax.Array
    ) -> Draws:
        """Randomness of one evaluation pass; `position_B` in [0, 1) spreads it."""
        ...

    def nll_B(
        self,
        model: LanguageModel,
        batch: Batch,
        draws: Draws,
        dropout_key: jax.Array | None = None,
    ) -> jax.Array:
        """Negative log-likelihood of each row, or a bound on it: nats, float32 [B]."""
        ...

    def loss(
        self,
        model: LanguageModel,
        batch: Batch,
        draws: Draws,
        dropout_key: jax.Array | None,
    ) -> Loss:
        """What training minimises."""
        ...
