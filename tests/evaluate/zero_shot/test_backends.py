"""Scores of candidates under each backend, against sums made one row at a time."""

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lmjax.config.schema import (
    Backbone,
    EvaluateConfig,
    ParallelConfig,
    ZeroShotBackend,
)
from lmjax.core.errors import ConfigError
from lmjax.evaluate.probes import Probe, Prober
from lmjax.evaluate.zero_shot.backends import (
    Backend,
    Bound,
    Causal,
    Chain,
    Pseudo,
    build_backend,
    noise_level,
)
from lmjax.evaluate.zero_shot.encoding import EncodedCandidate
from lmjax.models.build import Model
from lmjax.parallel.mesh import build_mesh
from tests import toys

BOS, MASK, PAD = 1, 2, 0
LENGTHS = ((1, 3), (4, 2), (1, 7), (6, 1))  # of a prefix, BOS in it, and a completion


def _candidates(seed: int = 0) -> list[list[EncodedCandidate]]:
    """Items of two candidates each: equal lengths, then a longer second one."""
    generator = np.random.default_rng(seed)
    items = []
    for number, (prefix, length) in enumerate(LENGTHS):
        rows = []
        for extra in (0, number % 2):
            ids = generator.integers(3, 31, prefix + length + extra).astype(np.int32)
            ids[0] = BOS
            rows.append(EncodedCandidate(ids, prefix))
        items.append(rows)
    return items


@dataclasses.dataclass(frozen=True, eq=False)
class Tiny:
    """A model, and its logits of one row without padding."""

    model: Model
    params: Any

    def scores(self, backend: Backend, items: Sequence[Sequence[Any]]) -> np.ndarray:
        """Through the prober, all at once: [all candidates]."""
        prober = Prober(
            self.model.bind,
            build_mesh(ParallelConfig(), jax.devices()[:1]),
            max_length=16,
            pad_id=PAD,
            causal=self.model.setting.causal,
            batch_tokens=64,
            chunk_tokens=4,
        )
        terms = [
            each for i, item in enumerate(items) for each in backend.terms(item, i)
        ]
        flat = [term for each in terms for term in each]
        values = iter(prober(self.params, [term.probe for term in flat]))
        return np.array(
            [sum(t.weight * float(next(values).sum()) for t in each) for each in terms]
        )

    def log_softmax(self, row: Sequence[int], sigma: float = 0.0) -> np.ndarray:
        """Float64 [l, V], of this row alone."""
        tokens = jnp.asarray(row, jnp.int32)[None]
        logits = _logits(self.model)(self.params, tokens, jnp.full(1, sigma))
        logits = np.asarray(logits, np.float64)
        top = logits.max(axis=-1, keepdims=True)
        return logits - top - np.log(np.exp(logits - top).sum(axis=-1, keepdims=True))


_COMPILED: dict[int, Callable[..., jax.Array]] = {}


def _logits(model: Model) -> Callable[..., jax.Array]:
    def logits(params: Any, tokens: jax.Array, sigma: jax.Array) -> jax.Array:
        bound = model.bind(params)
        return bound.logits(bound(tokens, sigma_B=sigma))[0]

    return _COMPILED.setdefault(id(model), jax.jit(logits))


@pytest.fixture(scope="module")
def causal(make_model: Any, random_params: Any) -> Tiny:
    model = make_model(causal=True)
    return Tiny(model, random_params(model))


@pytest.fixture(scope="module")
def timed(make_model: Any, random_params: Any) -> Tiny:
    model = make_model(causal=False, backbone=Backbone.DIT, time_conditioning=True)
    return Tiny(model, random_params(model))


def _close(found: np.ndarray, expected: Sequence[float]) -> None:
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-4)


def test_causal_scores_are_a_sum_over_the_completion(causal: Tiny) -> None:
    items = _candidates()
    expected = []
    for row in (row for item in items for row in item):
        log_p = causal.log_softmax(row.ids)
        places = range(row.start, len(row.ids))
        expected.append(sum(log_p[i - 1, row.ids[i]] for i in places))
    _close(causal.scores(Causal(), items), expected)


def test_causal_never_scores_what_nothing_predicts(causal: Tiny) -> None:
    ids = np.array([5, 6, 7], np.int32)
    item = [EncodedCandidate(ids, 0), EncodedCandidate(ids[:1], 0)]
    log_p = causal.log_softmax(ids)
    _close(causal.scores(Causal(), [item]), [log_p[0, 6] + log_p[1, 7], 0.0])
    assert [Causal().scored(row) for row in item] == [2, 0]


