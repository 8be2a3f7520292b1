"""The bound against everything that can happen: V = 3 tokens, L = 3 positions.

A table holds arbitrary logits for each of the 4^3 partly masked inputs, so its
conditionals contradict each other, as a network's do. The any-order model it stands
for reveals one position after another in an order drawn uniformly; its likelihood is
a mean over 3! orders, and the bound on it a sum over the 7 ways to mask something.
"""

import dataclasses
import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lmjax.data.batch import Batch, synthetic
from lmjax.diffusion.process import MaskProcess
from lmjax.diffusion.schedules import CosineSchedule, LinearSchedule, MaskSchedule
from lmjax.objectives.masked_diffusion import MaskDraws, MaskedDiffusion

V, L = 3, 3
MASK = V
SEQUENCES = np.array(list(itertools.product(range(V), repeat=L)), np.int32)
SUBSETS = np.array(list(itertools.product([False, True], repeat=L)))[1:]
NUM_BATCHES, BATCH_SIZE = 600, 96


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class TableModel:
    """Looks up the logits [L, V] of a partly masked input."""

    table: jax.Array  # [(V + 1)^L, L, V]

    def __call__(self, tokens_BL: jax.Array, **_: object) -> jax.Array:
        return self.table[tokens_BL @ np.array([16, 4, 1], np.int32)]

    def logits(self, hidden: jax.Array) -> jax.Array:
        mask_logit = jnp.full((*hidden.shape[:-1], 1), -jnp.inf)
        return jnp.concatenate([hidden, mask_logit], axis=-1)


def _row(tokens: np.ndarray) -> int:
    return int(np.asarray(tokens) @ np.array([16, 4, 1]))


@pytest.fixture(scope="module")
def table() -> np.ndarray:
    shape = ((V + 1) ** L, L, V)
    return (1.5 * np.random.default_rng(0).normal(size=shape)).astype(np.float32)


def _log_probabilities(table: np.ndarray) -> np.ndarray:
    logits = table.astype(np.float64)
    return logits - np.log(np.exp(logits).sum(axis=-1, keepdims=True))


def _any_order_likelihood(table: np.ndarray, x: np.ndarray) -> float:
    """Mean over all orders of the product of p(x_i | what is revealed), float64."""
    log_p = _log_probabilities(table)
    total = 0.0
    for order in itertools.permutations(range(L)):
        seen, log_likelihood = np.full(L, MASK), 0.0
        for position in order:
            log_likelihood += log_p[_row(seen), position, x[position]]
            seen[position] = x[position]
        total += math.exp(log_likelihood)
    return total / math.factorial(L)


def _subset_weight(subset: np.ndarray) -> float:
    size = int(subset.sum())
    return math.factorial(size - 1) * math.factorial(L - size) / math.factorial(L)


def _bound(table: np.ndarray, x: np.ndarray) -> float:
    """The sum over subsets, in float64."""
    log_p = _log_probabilities(table)
    total = 0.0
    for subset in SUBSETS:
        row = _row(np.where(subset, MASK, x))
        cost = -sum(log_p[row, i, x[i]] for i in np.flatnonzero(subset))
        total += _subset_weight(subset) * cost
    return total


def _objective(schedule: MaskSchedule) -> MaskedDiffusion:
    return MaskedDiffusion(
        process=MaskProcess(mask_id=MASK, schedule=schedule), chunk_tokens=1000
    )


def _batch(tokens: np.ndarray) -> Batch:
    return dataclasses.replace(
        synthetic(*tokens.shape), tokens=np.asarray(tokens, np.int32)
    )


def _exact_bounds(table: np.ndarray) -> np.ndarray:
    """Of all 27 sequences, by the objective itself with its draws enumerated."""
    objective = _objective(LinearSchedule())
    weights = np.array([_subset_weight(subset) for subset in SUBSETS], np.float32)

    @jax.jit
    def run(table: jax.Array) -> jax.Array:
        bounds = []
        for x in SEQUENCES:
            batch = _batch(np.tile(x, (len(SUBSETS), 1)))
            draws = MaskDraws(SUBSETS, weights, np.zeros(len(SUBSETS), np.float32))
            bounds.append(objective.nll_B(TableModel(table), batch, draws).sum())
        return jnp.stack(bounds)

    return np.asarray(run(table))


