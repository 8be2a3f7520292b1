"""What holds for every rule: keys, chunks, ends, guidance, and what is never left."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lmjax.config.choices import Backbone, Remasking
from lmjax.diffusion.parameterizations import Sedd, Subs
from lmjax.diffusion.process import MaskProcess
from lmjax.diffusion.schedules import LinearSchedule, Schedule
from lmjax.models.build import Model
from lmjax.sampling import denoiser
from lmjax.sampling.confidence import Confidence
from lmjax.sampling.denoiser import Denoiser, Filled, row_keys
from lmjax.sampling.logits import TokenSampler
from lmjax.sampling.masked_diffusion import MaskedDiffusionSampler
from lmjax.sampling.remasking import Remask
from lmjax.sampling.reveal_rules import (
    D3PM,
    Analytic,
    Ancestral,
    FirstHitting,
    Rule,
    time_grid,
)
from tests import toys
from tests.sampling import laws
from tests.sampling.laws import SCHEDULES, SIGNIFICANCE, FixedModel, TimedTable
from tests.toys import MASK, L, V

EOS = 2


def _rules(steps: int) -> dict[str, Rule]:
    return {
        "ancestral": Ancestral(steps=steps),
        "cached": Ancestral(steps=steps, cached=True),
        "first hitting": FirstHitting(tokens_per_call=steps),
        "analytic": Analytic(steps=steps, parameterization=Sedd(V)),
        "d3pm": D3PM(steps=steps),
        "confidence": Confidence(steps=steps, block_length=2),
        **{
            kind.value: Remask(kind=kind, strength=0.4, steps=steps)
            for kind in Remasking
        },
    }


RULES = list(_rules(1))


def _sampler(
    rule: Rule,
    schedule: Schedule,
    bind: Callable[..., Any] = TimedTable,
    **changes: Any,
) -> MaskedDiffusionSampler:
    changes = {"draw": TokenSampler(), "process": _process(schedule)} | changes
    return MaskedDiffusionSampler(bind=bind, rule=rule, **changes)


def _process(schedule: Schedule, size: int = V) -> MaskProcess:
    return MaskProcess(mask_id=size, schedule=schedule, predictable=np.arange(size))


@pytest.fixture(scope="module")
def table() -> np.ndarray:
    return toys.random_table(mask_logit=True)


def _empty(count: int, length: int = L) -> tuple[np.ndarray, np.ndarray]:
    canvas = np.full((count, length), MASK, np.int32)
    return canvas, np.zeros(canvas.shape, bool)


@pytest.mark.parametrize("steps", range(1, 10))
def test_no_mask_is_left_and_what_is_given_stays(table: np.ndarray, steps: int) -> None:
    """A rule for each number of steps; rows have 0, 1, 2 and 3 tokens given."""
    given = np.array([[0, 0, 0], [0, 1, 0], [1, 0, 1], [1, 1, 1], [0, 0, 1]], bool)
    canvas = np.tile(np.array([2, 0, 1], np.int32), (len(given), 1))
    schedule = list(SCHEDULES.values())[steps % len(SCHEDULES)]
    name = RULES[(steps + 5) % len(RULES)]
    fill = jax.jit(_sampler(_rules(steps)[name], schedule))
    _assert_filled(fill(table, jax.random.key(0), canvas, given), canvas, given, steps)


def _assert_filled(
    found: Filled, canvas: np.ndarray, given: np.ndarray, steps: int
) -> None:
    tokens = np.asarray(found.tokens_BL)
    assert np.isin(tokens, range(V)).all()
    np.testing.assert_array_equal(tokens[given], canvas[given])
    assert 1 <= found.calls <= max(steps + 1, L)


def test_the_cached_rule_writes_the_same_tokens_in_fewer_calls(
    table: np.ndarray,
) -> None:
    """Token for token, though the model is told the time; rows differ in length."""
    canvas, _ = _empty(64)
    given = np.arange(64)[:, None] % 4 > np.array([[2, 0, 1]])
    for steps in (5, 40):
        found = [
            jax.jit(
                _sampler(Ancestral(steps=steps, cached=cached), SCHEDULES["light"])
            )(table, jax.random.key(1), np.where(given, 1, canvas), given)
            for cached in (False, True)
        ]
        np.testing.assert_array_equal(found[0].tokens_BL, found[1].tokens_BL)
        assert found[1].calls <= min(steps, L)
    assert found[0].calls > L


@pytest.mark.parametrize("name", RULES)
def test_a_row_depends_neither_on_its_neighbours_nor_on_chunks(
    table: np.ndarray, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Five rows at once, and each alone with its own key, a position at a time."""
    given = np.array([[0, 0, 0], [0, 1, 0], [1, 0, 1], [0, 0, 0], [0, 0, 1]], bool)
    canvas = np.tile(np.array([2, 0, 1], np.int32), (len(given), 1))
    keys = row_keys(jax.random.key(3), len(given))
    fill = _sampler(_rules(3)[name], SCHEDULES["geometric"])
    found = jax.jit(fill)(table, jax.random.key(3), canvas, given)
    _assert_filled(found, canvas, given, steps=3)
    together = found.tokens_BL
    monkeypatch.setattr(denoiser, "CHUNK_LOGITS", 1)
    run = jax.jit(dataclasses.replace(fill))
    for r in range(len(given)):
        part = slice(r, r + 1)
        alone = run(table, keys[part], canvas[part], given[part]).tokens_BL
        np.testing.assert_array_equal(alone, together[part])


