"""What surprisal adds, against exact rational arithmetic and plain least squares."""

import math
from fractions import Fraction

import numpy as np
import pytest
from scipy import special

from lmjax.core.errors import UserError
from lmjax.evaluate.human import regression


def _solve(matrix: list[list[Fraction]], right: list[Fraction]) -> list[Fraction]:
    """Gauss and Jordan, in rational numbers."""
    rows = [[*row, value] for row, value in zip(matrix, right, strict=True)]
    for i in range(len(rows)):
        pivot = next(k for k in range(i, len(rows)) if rows[k][i] != 0)
        rows[i], rows[pivot] = rows[pivot], rows[i]
        rows[i] = [value / rows[i][i] for value in rows[i]]
        for k in range(len(rows)):
            if k != i:
                factor = rows[k][i]
                rows[k] = [
                    a - factor * b for a, b in zip(rows[k], rows[i], strict=True)
                ]
    return [row[-1] for row in rows]


def _least_squares(
    design: list[list[int]], y: list[int]
) -> tuple[list[Fraction], Fraction, Fraction]:
    """Coefficients, residual and total sum of squares, by the normal equations."""
    columns = list(zip(*design, strict=True))
    gram = [[Fraction(_dot(a, b)) for b in columns] for a in columns]
    beta = _solve(gram, [Fraction(_dot(a, y)) for a in columns])
    rest = sum(
        (Fraction(value) - _dot(beta, row)) ** 2
        for row, value in zip(design, y, strict=True)
    )
    mean = Fraction(sum(y), len(y))
    return beta, rest, sum((value - mean) ** 2 for value in y)


def _dot(a, b):
    return sum(x * y for x, y in zip(a, b, strict=True))


FREQUENCY = [3, 9, 4, 7, 1, 8, 2, 6, 5, 3, 7, 9, 2, 4]
LENGTH = [4, 2, 6, 3, 9, 1, 7, 5, 3, 8, 2, 4, 6, 5]
PLACE = [1, 2, 3, 4, 5, 6, 7, 1, 2, 3, 4, 5, 6, 7]
SURPRISAL = [5, 1, 7, 2, 9, 4, 3, 6, 8, 2, 5, 1, 4, 7]
TIMES = [212, 180, 251, 199, 305, 186, 233, 244, 219, 240, 201, 177, 222, 263]
COLUMNS = [np.array(c, np.float64) for c in (FREQUENCY, LENGTH, PLACE)]


def _explain(**changes: np.ndarray) -> regression.Explained:
    y = changes.get("y", np.array(TIMES, np.float64))
    x = changes.get("x", np.array(SURPRISAL, np.float64))
    return regression.explain(y, COLUMNS, x)


def test_the_fit_agrees_with_the_normal_equations_in_rational_numbers() -> None:
    rows = zip(FREQUENCY, LENGTH, PLACE, strict=True)
    controls = [[1, f, n, p, f * n, f * p, n * p] for f, n, p in rows]
    full = [[*row, x] for row, x in zip(controls, SURPRISAL, strict=True)]
    _, rest0, total = _least_squares(controls, TIMES)
    beta, rest1, _ = _least_squares(full, TIMES)
    found = _explain()
    assert found.r2_controls == pytest.approx(float(1 - rest0 / total), rel=1e-12)
    assert found.r2 == pytest.approx(float(1 - rest1 / total), rel=1e-12)
    r0, r1 = 1 - rest0 / total, 1 - rest1 / total
    assert found.gain == pytest.approx(float(100 * (r1 - r0) / (1 - r0)), rel=1e-10)
    assert found.coefficient == pytest.approx(float(beta[-1]), rel=1e-10)
    n, k = len(TIMES), 8
    # Of nested models, t squared is the F of what the one regressor removes.
    f = float((rest0 - rest1) / (rest1 / (n - k)))
    assert found.t == pytest.approx(math.copysign(math.sqrt(f), beta[-1]), rel=1e-10)
    p = special.betainc((n - k) / 2, 0.5, (n - k) / (n - k + f))
    assert found.p == pytest.approx(float(p), rel=1e-9)
    for aic, rest, used in ((found.aic, rest1, k), (found.aic_controls, rest0, k - 1)):
        log_likelihood = -n / 2 * (math.log(2 * math.pi * float(rest) / n) + 1)
        assert aic == pytest.approx(2 * used - 2 * log_likelihood, rel=1e-12)
    assert found.observations == n


def test_units_of_measures_and_controls_do_not_matter() -> None:
    found = _explain()
    columns = [1000 * c - 7 for c in COLUMNS]
    y, x = np.array(TIMES, np.float64), np.array(SURPRISAL, np.float64)
    other = regression.explain(y / 1000 + 3, columns, x * math.log2(math.e) + 11)
    assert other.gain == pytest.approx(found.gain, rel=1e-9)
    assert other.t == pytest.approx(found.t, rel=1e-9)


def test_surprisal_that_the_controls_tell_adds_nothing() -> None:
    known = COLUMNS[0] * COLUMNS[1] - 3 * COLUMNS[2] + 4
    for x in (known, np.full(len(TIMES), 8.0)):
        found = _explain(x=x)
        assert found.gain == 0
        assert math.isnan(found.coefficient)
        assert math.isnan(found.t)
        assert found.r2 == found.r2_controls


def test_surprisal_that_tells_all_that_is_left_gains_everything() -> None:
    x = np.array(SURPRISAL, np.float64)
    found = _explain(y=2 * x + COLUMNS[0] - COLUMNS[1] * COLUMNS[2], x=x)
    assert found.gain == pytest.approx(100)
    assert found.coefficient == pytest.approx(2)
    assert found.r2 == pytest.approx(1)


def test_too_few_words_are_refused() -> None:
    short = [column[:8] for column in COLUMNS]
    with pytest.raises(UserError, match="8 word"):
        regression.explain(np.arange(8.0), short, np.arange(8.0) ** 2)


def test_a_resample_gains_what_its_rows_gain() -> None:
    clusters = np.repeat(np.arange(7), 2)
    times = np.array([[1] * 7, [2, 0, 1, 1, 0, 3, 2], [0, 3, 1, 2, 1, 1, 1]])
    y, x = np.array(TIMES, np.float64), np.array(SURPRISAL, np.float64)
    found = regression.resampled_gains(y, COLUMNS, x, clusters=clusters, times_RC=times)
    for gain, drawn in zip(found, times, strict=True):
        rows = np.repeat(np.arange(len(y)), drawn[clusters])
        columns = [column[rows] for column in COLUMNS]
        design = regression.controls_of(columns)
        rests = []
        for extra in ([], [x[rows]]):
            matrix = np.stack([*design.T, *extra], axis=1)
            beta = np.linalg.lstsq(matrix, y[rows], rcond=None)[0]
            rests.append(np.sum((y[rows] - matrix @ beta) ** 2))
        assert gain == pytest.approx(100 * (1 - rests[1] / rests[0]), abs=1e-6)
    assert found[0] == pytest.approx(_explain().gain, abs=1e-6)