def test_the_objective_summed_over_all_masks_is_the_bound(table: np.ndarray) -> None:
    expected = [_bound(table, x) for x in SEQUENCES]
    np.testing.assert_allclose(_exact_bounds(table), expected, rtol=1e-5)


def test_the_bound_is_never_below_the_any_order_likelihood(table: np.ndarray) -> None:
    likelihoods = np.array([_any_order_likelihood(table, x) for x in SEQUENCES])
    assert likelihoods.sum() == pytest.approx(1.0, abs=1e-12)
    gaps = _exact_bounds(table) + np.log(likelihoods)
    assert gaps.min() > 0.01  # strictly: the orders disagree


def test_with_true_conditionals_the_bound_is_the_entropy() -> None:
    joint = np.random.default_rng(1).dirichlet(np.full(V**L, 0.7))
    table = np.zeros(((V + 1) ** L, L, V), np.float32)
    for seen in itertools.product(range(V + 1), repeat=L):
        visible = np.array(seen) != MASK
        agrees = (SEQUENCES[:, visible] == np.array(seen)[visible]).all(axis=1)
        for i, token in itertools.product(range(L), range(V)):
            mass = joint[agrees & (SEQUENCES[:, i] == token)].sum()
            table[_row(seen), i, token] = math.log(mass) if mass > 0 else -50.0
    entropy = -np.sum(joint * np.log(joint))
    assert np.sum(joint * _exact_bounds(table)) == pytest.approx(entropy, rel=1e-5)
    np.testing.assert_allclose(_exact_bounds(table), -np.log(joint), rtol=1e-5)


@pytest.mark.parametrize(
    "estimator", ["linear", "cosine", "exact-count", "exact-count, cosine"]
)
def test_every_estimator_has_the_bound_as_its_mean(
    table: np.ndarray, estimator: str
) -> None:
    """Within four standard errors, from 600 batches of 96 rows of each of three x.

    Rows of a batch share their stratification, so errors are taken over batches.
    """
    schedule = CosineSchedule() if "cosine" in estimator else LinearSchedule()
    objective = _objective(schedule)
    chosen = SEQUENCES[[0, 14, 25]]
    per_sequence = BATCH_SIZE // len(chosen)

    @jax.jit
    def run(table: jax.Array, key: jax.Array) -> jax.Array:
        """Mean of each sequence [3] in one batch."""
        order_key, draw_key, position_key = jax.random.split(key, 3)
        order = jax.random.permutation(order_key, BATCH_SIZE)
        batch = _batch(np.tile(chosen, (per_sequence, 1)))
        batch = jax.tree.map(lambda leaf: jnp.asarray(leaf)[order], batch)
        if estimator.startswith("exact-count"):
            offset = jax.random.uniform(position_key)
            positions = (jnp.arange(BATCH_SIZE) + offset) / BATCH_SIZE
            draws = objective.draw_evaluation(batch, draw_key, positions)
        else:
            draws = objective.draw(batch, draw_key)
        nll = objective.nll_B(TableModel(table), batch, draws)
        means = jnp.zeros(len(chosen)).at[order % len(chosen)].add(nll)
        return means / per_sequence

    keys = jax.random.split(jax.random.key(0), NUM_BATCHES)
    run_all = jax.jit(
        lambda table, keys: jax.lax.map(lambda key: run(table, key), keys)
    )
    means = np.asarray(run_all(table, keys), np.float64)
    errors = means.std(axis=0, ddof=1) / math.sqrt(NUM_BATCHES)
    expected = [_bound(table, x) for x in chosen]
    assert (errors < 0.02 * np.array(expected)).all(), "no power"
    assert (np.abs(means.mean(axis=0) - expected) < 4 * errors).all()


def test_counting_exactly_varies_less_than_drawing_times(table: np.ndarray) -> None:
    batch = _batch(np.tile(SEQUENCES[5], (4096, 1)))
    objective = _objective(LinearSchedule())

    @jax.jit
    def run(table: jax.Array, key: jax.Array) -> tuple[jax.Array, jax.Array]:
        positions = jnp.arange(4096) / 4096
        counted = objective.draw_evaluation(batch, key, positions)
        timed = objective.draw(batch, key)
        model = TableModel(table)
        return tuple(
            jnp.std(objective.nll_B(model, batch, d)) for d in (counted, timed)
        )

    counted, timed = run(table, jax.random.key(0))
    assert counted < 0.7 * timed
