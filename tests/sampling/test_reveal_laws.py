"""Every rule against its own law, by enumeration: V = 3 tokens, L = 3 positions.

Half of the rows are written from scratch, half around a token that is given. With T
steps a rule has a law of its own, p_T(x), which differs from that of another T.
"""

from collections.abc import Callable
from typing import Any

import jax
import numpy as np
import pytest

from lmjax.config.choices import NoiseRemoval, Remasking
from lmjax.diffusion.parameterizations import Sedd, Subs
from lmjax.diffusion.process import MaskProcess
from lmjax.sampling.confidence import Confidence
from lmjax.sampling.logits import TokenSampler
from lmjax.sampling.masked_diffusion import MaskedDiffusionSampler
from lmjax.sampling.remasking import Remask
from lmjax.sampling.reveal_rules import (
    D3PM,
    Analytic,
    Ancestral,
    FirstHitting,
    Rule,
    reveal_probabilities,
)
from tests import toys
from tests.sampling import laws
from tests.sampling.laws import RATES, SCHEDULES, SIGNIFICANCE, Law, TimedTable
from tests.toys import MASK, SEQUENCES, L, TableModel, V

COUNT = 20_000
GIVEN = {1: 2}  # in half of the rows the second token is a 2


def sampler(
    rule: Rule, schedule: str = "linear", bind: Callable[..., Any] = TimedTable
) -> MaskedDiffusionSampler:
    process = MaskProcess(
        mask_id=MASK, schedule=SCHEDULES[schedule], predictable=np.arange(V)
    )
    return MaskedDiffusionSampler(
        bind=bind, process=process, rule=rule, draw=TokenSampler()
    )


def _halves(
    fill: MaskedDiffusionSampler, table: np.ndarray, **options: Any
) -> tuple[np.ndarray, np.ndarray]:
    """Rows from scratch, and rows around what is given."""
    canvas = np.full((2 * COUNT, L), 2, np.int32)
    given = np.zeros(canvas.shape, bool)
    given[COUNT:, 1] = True
    found = jax.jit(fill)(table, jax.random.key(7), canvas, given, **options)
    tokens = np.asarray(found.tokens_BL)
    return tokens[:COUNT], tokens[COUNT:]


def _agree(
    rule: Rule,
    schedule: str,
    table: np.ndarray,
    kernels: Callable[[dict[int, int]], list[laws.Kernel]],
    others: Callable[[dict[int, int]], list[laws.Kernel]],
    *,
    from_prior: bool = True,
    strip: bool = False,
) -> None:
    """Samples follow the law of `kernels`, and those from scratch not of `others`."""
    end = SCHEDULES[schedule].end if from_prior else 1.0
    halves = _halves(sampler(rule, schedule), table)
    for tokens, given in zip(halves, ({}, GIVEN), strict=True):
        start = laws.start_law(given, end)
        if strip:
            start = {tuple((v, 1.0) for v in state): q for state, q in start.items()}
        assert laws.p_value(tokens, _final(start, kernels(given), strip)) > SIGNIFICANCE
        if not given:
            other = _final(start, others(given), strip)
            assert laws.p_value(tokens, other) < 1e-9, "no power"


def _final(start: Law, kernels: list[laws.Kernel], strip: bool) -> Law:
    law: Law = {}
    for state, chance in laws.run(start, kernels).items():
        tokens = tuple(v for v, _ in state) if strip else state
        law[tokens] = law.get(tokens, 0.0) + chance
    return law


@pytest.fixture(scope="module")
def table() -> np.ndarray:
    return toys.random_table()


@pytest.mark.parametrize(
    ("rule", "schedule"),
    [
        (Ancestral(steps=1), "linear"),
        (Ancestral(steps=2), "geometric"),
        (Ancestral(steps=4), "light"),
        (Ancestral(steps=4, cached=True), "heavy"),
        (Analytic(steps=2, parameterization=Subs()), "light"),
    ],
    ids=str,
)
def test_ancestral_sampling_has_its_law(
    table: np.ndarray, rule: Ancestral, schedule: str
) -> None:
    """Also the analytic rule where scores sum to 1; the table depends on the time."""

    def kernels(_: Any, steps: int = rule.steps) -> list[laws.Kernel]:
        return laws.ancestral(table, RATES[schedule], steps)

    other = {1: 2, 2: 4, 4: 2}[rule.steps]
    _agree(rule, schedule, table, kernels, lambda given: kernels(given, other))