def test_logits_of_a_whole_batch_never_exist(table: np.ndarray) -> None:
    """The largest array of the program is what CHUNK_LOGITS allows."""
    size, canvas = 20_000, np.zeros((64, 256), np.int32)
    most = denoiser.CHUNK_LOGITS // size * size
    assert 3 * most < canvas.size * size
    for rule in _rules(2).values():
        if isinstance(rule, Analytic):
            rule = dataclasses.replace(rule, parameterization=Sedd(size))
        fill = _sampler(
            rule, LinearSchedule(), FixedModel, process=_process(LinearSchedule(), size)
        )
        inputs = (jnp.zeros(size + 1), jax.random.key(0), canvas, canvas > 0)
        largest = _largest(jax.make_jaxpr(fill)(*inputs).jaxpr)
        # Exact noise takes two words of random bits for every logit.
        assert canvas.size < largest <= 2 * denoiser.CHUNK_LOGITS, rule


def _largest(jaxpr: Any) -> int:
    """Elements of the largest array in a program, loops and all."""
    sizes = [0]
    for equation in jaxpr.eqns:
        sizes += [getattr(v.aval, "size", 0) for v in equation.outvars]
        for value in equation.params.values():
            for inner in value if isinstance(value, tuple) else (value,):
                inner = getattr(inner, "jaxpr", inner)
                if hasattr(inner, "eqns"):
                    sizes.append(_largest(inner))
    return max(sizes)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Parity:
    """Logits [V] by the sum of all tokens modulo 5: everything matters."""

    table: jax.Array  # [5, V]

    def __call__(self, tokens_BL: jax.Array, **_: object) -> jax.Array:
        hidden_BV = self.table[tokens_BL.sum(axis=1) % 5]
        return jnp.broadcast_to(
            hidden_BV[:, None], (*tokens_BL.shape, self.table.shape[1])
        )

    def logits(self, hidden: jax.Array) -> jax.Array:
        return hidden


def test_a_text_that_has_ended_costs_nothing_more_and_reads_the_same() -> None:
    """Rules that never revise; the end is in the tail, behind what is given."""
    length, count = 12, 64
    draws = np.random.default_rng(0).normal(size=(5, V + 1)).astype(np.float32)
    law = np.where(np.arange(V + 1) < V, draws, -np.inf)
    canvas = np.full((count, length), EOS, np.int32)
    given = np.zeros(canvas.shape, bool)
    given[::2, :2] = given[1::4, 4] = True  # an EOS that is given ends nothing
    rules = {
        "cached": Ancestral(steps=64, cached=True),
        "ancestral": Ancestral(steps=64),
        "first hitting": FirstHitting(),
        "analytic": Analytic(steps=64, parameterization=Subs()),
        "confidence": Confidence(steps=12, block_length=1),
    }
    for name, rule in rules.items():
        sampler = _sampler(rule, LinearSchedule(), Parity)
        plain, stopped = (
            jax.jit(dataclasses.replace(sampler, eos_id=eos))(
                law, jax.random.key(0), canvas, given
            )
            for eos in (None, EOS)
        )
        ended, wanted = 0, []
        for row, until, fixed in zip(
            np.asarray(plain.tokens_BL),
            np.asarray(stopped.tokens_BL),
            given,
            strict=True,
        ):
            tail = int(np.flatnonzero(fixed).max(initial=-1)) + 1
            ends = np.flatnonzero(row[tail:] == EOS)
            end = tail + ends[0] if ends.size else length
            np.testing.assert_array_equal(until[:end], row[:end])
            assert (until[end:] == EOS).all()
            wanted.append((~fixed[:end]).sum() + (end < length))
            ended += end < length - 1 and bool((row[end:] != EOS).any())
        assert ended > count / 2, "no power"
        assert stopped.calls <= plain.calls
        if name == "confidence":
            # From left to right, one token at a time: as far as the longest text.
            assert stopped.calls == max(wanted) <= length


