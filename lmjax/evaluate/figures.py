"""Figures as they are reported: each with its kind, its error and how it was found."""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import numpy as np

MAX_NATS = 700.0  # exp of more is no float64


@dataclasses.dataclass(frozen=True)
class Figure:
    """One number of an evaluation.

    Attributes:
      name: what is measured, as `held-out/nll_per_token`.
      kind: what it is worth: exact, upper bound, accuracy, generative perplexity or
        statistic, with the estimator in brackets.
      value: NaN if there is none.
      standard_error: of the value, over a sample of text; NaN where it is not known.
      draws: random draws per item; 1 where nothing is drawn.
    """

    name: str
    kind: str
    value: float
    standard_error: float = math.nan
    draws: int = 1

    def to_json(self) -> dict[str, Any]:
        """The fields; null for what is not finite, which JSON has no number for."""
        fields = dataclasses.asdict(self)
        return fields | {
            name: finite(fields[name]) for name in ("value", "standard_error")
        }


def finite(value: float) -> float | None:
    """The value, or None for NaN and infinities: JSON has no such numbers."""
    return value if math.isfinite(value) else None


def named(prefix: str, name: str) -> str:
    """The name of a figure of the group `prefix`, which may be empty."""
    return f"{prefix}/{name}" if prefix else name


def perplexity(nll: float) -> float:
    """exp of nats per token; finite."""
    return math.exp(min(nll, MAX_NATS))


def ratio_error(totals: np.ndarray, counts: np.ndarray) -> float:
    """Standard error of sum(totals) / sum(counts) over items as a sample.

    That of a ratio estimator, linearised (Cochran 1977, section 6.3); infinite for a
    single item.
    """
    n = totals.size
    if n < 2:
        return math.inf
    count = float(counts.sum())
    residuals = totals - float(totals.sum()) / count * counts
    variance = float(np.square(residuals).sum()) * n / max(n - 1, 1)
    return math.sqrt(variance) / count


def mean_error(values: Sequence[float] | np.ndarray) -> float:
    """Standard error of the mean of a sample; NaN for fewer than two values."""
    values = np.asarray(values, np.float64)
    if values.size < 2:
        return math.nan
    return float(values.std(ddof=1)) / math.sqrt(values.size)


def table(figures: Sequence[Figure]) -> str:
    """The figures line by line, for a person."""
    header = ("figure", "value", "± s.e.", "draws", "kind")
    cells = [header] + [
        (
            figure.name,
            _number(figure.value),
            _number(figure.standard_error),
            str(figure.draws),
            figure.kind,
        )
        for figure in figures
    ]
    widths = [max(len(row[i]) for row in cells) for i in range(len(header) - 1)]
    lines = []
    for name, *numbers, kind in cells:
        aligned = [cell.rjust(w) for cell, w in zip(numbers, widths[1:], strict=True)]
        lines.append("  ".join([name.ljust(widths[0]), *aligned, kind]).rstrip())
    return "\n".join(lines)


def _number(value: float) -> str:
    if not math.isfinite(value):
        return "-"
    return f"{value:.4f}" if abs(value) < 10_000 else f"{value:.4g}"
