"""Masked diffusion: what is masked, what it weighs, and what must not matter."""

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lmjax.config.schema import Backbone
from lmjax.data.batch import Batch, synthetic
from lmjax.diffusion.process import MaskProcess
from lmjax.diffusion.schedules import LightCosineSchedule, LinearSchedule, Schedule
from lmjax.models.build import Model
from lmjax.objectives.masked_diffusion import MaskDraws, MaskedDiffusion, real_lengths

MASK = 2
SCHEDULES = pytest.mark.parametrize(
    "schedule",
    [LinearSchedule(), LightCosineSchedule()],
    ids=lambda schedule: type(schedule).__name__,
)


class UniformModel:
    """Knows nothing: eight ids, of which the last is never predicted."""

    def __call__(self, tokens_BL: jax.Array, **_: Any) -> jax.Array:
        return jnp.zeros((*tokens_BL.shape, 1))

    def logits(self, hidden: jax.Array) -> jax.Array:
        logits = jnp.zeros((*hidden.shape[:-1], 8))
        return logits.at[..., 7].set(-jnp.inf)


def _objective(schedule: Schedule | None = None, mask_id: int = MASK):
    process = MaskProcess(
        mask_id=mask_id,
        schedule=schedule or LinearSchedule(),
        predictable=np.arange(3, 31),
    )
    return MaskedDiffusion(process=process, chunk_tokens=6)


def _with_weights(weights: list[list[float]], token: int = 5) -> Batch:
    weights = np.array(weights, np.float32)
    return dataclasses.replace(synthetic(*weights.shape, token=token), weights=weights)


@pytest.fixture(
    scope="module", params=list(Backbone), ids=lambda backbone: backbone.value
)
def model(request: pytest.FixtureRequest, make_model: Callable[..., Model]) -> Model:
    timed = request.param is Backbone.DIT
    return make_model(causal=False, backbone=request.param, time_conditioning=timed)


@pytest.fixture(scope="module")
def nll(model: Model, random_params: Callable[..., Any]) -> Callable[..., np.ndarray]:
    params, objective = random_params(model), _objective()

    @jax.jit
    def run(params: Any, batch: Batch, draws: MaskDraws) -> jax.Array:
        return objective.nll_B(model.bind(params), batch, draws)

    return lambda batch, draws: np.asarray(run(params, batch, draws))


@pytest.fixture(scope="module")
def batch() -> Batch:
    """Row 0 is full, row 1 is padded, row 2 has two tokens of context."""
    tokens = np.random.default_rng(0).integers(3, 31, size=(3, 6)).astype(np.int32)
    tokens[1, 4:] = 0
    batch = _with_weights([[1] * 6, [1] * 4 + [0] * 2, [0] * 2 + [1] * 4])
    return dataclasses.replace(batch, tokens=tokens)


@pytest.fixture(scope="module")
def draws() -> MaskDraws:
    masked = np.array(
        [[1, 0, 1, 1, 0, 0], [0, 1, 1, 0, 0, 0], [0, 0, 1, 1, 0, 1]], bool
    )
    return MaskDraws(masked, np.float32([2.0, 2.0, 1.3]), np.float32([0.5, 0.7, 1.2]))


def test_only_masked_tokens_are_scored_and_each_weighs_the_same(
    nll: Callable[..., np.ndarray], batch: Batch, draws: MaskDraws
) -> None:
    expected = nll(batch, draws)
    assert (expected > 0).all()
    doubled = draws._replace(weight_B=2 * draws.weight_B)
    np.testing.assert_allclose(nll(batch, doubled), 2 * expected, rtol=1e-6)
    none = draws._replace(masked_BL=np.zeros((3, 6), bool))
    np.testing.assert_array_equal(nll(batch, none), 0.0)


def test_the_model_does_not_see_what_is_masked(
    nll: Callable[..., np.ndarray], batch: Batch
) -> None:
    """Of two masked tokens neither is seen by the other: their terms add up."""
    masked = np.zeros((3, 6), bool)
    masked[0, :2] = True
    draws = MaskDraws(masked, np.ones(3, np.float32), np.full(3, 0.5, np.float32))

    def score(first: int, second: int) -> float:
        tokens = batch.tokens.copy()
        tokens[0, :2] = first, second
        return float(nll(dataclasses.replace(batch, tokens=tokens), draws)[0])

    # log p(a) + log p(b) given the rest: swapping one leaves the other's term alone.
    assert score(4, 9) + score(7, 12) == pytest.approx(
        score(4, 12) + score(7, 9), abs=1e-4
    )
    assert score(4, 9) != pytest.approx(score(7, 9), abs=1e-3)


