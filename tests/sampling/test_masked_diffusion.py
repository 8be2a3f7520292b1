"""The two-stage sampler against its law, by enumeration: V = 3 tokens, L = 3 positions.

With T steps the sampler has a law of its own, p_T(x), which a sum over everything that
can be revealed in each step gives exactly; it differs from that of another T.
"""

import dataclasses
import itertools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from lmjax.diffusion.process import MaskProcess
from lmjax.diffusion.schedules import CosineSchedule, LinearSchedule, MaskSchedule
from lmjax.models.build import Model
from lmjax.sampling import masked_diffusion
from lmjax.sampling.logits import TokenSampler
from lmjax.sampling.masked_diffusion import MaskedDiffusionSampler

V, L = 3, 3
MASK = V
SCHEDULES = {"linear": LinearSchedule(), "cosine": CosineSchedule()}
RATES = {"linear": lambda t: t, "cosine": lambda t: 1 - np.cos(np.pi * t / 2)}


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


@pytest.fixture(scope="module")
def table() -> np.ndarray:
    shape = ((V + 1) ** L, L, V)
    return (1.5 * np.random.default_rng(0).normal(size=shape)).astype(np.float32)


def _sampler(
    schedule: MaskSchedule, steps: int, bind: Callable[..., Any] = TableModel
) -> MaskedDiffusionSampler:
    return MaskedDiffusionSampler(
        bind=bind,
        process=MaskProcess(mask_id=MASK, schedule=schedule),
        steps=steps,
        draw=TokenSampler(),
    )


def _law(table: np.ndarray, rate: Callable[[float], float], steps: int) -> np.ndarray:
    """p_T of all V^L sequences, by a sum over every reveal of every step."""
    p = np.exp(table.astype(np.float64))
    p /= p.sum(axis=-1, keepdims=True)
    law = {(MASK,) * L: 1.0}
    for j in range(steps, 0, -1):
        reveal = 1 - rate((j - 1) / steps) / rate(j / steps)
        after: dict[tuple[int, ...], float] = {}
        for state, chance in law.items():
            row = p[int(np.dot(state, [16, 4, 1]))]
            # A masked position stays so, or takes a token; a clean one is copied.
            ways = [
                [(MASK, 1 - reveal), *((v, reveal * row[i, v]) for v in range(V))]
                if state[i] == MASK
                else [(state[i], 1.0)]
                for i in range(L)
            ]
            for way in itertools.product(*ways):
                target = tuple(token for token, _ in way)
                share = chance * float(np.prod([q for _, q in way]))
                after[target] = after.get(target, 0.0) + share
        law = after
    sequences = itertools.product(range(V), repeat=L)
    return np.array([law[sequence] for sequence in sequences])


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_samples_follow_the_exact_law_of_their_number_of_steps(
    table: np.ndarray, schedule: str
) -> None:
    """100,000 samples each; and they do not follow the law of another number."""
    count, counts = 100_000, {}
    laws = {t: _law(table, RATES[schedule], t) for t in (1, 2, 4)}
    canvas = np.full((count, L), MASK, np.int32)
    for steps, law in laws.items():
        assert law.sum() == pytest.approx(1.0, abs=1e-12)
        sampler = jax.jit(_sampler(SCHEDULES[schedule], steps))
        found = sampler(table, jax.random.key(steps), canvas, np.zeros_like(canvas) > 0)
        index = np.asarray(found) @ np.array([9, 3, 1])
        counts[steps] = np.bincount(index, minlength=V**L)
        assert len(counts[steps]) == V**L, "a mask is left"
    for steps, law in laws.items():
        assert stats.chisquare(counts[steps], count * law).pvalue > 1e-3
        other = laws[{1: 2, 2: 4, 4: 1}[steps]]
        assert stats.chisquare(counts[steps], count * other).pvalue < 1e-6