@pytest.mark.parametrize(
    ("backend", "shift", "told"),
    [
        (Pseudo(MASK), 0, True),
        (Pseudo(MASK, timed=False), 0, False),
        (Pseudo(MASK, shift=1), 1, True),
    ],
    ids=["mlm", "mlm_untimed", "mntp"],
)
def test_pseudo_likelihoods_mask_one_id_at_a_time(
    backend: Backend, shift: int, told: bool, timed: Tiny
) -> None:
    items = _candidates(1)
    expected = []
    for ids, start in (row for item in items for row in item):
        sigma = -math.log(1 - 1 / len(ids)) if told else 0.0
        total = 0.0
        for i in range(start, len(ids)):
            masked = [MASK if j == i else int(ids[j]) for j in range(len(ids))]
            total += timed.log_softmax(masked, sigma)[i - shift, ids[i]]
        expected.append(total)
    _close(timed.scores(backend, items), expected)


def test_masked_next_token_prediction_needs_something_before(timed: Tiny) -> None:
    ids = np.array([5, 6], np.int32)
    backend = Pseudo(MASK, shift=1)
    terms = backend.terms([EncodedCandidate(ids, 0)], 0)[0]
    assert [term.probe.places.tolist() for term in terms] == [[0]]
    assert backend.scored(EncodedCandidate(ids, 0)) == 1


def test_the_chain_masks_all_that_comes_after(timed: Tiny) -> None:
    items = _candidates(2)
    expected = []
    for ids, start in (row for item in items for row in item):
        n, total = len(ids), 0.0
        for i in range(start, n):
            row = [*ids[:i].tolist(), *[MASK] * (n - i)]
            total += timed.log_softmax(row, -math.log(1 - (n - i) / n))[i, ids[i]]
        expected.append(total)
    _close(timed.scores(Chain(MASK), items), expected)


def test_the_bound_weighs_masks_of_an_exact_number(timed: Tiny) -> None:
    """Of its own draws: those of every size weigh n / l over the number of draws."""
    items, draws = _candidates(3), 5
    backend = Bound(MASK, draws)
    expected = []
    for number, item in enumerate(items):
        for (ids, start), terms in zip(item, backend.terms(item, number), strict=True):
            n, total, sizes = len(ids) - start, 0.0, []
            assert len(terms) == (draws if n > 1 else 1)
            for term in terms:
                masked = np.flatnonzero(term.probe.inputs != ids)
                assert masked.min() >= start
                assert np.all(term.probe.inputs[masked] == MASK)
                count = len(masked)
                sigma = min(20.0, -math.log(1 - count / n) if count < n else math.inf)
                log_p = timed.log_softmax(term.probe.inputs, sigma)
                total += n / count / len(terms) * log_p[masked, ids[masked]].sum()
                sizes.append(count)
            assert sizes == sorted(sizes)
            assert sizes[0] == 1 or n == 1 or n > draws
            expected.append(total)
    _close(timed.scores(backend, items), expected)


def _toy_score(
    table: np.ndarray, backend: Backend, x: np.ndarray, number: int
) -> float:
    prober = Prober(
        toys.TableModel,
        build_mesh(ParallelConfig(), jax.devices()[:1]),
        max_length=toys.L,
        pad_id=0,
        causal=False,
        batch_tokens=3 * 4096,
        chunk_tokens=4096,
    )
    (terms,) = backend.terms([EncodedCandidate(x, 0)], number)
    values = prober(jnp.asarray(table), [term.probe for term in terms])
    pairs = zip(terms, values, strict=True)
    return sum(term.weight * float(value.sum()) for term, value in pairs)


def test_each_set_of_masks_weighs_what_the_bound_says() -> None:
    """On average over draws, (|S| - 1)! (n - |S|)! / n!."""
    ids, found = np.array([5, 6, 7], np.int32), []
    for number in range(400):
        weights = dict.fromkeys(map(tuple, toys.SUBSETS.tolist()), 0.0)
        (terms,) = Bound(MASK, 16).terms([EncodedCandidate(ids, 0)], number)
        for term in terms:
            weights[tuple((term.probe.inputs == MASK).tolist())] += term.weight
        found.append(list(weights.values()))
    error = np.std(found, axis=0, ddof=1) / math.sqrt(len(found))
    expected = [toys.subset_weight(subset) for subset in toys.SUBSETS]
    assert error.max() < 0.02
    assert np.all(np.abs(np.mean(found, axis=0) - expected) <= 4 * error + 1e-12)


