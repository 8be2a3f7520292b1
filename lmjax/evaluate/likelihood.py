"""One scorer for every objective: exact likelihoods or bounds, and it says which."""

import dataclasses
import math
from collections.abc import Callable, Iterable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from lmjax.core import rng
from lmjax.core.types import PyTree
from lmjax.data.batch import Batch
from lmjax.objectives.base import Objective
from lmjax.parallel import hosts, rules

# Steps of the golden ratio fill [0, 1) evenly, however many are taken.
GOLDEN = (math.sqrt(5) - 1) / 2


@dataclasses.dataclass(frozen=True)
class Likelihood:
    """What the held-out text costs.

    Attributes:
      kind: "exact" or "upper bound".
      estimator: how it was found.
      draws: masks per window; 1 where nothing is drawn.
      windows: rows with at least one counted token.
      tokens, words, bytes: counted, over all windows.
      nll_per_token: nats.
      standard_error: of nll_per_token, over windows as a sample of text; the noise of
        masks is in it.
    """

    kind: str
    estimator: str
    draws: int
    windows: int
    tokens: int
    words: int
    bytes: int
    nll_per_token: float
    standard_error: float

    @property
    def perplexity(self) -> float:
        """exp(nll_per_token)."""
        return math.exp(min(self.nll_per_token, 700.0))

    def bits_per(self, unit: str) -> float:
        """Bits per "byte" or "word" of text."""
        units = self.bytes if unit == "byte" else self.words
        nats = self.nll_per_token * self.tokens
        return nats / math.log(2) / units if units else float("nan")

    @property
    def bits_per_word_error(self) -> float:
        """Standard error of bits per word."""
        if not self.words:
            return float("nan")
        return self.standard_error * self.tokens / math.log(2) / self.words

    def to_json(self) -> dict[str, Any]:
        """All figures under the names of `report.json`."""
        return dataclasses.asdict(self) | {
            "perplexity": self.perplexity,
            "bits_per_byte": self.bits_per("byte"),
            "bits_per_word": self.bits_per("word"),
            "bits_per_word_standard_error": self.bits_per_word_error,
        }


class Scorer:
    """Negative log-likelihoods of rows, compiled once per batch shape.

    Args:
      bind: parameters -> model.
      objective: decides what is computed and what kind of figure it is.
      mesh: where batches go.
    """

    def __init__(self, bind: Callable[[PyTree], Any], objective: Objective, mesh: Mesh):
        self.objective, self.mesh = objective, mesh

        def nll_B(params: PyTree, batch: Batch, draws: Any) -> jax.Array:
            return objective.nll_B(bind(params), batch, draws)

        everywhere = rules.replicated(mesh)
        self._nll_B = jax.jit(nll_B, out_shardings=everywhere)
        self._row_counts = jax.jit(_row_counts, out_shardings=everywhere)
        self._draw = jax.jit(objective.draw_evaluation)

    def nll_B(self, params: PyTree, batch: Batch, draws: Any) -> jax.Array:
        """Nats of each row, on the device; `draws` as the objective makes them."""
        return self._nll_B(params, self._place(batch), draws)

    def evaluate(
        self, params: PyTree, batches: Iterable[Batch], *, draws: int
    ) -> dict[int, Likelihood]:
        """Likelihood of all rows under key -1, and of each source under its index.

        The same batches give the same figures: keys are fixed. For a bound, each window
        gets `draws` masks whose sizes are spread evenly over it and over all windows.
        """
        draws = draws if self.objective.kind != "exact" else 1
        pending, rows = [], []
        seen = 0
        for index, batch in enumerate(batches):
            placed = self._place(batch)
            local = np.arange(batch.tokens.shape[0] * jax.process_count())
            offset_B = (seen + local) * GOLDEN
            seen += local.size
            total = 0.0
            for draw in range(draws):
                key = rng.stream(index, "evaluate", draw)
                position_B = ((offset_B + draw) / draws % 1.0).astype(np.float32)
                # In float32 a position may round up to 1, which is outside.
                position_B = np.minimum(position_B, np.float32(1 - 2**-24))
                masks = self._draw(placed, key, position_B)
                total = total + self._nll_B(params, placed, masks)
            pending.append(total / draws)
            # Waits for the batch before: the device stays busy, and the work that is
            # queued stays bounded (too much of it stalls a mesh of CPU devices).
            if len(pending) > 1:
                jax.block_until_ready(pending[-2])
            rows.append(self._row_counts(placed))
        if not rows:
            return {}
        nll = np.concatenate([np.asarray(total, np.float64) for total in pending])
        counts = {
            name: np.concatenate([np.asarray(row[name]) for row in rows])
            for name in rows[0]
        }
        return self._summaries(nll, counts, draws)

    def _summaries(
        self, nll: np.ndarray, counts: dict[str, np.ndarray], draws: int
    ) -> dict[int, Likelihood]:
        counted = counts["tokens"] > 0
        groups = {-1: counted}
        for source in np.unique(counts["source"][counted]):
            groups[int(source)] = counted & (counts["source"] == source)
        return {
            group: self._summary(
                nll[chosen], {k: v[chosen] for k, v in counts.items()}, draws
            )
            for group, chosen in groups.items()
        }

    def _summary(
        self, nll: np.ndarray, counts: dict[str, np.ndarray], draws: int
    ) -> Likelihood:
        tokens = float(counts["tokens"].sum())
        mean = float(nll.sum()) / tokens
        # Ratio estimator over windows; linearised (Cochran 1977, section 6.3).
        n = nll.size
        residuals = nll - mean * counts["tokens"]
        variance = float(np.square(residuals).sum()) * n / max(n - 1, 1)
        return Likelihood(
            kind=self.objective.kind,
            estimator=self.objective.estimator,
            draws=draws,
            windows=n,
            tokens=int(tokens),
            words=int(counts["words"].sum()),
            bytes=int(counts["bytes"].sum()),
            nll_per_token=mean,
            standard_error=math.sqrt(variance) / tokens if n > 1 else float("inf"),
        )

    def _place(self, batch: Batch) -> Batch:
        return hosts.to_global(batch, rules.batch_sharding(self.mesh))


def _row_counts(batch: Batch) -> dict[str, jax.Array]:
    """Counted tokens, words, bytes and source of every row."""
    counted = batch.weights > 0
    return {
        "tokens": jnp.sum(batch.weights, axis=1),
        "words": jnp.sum(jnp.where(counted, batch.words, 0), axis=1),
        "bytes": jnp.sum(jnp.where(counted, batch.bytes, 0), axis=1),
        "source": batch.source,
    }
