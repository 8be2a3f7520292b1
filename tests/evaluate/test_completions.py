"""Completions against brute force: all that precedes, or all masks of a bound."""

import dataclasses
import itertools
import json
import math
from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lmjax.config.schema import ParallelConfig
from lmjax.core.errors import UserError
from lmjax.data.batch import Batch
from lmjax.evaluate import completions, rows
from lmjax.evaluate.completions import (
    Completion,
    CompletionLikelihood,
    score_completions,
)
from lmjax.evaluate.likelihood import Scorer
from lmjax.models.build import Model
from lmjax.parallel import hosts
from lmjax.parallel.mesh import build_mesh

BOS, MASK, EOS, PAD = 1, 2, 3, 0
EXAMPLES = (
    Completion([5, 9, 14], [7, 8, 21]),
    Completion([6], [30, 4]),
    Completion([], [11, 12, 11]),
    Completion([4, 5, 6, 7, 8, 9, 10], [20, 9]),
)


@dataclasses.dataclass(frozen=True)
class Tiny:
    """A two-layer model with random parameters, and its scorer."""

    model: Model
    params: Any
    scorer: Scorer
    log_p: Callable[[Sequence[int]], np.ndarray]  # float64 [length, V] of one row

    def score(
        self, examples: Sequence[Completion], scorer: Scorer | None = None, **options
    ) -> list[CompletionLikelihood]:
        fixed = dict(opening=[EOS], eos_id=EOS, pad_id=PAD, max_length=16)
        return score_completions(
            scorer or self.scorer, self.params, examples, **fixed | options
        )


def _scorer(bind: Callable[..., Any], objective: Any, num_devices: int = 1) -> Scorer:
    return Scorer(
        bind, objective, build_mesh(ParallelConfig(), jax.devices()[:num_devices])
    )


def _tiny(make_model: Any, random_params: Any, make_training: Any, name: str) -> Tiny:
    model = make_model(causal=name == "autoregressive")
    objective = make_training(name).step.objective
    params = random_params(model)

    @jax.jit
    def logits(params: Any, tokens: jax.Array, lengths: jax.Array) -> jax.Array:
        bound = model.bind(params)
        return bound.logits(bound(tokens, lengths_B=lengths))

    def log_p(ids: Sequence[int]) -> np.ndarray:
        tokens = np.full((1, 16), PAD, np.int32)
        tokens[0, : len(ids)] = ids
        found = np.asarray(logits(params, tokens, np.array([len(ids)])), np.float64)[0]
        return found - np.log(np.exp(found).sum(axis=-1, keepdims=True))

    return Tiny(model, params, _scorer(model.bind, objective), log_p)


@pytest.fixture(scope="module")
def causal(make_model: Any, random_params: Any, make_training: Any) -> Tiny:
    return _tiny(make_model, random_params, make_training, "autoregressive")


@pytest.fixture(scope="module")
def diffusion(make_model: Any, random_params: Any, make_training: Any) -> Tiny:
    return _tiny(make_model, random_params, make_training, "masked diffusion")


@pytest.mark.parametrize("end", [True, False])
def test_a_causal_completion_costs_the_whole_less_the_prompt(
    causal: Tiny, end: bool
) -> None:
    def cost(ids: Sequence[int]) -> float:
        log_p = causal.log_p([BOS, *ids])
        return -sum(log_p[i, token] for i, token in enumerate(ids))

    found = causal.score(EXAMPLES, end=end)
    for example, likelihood in zip(EXAMPLES, found, strict=True):
        given = [EOS, *example.prompt]
        whole = [*given, *example.completion, *([EOS] if end else [])]
        assert likelihood.nll == pytest.approx(cost(whole) - cost(given), rel=1e-5)
        assert likelihood.tokens == len(whole) - len(given)
        assert (likelihood.kind, likelihood.draws) == ("exact", 1)
        assert likelihood.standard_error == 0.0


