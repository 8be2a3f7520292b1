"""Learning rates at the steps that matter, against their closed forms."""

import math

import numpy as np
import optax
import pytest

from lmjax.config.schema import LearningRateKind, OnExtend, OptimConfig
from lmjax.core.errors import ConfigError
from lmjax.optim.learning_rates import learning_rate, over_lengths

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


def _over(
    lengths: list[list[int]], on_extend: OnExtend, kind: LearningRateKind, steps: int
) -> np.ndarray:
    config = OptimConfig(learning_rate=PEAK, min_learning_rate=MINIMUM, schedule=kind)

    def make(total: int) -> optax.Schedule:
        return learning_rate(
            config, total_steps=total, warmup_steps=10, decay_steps=DECAY
        )

    schedule = over_lengths(make, lengths, on_extend, 10)
    return np.array([float(schedule(step)) for step in range(steps)])


COSINE = LearningRateKind.COSINE
LONGER = [[0, TOTAL], [80, 2 * TOTAL]]


@pytest.mark.parametrize("on_extend", list(OnExtend))
def test_a_run_of_one_length_is_never_touched(on_extend: OnExtend) -> None:
    found = _over([[0, TOTAL]], on_extend, COSINE, TOTAL)
    np.testing.assert_array_equal(found, _rates(COSINE, warmup=10))


def test_rescale_is_a_run_of_the_new_length_from_the_start() -> None:
    found = _over(LONGER, OnExtend.RESCALE, COSINE, 2 * TOTAL)
    np.testing.assert_array_equal(found, _rates(COSINE, warmup=10, total=2 * TOTAL))


def test_hold_keeps_the_first_length_and_then_the_minimum() -> None:
    found = _over(LONGER, OnExtend.HOLD, COSINE, 2 * TOTAL)
    np.testing.assert_array_equal(found[:TOTAL], _rates(COSINE, warmup=10))
    np.testing.assert_allclose(found[TOTAL:], MINIMUM, rtol=1e-6)


def test_rewarm_rises_from_where_it_was_and_decays_by_the_new_end() -> None:
    found = _over([*LONGER, [150, 300]], OnExtend.REWARM, COSINE, 300)
    np.testing.assert_array_equal(found[:80], _rates(COSINE, warmup=10)[:80])
    for start, end in ((80, 150), (150, 300)):
        low = found[start - 1]
        rise = found[start : start + 10]
        assert np.all(np.diff([low, *rise]) > 0)
        assert rise[-1] == pytest.approx(PEAK, rel=0.01)
        assert rise[0] - low < 0.15 * (PEAK - MINIMUM)
        assert np.all(np.diff(found[start + 10 : end]) < 0)
    assert found[-1] == pytest.approx(MINIMUM, rel=0.01)


@pytest.mark.parametrize(
    ("kind", "lengths", "refused"),
    [
        (COSINE, LONGER, True),
        (COSINE, [[0, TOTAL], [80, 90]], True),
        (LearningRateKind.CONSTANT, LONGER, False),
        # Before its last decay a run is the same however long it is.
        (LearningRateKind.WARMUP_STABLE_DECAY, LONGER, False),
        (LearningRateKind.WARMUP_STABLE_DECAY, [[0, TOTAL], [90, 200]], True),
    ],
)
def test_a_jump_is_refused_unless_it_was_asked_for(
    kind: LearningRateKind, lengths: list[list[int]], refused: bool
) -> None:
    if not refused:
        _over(lengths, OnExtend.REFUSE, kind, 1)
        return
    with pytest.raises(ConfigError, match="would jump") as error:
        _over(lengths, OnExtend.REFUSE, kind, 1)
    for choice in ("rescale", "hold", "rewarm"):
        assert choice in error.value.remedy
