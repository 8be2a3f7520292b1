"""Exact laws of samplers on the toy of `tests.toys`, written from their definitions.

A law is a dict from states to chances; a sampler is a sequence of kernels. Everything
is in float64 numpy and shares no code with what it checks.
"""

import dataclasses
import itertools
import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from scipy import stats

from lmjax.diffusion import schedules
from tests.toys import MASK, L, TableModel, V, row

State = tuple[Any, ...]
Law = dict[State, float]
Ways = list[tuple[Any, float]]
Kernel = Callable[[State], Iterable[tuple[State, float]]]

SCHEDULES = {
    "linear": schedules.LinearSchedule(),
    "light": schedules.LightCosineSchedule(),
    "heavy": schedules.HeavyCosineSchedule(),
    "geometric": schedules.GeometricSchedule(sigma_min=0.1, sigma_max=5.0),
}
RATES: dict[str, Callable[[float], float]] = {
    "linear": lambda t: t,
    "light": lambda t: 1 - math.cos(math.pi * t / 2),
    "heavy": lambda t: math.sin(math.pi * t / 2),
    "geometric": lambda t: 1 - math.exp(0.1 - 0.1 * 50**t),
}
# Of about forty laws that are tested.
SIGNIFICANCE = 1e-3 / 40


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class TimedTable(TableModel):
    """A table whose logits grow as the noise rate m falls: times 3/2 - m."""

    def __call__(
        self, tokens_BL: jax.Array, *, sigma_B: jax.Array, **_: object
    ) -> jax.Array:
        hidden = super().__call__(tokens_BL)
        return hidden * (0.5 + jnp.exp(-sigma_B))[:, None, None]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class FixedModel:
    """The same logits [V] whatever it sees."""

    fixed: jax.Array

    def __call__(self, tokens_BL: jax.Array, **_: object) -> jax.Array:
        return jnp.zeros((*tokens_BL.shape, 1))

    def logits(self, hidden: jax.Array) -> jax.Array:
        return jnp.broadcast_to(self.fixed, (*hidden.shape[:-1], len(self.fixed)))


def logits_at(table: np.ndarray, state: State, rate: float) -> np.ndarray:
    """Logits of a `TimedTable`, float64 [L, V or V + 1]."""
    return table[row(np.array(state))].astype(np.float64) * (1.5 - rate)


def softmax(logits: np.ndarray) -> np.ndarray:
    p = np.exp(logits)
    return p / p.sum(axis=-1, keepdims=True)


def independent(ways_of: Callable[[State], list[Ways]]) -> Kernel:
    """The kernel in which each position goes its own way."""

    def kernel(state: State) -> Iterable[tuple[State, float]]:
        for way in itertools.product(*ways_of(state)):
            yield tuple(each for each, _ in way), math.prod(q for _, q in way)

    return kernel


def run(start: Law, kernels: Sequence[Kernel]) -> Law:
    """The law after all kernels."""
    law = start
    for kernel in kernels:
        after: Law = {}
        for state, chance in law.items():
            for target, share in kernel(state):
                if share > 0:
                    after[target] = after.get(target, 0.0) + chance * share
        law = after
    return law


def start_law(given: dict[int, int], end: float = 1.0) -> Law:
    """All mask but for what is given, and uniform tokens in a share 1 - end."""
    prior = [(MASK, end), *((v, (1 - end) / V) for v in range(V))]
    ways = [[(given[i], 1.0)] if i in given else prior for i in range(L)]
    return run({(): 1.0}, [independent(lambda _: ways)])


def ancestral(table: np.ndarray, rate: Callable, steps: int) -> list[Kernel]:
    """Every step reveals with probability (m_t - m_s) / m_t."""
    kernels = []
    for j in range(steps, 0, -1):
        m_t, m_s = rate(j / steps), rate((j - 1) / steps)
        kernels.append(_reveal(table, m_t, lambda p, a=(m_t - m_s) / m_t: a))
    return kernels


