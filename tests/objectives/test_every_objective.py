"""What must hold of every objective that a config can name, with a real network."""

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh

from lmjax.assembly import build_objective
from lmjax.config import checks, fields
from lmjax.config.presets import OBJECTIVES
from lmjax.config.schema import (
    Backbone,
    Config,
    LossWeighting,
    ScheduleKind,
    TimeDensity,
    TimeSampling,
)
from lmjax.data.batch import Batch, synthetic
from lmjax.models.build import Model
from lmjax.objectives.base import Objective
from lmjax.parallel import rules

MESH_AXES = ("data", "fsdp", "tensor")
IDS = np.arange(3, 31, dtype=np.int32)  # what the tiny model predicts
COUNTS = np.random.default_rng(0).zipf(1.5, size=32)
REFUSED = {  # see config/method_rules.py
    ("d3pm", "bimodal_gaussian"),
    ("discrete", "bimodal_gaussian"),
    ("frequency", "geometric"),
}
VARIANTS: dict[str, dict[str, Any]] = {
    **{f"schedule {kind.value}": {"objective.schedule": kind} for kind in ScheduleKind},
    **{
        f"density {kind.value}": {"objective.time_density": kind}
        for kind in TimeDensity
    },
    **{
        f"times {kind.value}": {"objective.time_sampling": kind}
        for kind in TimeSampling
    },
    **{
        f"weighting {kind.value}": {"objective.weighting": kind}
        for kind in LossWeighting
    },
    **{
        f"{name}, {schedule.value}": {"objective.schedule": schedule, **changes}
        for name, changes in {
            "sedd": {"objective.parameterization": "sedd"},
            "d3pm": {"objective.parameterization": "d3pm", "objective.steps": 5},
            "discrete": {"objective.steps": 5},
            "frequency": {"objective.frequency_masking": 0.7},
        }.items()
        for schedule in (
            ScheduleKind.LINEAR,
            ScheduleKind.COSINE_SQUARED,
            ScheduleKind.GEOMETRIC,
            ScheduleKind.BIMODAL_GAUSSIAN,
        )
        if (name, schedule.value) not in REFUSED
    },
    "sedd by importance": {
        "objective.parameterization": "sedd",
        "objective.time_density": "importance",
    },
    "uniform, linear": {"uniform": True},
    "uniform, cosine_heavy": {"uniform": True, "objective.schedule": "cosine_heavy"},
}
EXPECTED = [
    "schedule linear",
    "schedule cosine_heavy",
    "schedule geometric",
    "schedule bimodal_gaussian",
    "density change_of_variables",
    "density importance",
    "density count",
    "times uniform",
    "times antithetic",
    "weighting flat",
    "sedd, cosine_squared",
    "d3pm, geometric",
    "discrete, linear",
    "frequency, linear",
    "uniform, linear",
]


def _build(changes: dict[str, Any], **evaluation: Any) -> tuple[Config, Objective]:
    changes = dict(changes)
    name = "uniform" if changes.pop("uniform", False) else "diffusion"
    config = Config(objective=OBJECTIVES[name]())
    fields.assign(config, {**changes, **evaluation})
    if name == "uniform":
        config.model.backbone = Backbone.DIT
        config.model.time_conditioning = True
    config.data.sequence_length = 12
    checks.check(config)
    return config, build_objective(
        config,
        bos_id=1,
        mask_id=2,
        predictable=IDS,
        chunk_tokens=8192,
        token_counts=COUNTS,
    )


def _batch(rows: int, seed: int = 0) -> Batch:
    """Rows of 12 tokens, of which the last ones are padding in some."""
    generator = np.random.default_rng(seed)
    tokens = generator.integers(3, 31, size=(rows, 12)).astype(np.int32)
    real = np.arange(12) < generator.choice([12, 12, 9, 5], size=rows)[:, None]
    return dataclasses.replace(
        synthetic(rows, 12),
        tokens=np.where(real, tokens, 0).astype(np.int32),
        weights=real.astype(np.float32),
    )


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Bigram:
    """Sees each token alone: the least network, which is compiled at once."""

    table: jax.Array  # [32, 16]
    head: jax.Array  # [16, 32]
    never: jax.Array  # [32], ids that are not predicted

    def __call__(self, tokens_BL: jax.Array, **_: object) -> jax.Array:
        return self.table[tokens_BL]

    def logits(self, hidden: jax.Array) -> jax.Array:
        return jnp.where(self.never, -jnp.inf, hidden @ self.head)


def _bigram(name: str) -> tuple[Callable[[Any], Bigram], dict[str, np.ndarray]]:
    """What binds parameters for a variant, and parameters."""
    generator = np.random.default_rng(0)
    params = {
        part: generator.normal(size=shape).astype(np.float32)
        for part, shape in (("table", (32, 16)), ("head", (16, 32)))
    }
    never = ~np.isin(np.arange(32), [*IDS, 2] if name.startswith("d3pm") else IDS)
    return lambda params: Bigram(**params, never=jnp.asarray(never)), params


