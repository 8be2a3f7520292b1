"""The bounds against everything that can happen, on the toy of V = 3, L = 3.

The any-order model that a table stands for reveals one position after another; its
likelihood is a sum over 3! orders, and the bound on it a sum over the 7 ways to mask
something. In discrete time the sum runs over what can be revealed in each step.
"""

import dataclasses
import itertools
import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lmjax.config.schema import TimeSampling
from lmjax.data.batch import Batch, synthetic
from lmjax.diffusion import schedules
from lmjax.diffusion.parameterizations import Sedd, Subs
from lmjax.diffusion.process import MaskProcess
from lmjax.objectives.base import Objective
from lmjax.objectives.d3pm import D3PM, StepDraws
from lmjax.objectives.mask_draws import (
    ContinuousMasks,
    CountMasks,
    DiscreteMasks,
    MaskDraws,
    TrainingMasks,
)
from lmjax.objectives.masked_diffusion import MaskedDiffusion
from tests import toys
from tests.toys import MASK, SEQUENCES, SUBSETS, L, TableModel, V

NUM_BATCHES, BATCH_SIZE = 600, 96
CHOSEN = SEQUENCES[[0, 14, 25]]
# By an independent rule each, float64.
RATES: dict[str, Callable[[float], float]] = {
    "linear": lambda t: t,
    "cosine light": lambda t: 1 - math.cos(math.pi * t / 2),
    "cosine heavy": lambda t: math.sin(math.pi * t / 2),
    "cosine squared": lambda t: math.sin(math.pi * t / 2) ** 2,
    "polynomial": lambda t: t**2,
    "geometric": lambda t: 1 - math.exp(-1e-3 * (8e3**t - 1)),
}
SCHEDULES: dict[str, schedules.Schedule] = {
    "linear": schedules.LinearSchedule(),
    "cosine light": schedules.LightCosineSchedule(),
    "cosine heavy": schedules.HeavyCosineSchedule(),
    "cosine squared": schedules.SquaredCosineSchedule(),
    "polynomial": schedules.PolynomialSchedule(2.0),
    "geometric": schedules.GeometricSchedule(1e-3, 8.0),
}
NODES = np.polynomial.legendre.leggauss(400)
RARITY = np.array([0.9, -0.6, 0.1, 0.0], np.float32)
TILT = 0.8


@pytest.fixture(scope="module")
def table() -> np.ndarray:
    return toys.random_table()


def _process(schedule: str = "linear") -> MaskProcess:
    return MaskProcess(
        mask_id=MASK, schedule=SCHEDULES[schedule], predictable=np.arange(V)
    )


def _batch(tokens: np.ndarray | jax.Array) -> Batch:
    return dataclasses.replace(
        synthetic(*tokens.shape), tokens=jnp.asarray(tokens, jnp.int32)
    )


def _log_scores(parameterization: Subs | Sedd, table: np.ndarray) -> np.ndarray:
    if isinstance(parameterization, Subs):
        return toys.log_softmax(table)
    return table.astype(np.float64) - math.log(V)


def _exact_bounds(objective: MaskedDiffusion, table: np.ndarray) -> np.ndarray:
    """Of all 27 sequences, by the objective itself with its draws enumerated."""
    weights = np.array([toys.subset_weight(subset) for subset in SUBSETS], np.float32)

    @jax.jit
    def run(table: jax.Array) -> jax.Array:
        draws = MaskDraws(SUBSETS, weights, np.zeros(len(SUBSETS), np.float32))

        def bound(x: jax.Array) -> jax.Array:
            batch = _batch(jnp.tile(x, (len(SUBSETS), 1)))
            return objective.nll_B(TableModel(table), batch, draws).sum()

        return jax.lax.map(bound, jnp.asarray(SEQUENCES))

    return np.asarray(run(table))


