"""Ages of curves whose course is known."""

import math

import numpy as np
import pytest
from scipy import optimize

from lmjax.config.schema import AcquisitionEdition
from lmjax.evaluate.human import acquisition_curves as curves
from lmjax.evaluate.human.acquisition_curves import Outcome

OLD, NEW = AcquisitionEdition.BABYLM_2025, AcquisitionEdition.BABYLM_2026
WORDS = np.array([*range(1, 10), *range(10, 101, 10)]) * 1e6
VOCAB = 8192
CHANCE = {OLD: math.log2(300_000), NEW: math.log(VOCAB)}


def _learner(
    middle: float, top: float, bottom: float, words: np.ndarray = WORDS
) -> np.ndarray:
    """Nats [P] that fall from `top` to `bottom`, half of it at 10^middle words."""
    x = np.log10(words + 1)
    return bottom + (top - bottom) / (1 + np.exp(6 * (x - middle)))


def _age(
    nats: np.ndarray,
    edition: AcquisitionEdition = NEW,
    words: np.ndarray = WORDS,
    num_tokens: int = 1,
) -> curves.Acquisition:
    nats = nats.reshape(len(words), -1)
    return curves.model_acquisition(
        np.broadcast_to(words[:, None], nats.shape),
        nats,
        edition=edition,
        vocab_size=VOCAB,
        num_tokens=num_tokens,
    )


@pytest.mark.parametrize("edition", [OLD, NEW])
@pytest.mark.parametrize("middle", [6.5, 6.9, 7.3])
def test_learner_that_starts_at_chance_acquires_a_word_half_way(
    edition: AcquisitionEdition, middle: float
) -> None:
    """The least surprisal is a little above the bottom, and so is the threshold."""
    nats = _learner(middle, CHANCE[edition], 3.0)
    found = _age(nats, edition)
    assert found.outcome is Outcome.ACQUIRED
    share = (nats.min() - 3) / (CHANCE[edition] - 3)
    exact = middle + math.log(2 / (1 + share) - 1) / 6
    assert found.age == pytest.approx(exact, abs=1e-3)
    assert found.age == pytest.approx(middle, abs=0.03)


def test_threshold_is_between_chance_and_the_least_not_between_first_and_last() -> None:
    """From 7 to 3 nats, under a chance of ln 8192 = 9.01: crossed at 6.005, early."""
    nats = _learner(7.0, 7.0, 3.0)
    threshold = (math.log(VOCAB) + nats.min()) / 2
    exact = 7.0 + math.log(4 / (threshold - 3) - 1) / 6
    assert _age(nats).age == pytest.approx(exact, abs=1e-3)
    assert exact < 6.85


def test_least_surprisal_is_that_of_any_checkpoint() -> None:
    """One that is 2 nats below the others lowers the threshold by 1."""
    nats = _learner(7.0, CHANCE[NEW], 4.0)
    dip = nats.copy()
    dip[14] -= 2
    assert _age(dip).age > _age(nats).age + 0.05


def _official(
    nats: np.ndarray, edition: AcquisitionEdition
) -> tuple[float, tuple[float, ...]]:
    """Threshold and fit as the official pipeline calls for them, of [P, C] nats."""
    if edition is OLD:
        x, y = np.log10(np.repeat(WORDS, nats.shape[1]) + 1), -nats.ravel()
        limits = {"maxfev": 1000}
    else:
        x, y = np.log10(WORDS + 1), -nats.mean(axis=1)
        reach = y.max() - y.min()
        lower = [0, 0, x.min() - 1, y.min() - 2 * reach - 1]
        upper = [10 * reach + 1, 100, x.max() + 1, y.max() + 1]
        limits = {"maxfev": 20_000, "bounds": (lower, upper)}
    start = [y.max() - y.min(), 1.0, x.mean(), y.min()]

    def sigmoid(x, a, b, c, d):
        return a / (1 + np.exp(-b * (x - c))) + d

    fitted, _ = optimize.curve_fit(sigmoid, x, y, p0=start, **limits)
    return -(CHANCE[edition] - 0.5 * (CHANCE[edition] + y.max())), fitted


@pytest.mark.parametrize("edition", [OLD, NEW])
@pytest.mark.parametrize("seed", range(6))
def test_noisy_curves_are_fitted_as_officially(
    edition: AcquisitionEdition, seed: int
) -> None:
    """Shallow, so that where the search begins and ends matters."""
    generator = np.random.default_rng(seed)
    x = np.log10(WORDS + 1)[:, None]
    top = CHANCE[edition] + 0.5
    nats = 3 + (top - 3) / (1 + np.exp(1.5 * (x - generator.uniform(6.4, 7.4))))
    nats = nats + generator.normal(0, 0.3, (len(WORDS), 4))
    threshold, (a, b, c, d) = _official(nats, edition)
    found = _age(nats, edition)
    assert found.outcome is Outcome.ACQUIRED
    assert a / (1 + math.exp(-b * (found.age - c))) + d == pytest.approx(threshold)