@pytest.fixture(scope="module")
def model_for(make_model: Callable[..., Model]) -> Callable[[str], Model]:
    @functools.cache
    def make(name: str) -> Model:
        timed = name.startswith("uniform")
        return make_model(
            causal=False,
            num_layers=1,
            backbone=Backbone.DIT if timed else Backbone.TRANSFORMER,
            time_conditioning=timed,
            # D3PM predicts the mask, which is id 2.
            unpredictable=(0, 1, 31) if name.startswith("d3pm") else (0, 1, 2, 31),
        )

    return make


def _nll_B(objective: Objective, bind: Callable[..., Any]) -> Callable[..., jax.Array]:
    """Of parameters, batch and draws; compiled, as single operations are slower."""

    @jax.jit
    def nll_B(params: Any, batch: Batch, draws: Any) -> jax.Array:
        return objective.nll_B(bind(params), batch, draws)

    return nll_B


@pytest.mark.parametrize("name", VARIANTS)
def test_loss_and_gradients_are_finite_under_jit(
    model_for: Callable[[str], Model], random_params: Callable[..., Any], name: str
) -> None:
    """Bugs 16, 18, 19: every schedule with every loss and every density of times.

    One of each kind of loss with a whole network.
    """
    _, objective = _build(VARIANTS[name])
    batch, (bind, params) = _batch(8), _bigram(name)
    if name == "schedule linear" or name in EVALUATED:
        model = model_for(name)
        bind, params = model.bind, random_params(model)

    @jax.jit
    def run(params: Any, key: jax.Array) -> Any:
        draws = objective.draw(batch, key, jnp.float32(0.7))

        def loss(params: Any) -> jax.Array:
            return objective.loss(bind(params), batch, draws, None).total

        return jax.value_and_grad(loss)(params)

    value, gradients = run(params, jax.random.key(0))
    assert float(value) > 0
    leaves = jax.tree.leaves(jax.device_get(gradients))
    assert all(np.isfinite(leaf).all() for leaf in leaves)
    assert any(leaf.any() for leaf in leaves)


@pytest.mark.parametrize("name", EXPECTED)
def test_a_zero_head_costs_ln_of_the_ids_in_expectation(name: str) -> None:
    """Bugs 11 and 32: whatever the distribution of times, per counted token.

    D3PM reads every token off once more, and gives its mask a share too.
    """
    _, objective = _build(VARIANTS[name] | {"objective.uniform_share": 0.3})
    batch = _batch(256)

    class Zero:
        def __call__(self, tokens_BL: jax.Array, **_: object) -> jax.Array:
            return jnp.zeros((*tokens_BL.shape, 1))

        def logits(self, hidden: jax.Array) -> jax.Array:
            known = {*IDS.tolist(), *([2] if name.startswith("d3pm") else [])}
            never = np.array([i not in known for i in range(32)])
            row = jnp.where(never, -jnp.inf, 0.0)
            return jnp.broadcast_to(row, (*hidden.shape[:-1], 32))

    @jax.jit
    def run(keys: jax.Array) -> jax.Array:
        def once(key: jax.Array) -> jax.Array:
            draws = objective.draw(batch, key, jnp.float32(0.5))
            found = objective.loss(Zero(), batch, draws, None)
            return found.total / found.weight

        return jax.lax.map(once, keys)

    means = np.asarray(run(jax.random.split(jax.random.key(0), 60)), np.float64)
    error = means.std(ddof=1) / math.sqrt(len(means))
    expected = math.log(len(IDS))
    if name.startswith("d3pm"):
        assert 2 * expected < means.mean() < 2 * expected + 0.2
        return
    assert error < 0.03 * expected, "no power"
    assert abs(means.mean() - expected) < 4 * error + 2e-4


EVALUATED = {
    "subs": {},
    "sedd, linear": VARIANTS["sedd, linear"],
    "d3pm, linear": VARIANTS["d3pm, linear"],
    "uniform, linear": VARIANTS["uniform, linear"],
}


@pytest.mark.parametrize("name", EVALUATED)
def test_rows_go_with_their_losses_and_padding_changes_nothing(
    model_for: Callable[[str], Model], random_params: Callable[..., Any], name: str
) -> None:
    """J and bug 31: rows permuted, and eight more columns of padding."""
    _, objective = _build(EVALUATED[name])
    model, batch = model_for(name), _batch(6)
    run = functools.partial(_nll_B(objective, model.bind), random_params(model))
    draws = jax.jit(objective.draw)(batch, jax.random.key(1), 0.0)
    found = np.asarray(run(batch, draws))
    assert len(np.unique(found)) == 6
    order = np.array([3, 0, 5, 1, 4, 2])
    permuted = jax.tree.map(lambda leaf: leaf[order], (batch, draws))
    np.testing.assert_allclose(run(*permuted), found[order], rtol=1e-5)
    wider = jax.tree.map(
        lambda leaf: (
            jnp.pad(jnp.asarray(leaf), ((0, 0), (0, 4))) if leaf.ndim == 2 else leaf
        ),
        (batch, draws),
    )
    np.testing.assert_allclose(run(*wider), found, rtol=1e-5)


