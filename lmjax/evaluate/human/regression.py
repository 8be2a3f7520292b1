"""How much of a human measure a model's surprisal explains beyond what is known."""

import dataclasses
import itertools
import math
from collections.abc import Sequence

import numpy as np
from scipy import special

from lmjax.core.errors import UserError

# What is left of a regressor, relative to it, below which the others say it all.
_NOTHING = 1e-9
_TINY = 1e-300


@dataclasses.dataclass(frozen=True, kw_only=True)
class Explained:
    """What one regressor adds to an ordinary least squares fit.

    Attributes:
      gain: share of the variance left over by the controls that it explains, in
        percent: 100 (R2 - R2 of the controls) / (1 - R2 of the controls).
      coefficient: of the regressor; NaN where it is a function of the controls.
      t: coefficient over its standard error.
      p: of t, two-sided.
      r2, r2_controls: with the regressor, and without.
      aic, aic_controls: Akaike's criterion of Gaussian errors, likewise.
      observations: rows that have all values.
    """

    gain: float
    coefficient: float
    t: float
    p: float
    r2: float
    r2_controls: float
    aic: float
    aic_controls: float
    observations: int


def controls_of(columns: Sequence[np.ndarray]) -> np.ndarray:
    """Intercept, the columns and the products of all pairs: float64 [N, 1 + C + pairs].

    The columns are standardised first, which changes nothing that is explained, and
    keeps the products from being nearly dependent.
    """
    z = []
    for column in columns:
        deviation = column - column.mean()
        spread = float(deviation.std())
        z.append(deviation / spread if spread > 0 else deviation)
    pairs = [a * b for a, b in itertools.combinations(z, 2)]
    return np.stack([np.ones(len(columns[0])), *z, *pairs], axis=1)


def explain(
    measure: np.ndarray, columns: Sequence[np.ndarray], regressor: np.ndarray
) -> Explained:
    """Regresses a measure on controls (`controls_of` the columns) and a regressor.

    By the theorem of Frisch, Waugh and Lovell: what both leave over when regressed on
    the controls tells what the regressor adds, and no more than one fit is needed.
    All arrays are float64 [N], without NaN.

    Raises:
      UserError: there are no more rows than coefficients.
    """
    controls = controls_of(columns)
    n, k = controls.shape[0], controls.shape[1] + 1
    if n <= k:
        raise UserError(
            f"{n} word(s) have all values that a regression with {k} coefficients "
            "needs: too few.",
            remedy="give the whole file of reading times.",
        )
    # An offset changes nothing but the intercept; without it nothing is lost.
    both = np.stack([measure - measure.mean(), regressor - regressor.mean()], axis=1)
    solution = np.linalg.lstsq(controls, both, rcond=None)[0]
    left_y, left_x = (both - controls @ solution).T
    total = float(both[:, 0] @ both[:, 0])
    without = float(left_y @ left_y)
    own, shared = float(left_x @ left_x), float(left_x @ left_y)
    known = own <= _NOTHING**2 * max(float(regressor @ regressor), _TINY)
    removed = 0.0 if known else shared**2 / own
    rest = max(without - removed, 0.0)
    coefficient = math.nan if known else shared / own
    error = math.nan if known else math.sqrt(rest / (n - k) / own)
    t = coefficient / error if error > 0 else math.copysign(math.inf, coefficient)
    t = math.nan if known else t
    return Explained(
        gain=100 * removed / without if without > 0 else 0.0,
        coefficient=coefficient,
        t=t,
        p=float(2 * special.stdtr(n - k, -abs(t))),
        r2=_share(rest, total),
        r2_controls=_share(without, total),
        aic=_aic(rest, n, k),
        aic_controls=_aic(without, n, k - 1),
        observations=n,
    )


def resampled_gains(
    measure: np.ndarray,
    columns: Sequence[np.ndarray],
    regressor: np.ndarray,
    *,
    clusters: np.ndarray,
    times_RC: np.ndarray,
) -> np.ndarray:
    """`Explained.gain` of R resamples of whole clusters, float64 [R].

    Words of a sentence are read together, so sentences are drawn and not words. A
    resample fits chance at least as well as the sample does: its gains lie too high by
    about as much as the sample's own.

    Args:
      clusters: int [N], which of the C clusters each row is of.
      times_RC: how often each resample holds each cluster.
    """
    controls = controls_of(columns)
    both = np.stack([regressor - regressor.mean(), measure - measure.mean()], axis=1)
    both /= np.maximum(both.std(axis=0), _TINY)
    rows = np.concatenate([controls, both], axis=1)
    grams_CII = np.zeros((times_RC.shape[1], rows.shape[1], rows.shape[1]))
    np.add.at(grams_CII, clusters, rows[:, :, None] * rows[:, None, :])
    grams_RII = np.tensordot(times_RC.astype(np.float64), grams_CII, axes=1)
    inner, cross = grams_RII[:, :-2, :-2], grams_RII[:, :-2, -2:]
    outer = grams_RII[:, -2:, -2:]
    inverse = np.linalg.pinv(inner, rcond=1e-10, hermitian=True)
    left = outer - np.swapaxes(cross, 1, 2) @ inverse @ cross
    own, shared, without = left[:, 0, 0], left[:, 0, 1], left[:, 1, 1]
    possible = (own > _NOTHING * outer[:, 0, 0]) & (without > 0)
    safe = np.where(possible, own * without, 1.0)
    return 100 * np.where(possible, np.clip(shared**2 / safe, 0, 1), 0.0)


def _share(rest: float, total: float) -> float:
    return 1 - rest / total if total > 0 else math.nan


def _aic(rest: float, n: int, k: int) -> float:
    if rest <= 0:
        return -math.inf
    return n * (math.log(2 * math.pi * rest / n) + 1) + 2 * k