def _reveal(table: np.ndarray, m_t: float, chance: Callable) -> Kernel:
    """Reveals masks by the chance that the logits of a position give."""

    def ways_of(state: State) -> list[Ways]:
        logits = logits_at(table, state, m_t)
        ways: list[Ways] = []
        for i, token in enumerate(state):
            if token != MASK:
                ways.append([(token, 1.0)])
                continue
            p, a = softmax(logits[i, :V]), chance(logits[i])
            ways.append([(MASK, 1 - a), *((v, a * p[v]) for v in range(V))])
        return ways

    return independent(ways_of)


def tweedie(table: np.ndarray, rate: Callable, steps: int) -> list[Kernel]:
    """SEDD's analytic sampler in its own terms: staggered score times transition.

    With r = s / (exp(sigma_t) - 1) the ratios of SEDD, 1 at the mask, and
    D = sigma_t - sigma_s: stag(y) = exp(D) r(y), stag(M) += (1 - exp(D)) sum r, times
    exp(-D) [y = x] + (1 - exp(-D)) [x = M]. Negative chances are cut off, and what is
    masked at the end is drawn.
    """

    def kernel(m_t: float, m_s: float) -> Kernel:
        # At m = 1 sigma is infinite: a rate a hair below stands for it.
        sigma_t = -math.log1p(-min(m_t, 1 - 1e-12))
        difference = sigma_t + math.log1p(-m_s)

        def ways_of(state: State) -> list[Ways]:
            logits = logits_at(table, state, m_t)
            ways: list[Ways] = []
            for i, token in enumerate(state):
                if token != MASK:
                    ways.append([(token, 1.0)])
                    continue
                ratios = np.append(np.exp(logits[i]) / V / math.expm1(sigma_t), 1.0)
                staggered = math.exp(difference) * ratios
                staggered[V] += (1 - math.exp(difference)) * ratios.sum()
                move = np.full(V + 1, -math.expm1(-difference))
                move[V] += math.exp(-difference)
                chances = np.maximum(staggered * move, 0)
                chances /= chances.sum()
                ways.append(list(enumerate(chances)))
            return ways

        return independent(ways_of)

    times = [j / steps for j in range(steps + 1)]
    kernels = [
        kernel(rate(t), rate(s)) for s, t in reversed(list(itertools.pairwise(times)))
    ]
    return [*kernels, _reveal(table, rate(1 / steps), lambda _: 1.0)]


def d3pm(table: np.ndarray, rate: Callable, steps: int, given: dict) -> list[Kernel]:
    """Kernels of a table with a mask logit; at the end everything is decoded."""
    kernels = []
    for j in range(steps, 0, -1):
        m_t, m_s = rate(j / steps), rate((j - 1) / steps)

        def chance(logits: np.ndarray, m_t: float = m_t, m_s: float = m_s) -> float:
            x_m = softmax(logits)[V]
            return (m_t - m_s) * (1 - x_m) / ((1 - m_t) * x_m + m_t)

        kernels.append(_reveal(table, m_t, chance))

    def decode(state: State) -> list[Ways]:
        p = softmax(logits_at(table, state, 0.0)[:, :V])
        return [
            [(given[i], 1.0)] if i in given else list(enumerate(p[i])) for i in range(L)
        ]

    return [*kernels, independent(decode)]


def remask(
    table: np.ndarray, rates: list[float], sigmas: list[float], given: dict
) -> list[Kernel]:
    """ReMDM: `rates` are m at the times 0 to T, sigmas[j] that of step j + 1."""

    def kernel(m_t: float, m_s: float, sigma: float) -> Kernel:
        alpha_t, alpha_s = 1 - m_t, 1 - m_s
        reveal = (alpha_s - (1 - sigma) * alpha_t) / (1 - alpha_t)

        def ways_of(state: State) -> list[Ways]:
            p = softmax(logits_at(table, state, m_t))
            ways: list[Ways] = []
            for i, token in enumerate(state):
                if i in given:
                    ways.append([(token, 1.0)])
                elif token == MASK:
                    drawn = [(v, reveal * p[i, v]) for v in range(V)]
                    ways.append([(MASK, 1 - reveal), *drawn])
                else:
                    ways.append([(token, 1 - sigma), (MASK, sigma)])
            return ways

        return independent(ways_of)

    triples = zip(rates[1:], rates[:-1], sigmas, strict=True)
    return [kernel(*triple) for triple in reversed(list(triples))]