def test_chance_of_a_word_is_that_of_its_tokens() -> None:
    nats = _learner(7.0, 2 * CHANCE[NEW], 6.0)
    assert _age(nats, num_tokens=2).age == pytest.approx(7.0, abs=0.03)
    assert _age(nats, num_tokens=1).age > 7.1


def test_chance_of_2025_is_18_whatever_the_word() -> None:
    nats = _learner(7.0, math.log2(300_000), 3.0)
    ages = {_age(nats, OLD, num_tokens=k).age for k in (1, 2, 3)}
    assert len(ages) == 1


def test_2026_fits_the_mean_over_contexts_and_2025_every_context() -> None:
    noise = np.random.default_rng(0).normal(0, 1.5, (len(WORDS), 12))
    nats = _learner(7.0, CHANCE[NEW], 3.0)[:, None] + noise
    assert _age(nats).age == _age(nats.mean(axis=1)).age
    cloud = nats + CHANCE[OLD] - CHANCE[NEW]
    assert _age(cloud, OLD).age != pytest.approx(
        _age(cloud.mean(axis=1), OLD).age, abs=1e-3
    )


@pytest.mark.parametrize("edition", [OLD, NEW])
def test_what_is_not_acquired_says_why(edition: AcquisitionEdition) -> None:
    chance = CHANCE[edition]
    worse_than_chance = _learner(7.0, chance + 9, chance + 5)
    found = _age(worse_than_chance, edition)
    assert found.outcome is Outcome.NEVER
    assert math.isnan(found.age)
    found = _age(_learner(7.0, 5.0, 3.0), edition)
    assert found.outcome is Outcome.BEFORE
    assert math.isnan(found.age)
    rising = chance + 3 - _learner(7.0, chance, 3.0)
    assert _age(rising, edition).outcome is not Outcome.ACQUIRED


def test_constant_surprisal_is_no_age() -> None:
    assert _age(np.full(len(WORDS), CHANCE[NEW])).outcome is not Outcome.ACQUIRED
    assert _age(np.full(len(WORDS), 3.0)).outcome is not Outcome.ACQUIRED


def test_checkpoints_without_a_number_are_left_out() -> None:
    nats = _learner(7.0, CHANCE[NEW], 3.0)
    keep = np.ones(len(WORDS), bool)
    keep[[2, 11]] = False
    broken = np.where(keep, nats, np.nan)
    assert _age(broken).age == _age(nats[keep], words=WORDS[keep]).age
    assert _age(np.full(len(WORDS), np.nan)).outcome is Outcome.TOO_FEW
    for impossible in (np.where(keep, nats, np.inf), np.full(len(WORDS), np.inf)):
        assert _age(impossible).outcome is Outcome.NOT_CONVERGED


@pytest.mark.parametrize("edition", [OLD, NEW])
def test_two_checkpoints_make_no_curve_and_three_do_not_fail(
    edition: AcquisitionEdition,
) -> None:
    few = WORDS[[0, 9]]
    nats = _learner(6.5, CHANCE[edition], 3.0, few)
    assert _age(nats, edition, few).outcome is Outcome.TOO_FEW
    few = WORDS[[0, 6, 18]]
    assert _age(_learner(6.5, CHANCE[edition], 3.0, few), edition, few)


@pytest.mark.parametrize("age", [18.5, 22.0, 27.25])
def test_children_acquire_a_word_when_half_of_them_say_it(age: float) -> None:
    ages = np.arange(16.0, 31.0)
    shares = 1 / (1 + np.exp(-0.6 * (ages - age)))
    found = curves.human_acquisition(ages, shares)
    assert found.outcome is Outcome.ACQUIRED
    assert found.age == pytest.approx(age, abs=1e-3)
    shares[[1, 7, 8]] = np.nan
    assert curves.human_acquisition(ages, shares).age == pytest.approx(age, abs=1e-3)


def test_half_of_the_children_is_not_half_of_the_range() -> None:
    """Shares from 0.2 to 0.9: half is said at 0.5, below the middle of 0.55."""
    ages = np.arange(16.0, 31.0)
    shares = 0.2 + 0.7 / (1 + np.exp(-0.8 * (ages - 23)))
    exact = 23 - math.log(0.7 / 0.3 - 1) / 0.8
    assert curves.human_acquisition(ages, shares).age == pytest.approx(exact, abs=1e-3)


def test_words_that_children_say_before_or_after_the_ages_have_none() -> None:
    ages = np.arange(16.0, 31.0)
    for shares in (np.linspace(0.7, 0.95, 15), np.linspace(0.02, 0.3, 15)):
        found = curves.human_acquisition(ages, shares)
        assert found.outcome is not Outcome.ACQUIRED
        assert math.isnan(found.age)
    sparse = np.full(15, np.nan)
    sparse[:2] = 0.4, 0.6
    assert curves.human_acquisition(ages, sparse).outcome is Outcome.TOO_FEW
