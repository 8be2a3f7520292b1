"""The scorer against references in float64, and against what is known exactly."""

import dataclasses
import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lmjax.config.schema import Backbone, ParallelConfig
from lmjax.data.batch import Batch
from lmjax.diffusion.process import MaskProcess
from lmjax.diffusion.schedules import LightCosineSchedule
from lmjax.evaluate.likelihood import Likelihood, Scorer
from lmjax.models.build import Model
from lmjax.objectives.autoregressive import Autoregressive
from lmjax.objectives.masked_diffusion import MaskedDiffusion
from lmjax.parallel.mesh import build_mesh

ROWS, LENGTH = 8, 12
AUTOREGRESSIVE = Autoregressive(bos_id=1, chunk_tokens=64)
DIFFUSION = MaskedDiffusion(
    process=MaskProcess(
        mask_id=2, schedule=LightCosineSchedule(), predictable=np.arange(3, 31)
    ),
    chunk_tokens=64,
)


def _scorer(bind: Callable[..., Any], objective: Any, num_devices: int = 1) -> Scorer:
    mesh = build_mesh(ParallelConfig(), jax.devices()[:num_devices])
    return Scorer(bind, objective, mesh)


def _batch(seed: int, *, padding_rows: int = 0, source: int | None = None) -> Batch:
    """8 rows of up to 12 tokens that the tiny models predict, from two sources."""
    generator = np.random.default_rng(seed)
    lengths = generator.integers(3, LENGTH + 1, size=ROWS)
    lengths[ROWS - padding_rows :] = 0
    real = np.arange(LENGTH) < lengths[:, None]
    tokens = generator.integers(3, 31, size=(ROWS, LENGTH))
    sources = generator.integers(0, 2, size=ROWS) if source is None else source
    return Batch(
        tokens=np.where(real, tokens, 0).astype(np.int32),
        weights=real.astype(np.float32),
        # Counts on padding too, which must not be seen.
        words=np.ones((ROWS, LENGTH), np.int32),
        bytes=np.full((ROWS, LENGTH), 4, np.int32),
        source=np.broadcast_to(sources, ROWS).astype(np.int32),
    )


@pytest.fixture(scope="module")
def models(make_model: Callable[..., Model]) -> dict[str, Model]:
    return {"causal": make_model(causal=True), "both ways": make_model(causal=False)}


@pytest.fixture(scope="module")
def params(
    models: dict[str, Model], random_params: Callable[..., Any]
) -> dict[str, Any]:
    return {name: random_params(model) for name, model in models.items()}


def test_the_causal_likelihood_is_that_of_a_float64_softmax(
    models: dict[str, Model], params: dict[str, Any]
) -> None:
    model, batch = models["causal"], _batch(0)

    @jax.jit
    def run(params: Any, inputs: np.ndarray) -> jax.Array:
        bound = model.bind(params)
        return bound.logits(bound(inputs))

    inputs = np.concatenate([np.full((ROWS, 1), 1), batch.tokens[:, :-1]], axis=1)
    logits = np.asarray(run(params["causal"], inputs), np.float64)
    log_p = logits - np.log(np.exp(logits).sum(axis=-1, keepdims=True))
    nll = -np.take_along_axis(log_p, batch.tokens[..., None], axis=-1)[..., 0]
    expected = np.where(batch.weights > 0, nll, 0).sum()

    found = _scorer(model.bind, AUTOREGRESSIVE).evaluate(
        params["causal"], [batch], draws=5
    )[-1]
    assert found.tokens == found.words == batch.weights.sum()
    assert found.bytes == 4 * found.tokens
    assert found.nll_per_token == pytest.approx(expected / found.tokens, rel=1e-6)
    assert (found.kind, found.draws, found.windows) == ("exact", 1, ROWS)


def _likelihood(**changes: Any) -> Likelihood:
    figures = dict(
        kind="exact",
        estimator="chain rule",
        draws=1,
        windows=10,
        tokens=100,
        words=50,
        bytes=300,
        nll_per_token=3 * math.log(2),
        standard_error=0.2 * math.log(2),
    )
    return Likelihood(**figures | changes)


