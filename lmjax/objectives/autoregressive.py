"""Next-token prediction."""

import dataclasses

import jax
import jax.numpy as jnp

from lmjax.core.types import LanguageModel
from lmjax.data.batch import Batch
from lmjax.objectives.base import Loss
from lmjax.objectives.cross_entropy import TokenCosts, cross_entropy


@dataclasses.dataclass(frozen=True, kw_only=True)
class Autoregressive:
    """-sum_i log p(x_i | x_<i), with BOS before every window.

    So each of a window's L tokens is predicted once, just as in masked diffusion, and
    the two objectives' figures count the same tokens. Tokens without a weight are
    context: what follows is conditioned on them, and they do not count.

    Where attention stays within documents, the input at a position is of the segment
    and the position of its target. So a document that is not the first of its window is
    predicted from the EOS of the one before, as its first input, and from nothing else
    of that one: it costs what it costs alone, with EOS in place of BOS before it.

    Attributes:
      bos_id: the first input of every window.
      chunk_tokens: tokens whose logits exist at once.
    """

    bos_id: int
    chunk_tokens: int
    causal: bool = True
    kind: str = "exact"
    estimator: str = "chain rule"
    loss_is_bound: bool = True

    def draw(
        self, batch: Batch, key: jax.Array, progress: jax.Array | float = 0.0
    ) -> None:
        """Nothing is random but dropout."""

    def draw_evaluation(
        self, batch: Batch, key: jax.Array, position_B: jax.Array
    ) -> None:
        """Nothing is random."""

    def nll_B(
        self,
        model: LanguageModel,
        batch: Batch,
        draws: None,
        dropout_key: jax.Array | None = None,
    ) -> jax.Array:
        return self._costs(model, batch, dropout_key).of_rows()

    def loss(
        self,
        model: LanguageModel,
        batch: Batch,
        draws: None,
        dropout_key: jax.Array | None,
    ) -> Loss:
        total = self._costs(model, batch, dropout_key).total()
        return Loss(total, jnp.sum(batch.weights), {})

    def _costs(
        self, model: LanguageModel, batch: Batch, dropout_key: jax.Array | None
    ) -> TokenCosts:
        inputs_BL = jnp.roll(batch.tokens, 1, axis=1).at[:, 0].set(self.bos_id)
        hidden_BLD = model(
            inputs_BL,
            segments_BL=batch.segments,
            positions_BL=batch.positions,
            dropout_key=dropout_key,
        )
        return TokenCosts(
            model=model,
            cost=cross_entropy,
            hidden_BLD=hidden_BLD,
            targets_BL=batch.tokens,
            counted_BL=batch.weights > 0,
            weights_BL=batch.weights,
            chunk_tokens=self.chunk_tokens,
        )