def remask_by_confidence(
    table: np.ndarray, rate: Callable, steps: int, given: dict, sign: float = -1.0
) -> list[Kernel]:
    """States hold (token, probability when it was revealed); sigma ~ exp(sign p)."""

    def kernel(m_t: float, m_s: float) -> Kernel:
        most = min(1.0, m_s / (1 - m_t)) if m_t < 1 else 1.0

        def ways_of(state: State) -> list[Ways]:
            p = softmax(logits_at(table, tuple(token for token, _ in state), m_t))
            shown = [i for i in range(L) if i not in given and state[i][0] != MASK]
            total = sum(math.exp(sign * state[i][1]) for i in shown)
            mean = most / len(shown) if shown else 0.0
            reveal = (m_t - m_s + mean * (1 - m_t)) / m_t
            ways: list[Ways] = []
            for i, (token, sure) in enumerate(state):
                if i in given:
                    ways.append([((token, sure), 1.0)])
                elif token == MASK:
                    drawn = [((v, p[i, v]), reveal * p[i, v]) for v in range(V)]
                    ways.append([((MASK, 1.0), 1 - reveal), *drawn])
                else:
                    sigma = most * math.exp(sign * sure) / total
                    kept = ((token, sure), 1 - sigma)
                    ways.append([kept, ((MASK, 1.0), sigma)])
            return ways

        return independent(ways_of)

    return [kernel(rate(j / steps), rate((j - 1) / steps)) for j in range(steps, 0, -1)]


def confidence(
    table: np.ndarray, turns: Sequence[tuple[tuple[int, ...], int]], fill: int
) -> list[Kernel]:
    """Each turn draws for masked positions of a block, and keeps the surest."""

    def kernel(block: tuple[int, ...], count: int) -> Kernel:
        def moves(state: State) -> Iterable[tuple[State, float]]:
            rate = sum(token == MASK for token in state) / fill
            p = softmax(logits_at(table, state, rate))
            asked = [i for i in block if state[i] == MASK]
            for drawn in itertools.product(range(V), repeat=len(asked)):
                sure = {i: p[i, v] for i, v in zip(asked, drawn, strict=True)}
                kept = sorted(asked, key=lambda i: -sure[i])[:count]
                choice = dict(zip(asked, drawn, strict=True))
                target = tuple(
                    choice[i] if i in kept else token for i, token in enumerate(state)
                )
                yield target, math.prod(sure.values())

        return moves

    return [kernel(*turn) for turn in turns]


def p_value(tokens: np.ndarray, law: Law) -> float:
    """Chi-square of sampled rows; cells that expect fewer than 5 are taken together."""
    total = sum(law.values())
    assert abs(total - 1) < 1e-9, f"the law sums to {total}"
    rows, counts = np.unique(np.asarray(tokens), axis=0, return_counts=True)
    seen = dict(zip(map(tuple, rows.tolist()), counts.tolist(), strict=True))
    if not seen.keys() <= law.keys():
        return 0.0
    observed = np.array([seen.get(state, 0) for state in law], np.float64)
    expected = np.array(list(law.values())) * len(tokens)
    rare = expected < 5
    observed = np.append(observed[~rare], observed[rare].sum())
    expected = np.append(expected[~rare], expected[rare].sum())
    kept = expected > 0
    if kept.sum() < 2:
        return float(observed[~kept].sum() == 0)
    return float(stats.chisquare(observed[kept], expected[kept]).pvalue)
