"""Masked diffusion with carry-over: SUBS (MDLM) and score entropy (SEDD)."""

import dataclasses

import jax
import jax.numpy as jnp

from lmjax.core.types import LanguageModel
from lmjax.data.batch import Batch
from lmjax.diffusion.parameterizations import Parameterization, Subs, rated_cost
from lmjax.diffusion.process import MaskProcess
from lmjax.objectives.base import Loss
from lmjax.objectives.cross_entropy import TokenCosts
from lmjax.objectives.mask_draws import (
    CountMasks,
    DrawMasks,
    MaskDraws,
    TrainingMasks,
    token_rates,
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class MaskedDiffusion:
    """E_t [ m'(t)/m(t) * sum_masked cost(x_i | x_t) ], a bound on -log p(x).

    The cost is -log p(x_i | x_t) for SUBS (Sahoo et al. 2024, arXiv 2406.07524,
    equation 10), and the score entropy for SEDD (Lou et al. 2024, arXiv 2310.16834).
    Tokens that are not masked are known (carry-over) and the mask is never predicted:
    there is no reconstruction term. Normalised by counted tokens, not by masked ones:
    at a zero head the expected loss is ln(number of predictable ids).

    Tokens without a weight are context: never masked, and seen by the others.

    Attributes:
      process: mask id and schedule, shared with the sampler.
      chunk_tokens: tokens whose logits exist at once.
      parameterization: what the logits stand for.
      training: masks and weights of the training loss.
      evaluation: masks of the bound that is reported, whatever the training's are.
    """

    process: MaskProcess
    chunk_tokens: int
    parameterization: Parameterization = dataclasses.field(default_factory=Subs)
    training: TrainingMasks = dataclasses.field(default_factory=TrainingMasks)
    evaluation: DrawMasks = dataclasses.field(default_factory=CountMasks)
    causal: bool = False
    kind: str = "upper bound"

    @property
    def estimator(self) -> str:
        return self.evaluation.name

    @property
    def loss_is_bound(self) -> bool:
        return self.training.is_bound

    def draw(
        self, batch: Batch, key: jax.Array, progress: jax.Array | float = 0.0
    ) -> MaskDraws:
        """Times over the global batch, then tokens masked at their rates."""
        return self.training(self.process, batch, key, progress)

    def draw_evaluation(
        self, batch: Batch, key: jax.Array, position_B: jax.Array
    ) -> MaskDraws:
        """Masks of the bound, whatever the weighting of the training loss."""
        return self.evaluation(self.process, batch, key, position_B)

    def nll_B(
        self,
        model: LanguageModel,
        batch: Batch,
        draws: MaskDraws,
        dropout_key: jax.Array | None = None,
    ) -> jax.Array:
        nll_B = self._costs(model, batch, draws, dropout_key).of_rows()
        return nll_B if draws.prior_B is None else nll_B + draws.prior_B

    def loss(
        self,
        model: LanguageModel,
        batch: Batch,
        draws: MaskDraws,
        dropout_key: jax.Array | None,
    ) -> Loss:
        total = self._costs(model, batch, draws, dropout_key).total()
        if draws.prior_B is not None:
            total = total + jnp.sum(draws.prior_B)
        masked = jnp.sum(draws.masked_BL, dtype=jnp.float32)
        return Loss(total, jnp.sum(batch.weights), {"mask_rate": masked})

    def _costs(
        self,
        model: LanguageModel,
        batch: Batch,
        draws: MaskDraws,
        dropout_key: jax.Array | None,
    ) -> TokenCosts:
        shape = draws.masked_BL.shape
        hidden_BLD = model(
            self.process.mask(batch.tokens, draws.masked_BL),
            lengths_B=real_lengths(batch),
            segments_BL=batch.segments,
            positions_BL=batch.positions,
            sigma_B=draws.sigma_B,
            dropout_key=dropout_key,
        )
        further = ()
        cost = self.parameterization.cost
        if draws.tilt_B is not None:
            cost = self._rated_cost
            further = (jnp.broadcast_to(draws.tilt_B[:, None], shape),)
        return TokenCosts(
            model=model,
            cost=cost,
            hidden_BLD=hidden_BLD,
            targets_BL=batch.tokens,
            counted_BL=draws.masked_BL,
            weights_BL=jnp.broadcast_to(draws.weight_B[:, None], shape),
            further_BL=further,
            chunk_tokens=self.chunk_tokens,
        )

    def _rated_cost(
        self, logits: jax.Array, targets: jax.Array, tilt: jax.Array
    ) -> jax.Array:
        rates = token_rates(jnp.asarray(self.training.rarity), tilt[..., None])
        return rated_cost(self.parameterization, logits, targets, rates)


def real_lengths(batch: Batch) -> jax.Array:
    """Tokens of each row before its padding, int32 [B]; at least 1.

    Counted from the last token with a weight, as those before it may be a context
    that is given and has none.
    """
    length = batch.tokens.shape[1]
    last_B = jnp.max(jnp.where(batch.weights > 0, jnp.arange(1, length + 1), 1), axis=1)
    return last_B.astype(jnp.int32)