def _bound(tiny: Tiny, given: Sequence[int], counted: Sequence[int]) -> float:
    """The conditional bound: every set of masked tokens, with its weight."""
    n, start = len(counted), len(given)
    row = [*given, *counted]
    total = 0.0
    for size in range(1, n + 1):
        weight = math.factorial(size - 1) * math.factorial(n - size) / math.factorial(n)
        for chosen in itertools.combinations(range(start, start + n), size):
            seen = [MASK if i in chosen else token for i, token in enumerate(row)]
            log_p = tiny.log_p(seen)
            total -= weight * sum(log_p[i, row[i]] for i in chosen)
    return total


def test_the_bound_of_diffusion_is_that_over_all_masks(diffusion: Tiny) -> None:
    found = diffusion.score(EXAMPLES, draws=512)
    for example, likelihood in zip(EXAMPLES, found, strict=True):
        counted = [*example.completion, EOS]
        expected = _bound(diffusion, [EOS, *example.prompt], counted)
        error = likelihood.standard_error
        assert abs(likelihood.nll - expected) < 4 * error
        assert 0 < error < 0.02 * expected, "no power"
        assert likelihood.tokens == len(counted)
        assert (likelihood.kind, likelihood.draws) == ("upper bound", 512)


def test_the_error_is_the_spread_over_seeds(diffusion: Tiny) -> None:
    found = [diffusion.score(EXAMPLES[:3], draws=16, seed=seed) for seed in range(60)]
    for i in range(3):
        nats = [likelihoods[i].nll for likelihoods in found]
        errors = [likelihoods[i].standard_error for likelihoods in found]
        ratio = math.sqrt(np.mean(np.square(errors))) / np.std(nats)
        assert 0.75 < ratio < 1.5


def test_a_completion_of_one_token_takes_one_draw_and_is_exact(diffusion: Tiny) -> None:
    one = [Completion([5, 9], [7]), Completion([], [11]), EXAMPLES[0]]
    *found, longer = diffusion.score(one, end=False)
    for example, likelihood in zip(one, found, strict=False):
        given = [EOS, *example.prompt]
        log_p = diffusion.log_p([*given, MASK])
        expected = -log_p[len(given), example.completion[0]]
        assert likelihood.nll == pytest.approx(expected, rel=1e-5)
        assert (likelihood.draws, likelihood.standard_error) == (1, 0.0)
    assert longer.draws == completions.DRAWS == 128


@dataclasses.dataclass(frozen=True)
class Noisy:
    """An objective whose bound is noisy for a single token too."""

    kind: str = "upper bound"
    estimator: str = "times"

    def draw_evaluation(
        self, batch: Batch, key: jax.Array, position_B: jax.Array
    ) -> jax.Array:
        return position_B

    def nll_B(self, model: None, batch: Batch, draws: jax.Array) -> jax.Array:
        return jnp.sum(batch.weights, axis=1) * draws


def test_a_token_whose_draws_differ_takes_them_all() -> None:
    """Evenly spread over [0, 1) from a random start, so 1/2 to within a half of 1/8."""
    found = score_completions(
        _scorer(lambda params: None, Noisy()),
        None,
        [Completion([], [5])] * 20,
        opening=[],
        eos_id=EOS,
        pad_id=PAD,
        max_length=4,
        end=False,
        draws=8,
    )
    nats = np.array([likelihood.nll for likelihood in found])
    assert {likelihood.draws for likelihood in found} == {8}
    assert np.all(np.abs(nats - 0.5) <= 0.5 / 8 + 1e-6)
    assert np.ptp(nats) > 0.5 / 8, "the starts are the same"