@pytest.mark.parametrize(
    ("steps", "schedule"), [(1, "linear"), (2, "heavy"), (4, "geometric")]
)
def test_the_analytic_rule_has_the_law_that_sedd_states(
    table: np.ndarray, steps: int, schedule: str
) -> None:
    """Scores do not sum to 1 here: some chances are cut off, some masks are left."""
    rule = Analytic(steps=steps, parameterization=Sedd(V))
    _agree(
        rule,
        schedule,
        table,
        lambda _: laws.tweedie(table, RATES[schedule], steps),
        lambda _: laws.tweedie(table, RATES[schedule], 3),
    )


def test_the_staggered_score_is_the_sum_of_scores_times_the_reveal_probability() -> (
    None
):
    """In float64, one masked position: the formula used against the one stated."""
    table = np.zeros(((V + 1) ** L, L, V))
    table[:] = np.log([0.3, 0.6, 0.9])
    state = (MASK, MASK, MASK)
    for m_t, m_s in [(0.9, 0.4), (0.5, 0.49), (0.3, 0.0)]:
        kernel = laws.tweedie(table, lambda t, m=(m_s, m_t): m[int(t)], 1)[0]
        scores = np.exp(laws.logits_at(table, state, m_t)[0]) / V
        a = reveal_probabilities(np.array([m_s, m_t]))[1]
        assert scores.sum() * a < 1
        marginal = np.zeros(V + 1)
        for target, chance in kernel(state):
            marginal[target[0]] += chance
        np.testing.assert_allclose(marginal[:V], scores * a, rtol=1e-10)
        np.testing.assert_allclose(marginal[V], 1 - scores.sum() * a, rtol=1e-10)


@pytest.mark.parametrize(
    ("steps", "schedule"), [(1, "linear"), (2, "light"), (4, "geometric")]
)
def test_d3pm_has_its_law(steps: int, schedule: str) -> None:
    table = toys.random_table(mask_logit=True)
    _agree(
        D3PM(steps=steps),
        schedule,
        table,
        lambda given: laws.d3pm(table, RATES[schedule], steps, given),
        lambda given: laws.d3pm(table, RATES[schedule], 3, given),
    )


@pytest.mark.parametrize("rule", ["analytic", "d3pm"])
def test_greedy_noise_removal_takes_the_most_probable_token(rule: str) -> None:
    """Scores near 0, or a mask as good as certain, leave everything to the end."""
    table = toys.random_table(mask_logit=rule == "d3pm")
    greedy = NoiseRemoval.GREEDY
    if rule == "d3pm":
        table[..., V] += 60.0
        chosen: Rule = D3PM(steps=2, noise_removal=greedy)
        rate = 0.0
    else:
        table -= 60.0
        chosen = Analytic(steps=2, parameterization=Sedd(V), noise_removal=greedy)
        rate = 0.5
    tokens, _ = _halves(sampler(chosen), table)
    best = laws.logits_at(table, (MASK,) * L, rate)[:, :V].argmax(axis=1)
    assert (tokens == best).all()


def _remask_grid(
    kind: Remasking, schedule: str, steps: int
) -> tuple[list[float], list[float]]:
    """m at the times j / T, and sigma of each step, by hand."""
    if kind is Remasking.LOOP:  # of four steps: to 0.5, to 0.9 revealed, hold, finish
        return [0.0, 0.1, 0.1, 1 - 0.9 * 0.25 / 0.45, 1.0], [0.0, 0.1, 0.0, 0.0]
    rates = [RATES[schedule](j / steps) for j in range(steps + 1)]
    most = [
        min(1.0, rates[j - 1] / max(1 - rates[j], 1e-300)) for j in range(1, steps + 1)
    ]
    if kind is Remasking.CAP:
        return rates, [min(0.3, each) for each in most]
    return rates, [0.3 * each for each in most]


@pytest.mark.parametrize(
    ("kind", "schedule", "steps"),
    [
        (Remasking.CAP, "light", 4),
        (Remasking.CAP, "geometric", 2),
        (Remasking.RESCALE, "heavy", 4),
        (Remasking.LOOP, "linear", 4),
    ],
    ids=str,
)
def test_remasking_has_its_law(
    table: np.ndarray, kind: Remasking, schedule: str, steps: int
) -> None:
    strength = 0.1 if kind is Remasking.LOOP else 0.3
    rates, sigmas = _remask_grid(kind, schedule, steps)
    # In two steps only tokens of the prior are masked again: then another T is told.
    others = (rates, [0.0] * steps) if steps > 2 else _remask_grid(kind, schedule, 4)
    _agree(
        Remask(kind=kind, strength=strength, steps=steps),
        schedule,
        table,
        lambda given: laws.remask(table, rates, sigmas, given),
        lambda given: laws.remask(table, *others, given),
        from_prior=kind is not Remasking.LOOP,
    )


