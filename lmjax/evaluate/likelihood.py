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
from lmjax.evaluate import figures
from lmjax.evaluate.figures import Figure
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
      monte_carlo_error: of nll_per_token, over masks alone, for this text: what another
        seed would change. It is on the safe side. 0 where nothing is drawn, NaN where
        one draw cannot tell.
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
    monte_carlo_error: float = math.nan

    @property
    def perplexity(self) -> float:
        """exp(nll_per_token)."""
        return figures.perplexity(self.nll_per_token)

    def bits_per(self, unit: str) -> float:
        """Bits per "byte" or "word" of text."""
        units = self.bytes if unit == "byte" else self.words
        nats = self.nll_per_token * self.tokens
        return nats / math.log(2) / units if units else float("nan")

    @property
    def bits_per_word_error(self) -> float:
        """Standard error of bits per word."""
        return self._bits_error("word")

    def to_json(self) -> dict[str, Any]:
        """All figures under the names of `report.json`."""
        return dataclasses.asdict(self) | {
            "perplexity": self.perplexity,
            "bits_per_byte": self.bits_per("byte"),
            "bits_per_word": self.bits_per("word"),
            "bits_per_word_standard_error": self.bits_per_word_error,
            "monte_carlo_error": figures.finite(self.monte_carlo_error),
        }

    def figures(self, prefix: str = "") -> list[Figure]:
        """Nats per token, perplexity (its error by the delta method), bits per unit.

        Units that were not counted are left out.
        """
        nll, error = self.nll_per_token, self.standard_error
        values = {
            "nll_per_token": (nll, error),
            "perplexity": (self.perplexity, self.perplexity * error),
        }
        for unit, count in (("byte", self.bytes), ("word", self.words)):
            if count:
                values[f"bits_per_{unit}"] = self.bits_per(unit), self._bits_error(unit)
        kind = f"{self.kind} ({self.estimator})"
        return [
            Figure(figures.named(prefix, name), kind, value, error, self.draws)
            for name, (value, error) in values.items()
        ]

    def _bits_error(self, unit: str) -> float:
        units = self.bytes if unit == "byte" else self.words
        nats = self.standard_error * self.tokens
        return nats / math.log(2) / units if units else float("nan")


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

        def draw_row(
            row: Batch, key: jax.Array, numbers_N: jax.Array, position: jax.Array
        ) -> Any:
            for number in numbers_N:
                key = jax.random.fold_in(key, number)
            alone = jax.tree.map(lambda leaf: leaf[None], row)
            draws = objective.draw_evaluation(alone, key, position[None])
            return jax.tree.map(lambda leaf: leaf[0], draws)

        self._draw_rows = jax.jit(jax.vmap(draw_row, in_axes=(0, None, 0, 0)))

    def nll_B(self, params: PyTree, batch: Batch, draws: Any) -> jax.Array:
        """Nats of each row, on the device; `draws` as the objective makes them."""
        return self._nll_B(params, self._place(batch), draws)

    def draw_rows(
        self, batch: Batch, key: jax.Array, numbers_BN: np.ndarray, position_B: Any
    ) -> Any:
        """Draws of rows with a key of their own each, whatever batch they are in.

        Args:
          batch: this host's rows.
          numbers_BN: int32, for the rows of all hosts: folded into the key in turn.
          position_B: float32 in [0, 1), likewise.
        """
        return self._draw_rows(self._place(batch), key, numbers_BN, position_B)

    def evaluate(
        self, params: PyTree, batches: Iterable[Batch], *, draws: int, seed: int = 0
    ) -> dict[int, Likelihood]:
        """Likelihood of all rows under key -1, and of each source under its index.

        The same batches give the same figures: keys are fixed. For a bound, each window
        gets `draws` masks whose sizes are spread evenly over it and over all windows.
        Another `seed` gives masks that are independent of these, and nothing else.
        """
        draws = draws if self.objective.kind != "exact" else 1
        # In the name: folded into a key, a seed could give one that the objective makes
        # of that key itself.
        name = f"evaluate {seed}" if seed else "evaluate"
        # Each seed starts its steps of the golden ratio elsewhere.
        start = float(np.random.default_rng(seed).random()) if seed else 0.0
        pending: list[Any] = []  # nats of a batch's rows: mean, then each draw
        rows = []
        seen = 0
        for index, batch in enumerate(batches):
            placed = self._place(batch)
            local = np.arange(batch.tokens.shape[0] * jax.process_count())
            offset_B = start + (seen + local) * GOLDEN
            seen += local.size
            nll_DB, total_B = [], 0.0
            for draw in range(draws):
                key = rng.stream(index, name, draw)
                position_B = ((offset_B + draw) / draws % 1.0).astype(np.float32)
                # In float32 a position may round up to 1, which is outside.
                position_B = np.minimum(position_B, np.float32(1 - 2**-24))
                masks = self._draw(placed, key, position_B)
                nll_DB.append(self._nll_B(params, placed, masks))
                total_B = total_B + nll_DB[-1]
            pending.append([total_B / draws, *nll_DB])
            # Waits for the batch before: the device stays busy, and the work that is
            # queued stays bounded (too much of it stalls a mesh of CPU devices).
            if index:
                pending[-2] = np.stack(pending[-2])
            rows.append(self._row_counts(placed))
        if not rows:
            return {}
        nll = np.concatenate([np.stack(batch) for batch in pending], axis=1)
        counts = {
            name: np.concatenate([np.asarray(row[name]) for row in rows])
            for name in rows[0]
        }
        return self._summaries(nll.astype(np.float64), counts)

    def _summaries(
        self, nll: np.ndarray, counts: dict[str, np.ndarray]
    ) -> dict[int, Likelihood]:
        counted = counts["tokens"] > 0
        groups = {-1: counted}
        for source in np.unique(counts["source"][counted]):
            groups[int(source)] = counted & (counts["source"] == source)
        return {
            group: self._summary(
                nll[:, chosen], {k: v[chosen] for k, v in counts.items()}
            )
            for group, chosen in groups.items()
        }

    def _summary(self, nll: np.ndarray, counts: dict[str, np.ndarray]) -> Likelihood:
        nll_B, nll_DB = nll[0], nll[1:]
        tokens = float(counts["tokens"].sum())
        # Each draw over all windows is an estimate of its own, whose masks have sizes
        # spread over [0, 1). That they are not the same sizes in each draw adds to the
        # spread of these estimates, not to the noise of their mean: so the error is
        # rather too large, above all where windows are fewer than draws.
        estimates_D = nll_DB.sum(axis=1) / tokens
        exact = self.objective.kind == "exact"
        return Likelihood(
            kind=self.objective.kind,
            estimator=self.objective.estimator,
            draws=len(nll_DB),
            windows=nll_B.size,
            tokens=int(tokens),
            words=int(counts["words"].sum()),
            bytes=int(counts["bytes"].sum()),
            nll_per_token=float(nll_B.sum()) / tokens,
            standard_error=figures.ratio_error(nll_B, counts["tokens"]),
            monte_carlo_error=0.0 if exact else figures.mean_error(estimates_D),
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