@pytest.mark.parametrize("num_devices", [1, 3, 8])
def test_neither_batches_nor_other_examples_change_a_figure(
    num_devices: int, diffusion: Tiny, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nor does the number of devices: also three, which divide no power of two."""
    expected = diffusion.score(EXAMPLES, draws=10)
    others = [Completion([9] * 3, [4] * (1 + i % 9)) for i in range(7)]
    scorer = _scorer(diffusion.model.bind, diffusion.scorer.objective, num_devices)
    monkeypatch.setattr(completions, "MAX_ROWS", 12)
    found = diffusion.score(EXAMPLES, scorer, draws=10)
    mixed = diffusion.score([others[0], EXAMPLES[1], *others], scorer, draws=10)
    for one, other in zip([*expected, expected[1]], [*found, mixed[1]], strict=True):
        assert other.nll == pytest.approx(one.nll, rel=1e-5)
        assert other.standard_error == pytest.approx(one.standard_error, rel=1e-3)
    again = diffusion.score(EXAMPLES, draws=10, seed=1)
    assert all(a.nll != b.nll for a, b in zip(again, expected, strict=True))


@pytest.mark.parametrize("document_mask", [False, True])
def test_the_prompt_is_never_masked_and_each_size_is(
    document_mask: bool, diffusion: Tiny, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = []

    def spy(self: Scorer, params: Any, batch: Batch, draws: Any) -> jax.Array:
        seen.append((batch, np.asarray(draws.masked_BL)))
        return jnp.zeros(len(batch.tokens))

    monkeypatch.setattr(Scorer, "nll_B", spy)
    diffusion.score(
        EXAMPLES[:1] * 2, draws=20, opening=[EOS, BOS], document_mask=document_mask
    )
    ((batch, masked),) = seen
    row = [EOS, BOS, 5, 9, 14, 7, 8, 21, EOS]
    assert batch.tokens[:20, :9].tolist() == [row] * 20
    assert not masked[:20, :5].any() and not masked[:20, 9:].any()
    assert not masked[40:].any()
    assert np.any(masked[:20] != masked[20:40]), "each example has a key of its own"
    sizes = np.bincount(masked[:20].sum(axis=1), minlength=5)
    assert sizes.tolist() == [0, 5, 5, 5, 5]
    for size in (1, 2, 3):
        assert len({tuple(r) for r in masked[:20] if r.sum() == size}) > 1
    if document_mask:
        assert batch.segments[0, :10].tolist() == [1, *[2] * 8, 0]


def test_one_draw_of_several_tokens_cannot_tell_its_error(diffusion: Tiny) -> None:
    (found,) = diffusion.score(EXAMPLES[:1], draws=1)
    assert math.isnan(found.standard_error)
    report = json.loads(json.dumps(found.to_json(), allow_nan=False))
    assert report["standard_error"] is None
    assert (report["nll"], report["draws"]) == (found.nll, 1)


def test_no_examples_give_no_figures(diffusion: Tiny) -> None:
    assert diffusion.score([]) == []


@pytest.mark.parametrize(
    ("example", "words"),
    [
        (Completion([5], []), "is empty"),
        (Completion([5] * 9, [6] * 6), "9 tokens .* 6 need 17 .* takes 16"),
    ],
)
def test_what_cannot_be_scored_is_named(
    diffusion: Tiny, example: Completion, words: str
) -> None:
    with pytest.raises(UserError, match=rf"(?s){words}.*example 2"):
        diffusion.score([*EXAMPLES[:2], example])
    fits = Completion(example.prompt, [*example.completion, 5][:5])
    assert diffusion.score([fits], draws=2)[0].tokens == len(fits.completion) + 1


def test_each_process_makes_its_part_of_a_batch(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def layout(part: slice) -> rows.Layout:
        return rows.Layout(num_rows=4, local=part, length=3, eos_id=EOS, pad_id=PAD)

    given = [rows.Row(i, [5 + i, 6 + i], 1) for i in range(3)]
    mesh = build_mesh(ParallelConfig(), jax.devices()[:2])
    assert hosts.local_rows(mesh, 4) == slice(0, 4)  # one process has them all
    ((chosen, whole),) = layout(slice(0, 4)).batches(given)
    devices = np.array([SimpleNamespace(process_index=i // 2) for i in range(4)])
    shared = SimpleNamespace(devices=devices)
    parts = []
    for index in range(2):
        monkeypatch.setattr(jax, "process_index", lambda index=index: index)
        ((same, part),) = layout(hosts.local_rows(shared, 4)).batches(given)
        assert same == chosen == given
        parts.append(part)
    joined = jax.tree.map(lambda *leaves: np.concatenate(leaves), *parts)
    for one, other in zip(jax.tree.leaves(whole), jax.tree.leaves(joined), strict=True):
        np.testing.assert_array_equal(one, other)
    assert whole.tokens.tolist() == [[5, 6, 0], [6, 7, 0], [7, 8, 0], [0, 0, 0]]
    assert whole.weights.tolist() == [[0, 1, 0]] * 3 + [[0, 0, 0]]