def test_intermediate_states_lead_evenly_to_the_text(table: np.ndarray) -> None:
    canvas, given = _empty(16)
    fill = functools.partial(_sampler(FirstHitting(), LinearSchedule()), show=2)
    tokens, calls, states = jax.jit(fill)(table, jax.random.key(0), canvas, given)
    assert states.shape == (2, 16, L) and calls == L
    for number, state in enumerate(np.asarray(states)):
        shown = state != MASK
        assert (shown.sum(axis=1) == number + 1).all()
        np.testing.assert_array_equal(state[shown], np.asarray(tokens)[shown])
    # More states than calls: the first canvas is never among them, the text may be.
    fill = functools.partial(_sampler(Ancestral(steps=2), LinearSchedule()), show=5)
    tokens, calls, states = jax.jit(fill)(table, jax.random.key(0), canvas, given)
    assert states.shape == (5, 16, L) and calls == 2
    np.testing.assert_array_equal(states[-1] != MASK, states[0] != MASK)


def test_guidance_is_that_of_its_formula_and_zero_is_off(table: np.ndarray) -> None:
    canvas = np.array([[2, MASK, MASK], [1, 0, MASK]], np.int32)
    given, blind = canvas != MASK, np.full(canvas.shape, MASK)

    def logits(tokens: np.ndarray) -> np.ndarray:
        return table[tokens @ np.array([16, 4, 1])].astype(np.float64)

    def predictions(guidance: float) -> np.ndarray:
        model = Denoiser(
            model=TimedTable(jnp.asarray(table)),
            process=_process(LinearSchedule()),
            draw=TokenSampler(),
            keys_B=row_keys(jax.random.key(0), 2),
            given_BL=given,
            guidance=guidance,
        )(canvas, jnp.full(2, 0.5))
        found = model.measure(~given, lambda _, logits, __: tuple(logits.T), expected=4)
        return np.stack(found, axis=-1)

    l_c, l_u = logits(canvas), logits(blind)
    for guidance in (0.0, 0.7):
        expected = l_u + (guidance + 1) * (l_c - l_u)
        np.testing.assert_allclose(
            predictions(guidance), expected * ~given[..., None], rtol=1e-5, atol=1e-5
        )

    def fill(guidance: float, table: np.ndarray) -> np.ndarray:
        sampler = _sampler(Ancestral(steps=2), LinearSchedule(), guidance=guidance)
        found = jax.jit(sampler)(
            table, jax.random.key(0), np.tile(canvas, (50, 1)), np.tile(given, (50, 1))
        )
        return np.asarray(found.tokens_BL)

    plain = jax.jit(_sampler(Ancestral(steps=2), LinearSchedule()))(
        table, jax.random.key(0), np.tile(canvas, (50, 1)), np.tile(given, (50, 1))
    )
    np.testing.assert_array_equal(fill(0.0, table), plain.tokens_BL)
    assert (fill(3.0, table) != plain.tokens_BL).any()
    # Ids that are never predicted stay so: -inf - -inf is no number.
    table = np.where(np.arange(V + 1) == 0, -np.inf, table)
    assert (fill(3.0, table)[~np.tile(given, (50, 1))] > 0).all()


@pytest.mark.parametrize("time_conditioning", [False, True])
def test_a_network_writes_only_ids_that_it_can_predict(
    make_model: Callable[..., Model],
    random_params: Callable[..., Any],
    time_conditioning: bool,
) -> None:
    backbone = {}
    if time_conditioning:
        backbone = {"backbone": Backbone.DIT, "time_conditioning": True}
    model = make_model(causal=False, **backbone)
    sampler = _sampler(
        Ancestral(steps=3, cached=True),
        SCHEDULES["light"],
        model.bind,
        process=MaskProcess(
            mask_id=2, schedule=SCHEDULES["light"], predictable=np.arange(3, 31)
        ),
        draw=TokenSampler(temperature=9.0),
    )
    canvas = np.full((64, 16), 7, np.int32)
    given = np.broadcast_to(np.arange(16) % 5 == 0, canvas.shape)
    found = jax.jit(sampler)(random_params(model), jax.random.key(0), canvas, given)
    tokens = np.asarray(found.tokens_BL)
    assert (tokens[given] == 7).all()
    assert set(np.unique(tokens[~given])) == set(range(3, 31))


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Clock:
    """Predicts the quarter of (0, 1] that the noise rate lies in."""

    scale: jax.Array

    def __call__(
        self, tokens_BL: jax.Array, *, sigma_B: jax.Array, **_: object
    ) -> jax.Array:
        quarter_B = jnp.minimum(-4 * jnp.expm1(-sigma_B), 3.9).astype(jnp.int32)
        hidden_BD = self.scale * jax.nn.one_hot(quarter_B, 5)
        return jnp.broadcast_to(hidden_BD[:, None], (*tokens_BL.shape, 5))

    def logits(self, hidden: jax.Array) -> jax.Array:
        return jnp.where(jnp.arange(5) < 4, hidden, -jnp.inf)