@pytest.mark.parametrize("parameterization", [Subs(), Sedd(V)], ids=["subs", "sedd"])
def test_the_bound_is_the_sum_over_masks_and_never_below_the_likelihood(
    table: np.ndarray, parameterization: Subs | Sedd
) -> None:
    """A: for SEDD the scores are rates, which need not sum to 1."""
    log_scores = _log_scores(parameterization, table)
    total = np.exp(log_scores).sum(axis=-1, keepdims=True)
    objective = MaskedDiffusion(
        process=_process(), chunk_tokens=1000, parameterization=parameterization
    )
    found = _exact_bounds(objective, table)
    expected = [toys.bound(total - log_scores - 1, x) for x in SEQUENCES]
    np.testing.assert_allclose(found, expected, rtol=1e-5)
    # With normalised scores the jumps are those of the any-order model. Scores whose
    # sum differs are the bound of a process that may jump too early or too late, which
    # is worse than the normalised one by the convexity of exp.
    normalized = toys.log_softmax(table)
    likelihoods = [toys.any_order_likelihood(normalized, x) for x in SEQUENCES]
    assert sum(likelihoods) == pytest.approx(1.0, abs=1e-12)
    gaps = found + np.log(likelihoods)
    assert gaps.min() > 0.01  # strictly: the orders disagree


def test_score_entropy_of_probabilities_is_the_cross_entropy(table: np.ndarray) -> None:
    """SEDD at s = p / (exp(sigma) - 1) is SUBS: logits that are log p + ln V."""
    objective = MaskedDiffusion(
        process=_process(), chunk_tokens=1000, parameterization=Sedd(V)
    )
    log_p = (toys.log_softmax(table) + math.log(V)).astype(np.float32)
    as_sedd = _exact_bounds(objective, log_p)
    objective = dataclasses.replace(objective, parameterization=Subs())
    np.testing.assert_allclose(as_sedd, _exact_bounds(objective, table), rtol=1e-5)


def test_with_true_conditionals_the_bound_is_the_entropy() -> None:
    """D."""
    joint = np.random.default_rng(1).dirichlet(np.full(V**L, 0.7))
    objective = MaskedDiffusion(process=_process(), chunk_tokens=1000)
    found = _exact_bounds(objective, toys.true_conditionals(joint))
    entropy = -np.sum(joint * np.log(joint))
    assert np.sum(joint * found) == pytest.approx(entropy, rel=1e-5)
    np.testing.assert_allclose(found, -np.log(joint), rtol=1e-5)


def _estimators() -> dict[str, tuple[MaskedDiffusion, bool]]:
    """Each with whether it is drawn as for training (else as for evaluation)."""

    def training(schedule: str = "linear", **choices: object) -> MaskedDiffusion:
        masks = TrainingMasks(**choices)
        return MaskedDiffusion(
            process=_process(schedule), chunk_tokens=1000, training=masks
        )

    found = {name: (training(name), True) for name in SCHEDULES}
    found |= {
        "antithetic": (training(sampling=TimeSampling.ANTITHETIC), True),
        "uniform": (training(sampling=TimeSampling.UNIFORM), True),
        "change of variables": (training(density=schedules.LogRateSchedule()), True),
        "importance": (training(density=schedules.ImportanceSchedule(L)), True),
        "bimodal": (
            training(
                density=schedules.BimodalGaussianSchedule(
                    low_mean=0.2,
                    low_std=0.1,
                    low_share=0.4,
                    high_mean_start=0.5,
                    high_mean_end=0.7,
                    high_std=0.15,
                    uniform_share=0.3,
                )
            ),
            True,
        ),
        "count, as a loss": (training(density=CountMasks()), True),
    }
    for masks in (CountMasks(), ContinuousMasks(True), ContinuousMasks(False)):
        objective = training("cosine heavy")
        found[masks.name] = (dataclasses.replace(objective, evaluation=masks), False)
    return found


ESTIMATORS = _estimators()


