"""What another seed changes in a bound, and what the error says that it does."""

import dataclasses
import json
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lmjax.config.schema import ParallelConfig
from lmjax.data.batch import Batch
from lmjax.evaluate.likelihood import Likelihood, Scorer
from lmjax.parallel.mesh import build_mesh


def _batch(seed: int) -> Batch:
    generator = np.random.default_rng(seed)
    real = np.arange(12) < generator.integers(3, 13, size=8)[:, None]
    tokens = generator.integers(3, 31, size=(8, 12))
    ones = np.ones((8, 12), np.int32)
    return Batch(
        tokens=np.where(real, tokens, 0).astype(np.int32),
        weights=real.astype(np.float32),
        words=ones,
        bytes=ones,
        source=np.arange(8, dtype=np.int32) % 2,
    )


BATCHES = [_batch(seed) for seed in range(3)]


def _scored(
    make_model: Any, random_params: Any, make_training: Any, name: str
) -> tuple[Scorer, Any]:
    model = make_model(causal=name == "autoregressive")
    mesh = build_mesh(ParallelConfig(), jax.devices()[:1])
    objective = make_training(name).step.objective
    return Scorer(model.bind, objective, mesh), random_params(model)


@pytest.fixture(scope="module")
def diffusion(
    make_model: Any, random_params: Any, make_training: Any
) -> tuple[Scorer, Any]:
    return _scored(make_model, random_params, make_training, "masked diffusion")


@pytest.fixture(scope="module")
def causal(
    make_model: Any, random_params: Any, make_training: Any
) -> tuple[Scorer, Any]:
    return _scored(make_model, random_params, make_training, "autoregressive")


@pytest.mark.parametrize("draws", [2, 16])
def test_the_error_is_the_spread_over_seeds_or_a_little_more(
    diffusion: tuple[Scorer, Any], draws: int
) -> None:
    """Also within each source; and independent seeds scatter about one mean."""
    scorer, params = diffusion
    found: list[dict[int, Likelihood]] = [
        scorer.evaluate(params, BATCHES, draws=draws, seed=seed) for seed in range(50)
    ]
    for source in (-1, 0, 1):
        nats = np.array([likelihood[source].nll_per_token for likelihood in found])
        errors = np.array(
            [likelihood[source].monte_carlo_error for likelihood in found]
        )
        ratio = math.sqrt(np.mean(np.square(errors))) / nats.std()
        assert 0.8 < ratio < 1.5  # with 16 draws the error over text is 1.8 and more
        # Half the seeds have the mean of the other half.
        apart = nats[:25].mean() - nats[25:].mean()
        assert abs(apart) < 4 * nats.std() * math.sqrt(2 / 25)


@dataclasses.dataclass(frozen=True)
class Position:
    """An objective whose rows cost the position they were given in [0, 1)."""

    kind: str = "upper bound"
    estimator: str = "told"

    def draw_evaluation(
        self, batch: Batch, key: jax.Array, position_B: jax.Array
    ) -> jax.Array:
        return position_B

    def nll_B(self, params: None, batch: Batch, draws: jax.Array) -> jax.Array:
        return draws * jnp.sum(batch.weights, axis=1)


def test_each_seed_starts_elsewhere_and_none_is_preferred() -> None:
    """A single window and draw: uniform over the seeds, in [0, 1)."""
    mesh = build_mesh(ParallelConfig(), jax.devices()[:1])
    scorer = Scorer(lambda params: params, Position(), mesh)
    window = jax.tree.map(lambda leaf: leaf[:1], BATCHES[0])
    found = [
        scorer.evaluate(None, [window], draws=1, seed=seed)[-1].nll_per_token
        for seed in range(1, 101)
    ]
    assert 0 <= min(found) < 0.1 and 0.9 < max(found) < 1
    assert np.mean(found) == pytest.approx(0.5, abs=4 / math.sqrt(12 * 100))


def test_the_noise_of_mask_sizes_shrinks_nearly_as_one_over_the_number_of_windows() -> (
    None
):
    """Bug 12: stratified over all windows; eight times as many, a fifth and less."""
    mesh = build_mesh(ParallelConfig(), jax.devices()[:1])
    scorer = Scorer(lambda params: params, Position(), mesh)
    ones = dataclasses.replace(BATCHES[0], weights=np.ones((8, 12), np.float32))

    def spread(num_batches: int) -> float:
        found = [
            scorer.evaluate(None, [ones] * num_batches, draws=1, seed=seed)[-1]
            for seed in range(1, 41)
        ]
        return float(np.std([each.nll_per_token for each in found]))

    few, many = spread(1), spread(8)
    assert few < 0.5 * math.sqrt(1 / 12 / 8)  # independent sizes would have this
    assert many < few / 5


def test_two_seeds_agree_within_three_errors(diffusion: tuple[Scorer, Any]) -> None:
    scorer, params = diffusion
    one, two = (
        scorer.evaluate(params, BATCHES, draws=16, seed=seed)[-1] for seed in (1, 2)
    )
    error = math.hypot(one.monte_carlo_error, two.monte_carlo_error)
    assert 0 < abs(one.nll_per_token - two.nll_per_token) < 3 * error


def test_more_draws_leave_a_smaller_error(diffusion: tuple[Scorer, Any]) -> None:
    scorer, params = diffusion

    def error(draws: int) -> float:
        found = [
            scorer.evaluate(params, BATCHES, draws=draws, seed=seed)[-1]
            for seed in range(1, 6)
        ]
        return float(np.mean([likelihood.monte_carlo_error for likelihood in found]))

    assert error(16) < 0.7 * error(4)


def test_seeds_differ_and_no_seed_is_seed_0(diffusion: tuple[Scorer, Any]) -> None:
    scorer, params = diffusion
    zero, plain, one = (
        scorer.evaluate(params, BATCHES, draws=2, **options)[-1]
        for options in ({"seed": 0}, {}, {"seed": 1})
    )
    assert zero == plain
    assert one.nll_per_token != zero.nll_per_token
    assert (one.tokens, one.windows) == (zero.tokens, zero.windows)


def test_one_draw_cannot_tell_and_json_says_null(diffusion: tuple[Scorer, Any]) -> None:
    scorer, params = diffusion
    found = scorer.evaluate(params, BATCHES, draws=1)[-1]
    assert math.isnan(found.monte_carlo_error)
    report = json.loads(json.dumps(found.to_json(), allow_nan=False))
    assert report["monte_carlo_error"] is None
    two = scorer.evaluate(params, BATCHES, draws=2)[-1]
    assert two.to_json()["monte_carlo_error"] == two.monte_carlo_error > 0


def test_an_exact_figure_has_no_noise_whatever_the_seed(
    causal: tuple[Scorer, Any],
) -> None:
    scorer, params = causal
    found = scorer.evaluate(params, BATCHES, draws=4)[-1]
    assert (found.draws, found.monte_carlo_error) == (1, 0.0)
    assert scorer.evaluate(params, BATCHES, draws=4, seed=9)[-1] == found