def test_first_hitting_tells_the_model_the_rate_of_each_row() -> None:
    """Rates at which tokens are revealed are uniform, and fall from call to call."""
    count = 20_000
    canvas = np.full((count, L), 4, np.int32)
    fill = _sampler(
        FirstHitting(),
        SCHEDULES["heavy"],
        Clock,
        process=_process(SCHEDULES["heavy"], 4),
    )
    found = jax.jit(fill)(100.0, jax.random.key(0), canvas, canvas < 0)
    tokens = np.asarray(found.tokens_BL)
    law = {tuple(map(int, np.unravel_index(i, (4,) * L))): 4.0**-L for i in range(4**L)}
    assert laws.p_value(tokens, law) > SIGNIFICANCE


@pytest.mark.parametrize("from_prior", [True, False])
def test_a_rule_on_a_time_grid_starts_from_the_prior(from_prior: bool) -> None:
    """Of which a share 1 - m(1) are tokens already; the model would write only 0."""
    schedule, canvas = SCHEDULES["geometric"], np.full((20_000, L), MASK, np.int32)
    fixed = jnp.array([0.0, -np.inf, -np.inf, -np.inf])
    rule: Rule = Ancestral(steps=2) if from_prior else FirstHitting()
    fill = jax.jit(_sampler(rule, schedule, FixedModel))
    tokens = np.asarray(fill(fixed, jax.random.key(0), canvas, canvas < 0).tokens_BL)
    expected = canvas.size * (1 - schedule.end) * (V - 1) / V
    others = (tokens != 0).sum()
    assert expected > 200, "no power"
    assert abs(others - from_prior * expected) < 4 * np.sqrt(expected)
    assert from_prior or not others


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_time_grids_run_from_clean_to_the_prior(schedule: str) -> None:
    rates = time_grid(SCHEDULES[schedule], 1000)
    expected = [laws.RATES[schedule](j / 1000) for j in range(1001)]
    np.testing.assert_allclose(rates, expected, rtol=1e-5, atol=1e-7)
    assert rates[0] == 0.0 and rates[-1] == SCHEDULES[schedule].end
    assert (np.diff(rates) >= 0).all()


def test_the_entropy_of_samples_does_not_depend_on_the_number_of_steps(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A Zipf vocabulary of 50,257 ids: eight steps or 1024, and no rare id is lost.

    Measured as the mean surprisal under the law itself, of 1024 tokens. One categorical
    over tokens and "stay masked" would be a third too low at 1024 steps.
    """
    monkeypatch.setattr(denoiser, "_LEAST_CHUNK", 2)  # as many as a step reveals
    size = 50_257
    law = 1 / np.arange(1, size + 1)
    law /= law.sum()
    entropy = -np.sum(law * np.log(law))
    fixed = jnp.append(jnp.log(jnp.array(law, jnp.float32)), -jnp.inf)
    canvas = np.zeros((2, 512), np.int32)
    means = []
    for steps, seed in ((8, 4), (1024, 5)):
        sampler = _sampler(
            Ancestral(steps=steps),
            LinearSchedule(),
            FixedModel,
            process=_process(LinearSchedule(), size),
        )
        # A hundred million logarithms: here the compiler may try hard.
        fill = jax.jit(sampler, compiler_options={"xla_backend_optimization_level": 3})
        found: Filled = fill(fixed, jax.random.key(seed), canvas, canvas > 0)
        surprisal = -np.log(law[np.asarray(found.tokens_BL)])
        assert surprisal.std() / np.sqrt(surprisal.size) < 0.015 * entropy, "no power"
        means.append(surprisal.mean())
    assert abs(means[0] - entropy) < 0.02 * entropy
    assert abs(means[1] - entropy) < 0.02 * entropy
    assert abs(means[0] - means[1]) < 0.02 * entropy