def _estimate(
    objective: Objective, table: np.ndarray, training: bool
) -> tuple[np.ndarray, np.ndarray]:
    """Means of three sequences, and their standard errors.

    Rows of a batch share their stratification, so errors are taken over 600 batches of
    96 rows.
    """
    per_sequence = BATCH_SIZE // len(CHOSEN)

    def run(table: jax.Array, key: jax.Array) -> jax.Array:
        order_key, draw_key, position_key = jax.random.split(key, 3)
        order = jax.random.permutation(order_key, BATCH_SIZE)
        batch = _batch(np.tile(CHOSEN, (per_sequence, 1)))
        batch = jax.tree.map(lambda leaf: jnp.asarray(leaf)[order], batch)
        if training:
            draws = objective.draw(batch, draw_key, jnp.float32(0.5))
        else:
            offset = jax.random.uniform(position_key)
            positions = (jnp.arange(BATCH_SIZE) + offset) / BATCH_SIZE
            draws = objective.draw_evaluation(batch, draw_key, positions)
        nll = objective.nll_B(TableModel(table), batch, draws)
        means = jnp.zeros(len(CHOSEN)).at[order % len(CHOSEN)].add(nll)
        return means / per_sequence

    keys = jax.random.split(jax.random.key(0), NUM_BATCHES)
    run_all = jax.jit(
        lambda table, keys: jax.lax.map(lambda key: run(table, key), keys)
    )
    means = np.asarray(run_all(table, keys), np.float64)
    return means.mean(axis=0), means.std(axis=0, ddof=1) / math.sqrt(NUM_BATCHES)


@pytest.mark.parametrize("name", ESTIMATORS)
def test_every_estimator_has_the_bound_as_its_mean(
    table: np.ndarray, name: str
) -> None:
    """B: within four standard errors; a prior that is not all mask is paid for."""
    objective, training = ESTIMATORS[name]
    means, errors = _estimate(objective, table, training)
    expected = np.array([toys.bound(-toys.log_softmax(table), x) for x in CHOSEN])
    if name == "geometric":
        # Of rates above m(1) there are none, and the prior costs (1 - m(1)) ln V.
        end = RATES["geometric"](1.0)
        missing = (1 - end) * -toys.log_softmax(table)[toys.row([MASK] * L)]
        expected += [
            L * (1 - end) * math.log(V) - missing[range(L), x].sum() for x in CHOSEN
        ]
    # Few rows have a rate near 0, and those weigh much: uniform times vary the most.
    assert (errors < 0.04 * expected).all(), "no power"
    assert (np.abs(means - expected) < 4 * errors + 1e-5).all()


def _integral(cost: np.ndarray, x: np.ndarray, rates: np.ndarray) -> float:
    """Of cost / m over m in (0, 1), token v masked with probability m^k_v.

    In terms of log m, from where the smallest power is as good as 0.
    """
    nodes, weights = NODES
    span = 40 / rates.min()
    levels = np.exp(-span * (nodes + 1) / 2)
    found = 0.0
    for subset in SUBSETS:
        masked = levels[:, None] ** rates[x]
        chance = np.where(subset, masked, 1 - masked).prod(axis=1)
        seen = toys.row(np.where(subset, MASK, x))
        costs = sum(cost[seen, i, x[i]] for i in np.flatnonzero(subset))
        found += (span * weights / 2 * chance).sum() * costs
    return found


def test_rates_that_depend_on_the_token_keep_the_bound(table: np.ndarray) -> None:
    """Bug 36: rare tokens masked earlier, and a bound of the process that does so.

    Its likelihood is enumerated over jumps at unequal rates. The estimate is exact in
    the mean against a quadrature over m, and leaving out what the rates say of the
    tokens gives no bound: the figure falls below the likelihood.
    """
    rates = np.exp(-TILT * RARITY[:V].astype(np.float64))
    log_p = toys.log_softmax(table)
    likelihood = np.array(
        [toys.any_order_likelihood(log_p, x, rates) for x in SEQUENCES]
    )
    assert likelihood.sum() == pytest.approx(1.0, abs=1e-12)
    total = (rates * np.exp(log_p)).sum(axis=-1, keepdims=True)
    cost = total - rates * (log_p + 1)
    bounds = np.array([_integral(cost, x, rates) for x in SEQUENCES])
    assert (bounds + np.log(likelihood)).min() > 0.01
    objective = MaskedDiffusion(
        process=_process(),
        chunk_tokens=1000,
        training=TrainingMasks(rarity=RARITY, tilt=2 * TILT),  # half of the run done
    )
    means, errors = _estimate(objective, table, training=True)
    expected = bounds[[0, 14, 25]]
    assert (errors < 0.02 * expected).all(), "no power"
    assert (np.abs(means - expected) < 4 * errors).all()


