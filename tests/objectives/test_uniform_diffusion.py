"""Uniform-state diffusion against sums over everything, for V = 2 tokens and L = 2."""

import dataclasses
import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lmjax.config.schema import TimeSampling
from lmjax.data.batch import synthetic
from lmjax.diffusion.process import UniformProcess
from lmjax.diffusion.schedules import (
    GeometricSchedule,
    LightCosineSchedule,
    LinearSchedule,
    Schedule,
)
from lmjax.objectives.uniform_diffusion import NoiseDraws, UniformDiffusion

V, L = 2, 2
STATES = np.array(list(itertools.product(range(V), repeat=L)), np.int32)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class TableModel:
    """Logits [V^L, L, V] of each noised text, whatever the time."""

    table: jax.Array

    def __call__(self, tokens_BL: jax.Array, **_: object) -> jax.Array:
        return self.table[tokens_BL @ np.array([V, 1], np.int32)]

    def logits(self, hidden: jax.Array) -> jax.Array:
        return hidden


def _objective(schedule: Schedule, count: int = V) -> UniformDiffusion:
    return UniformDiffusion(
        process=UniformProcess(schedule=schedule, predictable=np.arange(count)),
        time_sampling=TimeSampling.STRATIFIED,
        chunk_tokens=1_000_000,
    )


def _kernel(alpha: float) -> np.ndarray:
    """q(to | from) of keeping with probability alpha, [V, V]."""
    return alpha * np.eye(V) + (1 - alpha) / V


@pytest.fixture(scope="module")
def table() -> np.ndarray:
    generator = np.random.default_rng(3)
    return generator.normal(size=(V**L, L, V)).astype(np.float32)


def test_the_integrand_is_never_negative_and_0_at_the_truth() -> None:
    """I: 20,000 random predictions for 7 ids, at all times."""
    count, rows = 7, 20_000
    generator = np.random.default_rng(0)
    logits = jnp.asarray(3 * generator.normal(size=(rows, 1, count)), jnp.float32)

    class Model:
        def __call__(self, tokens_BL: jax.Array, **_: object) -> jax.Array:
            return logits

        def logits(self, hidden: jax.Array) -> jax.Array:
            return hidden

    objective = _objective(LinearSchedule(), count)
    tokens = generator.integers(count, size=(rows, 1)).astype(np.int32)
    batch = dataclasses.replace(synthetic(rows, 1), tokens=tokens)
    noised = generator.integers(count, size=(rows, 1)).astype(np.int32)
    t_B = np.concatenate([[1.0, 1e-7], generator.random(rows - 2)]).astype(np.float32)
    draws = NoiseDraws(noised, t_B)
    found = np.asarray(jax.jit(lambda: objective.nll_B(Model(), batch, draws))())
    assert np.isfinite(found).all()
    assert found.min() >= 0
    assert np.median(found) > 0.01
    p = np.exp(np.asarray(logits[:, 0], np.float64))
    p /= p.sum(axis=1, keepdims=True)
    index = np.arange(rows)
    alpha = np.clip(1 - t_B.astype(np.float64), 1e-6, 1 - 1e-6)[:, None]
    x = count * alpha * np.eye(count)[tokens[:, 0]] + 1 - alpha
    y = count * alpha * p + 1 - alpha
    x_i, y_i = x[index, noised[:, 0]][:, None], y[index, noised[:, 0]][:, None]
    braces = (x / x_i * np.log(y_i * x / (y * x_i))).sum(axis=1)
    braces += (-count / x_i + count / y_i)[:, 0]
    expected = braces / (count * alpha[:, 0])
    inside = (t_B > 0.01) & (t_B < 0.999)  # float32 times lose their digits beyond
    np.testing.assert_allclose(found[inside], expected[inside], rtol=2e-3, atol=1e-6)
    late = inside & (t_B > 0.97)  # where exp(z) - 1 - z is summed by its series
    assert late.sum() > 300
    np.testing.assert_allclose(found[late], expected[late], rtol=3e-4)
    logits = 60 * jax.nn.one_hot(tokens, count)
    perfect = np.asarray(jax.jit(lambda: objective.nll_B(Model(), batch, draws))())
    assert perfect.max() < 1e-4