def test_figures_follow_from_nats_and_counts() -> None:
    """Three bits for each of 100 tokens: 300 bits, for 50 words and 300 bytes."""
    figures = _likelihood()
    assert figures.perplexity == pytest.approx(8)
    assert figures.bits_per("word") == pytest.approx(6)
    assert figures.bits_per("byte") == pytest.approx(1)
    assert figures.bits_per_word_error == pytest.approx(0.4)
    report = figures.to_json()
    assert report["bits_per_word"] == pytest.approx(6)
    assert report["bits_per_word_standard_error"] == pytest.approx(0.4)
    assert report["nll_per_token"] == figures.nll_per_token
    assert math.isnan(_likelihood(words=0).bits_per("word"))
    assert math.isfinite(_likelihood(nll_per_token=5000.0).perplexity)


@pytest.mark.parametrize("objective", [AUTOREGRESSIVE, DIFFUSION], ids=["ar", "mdlm"])
def test_rows_of_padding_do_not_count(
    objective: Any, models: dict[str, Model], params: dict[str, Any]
) -> None:
    name = "causal" if objective.causal else "both ways"
    scorer = _scorer(models[name].bind, objective)
    batch = _batch(1, padding_rows=3)
    last = jax.tree.map(lambda leaf: leaf[:5], batch)
    whole = scorer.evaluate(params[name], [_batch(0), batch], draws=1)
    assert whole[-1].windows == 13
    assert whole[-1].tokens == _batch(0).weights.sum() + last.weights.sum()
    assert math.isfinite(whole[-1].nll_per_token)
    if objective.causal:  # masks of a smaller batch are others
        alone = scorer.evaluate(params[name], [_batch(0), last], draws=1)
        assert alone.keys() == whole.keys()
        for source in alone:
            for field in ("tokens", "words", "bytes", "windows"):
                expected = getattr(alone[source], field)
                assert getattr(whole[source], field) == expected
            for field in ("nll_per_token", "standard_error"):
                expected = pytest.approx(getattr(alone[source], field), rel=1e-6)
                assert getattr(whole[source], field) == expected


def test_sources_add_up_to_the_whole(
    models: dict[str, Model], params: dict[str, Any]
) -> None:
    scorer = _scorer(models["both ways"].bind, DIFFUSION)
    found = scorer.evaluate(params["both ways"], map(_batch, range(3)), draws=2)
    assert found.keys() == {-1, 0, 1}
    total, parts = found.pop(-1), found.values()
    for field in ("windows", "tokens", "words", "bytes"):
        assert sum(getattr(p, field) for p in parts) == getattr(total, field) > 0
    nats = sum(part.nll_per_token * part.tokens for part in parts)
    assert nats == pytest.approx(total.nll_per_token * total.tokens)


@dataclasses.dataclass(frozen=True)
class Told:
    """An objective whose rows cost what `params` say, whatever the model."""

    kind: str = "exact"
    estimator: str = "told"
    causal: bool = True

    def draw_evaluation(self, *_: Any) -> None: ...

    def nll_B(self, costs: jax.Array, batch: Batch, draws: None) -> jax.Array:
        return costs[batch.tokens[:, 0]]


def _told(costs: np.ndarray, counts: np.ndarray) -> Likelihood:
    """Windows of these costs in nats and of so many tokens."""
    windows, length = len(costs), int(counts.max())
    tokens = np.zeros((windows, length), np.int32)
    tokens[:, 0] = np.arange(windows)
    zeros = np.zeros_like(tokens)
    batch = Batch(
        tokens=tokens,
        weights=(np.arange(length) < counts[:, None]).astype(np.float32),
        words=zeros,
        bytes=zeros,
        source=np.zeros(windows, np.int32),
    )
    scorer = _scorer(lambda costs: costs, Told())
    return scorer.evaluate(jnp.asarray(costs, jnp.float32), [batch], draws=1)[-1]


def test_the_standard_error_is_that_of_a_ratio_of_sums() -> None:
    """Two windows of 1 and 3 nats in one token each: 2 nats, give or take 1."""
    found = _told(np.array([1.0, 3.0]), np.array([1, 1]))
    assert (found.nll_per_token, found.standard_error) == pytest.approx((2.0, 1.0))
    # Cost in proportion to length: the ratio varies not at all.
    found = _told(np.array([2.0, 6.0, 10.0]), np.array([1, 3, 5]))
    assert found.nll_per_token == pytest.approx(2.0)
    assert found.standard_error == pytest.approx(0.0, abs=1e-6)
    assert _told(np.array([2.0]), np.array([3])).standard_error == math.inf