def test_plain_weights_of_unequal_rates_are_no_bound() -> None:
    """Why the further terms are there: without them figures sum to more than 1.

    Token 0 is nearly always revealed before token 1. A model that always says 0 first,
    and 1 beside a 0, then seems sure of both (0, 1) and (1, 0). The third position is
    the same whatever happens.
    """
    table = np.zeros(((V + 1) ** L, L, V))
    for third in (0, MASK):
        table[toys.row([MASK, MASK, third])] = [3.0, 0.0, -9.0]
        table[toys.row([0, MASK, third])] = [0.0, 3.0, -9.0]
        table[toys.row([MASK, 0, third])] = [0.0, 3.0, -9.0]
    table[:, 2] = [30.0, 0.0, 0.0]
    log_p = toys.log_softmax(table)
    rates = np.array([6.0, 0.1, 1.0])
    ours = np.exp(log_p) @ rates
    plain, bounds = [], []
    for x in SEQUENCES[SEQUENCES[:, 2] == 0]:
        cost = -rates * log_p
        plain.append(_integral(cost, x, rates))
        bounds.append(_integral(ours[..., None] - rates + cost, x, rates))
    assert np.exp(-np.array(plain)).sum() > 1.3
    assert np.exp(-np.array(bounds)).sum() <= 1.0


STEPS = (1, 2, 4, 16, 64)


@pytest.mark.parametrize("schedule", ["linear", "cosine light", "cosine squared"])
def test_in_discrete_time_the_bound_holds_and_one_step_is_exact(
    table: np.ndarray, schedule: str
) -> None:
    """C: p_T sums to 1, NELBO_T >= -log p_T, equal at T = 1; both near A at T = 64."""
    log_p, rate = toys.log_softmax(table), RATES[schedule]
    masks = {steps: DiscreteMasks(steps) for steps in STEPS}

    @jax.jit
    def run(table: jax.Array) -> dict[int, jax.Array]:
        """[27] by T: the objective summed over all steps and masks."""
        process, found = _process(schedule), {}
        states = np.tile(SUBSETS, (len(SEQUENCES), 1))
        batch = _batch(np.repeat(SEQUENCES, len(SUBSETS), axis=0))
        objective = MaskedDiffusion(process=process, chunk_tokens=10_000)
        for steps, draw in masks.items():

            def cost(
                j: jax.Array, steps: int = steps, draw: DiscreteMasks = draw
            ) -> jax.Array:
                position_B = jnp.full(len(states), (j - 0.5) / steps)
                drawn = draw(process, batch, jax.random.key(0), position_B)
                m = process.schedule.mask_rate(jnp.float32(j / steps))
                chance = jnp.prod(jnp.where(states, m, 1 - m), axis=1)
                nll_B = objective.nll_B(
                    TableModel(table), batch, drawn._replace(masked_BL=states)
                )
                return chance / steps * nll_B

            total = jax.lax.map(cost, jnp.arange(1.0, steps + 1)).sum(axis=0)
            found[steps] = total.reshape(len(SEQUENCES), -1).sum(axis=1)
        return found

    bounds = {steps: np.asarray(found) for steps, found in run(table).items()}
    gaps = {}
    for steps, found in bounds.items():
        assert np.isfinite(found).all()

        def reveal(j: int, r: int, i: int, steps: int = steps) -> float:
            return 1 - rate((j - 1) / steps) / rate(j / steps)

        law = toys.step_law(np.exp(log_p), reveal, steps)
        exact = np.array([law[tuple(x.tolist())] for x in SEQUENCES])
        assert exact.sum() == pytest.approx(1.0, abs=1e-12)
        gaps[steps] = found + np.log(exact)
    np.testing.assert_allclose(gaps[1], 0.0, atol=2e-5)
    assert all(gaps[steps].min() > 0.01 for steps in STEPS[1:])
    continuous = np.array([toys.bound(-log_p, x) for x in SEQUENCES])
    np.testing.assert_allclose(bounds[64], continuous, rtol=0.03)
    assert np.abs(bounds[2] - continuous).max() > 0.05


