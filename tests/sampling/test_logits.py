"""Tokens are drawn from exactly the law that temperature and restrictions leave."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from lmjax.sampling.logits import TokenSampler, penalize


def _logits(probabilities: list[float]) -> np.ndarray:
    return np.log(np.array(probabilities, np.float32))


def _restrict(sampler: TokenSampler, logits: np.ndarray) -> np.ndarray:
    return np.asarray(jax.jit(sampler.restrict)(logits))


def _kept(sampler: TokenSampler, probabilities: list[float]) -> set[int]:
    restricted = _restrict(sampler, _logits(probabilities))
    return set(np.flatnonzero(np.isfinite(restricted)).tolist())


def _counts(
    sampler: TokenSampler, logits: jax.Array, num_draws: int, seed: int = 0
) -> np.ndarray:
    rows = jnp.broadcast_to(logits, (num_draws, *logits.shape))
    draws = jax.jit(sampler)(jax.random.key(seed), rows)
    assert draws.dtype == jnp.int32
    return np.bincount(np.asarray(draws), minlength=logits.shape[-1])


def test_temperature_zero_takes_the_most_probable_token() -> None:
    logits = np.random.default_rng(0).normal(size=(3, 5, 7)).astype(np.float32)
    sampler = TokenSampler(temperature=0.0, top_k=3, top_p=0.5)
    drawn = sampler(jax.random.key(0), jnp.asarray(logits))
    np.testing.assert_array_equal(drawn, logits.argmax(axis=-1))


@pytest.mark.parametrize(
    ("top_p", "kept"),
    [(1e-6, {0}), (0.5, {0}), (0.7, {0, 1}), (0.95, {0, 1}), (1.0, {0, 1})],
)
def test_top_p_keeps_the_smallest_set_with_that_mass(
    top_p: float, kept: set[int]
) -> None:
    """Standard nucleus sampling: the token that crosses p stays."""
    assert _kept(TokenSampler(top_p=top_p), [0.6, 0.4]) == kept


def test_top_p_looks_for_tokens_wherever_they_stand() -> None:
    sampler = TokenSampler(top_p=0.7)
    assert _kept(sampler, [0.1, 0.3, 0.05, 0.5, 0.05]) == {1, 3}


def test_tokens_as_probable_as_the_last_one_kept_stay_too() -> None:
    assert _kept(TokenSampler(top_p=0.7), [0.5, 0.2, 0.2, 0.1]) == {0, 1, 2}
    assert _kept(TokenSampler(top_k=2), [0.5, 0.2, 0.2, 0.1]) == {0, 1, 2}


@pytest.mark.parametrize(
    ("top_k", "kept"), [(0, {0, 1, 2, 3}), (1, {2}), (3, {0, 1, 2}), (9, {0, 1, 2, 3})]
)
def test_top_k_keeps_the_k_most_probable(top_k: int, kept: set[int]) -> None:
    assert _kept(TokenSampler(top_k=top_k), [0.2, 0.3, 0.4, 0.1]) == kept


def test_top_p_counts_the_mass_of_what_top_k_left() -> None:
    """Of 0.5 and 0.3 alone the first has 0.625."""
    assert _kept(TokenSampler(top_k=2, top_p=0.6), [0.5, 0.3, 0.2]) == {0}
    assert _kept(TokenSampler(top_p=0.6), [0.5, 0.3, 0.2]) == {0, 1}


def test_rows_are_restricted_each_by_itself() -> None:
    rows = np.stack([_logits([0.9, 0.1]), _logits([0.5, 0.5]), _logits([0.1, 0.9])])
    kept = np.isfinite(_restrict(TokenSampler(top_p=0.8), rows))
    np.testing.assert_array_equal(kept, [[True, False], [True, True], [False, True]])


def test_draws_follow_their_law_down_to_a_rare_token() -> None:
    """A million draws; one token has probability 1e-5, another none at all."""
    law = np.array([0.6, 0.3, 0.09999, 1e-5, 0.0])
    logits = jnp.where(law > 0, jnp.log(law), -jnp.inf)
    counts = _counts(TokenSampler(), logits, 1_000_000)
    assert counts[4] == 0
    assert stats.chisquare(counts[:4], 1_000_000 * law[:4]).pvalue > 1e-3


def test_temperature_restriction_and_draw_make_one_law() -> None:
    law = np.array([0.4, 0.3, 0.2, 0.1])
    hot = law**0.5 / np.sum(law**0.5)  # temperature 2 divides the logits
    expected = np.where(np.arange(4) < 3, hot, 0) / hot[:3].sum()
    sampler = TokenSampler(temperature=2.0, top_p=0.65)
    assert hot[:2].sum() < 0.65 < law[:2].sum(), "no power: the order is all one"
    counts = _counts(sampler, jnp.log(jnp.array(law)), 100_000)
    assert counts[3] == 0
    assert stats.chisquare(counts[:3], 100_000 * expected[:3]).pvalue > 1e-3
    # The test can tell: the same draws do not follow the law without temperature.
    cold = law[:3] / law[:3].sum()
    assert stats.chisquare(counts[:3], 100_000 * cold).pvalue < 1e-9


def test_the_law_is_that_of_the_draws() -> None:
    """Restricted as the draws are; at temperature 0 all of it is on one token."""
    law = np.array([0.4, 0.3, 0.2, 0.1])
    hot = law**0.5 * [1, 1, 1, 0]
    found = TokenSampler(temperature=2.0, top_k=3).law(_logits(law.tolist()))
    np.testing.assert_allclose(np.exp(found), hot / hot.sum(), rtol=1e-5)
    coldest = TokenSampler(temperature=0.0).law(_logits([0.2, 0.5, 0.3]))
    np.testing.assert_array_equal(np.exp(coldest), [0, 1, 0])


@pytest.mark.parametrize(
    ("min_p", "kept"), [(0.0, {0, 1, 2, 3}), (0.3, {1, 2, 3}), (0.8, {1}), (1.0, {1})]
)
def test_min_p_keeps_what_is_probable_beside_the_best(
    min_p: float, kept: set[int]
) -> None:
    assert _kept(TokenSampler(min_p=min_p), [0.1, 0.5, 0.2, 0.2]) == kept


def test_min_p_looks_at_the_law_that_temperature_made() -> None:
    """At temperature 2 a fourth of the probability is half of it."""
    logits = _logits([0.8, 0.2])
    cold = TokenSampler(min_p=0.4).law(logits)
    hot = TokenSampler(min_p=0.4, temperature=2.0).law(logits)
    np.testing.assert_allclose(np.exp(cold), [1, 0], atol=1e-6)
    np.testing.assert_allclose(np.exp(hot), [2 / 3, 1 / 3], rtol=1e-5)


@pytest.mark.parametrize("seed", range(4))
def test_restrictions_are_those_of_a_sorted_vocabulary(seed: int) -> None:
    """Against sums over the sorted law, in float64; some ids are never predicted."""
    generator = np.random.default_rng(seed)
    scale = [0.1, 1.0, 8.0, 30.0][seed]
    logits = (scale * generator.normal(size=(3, 301))).astype(np.float32)
    logits[:, ::7] = -np.inf
    for top_p, top_k in [(0.1, 0), (0.9, 0), (0.999, 0), (1.0, 40), (0.7, 40)]:
        found = _restrict(TokenSampler(top_p=top_p, top_k=top_k), logits)
        for row, restricted in zip(logits.astype(np.float64), found, strict=True):
            order = np.argsort(-row)[: top_k or None]
            law = np.exp(row[order] - row.max())
            before = np.cumsum(law / law.sum()) - law / law.sum()
            wanted = order[before < top_p] if top_p < 1 else order
            kept = np.flatnonzero(np.isfinite(restricted))
            assert set(kept) == set(wanted[np.isfinite(row[wanted])])
            np.testing.assert_array_equal(restricted[kept], row[kept])


@pytest.mark.parametrize("size", [1, 2, 3, 5, 17, 300])
def test_draws_follow_their_law_whatever_the_size_of_the_vocabulary(size: int) -> None:
    """Blocks of ids that do not come out even; every id is drawn, and none beyond."""
    law = np.random.default_rng(size).uniform(0.2, 1.0, size=size)
    law /= law.sum()
    counts = _counts(TokenSampler(), jnp.log(jnp.array(law)), 100_000)
    assert len(counts) == size and counts.min() > 0
    if size > 1:
        assert stats.chisquare(counts, 100_000 * law).pvalue > 1e-3


def test_the_first_of_equal_tokens_is_the_most_probable_one() -> None:
    logits = jnp.array([[0.0, 2.0, 2.0], [1.0, 1.0, 1.0], [-5.0, -9.0, -5.0]])
    drawn = TokenSampler(temperature=0.0)(jax.random.key(0), logits)
    np.testing.assert_array_equal(drawn, [1, 0, 0])


def test_a_penalty_makes_what_was_seen_less_probable_on_either_side_of_zero() -> None:
    logits = jnp.array([3.0, -3.0, 3.0, -3.0, 0.0, -jnp.inf])
    seen = jnp.array([True, True, False, False, True, True])
    found = penalize(logits, seen, 1.5)
    np.testing.assert_allclose(found, [2.0, -4.5, 3.0, -3.0, 0.0, -np.inf])
    np.testing.assert_array_equal(penalize(logits, seen, 1.0), logits)


def test_the_penalty_is_that_of_transformers() -> None:
    torch = pytest.importorskip("torch")
    process = pytest.importorskip("transformers").RepetitionPenaltyLogitsProcessor
    generator = np.random.default_rng(0)
    logits = generator.normal(size=(3, 11)).astype(np.float32)
    ids = generator.integers(0, 11, size=(3, 6))
    seen = np.zeros((3, 11), bool)
    np.put_along_axis(seen, ids, True, axis=1)
    for penalty in (0.7, 1.3):
        expected = process(penalty)(torch.tensor(ids), torch.tensor(logits))
        found = penalize(jnp.asarray(logits), jnp.asarray(seen), penalty)
        np.testing.assert_allclose(found, expected.numpy(), rtol=1e-6)