@pytest.mark.parametrize("steps", range(1, 9))
@pytest.mark.parametrize("schedule", SCHEDULES)
def test_no_mask_is_left_and_what_is_given_stays(
    table: np.ndarray, schedule: str, steps: int
) -> None:
    canvas = np.tile(np.array([2, 0, 1], np.int32), (512, 1))
    given = np.random.default_rng(steps).random((512, L)) < 0.4
    sampler = jax.jit(_sampler(SCHEDULES[schedule], steps))
    found = np.asarray(sampler(table, jax.random.key(0), canvas, given))
    assert found.max() < MASK
    np.testing.assert_array_equal(found[given], canvas[given])
    assert len(np.unique(found[~given])) == V


@pytest.mark.parametrize("time_conditioning", [False, True])
def test_a_transformer_writes_only_ids_that_it_can_predict(
    make_model: Callable[..., Model],
    random_params: Callable[..., Any],
    time_conditioning: bool,
) -> None:
    model = make_model(causal=False, time_conditioning=time_conditioning)
    process = MaskProcess(mask_id=2, schedule=CosineSchedule())
    sampler = MaskedDiffusionSampler(
        bind=model.bind, process=process, steps=3, draw=TokenSampler(temperature=9.0)
    )
    canvas = np.full((64, 16), 7, np.int32)
    given = np.arange(16) % 5 == 0
    found = np.asarray(
        jax.jit(sampler)(
            random_params(model),
            jax.random.key(0),
            canvas,
            np.broadcast_to(given, canvas.shape),
        )
    )
    assert (found[:, given] == 7).all()
    assert set(np.unique(found[:, ~given])) == set(range(3, 31))


def test_the_slices_of_logits_make_no_difference_but_to_memory(
    table: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two of three positions in a slice, the last one padded: the same law."""
    monkeypatch.setattr(masked_diffusion, "CHUNK_TOKENS", 2 * 50_000)
    canvas = np.full((50_000, L), MASK, np.int32)
    sampler = jax.jit(_sampler(LinearSchedule(), 2))
    found = sampler(table, jax.random.key(0), canvas, np.zeros_like(canvas) > 0)
    counts = np.bincount(np.asarray(found) @ np.array([9, 3, 1]), minlength=V**L)
    law = _law(table, RATES["linear"], 2)
    assert stats.chisquare(counts, 50_000 * law).pvalue > 1e-3


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class FixedModel:
    """The same logits [V] whatever it sees."""

    fixed: jax.Array

    def __call__(self, tokens_BL: jax.Array, **_: object) -> jax.Array:
        return jnp.zeros((*tokens_BL.shape, 1))

    def logits(self, hidden: jax.Array) -> jax.Array:
        return jnp.broadcast_to(self.fixed, (*hidden.shape[:-1], len(self.fixed)))


def test_the_entropy_of_samples_does_not_depend_on_the_number_of_steps() -> None:
    """A Zipf vocabulary of 5,000 ids: as many steps as wished, and no rare id is lost.

    Measured as the mean surprisal under the law itself, of 512 tokens.
    """
    law = 1 / np.arange(1, 5001)
    law /= law.sum()
    entropy = -np.sum(law * np.log(law))
    fixed = jnp.append(jnp.log(jnp.array(law, jnp.float32)), -jnp.inf)
    canvas = np.zeros((32, 16), np.int32)
    for steps in (2, 32):
        sampler = MaskedDiffusionSampler(
            bind=FixedModel,
            process=MaskProcess(mask_id=5000, schedule=LinearSchedule()),
            steps=steps,
            draw=TokenSampler(),
        )
        # Half a billion logarithms: here the compiler may try hard.
        fill = jax.jit(sampler, compiler_options={"xla_backend_optimization_level": 3})
        found = fill(fixed, jax.random.key(3), canvas, canvas > 0)
        surprisal = -np.log(law[np.asarray(found)])
        error = surprisal.std() / np.sqrt(surprisal.size)
        assert error < 0.02 * entropy, "no power"
        assert abs(surprisal.mean() - entropy) < 2.5 * error