@pytest.mark.parametrize("steps", [1, 2, 10, 1000])
def test_discrete_draws_are_finite_and_estimate_their_own_bound(
    table: np.ndarray, steps: int
) -> None:
    """Bug 9: no NaN at t = 1 / T, whatever T, as a loss and as an estimator."""
    objective = MaskedDiffusion(
        process=_process("cosine light"),
        chunk_tokens=1000,
        training=TrainingMasks(steps=steps),
        evaluation=DiscreteMasks(steps),
    )
    log_p, rate = toys.log_softmax(table), RATES["cosine light"]
    expected = np.zeros(len(CHOSEN))
    for j in range(1, steps + 1):
        m_t, m_s = rate(j / steps), rate((j - 1) / steps)
        for subset, (n, x) in itertools.product(SUBSETS, enumerate(CHOSEN)):
            seen = toys.row(np.where(subset, MASK, x))
            cost = -sum(log_p[seen, i, x[i]] for i in np.flatnonzero(subset))
            chance = np.where(subset, m_t, 1 - m_t).prod()
            expected[n] += (m_t - m_s) / m_t * chance * cost
    for training in (True, False):
        means, errors = _estimate(objective, table, training)
        assert np.isfinite(means).all()
        assert (np.abs(means - expected) < 4 * errors + 1e-5).all()