def test_the_standard_error_is_the_spread_of_resampled_windows() -> None:
    generator = np.random.default_rng(0)
    counts = generator.integers(4, 20, size=400)
    costs = 2 * counts + generator.gamma(2.0, 3.0, size=400)
    found = _told(costs, counts)
    chosen = generator.integers(0, 400, size=(4000, 400))
    spread = (costs[chosen].sum(axis=1) / counts[chosen].sum(axis=1)).std()
    assert found.standard_error == pytest.approx(spread, rel=0.1)


def test_a_zero_head_costs_exactly_ln_of_the_ids_whatever_is_masked(
    make_model: Callable[..., Model],
) -> None:
    for model, objective in (
        (make_model(causal=True), AUTOREGRESSIVE),
        (make_model(causal=False, backbone=Backbone.DIT), DIFFUSION),
    ):
        fresh = jax.jit(model.init)(jax.random.key(0))
        scorer = _scorer(model.bind, objective)
        found = scorer.evaluate(fresh, map(_batch, range(2)), draws=3)[-1]
        assert found.nll_per_token == pytest.approx(math.log(32 - 4), rel=1e-6)
        assert found.standard_error == pytest.approx(0.0, abs=1e-5)


def test_more_draws_have_the_same_mean_and_a_smaller_error(
    models: dict[str, Model], params: dict[str, Any]
) -> None:
    scorer = _scorer(models["both ways"].bind, DIFFUSION)

    def evaluate(draws: int) -> Likelihood:
        batches = map(_batch, range(40))
        return scorer.evaluate(params["both ways"], batches, draws=draws)[-1]

    one, eight = evaluate(1), evaluate(8)
    assert (one.draws, eight.draws) == (1, 8)
    assert one.kind == eight.kind == "upper bound"
    error = math.hypot(one.standard_error, eight.standard_error)
    assert abs(one.nll_per_token - eight.nll_per_token) < 3 * error
    assert eight.standard_error < 0.7 * one.standard_error
    assert error < 0.05 * one.nll_per_token, "no power"


@dataclasses.dataclass(frozen=True)
class Spread:
    """An objective whose rows cost the position they were given in [0, 1)."""

    kind: str = "upper bound"
    estimator: str = "told"

    def draw_evaluation(
        self, batch: Batch, key: jax.Array, position_B: jax.Array
    ) -> jax.Array:
        return position_B

    def nll_B(self, params: None, batch: Batch, draws: jax.Array) -> jax.Array:
        return draws


def test_draws_are_spread_evenly_over_each_window_and_over_all() -> None:
    """Over 100 batches of 8 windows of one token each: uniform, but far more even."""
    batch = jax.tree.map(lambda leaf: leaf[:, :1] if leaf.ndim > 1 else leaf, _batch(0))
    scorer, windows = _scorer(lambda params: params, Spread()), 800
    for draws in (1, 8):
        found = scorer.evaluate(None, [batch] * 100, draws=draws)[-1]
        assert found.windows == windows
        assert abs(found.nll_per_token - 0.5) < 2 / windows
        spread = found.standard_error * math.sqrt(windows)
        # What is left to a window is its place in an interval of 1 / draws.
        assert spread == pytest.approx(1 / draws / math.sqrt(12), rel=0.02)


def _packed(seed: int) -> Batch:
    """The same rows, each cut into two documents."""
    batch = _batch(seed)
    first = np.broadcast_to(np.arange(LENGTH) < 5, batch.tokens.shape)
    return dataclasses.replace(
        batch,
        segments=np.where(batch.weights > 0, np.where(first, 1, 2), 0).astype(np.int32),
        positions=np.where(first, 0, -5).astype(np.int32)
        + np.arange(LENGTH, dtype=np.int32),
    )


