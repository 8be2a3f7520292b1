"""The uniform-state sampler against its law, by enumeration: V = 3, L = 2."""

import dataclasses
import itertools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lmjax.diffusion.process import UniformProcess
from lmjax.sampling import denoiser
from lmjax.sampling.denoiser import row_keys
from lmjax.sampling.logits import TokenSampler
from lmjax.sampling.uniform_diffusion import UniformDiffusionSampler
from tests.sampling import laws
from tests.sampling.laws import RATES, SCHEDULES, SIGNIFICANCE, Kernel, State, Ways

V, L = 3, 2
COUNT = 20_000


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Pairs:
    """Logits of two tokens by those that stand there, sharper the less noise."""

    table: jax.Array  # [V^L, L, V]

    def __call__(
        self, tokens_BL: jax.Array, *, sigma_B: jax.Array, **_: object
    ) -> jax.Array:
        hidden = self.table[tokens_BL @ np.array([V, 1])]
        return hidden * (0.5 + jnp.exp(-sigma_B))[:, None, None]

    def logits(self, hidden: jax.Array) -> jax.Array:
        """With an id that is never predicted, as a mask or padding."""
        never = jnp.full((*hidden.shape[:-1], 1), -jnp.inf)
        return jnp.concatenate([hidden, never], axis=-1)


@pytest.fixture(scope="module")
def table() -> np.ndarray:
    draws = np.random.default_rng(5).normal(size=(V**L, L, V))
    return (1.5 * draws).astype(np.float32)


def _sampler(schedule: str, steps: int, **draw: Any) -> UniformDiffusionSampler:
    return UniformDiffusionSampler(
        bind=Pairs,
        process=UniformProcess(schedule=SCHEDULES[schedule], predictable=np.arange(V)),
        steps=steps,
        draw=TokenSampler(**draw),
    )


def _law(
    table: np.ndarray,
    schedule: str,
    steps: int,
    given: dict[int, int],
    temperature: float = 1.0,
) -> laws.Law:
    """By the posterior as it is stated in full, over all tokens j."""

    def kernel(m_t: float, m_s: float) -> Kernel:
        alpha_t, alpha_s = 1 - m_t, 1 - m_s
        ratio = alpha_t / alpha_s

        def ways_of(state: State) -> list[Ways]:
            logits = table[state[0] * V + state[1]].astype(np.float64)
            p = laws.softmax(logits * (0.5 + alpha_t) / temperature)
            ways: list[Ways] = []
            for i, token in enumerate(state):
                if i in given:
                    ways.append([(token, 1.0)])
                    continue
                same = np.arange(V) == token
                top = V * alpha_t * p[i] * same + (ratio - alpha_t) * same
                top = top + (alpha_s - alpha_t) * p[i]
                top = top + (1 - ratio) * (1 - alpha_s) / V
                bottom = V * alpha_t * p[i, token] + 1 - alpha_t
                ways.append(list(enumerate(top / bottom)))
            return ways

        return laws.independent(ways_of)

    rates = [RATES[schedule](j / steps) for j in range(steps + 1)]
    start = [
        [(given[i], 1.0)] if i in given else [(v, 1 / V) for v in range(V)]
        for i in range(L)
    ]
    first = laws.run({(): 1.0}, [laws.independent(lambda _: start)])
    pairs = reversed(list(itertools.pairwise(rates)))
    return laws.run(first, [kernel(m_t, m_s) for m_s, m_t in pairs])


@pytest.mark.parametrize(
    ("schedule", "steps", "temperature"),
    [("linear", 1, 1.0), ("light", 2, 1.0), ("heavy", 4, 1.0), ("linear", 4, 0.6)],
)
def test_samples_follow_the_law_of_their_number_of_steps(
    table: np.ndarray, schedule: str, steps: int, temperature: float
) -> None:
    """From scratch and beside a token that is given; the temperature is the model's."""
    canvas = np.full((2 * COUNT, L), 1, np.int32)
    given = np.zeros(canvas.shape, bool)
    given[COUNT:, 1] = True
    fill = jax.jit(_sampler(schedule, steps, temperature=temperature))
    tokens, calls, _ = fill(table, jax.random.key(steps), canvas, given)
    assert calls == steps
    for part, fixed in ((tokens[:COUNT], {}), (tokens[COUNT:], {1: 1})):
        law = _law(table, schedule, steps, fixed, temperature)
        assert laws.p_value(part, law) > SIGNIFICANCE
    other = _law(table, schedule, steps + 2, {}, temperature)
    assert laws.p_value(tokens[:COUNT], other) < 1e-6, "no power"


def test_rows_are_written_each_by_itself(
    table: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Alone with its own key, and a position at a time; states lead to the text."""
    canvas = np.full((4, L), 1, np.int32)
    given = np.array([[0, 0], [0, 1], [1, 1], [0, 0]], bool)
    keys = row_keys(jax.random.key(2), 4)
    together = jax.jit(_sampler("light", 5))(table, keys, canvas, given)
    np.testing.assert_array_equal(together.tokens_BL[given], canvas[given])
    assert np.isin(together.tokens_BL, range(V)).all()
    monkeypatch.setattr(denoiser, "CHUNK_LOGITS", 1)
    fill = _sampler("light", 5)
    run = jax.jit(lambda *inputs: fill(*inputs, show=4))
    for r in range(4):
        part = slice(r, r + 1)
        alone = run(table, keys[part], canvas[part], given[part])
        np.testing.assert_array_equal(alone.tokens_BL, together.tokens_BL[part])
        assert alone.states_SBL.shape == (4, 1, L)
        np.testing.assert_array_equal(
            alone.states_SBL[:, given[part]], np.tile(canvas[part][given[part]], (4, 1))
        )


@pytest.mark.parametrize("schedule", ["linear", "light", "heavy"])
def test_the_weights_of_the_mixture_are_those_of_the_posterior(schedule: str) -> None:
    """Above 0, and of the sum that is stated; the last step leaves no noise."""
    weights = _sampler(schedule, 50).weights()
    assert (weights >= 0).all()
    rates = np.array([RATES[schedule](j / 50) for j in range(51)])
    np.testing.assert_allclose(
        weights[1:, 1:].sum(axis=1), rates[1:], rtol=1e-5, atol=1e-7
    )
    np.testing.assert_allclose(weights[1:, 0], V * (1 - rates[1:]), atol=1e-6)
    assert weights[1, 1] == weights[1, 3] == 0.0
    assert weights[50, 0] == weights[50, 1] == 0.0