def test_remasking_by_confidence_has_its_law(table: np.ndarray) -> None:
    """And not the one in which it is the sure tokens that are masked again."""

    def kernels(given: dict[int, int], sign: float = -1.0) -> list[laws.Kernel]:
        rate = RATES["linear"]
        return laws.remask_by_confidence(2 * table, rate, 3, given, sign)

    _agree(
        Remask(kind=Remasking.CONFIDENCE, strength=1.0, steps=3),
        "linear",
        2 * table,
        kernels,
        lambda given: kernels(given, 1.0),
        strip=True,
    )


# (steps, block_length): blocks and how many each call keeps, from scratch and where
# the second position is given.
TURNS = {
    (1, 0): ([((0, 1, 2), 3)], [((0, 2), 2)]),
    (2, 0): ([((0, 1, 2), 2), ((0, 1, 2), 1)], [((0, 2), 1), ((0, 2), 1)]),
    (2, 2): ([((0, 1), 2), ((2,), 1)], [((0, 2), 1), ((0, 2), 1)]),
    (3, 2): ([((0, 1), 1), ((0, 1), 1), ((2,), 1)], [((0, 2), 1), ((0, 2), 1)]),
    (1, 1): ([((0,), 1), ((1,), 1), ((2,), 1)], [((0,), 1), ((2,), 1)]),
    (9, 0): ([((0, 1, 2), 1)] * 3, [((0, 2), 1)] * 2),
}


@pytest.mark.parametrize(("steps", "block_length"), TURNS)
def test_the_surest_tokens_come_first(
    table: np.ndarray, steps: int, block_length: int
) -> None:
    turns = TURNS[steps, block_length]
    other = TURNS[{1: (2, 0), 2: (1, 0), 3: (2, 0), 9: (1, 0)}[steps]]
    _agree(
        Confidence(steps=steps, block_length=block_length),
        "linear",
        table,
        lambda given: laws.confidence(table, turns[len(given)], L - len(given)),
        lambda given: laws.confidence(table, other[len(given)], L - len(given)),
        from_prior=False,
    )


def test_first_hitting_has_the_law_of_continuous_time(table: np.ndarray) -> None:
    """That of all orders alike; and each order is as frequent as any other."""
    log_p = toys.log_softmax(table)
    law = {tuple(x): toys.any_order_likelihood(log_p, x) for x in SEQUENCES.tolist()}
    fill = sampler(FirstHitting(), "light", TableModel)
    canvas = np.full((COUNT, L), MASK, np.int32)
    run = jax.jit(lambda *inputs: fill(*inputs, show=2))
    found = run(table, jax.random.key(0), canvas, canvas < 0)
    assert found.calls == L
    assert laws.p_value(found.tokens_BL, law) > SIGNIFICANCE
    first, second = np.asarray(found.states_SBL) != MASK
    orders = np.stack([first.argmax(1), (second & ~first).argmax(1)], axis=1)
    assert (first.sum(1) == 1).all() and (second.sum(1) == 2).all()
    uniform = {(i, j): 1 / 6 for i in range(L) for j in range(L) if i != j}
    assert laws.p_value(orders, uniform) > SIGNIFICANCE


def test_two_tokens_at_once_are_drawn_as_if_alone(table: np.ndarray) -> None:
    log_p = toys.log_softmax(table)
    p, law = np.exp(log_p), {}
    for x in SEQUENCES.tolist():
        total = 0.0
        for last in range(L):
            seen = np.array([MASK if i == last else v for i, v in enumerate(x)])
            pair = [p[toys.row(np.full(L, MASK)), i, x[i]] for i in range(L)]
            total += np.prod(np.delete(pair, last)) * p[toys.row(seen), last, x[last]]
        law[tuple(x)] = total / L
    fill = sampler(FirstHitting(tokens_per_call=2), "light", TableModel)
    canvas = np.full((COUNT, L), MASK, np.int32)
    found = jax.jit(fill)(table, jax.random.key(1), canvas, canvas < 0)
    assert found.calls == 2
    assert laws.p_value(found.tokens_BL, law) > SIGNIFICANCE
