"""Masked diffusion in continuous time with the SUBS parameterisation (MDLM)."""

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp

from lmjax.core.types import LanguageModel
from lmjax.data.batch import Batch
from lmjax.diffusion.process import MaskProcess
from lmjax.diffusion.schedules import sigma
from lmjax.diffusion.times import stratified_times
from lmjax.objectives.base import Loss
from lmjax.objectives.cross_entropy import token_nll


class MaskDraws(NamedTuple):
    """Which tokens are masked, and what their cross-entropy counts.

    Attributes:
      masked_BL: bool [B, L].
      weight_B: float32 [B], weight of each masked token of the row.
      sigma_B: float32 [B], noise level for a model conditioned on time.
    """

    masked_BL: jax.Array
    weight_B: jax.Array
    sigma_B: jax.Array


@dataclasses.dataclass(frozen=True, kw_only=True)
class MaskedDiffusion:
    """E_t [ m'(t)/m(t) * sum_masked -log p(x_i | x_t) ], a bound on -log p(x).

    Sahoo et al. 2024 (arXiv 2406.07524), equation 10. Tokens that are not masked are
    known (carry-over), the mask is never predicted, and the prior is all mask: there
    is no other term. Normalised by counted tokens, not by masked ones: at a zero head
    the expected loss is ln(number of predictable ids).

    Tokens without a weight are context: never masked, and seen by the others.

    Attributes:
      process: mask id and schedule, shared with the sampler.
      chunk_tokens: tokens whose logits exist at once.
    """

    process: MaskProcess
    chunk_tokens: int
    causal: bool = False
    kind: str = "upper bound"
    estimator: str = "exact-count, stratified"

    def draw(self, batch: Batch, key: jax.Array) -> MaskDraws:
        """Times stratified over the batch, then tokens masked at rate m(t)."""
        time_key, mask_key = jax.random.split(key)
        batch_size, length = batch.tokens.shape
        t_B = stratified_times(time_key, batch_size)
        masked_BL = self.process.choose(mask_key, t_B, length) & (batch.weights > 0)
        schedule = self.process.schedule
        return MaskDraws(
            masked_BL, schedule.weight(t_B), sigma(schedule.mask_rate(t_B))
        )

    def draw_evaluation(
        self, batch: Batch, key: jax.Array, position_B: jax.Array
    ) -> MaskDraws:
        """Masks an exact number of tokens: l of a row's n, each weighing n / l.

        With l uniform on 1..n and the positions uniform this has the expectation of
        `draw` (LLaDA, Nie et al. 2025, equation 6) and less variance. `position_B` in
        [0, 1), uniform for each row, picks l; spread over rows it stratifies.
        """
        counted_BL = batch.weights > 0
        total_B = jnp.sum(counted_BL, axis=1)
        count_B = jnp.clip(jnp.floor(position_B * total_B) + 1, 1, total_B)
        order_BL = jnp.where(
            counted_BL, jax.random.uniform(key, batch.tokens.shape), jnp.inf
        )
        rank_BL = jnp.argsort(jnp.argsort(order_BL, axis=1), axis=1)
        masked_BL = (rank_BL < count_B[:, None]) & counted_BL
        some_B = jnp.maximum(total_B, 1)  # rows of padding alone have no tokens
        rate_B = count_B / some_B
        weight_B = jnp.where(total_B > 0, some_B / jnp.maximum(count_B, 1), 0.0)
        return MaskDraws(masked_BL, weight_B, sigma(rate_B))

    def nll_B(
        self,
        model: LanguageModel,
        batch: Batch,
        draws: MaskDraws,
        dropout_key: jax.Array | None = None,
    ) -> jax.Array:
        hidden_BLD = model(
            self.process.mask(batch.tokens, draws.masked_BL),
            lengths_B=real_lengths(batch),
            segments_BL=batch.segments,
            positions_BL=batch.positions,
            sigma_B=draws.sigma_B,
            dropout_key=dropout_key,
        )
        nll_BL = token_nll(
            model,
            hidden_BLD,
            batch.tokens,
            draws.masked_BL,
            chunk_tokens=self.chunk_tokens,
        )
        return draws.weight_B * jnp.sum(nll_BL, axis=1)

    def loss(
        self,
        model: LanguageModel,
        batch: Batch,
        draws: MaskDraws,
        dropout_key: jax.Array | None,
    ) -> Loss:
        nll_B = self.nll_B(model, batch, draws, dropout_key)
        masked = jnp.sum(draws.masked_BL, dtype=jnp.float32)
        return Loss(jnp.sum(nll_B), jnp.sum(batch.weights), {"mask_rate": masked})


def real_lengths(batch: Batch) -> jax.Array:
    """Tokens of each row before its padding, int32 [B]; at least 1.

    Counted from the last token with a weight, as those before it may be a context
    that is given and has none.
    """
    length = batch.tokens.shape[1]
    last_B = jnp.max(jnp.where(batch.weights > 0, jnp.arange(1, length + 1), 1), axis=1)
    return last_B.astype(jnp.int32)