def test_padding_and_what_it_holds_change_nothing(
    nll: Callable[..., np.ndarray], batch: Batch, draws: MaskDraws
) -> None:
    expected = nll(batch, draws)
    tokens = batch.tokens.copy()
    tokens[1, 4:] = 17
    changed = nll(dataclasses.replace(batch, tokens=tokens), draws)
    np.testing.assert_array_equal(changed, expected)

    def widen(leaf: np.ndarray) -> np.ndarray:
        return leaf if leaf.ndim == 1 else np.pad(leaf, ((0, 0), (0, 3)))

    wider = jax.tree.map(widen, (batch, draws))
    np.testing.assert_allclose(nll(*wider), expected, rtol=1e-5)


def test_context_without_weight_is_seen_though_never_masked(
    nll: Callable[..., np.ndarray], batch: Batch, draws: MaskDraws
) -> None:
    tokens = batch.tokens.copy()
    tokens[2, 0] = 3 + (tokens[2, 0] - 2) % 28
    gap = nll(dataclasses.replace(batch, tokens=tokens), draws) - nll(batch, draws)
    np.testing.assert_array_equal(gap[:2], 0.0)
    assert abs(gap[2]) > 1e-3


def test_rows_do_not_depend_on_their_place_in_the_batch(
    nll: Callable[..., np.ndarray], batch: Batch, draws: MaskDraws
) -> None:
    order = np.array([2, 0, 1])
    permuted = jax.tree.map(lambda leaf: leaf[order], (batch, draws))
    np.testing.assert_allclose(nll(*permuted), nll(batch, draws)[order], rtol=1e-6)


def test_the_loss_is_the_sum_of_the_rows_over_counted_tokens(
    batch: Batch, draws: MaskDraws
) -> None:
    few = dataclasses.replace(batch, tokens=batch.tokens % 7)
    loss = _objective(mask_id=7).loss(UniformModel(), few, draws, None)
    assert loss.weight == 14
    assert loss.metrics == {"mask_rate": 8}
    masked_weight = 3 * 2.0 + 2 * 2.0 + 3 * 1.3
    assert float(loss.total) == pytest.approx(masked_weight * math.log(7), rel=1e-6)


@SCHEDULES
def test_the_first_expected_loss_is_the_log_of_the_number_of_predictable_ids(
    schedule: Schedule,
) -> None:
    """Of a model that knows nothing, over 2^20 tokens: ln 7 within four deviations.

    Given t a row's estimate varies by w^2 m (1 - m) / L; of each bin of times the
    average over B^2 adds to the variance of the mean.
    """
    batch_size, length = 8192, 128
    objective = _objective(schedule, mask_id=7)
    batch = synthetic(batch_size, length, token=3)

    @jax.jit
    def run(key: jax.Array) -> tuple[jax.Array, jax.Array]:
        draws = objective.draw(batch, key)
        return objective.loss(UniformModel(), batch, draws, None), draws.weight_B

    loss, _ = run(jax.random.key(0))
    assert loss.weight == batch_size * length
    t = (np.arange(batch_size) + 0.5) / batch_size
    rate, weight = (
        np.float64(f(np.float32(t))) for f in (schedule.mask_rate, schedule.weight)
    )
    deviation = math.sqrt(np.sum(weight**2 * rate * (1 - rate)) / length) / batch_size
    assert deviation < 0.004
    ratio = float(loss.total / loss.weight) / math.log(7)
    assert ratio == pytest.approx(1.0, abs=4 * deviation)
    mean_rate = float(loss.metrics["mask_rate"] / loss.weight)
    assert mean_rate == pytest.approx(np.mean(rate), abs=2e-3)


@pytest.mark.parametrize("seed", [0, 1])
def test_the_first_evaluated_bound_is_exact_for_every_draw(seed: int) -> None:
    """At a zero head each row costs n / l * l * ln 7, whatever is drawn."""
    objective = _objective(LightCosineSchedule(), mask_id=7)
    batch = _with_weights([[1] * 6, [1] * 4 + [0] * 2, [0] * 3 + [1] * 3])
    positions = np.random.default_rng(seed).uniform(size=3).astype(np.float32)
    draws = objective.draw_evaluation(batch, jax.random.key(seed), positions)
    nll = objective.nll_B(UniformModel(), batch, draws)
    np.testing.assert_allclose(nll, np.array([6, 4, 3]) * math.log(7), rtol=1e-6)