@pytest.mark.parametrize("make_batch", [_batch, _packed])
@pytest.mark.parametrize("objective", [AUTOREGRESSIVE, DIFFUSION], ids=["ar", "mdlm"])
def test_figures_are_the_same_each_time_and_on_any_number_of_devices(
    objective: Any,
    make_batch: Callable[[int], Batch],
    models: dict[str, Model],
    params: dict[str, Any],
) -> None:
    name = "causal" if objective.causal else "both ways"

    def evaluate(num_devices: int) -> dict[int, Likelihood]:
        scorer = _scorer(models[name].bind, objective, num_devices)
        return scorer.evaluate(params[name], map(make_batch, range(3)), draws=2)

    one = evaluate(1)
    assert evaluate(1) == one
    eight = evaluate(8)
    for source, likelihood in one.items():
        found = dataclasses.asdict(eight[source])
        for field, value in dataclasses.asdict(likelihood).items():
            if isinstance(value, float):
                # An error is a spread of figures near 3, and carries their rounding.
                value = pytest.approx(value, rel=1e-5, abs=1e-6)
            assert found[field] == value


def test_without_batches_there_is_nothing_to_say(
    models: dict[str, Model], params: dict[str, Any]
) -> None:
    scorer = _scorer(models["causal"].bind, AUTOREGRESSIVE)
    assert scorer.evaluate(params["causal"], [], draws=1) == {}


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class TableModel:
    """Looks up the logits [3, 3] of a partly masked input; 3 is the mask."""

    table: jax.Array  # [4^3, 3, 3]

    def __call__(self, tokens_BL: jax.Array, **_: object) -> jax.Array:
        return self.table[tokens_BL @ np.array([16, 4, 1], np.int32)]

    def logits(self, hidden: jax.Array) -> jax.Array:
        mask_logit = jnp.full((*hidden.shape[:-1], 1), -jnp.inf)
        return jnp.concatenate([hidden, mask_logit], axis=-1)


SEQUENCES = np.array(list(itertools.product(range(3), repeat=3)), np.int32)


def _conditionals(joint: np.ndarray) -> np.ndarray:
    """The true log p(x_i | what is seen) of a law over the 27 sequences."""
    table = np.zeros((64, 3, 3), np.float32)
    for seen in itertools.product(range(4), repeat=3):
        visible = np.array(seen) != 3
        agrees = (SEQUENCES[:, visible] == np.array(seen)[visible]).all(axis=1)
        for i, token in itertools.product(range(3), range(3)):
            mass = joint[agrees & (SEQUENCES[:, i] == token)].sum()
            table[int(np.dot(seen, [16, 4, 1])), i, token] = math.log(mass + 1e-30)
    return table


def _text(joint: np.ndarray, seed: int, num_batches: int) -> Sequence[Batch]:
    """Sequences drawn from the law, 512 in a batch."""
    chosen = np.random.default_rng(seed).choice(27, (num_batches, 512), p=joint)
    ones = np.ones((512, 3), np.int32)
    return [
        Batch(
            tokens=SEQUENCES[rows],
            weights=ones.astype(np.float32),
            words=ones,
            bytes=ones,
            source=ones[:, 0],
        )
        for rows in chosen
    ]


@pytest.mark.parametrize("seed", range(4))
def test_the_bound_of_the_true_model_is_the_entropy_and_never_below(seed: int) -> None:
    """Nor is it below with wrong conditionals, which cost what they are wrong."""
    process = MaskProcess(
        mask_id=3, schedule=LightCosineSchedule(), predictable=np.arange(3, 31)
    )
    scorer = _scorer(TableModel, MaskedDiffusion(process=process, chunk_tokens=10_000))
    joint = np.random.default_rng(seed).dirichlet(np.full(27, 0.7))
    entropy = -np.sum(joint * np.log(joint + 1e-300)) / 3
    text = _text(joint, seed, num_batches=8)
    table = _conditionals(joint)
    found = scorer.evaluate(table, text, draws=4)[-1]
    assert abs(found.nll_per_token - entropy) < 3 * found.standard_error
    assert found.standard_error < 0.02 * entropy, "no power"
    wrong = scorer.evaluate(table / 2, text, draws=4)[-1]
    assert wrong.nll_per_token > entropy + 3 * wrong.standard_error
