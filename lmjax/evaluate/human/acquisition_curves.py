"""When a word is acquired: where a sigmoid through its curve crosses a threshold.

After Chang and Bergen (2022), "Word Acquisition in Neural Language Models", in the two
forms that the BabyLM evaluation has had.
"""

import enum
import math
import warnings
from typing import NamedTuple

import numpy as np
from scipy import optimize

from lmjax.config.choices import AcquisitionEdition

MIN_POINTS = 3
PARAMETERS = 4  # of the sigmoid
CHANCE_2025 = math.log2(300_000)  # bits, though it is held against nats
_THRESHOLD = 0.5
_HUMAN_BOUNDS = (2.0, 1.0, 0.5)  # range, steepness, offset either way
_CALLS_HUMAN, _CALLS_2025, _CALLS_2026 = 1_000, 1_000, 20_000
_LEAST_2026 = 1e-6  # range and steepness of a curve that rises
_STEEPEST_2026 = 100.0


class Outcome(enum.Enum):
    """What became of a word."""

    ACQUIRED = "acquired"
    TOO_FEW = "too few points"
    NOT_CONVERGED = "no fit"
    FLAT = "does not rise"
    BEFORE = "acquired before the first point"
    NEVER = "never acquired"
    OUTSIDE = "acquired outside of the points"


class Acquisition(NamedTuple):
    """When a word is acquired, on the axis of its curve; NaN where it is not."""

    age: float
    outcome: Outcome


def human_acquisition(ages: np.ndarray, shares: np.ndarray) -> Acquisition:
    """The age at which half of the children say a word, after both editions.

    Args:
      ages: months, in order.
      shares: of children, in [0, 1]; NaN where unknown.
    """
    known = ~np.isnan(shares)
    x, y = ages[known].astype(np.float64), shares[known].astype(np.float64)
    if len(x) < MIN_POINTS:
        return Acquisition(math.nan, Outcome.TOO_FEW)
    top, steepest, offset = _HUMAN_BOUNDS
    fitted = _fit(
        x,
        y,
        start=(1.0, 0.1, float(x.mean()), 0.0),
        bounds=((0.0, 0.0, x[0], -offset), (top, steepest, x[-1], offset)),
        calls=_CALLS_HUMAN,
    )
    return _crossing(fitted, _THRESHOLD, x[0], x[-1], least=0.0)


def model_acquisition(
    words: np.ndarray,
    surprisals: np.ndarray,
    *,
    edition: AcquisitionEdition,
    vocab_size: int,
    num_tokens: int,
) -> Acquisition:
    """log10(1 + words seen) at which a word's surprisal is half-way down from chance.

    Half-way to the least surprisal of the curve. What is chance, and how the curve is
    fitted, differ between the editions:
      2025: every context is a point; chance is log2 of 300,000 ids; no bounds.
      2026: the mean over the contexts of each checkpoint is a point; chance is uniform
        over the vocabulary, `num_tokens` ln(`vocab_size`) nats; bounds, and a patient
        search.

    Args:
      words: [P, C] words seen at each checkpoint, in order, for each context; the same
        in a row.
      surprisals: [P, C] nats of the word, summed over its tokens; NaN where unknown.
      num_tokens: of the word, in a text.
    """
    if len(words) < MIN_POINTS:
        return Acquisition(math.nan, Outcome.TOO_FEW)
    if edition is AcquisitionEdition.BABYLM_2026:
        words, surprisals = words[:, 0], surprisals.mean(axis=1)
    known = ~np.isnan(surprisals)
    seen, nats = words[known].astype(np.float64), surprisals[known]
    if not len(seen):
        return Acquisition(math.nan, Outcome.TOO_FEW)
    if not np.isfinite(nats).all():
        return Acquisition(math.nan, Outcome.NOT_CONVERGED)
    x, y = np.log10(seen + 1), -nats.astype(np.float64)
    least, reach, bounds, calls = 0.0, float(np.ptp(y)), None, _CALLS_2025
    chance = CHANCE_2025
    if edition is AcquisitionEdition.BABYLM_2026:
        chance = num_tokens * math.log(vocab_size)
        lower = (0.0, 0.0, x.min() - 1, y.min() - 2 * reach - 1)
        upper = (10 * reach + 1, _STEEPEST_2026, x.max() + 1, y.max() + 1)
        bounds, calls, least = (lower, upper), _CALLS_2026, _LEAST_2026
    start = (reach, 1.0, float(x.mean()), float(y.min()))
    fitted = _fit(x, y, start=start, bounds=bounds, calls=calls)
    threshold = -(chance - _THRESHOLD * (chance - float(nats.min())))
    return _crossing(fitted, threshold, x[0], x[-1], least=least)


def _sigmoid(
    x: np.ndarray, reach: float, steepness: float, middle: float, offset: float
) -> np.ndarray:
    return reach / (1 + np.exp(-steepness * (x - middle))) + offset


def _fit(
    x: np.ndarray,
    y: np.ndarray,
    *,
    start: tuple[float, ...],
    bounds: tuple[tuple[float, ...], tuple[float, ...]] | None,
    calls: int,
) -> tuple[float, ...] | None:
    """Least-squares parameters of a sigmoid, or None where the search fails."""
    if bounds is None and len(x) < PARAMETERS:
        return None
    limits = {} if bounds is None else {"bounds": bounds}
    with np.errstate(all="ignore"), warnings.catch_warnings():
        # The covariance is not asked for.
        warnings.simplefilter("ignore", optimize.OptimizeWarning)
        try:
            found, _ = optimize.curve_fit(
                _sigmoid, x, y, p0=start, maxfev=calls, **limits
            )
        except RuntimeError:  # no optimum within so many calls
            return None
    return tuple(found.tolist())


def _crossing(
    fitted: tuple[float, ...] | None,
    threshold: float,
    first: float,
    last: float,
    *,
    least: float,
) -> Acquisition:
    """Where the sigmoid meets the threshold, if that is between `first` and `last`.

    Args:
      least: range and steepness have to be above it.
    """
    if fitted is None:
        return Acquisition(math.nan, Outcome.NOT_CONVERGED)
    reach, steepness, middle, offset = fitted
    if not (reach > least and steepness > least):
        return Acquisition(math.nan, Outcome.FLAT)
    if threshold <= offset:
        return Acquisition(math.nan, Outcome.BEFORE)
    if threshold >= reach + offset:
        return Acquisition(math.nan, Outcome.NEVER)
    odds = reach / (threshold - offset) - 1
    if odds <= 0:  # nothing but rounding is left of the range
        return Acquisition(math.nan, Outcome.NEVER)
    age = middle - math.log(odds) / steepness
    if not first <= age <= last:
        return Acquisition(math.nan, Outcome.OUTSIDE)
    return Acquisition(age, Outcome.ACQUIRED)