@SCHEDULES
def test_draws_mask_counted_tokens_alone_and_carry_weight_and_noise(
    schedule: Schedule,
) -> None:
    """Context before the counted tokens, and padding behind them, is never masked."""
    objective = _objective(schedule)
    batch = _with_weights([[0, 0, 1, 1, 1, 0]] * 64)
    draws = jax.jit(lambda key: objective.draw(batch, key))(jax.random.key(0))
    masked = np.asarray(draws.masked_BL)
    assert not masked[:, [0, 1, 5]].any()
    assert masked[:, 2:5].any(axis=0).all()
    rate = -np.expm1(-np.asarray(draws.sigma_B, np.float64))
    t = np.asarray(schedule.time(np.float32(rate)))
    np.testing.assert_allclose(draws.weight_B, schedule.weight(t), rtol=1e-3)
    assert len(np.unique(np.ceil(t * 64 - 1e-3))) == 64, "times are not stratified"
    # Rows of high noise have more masks than rows of low noise.
    assert masked[rate > 0.7, 2:5].mean() > 0.7 - 0.1
    assert masked[rate < 0.3, 2:5].mean() < 0.3 + 0.1


def test_evaluation_masks_exactly_the_count_its_position_names() -> None:
    objective = _objective()
    batch = _with_weights([[0, 1, 1, 1, 1, 0]] * 4 + [[1] * 6] * 6 + [[0] * 6])
    positions = np.float32([0, 0.25, 0.5, 0.75, *(np.arange(6) / 6 + 0.01), 0.3])
    draws = jax.jit(objective.draw_evaluation)(batch, jax.random.key(0), positions)
    counts = np.sum(draws.masked_BL, axis=1)
    np.testing.assert_array_equal(counts, [1, 2, 3, 4, 1, 2, 3, 4, 5, 6, 0])
    assert not np.asarray(draws.masked_BL)[:4, [0, 5]].any()
    expected = [4 / 1, 4 / 2, 4 / 3, 1, 6, 3, 2, 6 / 4, 6 / 5, 1, 0]
    np.testing.assert_allclose(draws.weight_B, expected, rtol=1e-6)
    rates = np.divide(counts, [4] * 4 + [6] * 6 + [1])
    np.testing.assert_allclose(
        -np.expm1(-np.float64(draws.sigma_B)), rates, rtol=1e-5, atol=1e-7
    )


def test_evaluation_masks_every_position_equally_often() -> None:
    objective = _objective()
    batch = _with_weights([[1, 1, 1, 1, 0]] * 3000)
    positions = np.full(3000, 0.3, np.float32)  # two of four
    draws = jax.jit(objective.draw_evaluation)(batch, jax.random.key(1), positions)
    share = np.mean(draws.masked_BL, axis=0)
    np.testing.assert_allclose(share[:4], 0.5, atol=4 * 0.5 / math.sqrt(3000))
    assert share[4] == 0.0


@pytest.mark.parametrize("top", [1 - 2.0**-24, 0.99999])
def test_the_highest_position_masks_everything_and_no_more(top: float) -> None:
    batch = _with_weights([[1] * 5])
    draws = _objective().draw_evaluation(batch, jax.random.key(0), np.float32([top]))
    assert np.asarray(draws.masked_BL).all()
    assert draws.weight_B[0] == 1.0


def test_real_lengths_reach_to_the_last_token_with_a_weight() -> None:
    batch = _with_weights([[1] * 4, [1, 1, 0, 0], [0, 0, 1, 0], [0] * 4])
    np.testing.assert_array_equal(real_lengths(batch), [4, 2, 3, 1])
    assert real_lengths(batch).dtype == jnp.int32


def test_a_batch_of_padding_alone_costs_nothing(
    nll: Callable[..., np.ndarray],
) -> None:
    """And is no NaN, though a row without tokens divides by its length."""
    objective, batch = _objective(), _with_weights([[0] * 6] * 3, token=0)
    key = jax.random.key(0)
    training = objective.draw(batch, key)
    evaluation = objective.draw_evaluation(batch, key, jnp.zeros(3))
    for draws in (training, evaluation):
        np.testing.assert_array_equal(nll(batch, draws), 0.0)


def test_it_calls_itself_an_upper_bound() -> None:
    objective = _objective()
    assert (objective.causal, objective.kind) == (False, "upper bound")