@pytest.mark.parametrize("schedule", ["linear", "cosine light", "polynomial"])
@pytest.mark.parametrize("steps", [1, 2, 3])
def test_d3pm_is_the_sum_of_all_divergences(schedule: str, steps: int) -> None:
    """Bug 10: against KL(q || p) of every step by brute force, and its likelihood.

    Independent of the formula: both laws of x_s given x_t are written out over the
    V tokens and the mask, from the forward process alone.
    """
    table, rate = toys.random_table(mask_logit=True), RATES[schedule]
    p = np.exp(toys.log_softmax(table))
    objective = D3PM(
        process=_process(schedule),
        steps=steps,
        time_sampling=TimeSampling.STRATIFIED,
        chunk_tokens=10_000,
    )

    def step_of_model(j: int, r: int, i: int) -> np.ndarray:
        """p(x_s = ... | x_t = mask), [V + 1], by Bayes from p(x_0)."""
        alpha_t, alpha_s = 1 - rate(j / steps), 1 - rate((j - 1) / steps)
        law = np.zeros(V + 1)
        for x0, weight in enumerate(p[r, i]):
            # q(x_s, x_t = mask | x_0), where x_0 = mask stays mask for ever.
            joint = np.zeros(V + 1)
            if x0 == MASK:
                joint[MASK] = 1.0
            else:
                joint[x0], joint[MASK] = alpha_s - alpha_t, 1 - alpha_s
            law += weight * joint
        return law / law.sum()

    def divergence(j: int, seen: np.ndarray, i: int, x0: int) -> float:
        m_t, m_s = rate(j / steps), rate((j - 1) / steps)
        q = np.zeros(V + 1)
        q[x0], q[MASK] = (m_t - m_s) / m_t, m_s / m_t
        model = step_of_model(j, toys.row(seen), i)
        return sum(a * math.log(a / b) for a, b in zip(q, model, strict=True) if a > 0)

    def reads_off(r: int, i: int) -> np.ndarray:
        return p[r, i, :V] / p[r, i, :V].sum()

    expected = np.zeros(len(SEQUENCES))
    for n, x in enumerate(SEQUENCES):
        for j, subset in itertools.product(range(1, steps + 1), SUBSETS):
            m = rate(j / steps)
            chance = np.where(subset, m, 1 - m).prod()
            seen = np.where(subset, MASK, x)
            kl = sum(divergence(j, seen, i, x[i]) for i in np.flatnonzero(subset))
            expected[n] += chance * kl
        expected[n] -= sum(math.log(reads_off(toys.row(x), i)[x[i]]) for i in range(L))

    @jax.jit
    def run(table: jax.Array) -> jax.Array:
        batch = _batch(np.repeat(SEQUENCES, len(SUBSETS), axis=0))
        states = np.tile(SUBSETS, (len(SEQUENCES), 1))
        total = 0.0
        for j in range(1, steps + 1):
            draws = StepDraws(states, jnp.full(len(states), float(j)))
            m = objective.process.schedule.mask_rate(jnp.float32(j / steps))
            chance = jnp.prod(jnp.where(states, m, 1 - m), axis=1)
            total += chance * objective.nll_B(TableModel(table), batch, draws)
        total = total.reshape(len(SEQUENCES), -1).sum(axis=1) / steps * 7 / 8
        draws = StepDraws(np.zeros((len(SEQUENCES), L), bool), jnp.zeros(27))
        return total + objective.nll_B(TableModel(table), _batch(SEQUENCES), draws) / 8

    found = np.asarray(run(table))
    np.testing.assert_allclose(found, expected, rtol=2e-5)
    # The model of these steps: what stays masked at t = 0 is read off as all else is.
    tokens = p[..., :V] / p[..., :V].sum(axis=-1, keepdims=True)
    law = toys.step_law(tokens, lambda j, r, i: 1 - step_of_model(j, r, i)[MASK], steps)
    exact = np.zeros(len(SEQUENCES))
    for state, chance in law.items():
        laws = [reads_off(toys.row(np.array(state)), i) for i in range(L)]
        exact += chance * np.array(
            [math.prod(laws[i][x[i]] for i in range(L)) for x in SEQUENCES]
        )
    assert exact.sum() == pytest.approx(1.0, abs=1e-12)
    assert (found + np.log(exact)).min() > 0.0


def test_d3pm_draws_estimate_the_whole_bound() -> None:
    """Every term comes as often as its weight says, and nothing is NaN at t = 1 / T."""
    table = toys.random_table(mask_logit=True)
    objective = D3PM(
        process=_process("cosine light"),
        steps=3,
        time_sampling=TimeSampling.STRATIFIED,
        chunk_tokens=1000,
    )
    training, training_errors = _estimate(objective, table, training=True)
    found, errors = _estimate(objective, table, training=False)
    assert np.isfinite(found).all()
    assert (np.abs(training - found) < 4 * (training_errors + errors)).all()
    batch = _batch(np.tile(SEQUENCES[0], (400, 1)))
    positions = (jnp.arange(400) + 0.5) / 400
    draws = objective.draw_evaluation(batch, jax.random.key(0), positions)
    counts = np.bincount(np.asarray(draws.step_B).astype(int), minlength=4)
    np.testing.assert_allclose(counts, [50, 116.7, 116.7, 116.7], atol=1)


def test_counting_exactly_varies_less_than_drawing_times(table: np.ndarray) -> None:
    batch = _batch(np.tile(SEQUENCES[5], (4096, 1)))
    objective = MaskedDiffusion(process=_process(), chunk_tokens=10_000)

    @jax.jit
    def run(table: jax.Array, key: jax.Array) -> tuple[jax.Array, jax.Array]:
        positions = jnp.arange(4096) / 4096
        counted = objective.draw_evaluation(batch, key, positions)
        timed = objective.draw(batch, key, 0.0)
        model = TableModel(table)
        return tuple(
            jnp.std(objective.nll_B(model, batch, d)) for d in (counted, timed)
        )

    counted, timed = run(table, jax.random.key(0))
    assert counted < 0.7 * timed