@pytest.mark.parametrize("name", EVALUATED)
def test_draws_do_not_depend_on_the_number_of_devices(name: str) -> None:
    """Bug 13: a global batch of 16 has one time in each sixteenth, wherever it lies."""
    _, objective = _build(EVALUATED[name])
    batch, found = _batch(16), []
    for count in (1, 2, 8):
        mesh = Mesh(np.array(jax.devices()[:count]).reshape(count, 1, 1), MESH_AXES)
        sharding = rules.batch_sharding(mesh)
        placed = jax.device_put(batch, sharding)
        draws = jax.jit(objective.draw)(placed, jax.random.key(5), jnp.float32(0.0))
        found.append(jax.device_get(draws))
    for other in found[1:]:
        jax.tree.map(np.testing.assert_array_equal, found[0], other)


def test_the_times_of_a_global_batch_fill_one_bin_each() -> None:
    _, objective = _build({})
    batch = _batch(16)
    draws = jax.jit(objective.draw)(batch, jax.random.key(5), 0.0)
    # sigma = -log(1 - m) of the light cosine gives the time back.
    rate = -np.expm1(-np.asarray(draws.sigma_B, np.float64))
    times = np.arccos(1 - rate) * 2 / np.pi
    assert sorted(np.floor(times * 16 - 1e-4).astype(int)) == list(range(16))


def test_the_reported_bound_does_not_depend_on_how_the_loss_is_weighted() -> None:
    """Bug 37: evaluation draws the same masks and weighs them as the bound does."""
    batch, key = _batch(16), jax.random.key(2)
    bind, params = _bigram("subs")
    figures, losses = [], []
    for changes in (
        {},
        {"objective.weighting": "softened"},
        {"objective.weighting": "flat"},
        {"objective.time_density": "importance"},
        {"objective.schedule": "bimodal_gaussian"},
        {"objective.frequency_masking": 1.0},
    ):
        _, objective = _build(changes)
        reweighted = "objective.weighting" in changes
        assert objective.loss_is_bound is not reweighted
        assert objective.kind == "upper bound"
        draws = jax.jit(objective.draw_evaluation)(batch, key, jnp.arange(16) / 16)
        figures.append(np.asarray(_nll_B(objective, bind)(params, batch, draws)))

        @jax.jit
        def loss(params: Any, objective: Objective = objective) -> jax.Array:
            draws = objective.draw(batch, key, jnp.float32(0.5))
            return objective.loss(bind(params), batch, draws, None).total

        losses.append(float(loss(params)))
    for figure in figures[1:]:
        np.testing.assert_array_equal(figure, figures[0])
    assert len(set(losses)) == len(losses)


def test_rare_tokens_are_masked_more_often_at_the_same_mean_rate() -> None:
    _, objective = _build({"objective.frequency_masking": 1.0})
    tokens = np.random.default_rng(1).choice(
        IDS, p=COUNTS[IDS] / COUNTS[IDS].sum(), size=(4096, 12)
    )
    batch = dataclasses.replace(synthetic(4096, 12), tokens=tokens.astype(np.int32))
    rates, draw = {}, jax.jit(objective.draw)
    for progress in (0.0, 1.0):
        masked = np.asarray(draw(batch, jax.random.key(3), progress).masked_BL)
        common = COUNTS[tokens] > np.median(COUNTS[tokens])
        rates[progress] = (masked[common].mean(), masked[~common].mean(), masked.mean())
    assert rates[0.0][0] == pytest.approx(rates[0.0][1], abs=0.02)
    assert rates[1.0][1] > rates[1.0][0] + 0.1
    assert rates[1.0][2] == pytest.approx(rates[0.0][2], abs=0.04)


def test_a_prior_that_is_not_all_mask_is_part_of_the_bound(
    model_for: Callable[[str], Model], random_params: Callable[..., Any]
) -> None:
    """(1 - m(1)) ln V for each token that counts, in training and in evaluation."""
    changes = {"objective.schedule": "geometric", "objective.sigma_max": 5.0}
    _, objective = _build(changes, **{"evaluate.estimator": "continuous"})
    batch = _batch(4)
    params = random_params(model_for("subs"))
    nll_B = _nll_B(objective, model_for("subs").bind)
    expected = math.exp(-(5.0 - 1e-4)) * math.log(len(IDS)) * batch.weights.sum(axis=1)
    for draws in (
        jax.jit(objective.draw)(batch, jax.random.key(0), 0.0),
        jax.jit(objective.draw_evaluation)(batch, jax.random.key(0), jnp.arange(4) / 4),
    ):
        with_prior = nll_B(params, batch, draws)
        without = nll_B(params, batch, draws._replace(prior_B=None))
        np.testing.assert_allclose(with_prior - without, expected, rtol=2e-3)