@pytest.mark.parametrize("schedule", [LinearSchedule(), LightCosineSchedule()])
def test_the_bound_is_above_the_likelihood_of_a_fine_chain(
    schedule: Schedule, table: np.ndarray
) -> None:
    """I: quadrature over t against ancestral sampling in 2,000 steps, enumerated."""
    steps = 2000
    grid = (np.arange(steps) + 0.5) / steps
    objective = _objective(schedule)
    rate = np.asarray(schedule.mask_rate(jnp.asarray(grid, jnp.float32)), np.float64)
    chance = np.stack([_kernel(1 - m) for m in rate])  # [T, V, V], from -> to

    @jax.jit
    def costs(table: jax.Array) -> jax.Array:
        """[x, z, T]: integrand where z is seen of the text x."""

        states = jnp.asarray(STATES)

        def cost(pair: jax.Array) -> jax.Array:
            x, z = (jnp.tile(states[each], (steps, 1)) for each in pair)
            batch = dataclasses.replace(synthetic(steps, L), tokens=x)
            draws = NoiseDraws(z, jnp.asarray(grid, jnp.float32))
            return objective.nll_B(TableModel(table), batch, draws)

        pairs = jnp.array(list(itertools.product(range(len(STATES)), repeat=2)))
        return jax.lax.map(cost, pairs).reshape(len(STATES), len(STATES), steps)

    integrand = np.asarray(costs(table), np.float64)
    bounds = np.zeros(len(STATES))
    for n, x in enumerate(STATES):
        for k, z in enumerate(STATES):
            seen = chance[:, x[0], z[0]] * chance[:, x[1], z[1]]
            bounds[n] += (seen * integrand[n, k]).mean()
    p = np.exp(table.astype(np.float64))
    p /= p.sum(axis=-1, keepdims=True)
    law = np.full(len(STATES), 1 / len(STATES))
    edges = np.arange(steps, -1, -1) / steps
    alphas = 1 - np.asarray(schedule.mask_rate(jnp.asarray(edges, jnp.float32)))
    for alpha_t, alpha_s in itertools.pairwise(alphas.astype(np.float64)):
        step = _kernel(alpha_t / alpha_s)
        before = _kernel(alpha_s)
        # p(x_s = j | x_t = z) = sum_x p(x) q(x_s = j | x) q(z | j) / p-marginal of z,
        # which is the posterior with the prediction in the place of the text.
        after = np.zeros(len(STATES))
        for k, z in enumerate(STATES):
            ways = []
            for i in range(L):
                joint = (p[k, i] @ before) * step[:, z[i]]
                ways.append(joint / joint.sum())
            after += law[k] * np.outer(*ways).ravel()
        law = after
    assert law.sum() == pytest.approx(1.0, abs=1e-9)
    gaps = bounds + np.log(law)
    assert gaps.min() > 0.0
    assert gaps.max() < 2.0


def test_draws_estimate_the_quadrature(table: np.ndarray) -> None:
    """Both the draws of training and those of evaluation, within 4 standard errors."""
    objective, x = _objective(LinearSchedule()), STATES[1]
    rows, batches = 512, 200
    batch = dataclasses.replace(synthetic(rows, L), tokens=np.tile(x, (rows, 1)))

    @jax.jit
    def run(table: jax.Array, keys: jax.Array) -> tuple[jax.Array, jax.Array]:
        def once(key: jax.Array) -> tuple[jax.Array, jax.Array]:
            model = TableModel(table)
            trained = objective.draw(batch, key, 0.0)
            positions = jnp.arange(rows) / rows
            evaluated = objective.draw_evaluation(batch, key, positions)
            return tuple(
                objective.nll_B(model, batch, draws).mean()
                for draws in (trained, evaluated)
            )

        return jax.lax.map(once, keys)

    keys = jax.random.split(jax.random.key(0), batches)
    grid = (np.arange(4000) + 0.5) / 4000
    tokens = dataclasses.replace(synthetic(4000, L), tokens=np.tile(x, (4000, 1)))
    nll_B = jax.jit(objective.nll_B)
    expected = 0.0
    for z in STATES:
        draws = NoiseDraws(np.tile(z, (4000, 1)), grid.astype(np.float32))
        nll = np.asarray(nll_B(TableModel(table), tokens, draws), np.float64)
        chance = np.prod(
            [
                np.where(a == b, 1 - grid / 2, grid / 2)
                for a, b in zip(x, z, strict=True)
            ],
            axis=0,
        )
        expected += (chance * nll).mean()
    for means in run(table, keys):
        error = float(means.std()) / math.sqrt(batches)
        assert error < 0.03 * expected
        assert abs(float(means.mean()) - expected) < 4 * error + 1e-3


def test_a_zero_head_costs_about_ln_of_the_ids() -> None:
    """The bound of a model that knows nothing: ln 5 per token, and nothing less."""
    objective = _objective(LinearSchedule(), 5)

    class Model:
        def __call__(self, tokens_BL: jax.Array, **_: object) -> jax.Array:
            return jnp.zeros((*tokens_BL.shape, 5))

        def logits(self, hidden: jax.Array) -> jax.Array:
            return hidden

    rows = 20_000
    batch = dataclasses.replace(synthetic(rows, 4, token=2))
    positions = jnp.arange(rows) / rows
    draws = objective.draw_evaluation(batch, jax.random.key(0), positions)
    found = np.asarray(objective.nll_B(Model(), batch, draws)) / 4
    error = found.std() / math.sqrt(rows)
    assert abs(found.mean() - math.log(5)) < max(4 * error, 0.02)


def test_a_prior_that_is_not_pure_noise_is_refused() -> None:
    with pytest.raises(ValueError, match="end in pure noise"):
        UniformProcess(schedule=GeometricSchedule(1e-4, 8.0), predictable=np.arange(V))