@pytest.mark.parametrize("x", [(0, 1, 2), (2, 2, 0)])
def test_the_bound_is_that_of_all_masks(x: tuple[int, ...]) -> None:
    """Against the sum over all sets of masks, of a toy that can be enumerated."""
    table, ids = toys.random_table(), np.array(x, np.int32)
    exact = -toys.bound(-toys.log_softmax(table), ids)
    found = [_toy_score(table, Bound(toys.MASK, 1000, s), ids, 0) for s in range(10)]
    error = np.std(found, ddof=1) / math.sqrt(len(found))
    assert error < 0.08
    assert abs(np.mean(found) - exact) < 4 * error


@pytest.mark.parametrize("x", [(0, 1, 2), (2, 2, 0)])
def test_the_chain_is_the_law_of_writing_from_left_to_right(
    x: tuple[int, ...],
) -> None:
    """Its scores are log-probabilities: over all texts they sum to 1."""
    table = toys.random_table()
    log_p = toys.log_softmax(table)
    m = toys.MASK
    rows = [(m, m, m), (x[0], m, m), (x[0], x[1], m)]
    expected = sum(log_p[toys.row(np.array(r)), i, x[i]] for i, r in enumerate(rows))
    found = _toy_score(table, Chain(toys.MASK), np.array(x, np.int32), 0)
    assert found == pytest.approx(expected, abs=1e-4)


def test_candidates_of_an_item_share_their_masks() -> None:
    """What they begin or end with alike is masked alike; sizes go by length."""
    first = np.array([BOS, 5, 6, 7, 8, 9], np.int32)
    second = np.array([BOS, 5, 6, 20, 8, 9], np.int32)
    longer = np.array([BOS, 5, 6, 20, 21, 8, 9], np.int32)
    backend = Bound(MASK, 64)
    rows = [EncodedCandidate(ids, 1) for ids in (first, second)]
    a, b = backend.terms(rows, 0)
    for s, t in zip(a, b, strict=True):
        np.testing.assert_array_equal(s.probe.inputs == MASK, t.probe.inputs == MASK)
        assert (s.weight, s.probe.sigma) == (t.weight, t.probe.sigma)
    rows = [EncodedCandidate(ids, 1) for ids in (first, longer)]
    same = 0
    for s, t in zip(*backend.terms(rows, 0), strict=True):
        ends = [[*p.inputs[:3], *p.inputs[-2:]] for p in (s.probe, t.probe)]
        same += ends[0] == ends[1]
    assert same > 40  # of 64; independent masks agree in few


def test_masks_are_the_same_at_every_call_and_differ_among_items() -> None:
    rows = [EncodedCandidate(np.arange(3, 12, dtype=np.int32), 1)]

    def inputs(number: int, seed: int = 0) -> np.ndarray:
        (terms,) = Bound(MASK, 8, seed).terms(rows, number)
        return np.stack([term.probe.inputs for term in terms])

    np.testing.assert_array_equal(inputs(0), inputs(0))
    assert not np.array_equal(inputs(0), inputs(1))
    assert not np.array_equal(inputs(0), inputs(0, seed=1))


def test_the_level_of_noise_is_that_of_the_share_of_masks() -> None:
    assert noise_level(1, 4) == pytest.approx(-math.log(0.75), rel=1e-6)
    assert noise_level(3, 3) == 20.0


@pytest.mark.parametrize(
    ("kind", "causal", "expected"),
    [
        ("auto", True, Causal()),
        ("auto", False, Pseudo(MASK)),
        ("causal", True, Causal()),
        ("mlm", False, Pseudo(MASK)),
        ("mlm_untimed", False, Pseudo(MASK, timed=False, name="mlm_untimed")),
        ("mntp", False, Pseudo(MASK, shift=1, name="mntp")),
        ("elbo", False, Bound(MASK, 64, 7)),
        ("chain", False, Chain(MASK)),
        ("causal", False, None),
        ("mlm", True, None),
        ("elbo", True, None),
        ("mntp", True, None),
    ],
)
def test_the_backend_must_fit_the_model(
    kind: str, causal: bool, expected: Backend | None
) -> None:
    config = EvaluateConfig(backend=ZeroShotBackend(kind))
    if expected is None:
        with pytest.raises(ConfigError, match=r"evaluate\.backend"):
            build_backend(config, causal=causal, mask_id=MASK)
        return
    backend = build_backend(config, causal=causal, mask_id=MASK, seed=7)
    assert backend == expected
    assert backend.name == (kind if kind != "auto" else expected.name)


def test_probes_are_rows_that_the_model_can_read() -> None:
    """Each asks for ids that its row hides, or, if causal, does not yet hold."""
    for item in _candidates():
        for backend in (Pseudo(MASK), Chain(MASK), Bound(MASK, 3)):
            for terms in backend.terms(item, 0):
                for term in terms:
                    probe: Probe = term.probe
                    assert {*probe.inputs[probe.places]} == {MASK}
