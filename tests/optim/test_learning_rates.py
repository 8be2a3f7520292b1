"""Learning rates at the steps that matter, against their closed forms."""

import math

import numpy as np
import pytest

from lmjax.config.schema import LearningRateKind, OptimConfig
from lmjax.optim.learning_rates import learning_rate

PEAK, MINIMUM, TOTAL, WARMUP, DECAY = 0.1, 0.01, 100, 20, 16


def _rates(
    kind: LearningRateKind, *, warmup: int = WARMUP, total: int = TOTAL
) -> np.ndarray:
    config = OptimConfig(learning_rate=PEAK, min_learning_rate=MINIMUM, schedule=kind)
    schedule = learning_rate(
        config, total_steps=total, warmup_steps=warmup, decay_steps=DECAY
    )
    return np.array([float(schedule(step)) for step in range(total)])


def _expected(kind: LearningRateKind, step: int, warmup: int = WARMUP) -> float:
    if step < warmup:
        return PEAK * (step + 1) / warmup
    share = (step - warmup) / (TOTAL - warmup)
    match kind:
        case LearningRateKind.COSINE:
            return MINIMUM + (PEAK - MINIMUM) * (1 + math.cos(math.pi * share)) / 2
        case LearningRateKind.LINEAR:
            return PEAK + (MINIMUM - PEAK) * share
        case LearningRateKind.CONSTANT:
            return PEAK
        case LearningRateKind.WARMUP_STABLE_DECAY:
            past = max(0, step - (TOTAL - DECAY))
            return PEAK + (MINIMUM - PEAK) * past / DECAY


@pytest.mark.parametrize("warmup", [WARMUP, 1, 0])
@pytest.mark.parametrize("kind", list(LearningRateKind))
def test_every_step_has_the_rate_of_the_closed_form(
    kind: LearningRateKind, warmup: int
) -> None:
    expected = [_expected(kind, step, warmup) for step in range(TOTAL)]
    np.testing.assert_allclose(_rates(kind, warmup=warmup), expected, rtol=2e-6)


@pytest.mark.parametrize("kind", list(LearningRateKind))
def test_warm_up_starts_above_zero_and_ends_at_the_peak(kind: LearningRateKind) -> None:
    rates = _rates(kind)
    assert rates[0] == pytest.approx(PEAK / WARMUP, rel=1e-6)
    assert rates[WARMUP - 1] == pytest.approx(PEAK, rel=1e-6)
    assert rates.max() == pytest.approx(PEAK, rel=1e-6)
    assert np.argmax(rates) <= WARMUP


@pytest.mark.parametrize(
    ("kind", "middle"),
    [
        (LearningRateKind.COSINE, (PEAK + MINIMUM) / 2),
        (LearningRateKind.LINEAR, (PEAK + MINIMUM) / 2),
        (LearningRateKind.CONSTANT, PEAK),
        (LearningRateKind.WARMUP_STABLE_DECAY, PEAK),
    ],
)
def test_the_middle_of_the_run_tells_the_shapes_apart(
    kind: LearningRateKind, middle: float
) -> None:
    assert _rates(kind)[(TOTAL + WARMUP) // 2] == pytest.approx(middle, rel=1e-5)


@pytest.mark.parametrize(
    ("kind", "last"),
    [
        (LearningRateKind.COSINE, MINIMUM * 1.01),
        (LearningRateKind.LINEAR, MINIMUM + (PEAK - MINIMUM) / (TOTAL - WARMUP)),
        (LearningRateKind.CONSTANT, PEAK),
        (LearningRateKind.WARMUP_STABLE_DECAY, MINIMUM + (PEAK - MINIMUM) / DECAY),
    ],
)
def test_the_last_step_is_one_short_of_the_minimum(
    kind: LearningRateKind, last: float
) -> None:
    """So that a minimum of 0 does not waste it."""
    assert _rates(kind)[-1] == pytest.approx(last, rel=0.01)


@pytest.mark.parametrize("kind", list(LearningRateKind))
@pytest.mark.parametrize("total", [1, 2, 5])
def test_runs_shorter_than_their_warm_up_or_decay_have_a_rate(
    kind: LearningRateKind, total: int
) -> None:
    rates = _rates(kind, total=total, warmup=total)
    np.testing.assert_allclose(rates, PEAK * (np.arange(total) + 1) / total, rtol=1e-6)
    rates = _rates(kind, total=total, warmup=0)
    assert ((rates >= MINIMUM * (1 - 1e-6)) & (rates <= PEAK * (1 + 1e-6))).all()
