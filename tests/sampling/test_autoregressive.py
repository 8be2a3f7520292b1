"""The cached sampler against the full forward pass, run again for every token."""

import itertools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from lmjax.models.build import Model
from lmjax.sampling.autoregressive import AutoregressiveSampler
from lmjax.sampling.logits import TokenSampler

BOS, NEVER = 1, 31  # of the tiny model: 31 is an id that it can't predict
LENGTH = 12
PROMPTS = ([], [5, 6, 7], [9, 8, 7, 6, 5, 4, 5], [7] * LENGTH, [4])


@pytest.fixture(scope="module")
def model(make_model: Callable[..., Model]) -> Model:
    return make_model(causal=True)


@pytest.fixture(scope="module")
def params(model: Model, random_params: Callable[..., Any]) -> Any:
    return random_params(model, seed=2)


@pytest.fixture(scope="module")
def next_logits(model: Model, params: Any) -> Callable[..., np.ndarray]:
    """Logits of the token that follows, from the whole forward pass; no cache."""

    @jax.jit
    def run(params: Any, inputs_BL: jax.Array) -> jax.Array:
        bound = model.bind(params)
        return bound.logits(bound(inputs_BL))

    def at(tokens: Sequence[int]) -> np.ndarray:
        inputs = np.full((1, LENGTH + 1), 4, np.int32)
        inputs[0, : len(tokens) + 1] = [BOS, *tokens]
        return np.asarray(run(params, inputs))[0, len(tokens)]

    return at


def _greedy(
    prompt: Sequence[int], next_logits: Callable[..., np.ndarray], eos: int
) -> list[int]:
    tokens = list(prompt)
    while len(tokens) < LENGTH:
        ended = eos in tokens[len(prompt) :]
        tokens.append(eos if ended else int(next_logits(tokens).argmax()))
    return tokens


def _sample(
    model: Model, params: Any, prompts: Sequence[Sequence[int]], eos: int
) -> np.ndarray:
    sampler = AutoregressiveSampler(
        bind=model.bind, bos_id=BOS, eos_id=eos, draw=TokenSampler(temperature=0.0)
    )
    canvas = np.full((len(prompts), LENGTH), NEVER, np.int32)
    for row, prompt in zip(canvas, prompts, strict=True):
        row[: len(prompt)] = prompt
    lengths = np.array([len(prompt) for prompt in prompts], np.int32)
    return np.asarray(jax.jit(sampler)(params, jax.random.key(0), canvas, lengths))


@pytest.fixture(scope="module")
def expected(next_logits: Callable[..., np.ndarray]) -> list[list[int]]:
    return [_greedy(prompt, next_logits, eos=NEVER) for prompt in PROMPTS]


def test_greedy_texts_are_those_of_the_full_forward_pass(
    model: Model, params: Any, expected: list[list[int]]
) -> None:
    """Prompts of all lengths in one batch, an empty and a full one among them."""
    found = _sample(model, params, PROMPTS, eos=NEVER)
    np.testing.assert_array_equal(found, expected)
    assert len({tuple(row[-3:]) for row in expected}) > 2, "a test of one text"


def test_rows_do_not_depend_on_their_neighbours(
    model: Model, params: Any, expected: list[list[int]]
) -> None:
    for prompt, row in zip(PROMPTS, expected, strict=True):
        found = _sample(model, params, [prompt], eos=NEVER)
        np.testing.assert_array_equal(found, [row])


def test_after_the_end_there_is_only_the_end(
    model: Model,
    params: Any,
    next_logits: Callable[..., np.ndarray],
    expected: list[list[int]],
) -> None:
    """The end is an id that some rows write half-way, and that a prompt may hold."""
    eos = expected[0][4]
    prompts = [*PROMPTS, [6, eos, 8]]
    rows = [_greedy(prompt, next_logits, eos) for prompt in prompts]
    assert rows[0][4:] == [eos] * (LENGTH - 4)
    assert rows[-1][2] == 8 and rows[-1][3] != eos
    found = _sample(model, params, prompts, eos)
    np.testing.assert_array_equal(found, rows)
    for prompt, row in zip(prompts, found, strict=True):
        np.testing.assert_array_equal(row[: len(prompt)], prompt)
    # Also where all rows end, and the rest of the canvas is never reached.
    np.testing.assert_array_equal(_sample(model, params, [[], []], eos), rows[:1] * 2)


def test_samples_follow_the_law_of_the_model(
    make_model: Callable[..., Model], random_params: Callable[..., Any]
) -> None:
    """Five ids, three tokens: 85 texts, for nothing follows the end but itself."""
    eos, ids = 3, (3, 4, 5, 6, 7)
    model = make_model(causal=True, vocab_size=8, unpredictable=(0, 1, 2))
    params = random_params(model, seed=1)
    sequences = np.array(list(itertools.product(ids, repeat=3)), np.int32)
    inputs = np.concatenate([np.full((len(sequences), 1), BOS), sequences], axis=1)

    @jax.jit
    def log_law(params: Any, inputs: jax.Array) -> jax.Array:
        bound = model.bind(params)
        return jax.nn.log_softmax(bound.logits(bound(inputs[:, :-1])))

    log_p = np.asarray(log_law(params, inputs), np.float64)
    steps = np.exp(np.take_along_axis(log_p, sequences[..., None], axis=-1)[..., 0])
    law: dict[tuple[int, ...], float] = {}
    for sequence, chances in zip(sequences.tolist(), steps, strict=True):
        end = sequence.index(eos) + 1 if eos in sequence else 3
        text = (*sequence[:end], *[eos] * (3 - end))
        law[text] = float(np.prod(chances[:end]))
    assert len(law) == 85
    assert sum(law.values()) == pytest.approx(1.0, abs=1e-5)

    sampler = AutoregressiveSampler(
        bind=model.bind, bos_id=BOS, eos_id=eos, draw=TokenSampler()
    )
    count = 40_000
    canvas, lengths = np.zeros((count, 3), np.int32), np.zeros(count, np.int32)
    found = jax.jit(sampler)(params, jax.random.key(0), canvas, lengths)
    texts, counts = np.unique(np.asarray(found), axis=0, return_counts=True)
    seen = dict(zip(map(tuple, texts.tolist()), counts.tolist(), strict=True))
    assert seen.keys() <= law.keys()
    expected = np.array(list(law.values())) * count
    observed = np.array([seen.get(text, 0) for text in law])
    assert expected.max() > 3 * expected[expected > 5].min(), "no power: all alike"
    assert _chi_square(observed, expected) > 1e-3
    flat = np.full(len(law), count / len(law))
    assert _chi_square(observed, flat) < 1e-9


def _chi_square(observed: np.ndarray, expected: np.ndarray) -> float:
    """p-value; cells that expect fewer than 5 are taken together."""
    rare = expected < 5
    observed = np.append(observed[~rare], observed[rare].sum())
    expected = np.append(expected[~rare], expected[rare].sum())
    kept = expected > 0
    expected = expected[kept] * observed.sum() / expected.sum()
    return float(stats.chisquare(observed[kept], expected).pvalue)


def test_greedy_is_the_limit_of_low_temperatures(
    model: Model, params: Any, expected: list[list[int]]
) -> None:
    sampler = AutoregressiveSampler(
        bind=model.bind,
        bos_id=BOS,
        eos_id=NEVER,
        draw=TokenSampler(temperature=1e-6),
    )
    canvas = jnp.zeros((3, LENGTH), jnp.int32)
    found = jax.jit(sampler)(params, jax.random.key(0), canvas, jnp.zeros(3, jnp.int32))
    np.testing.assert_array_equal(found, [expected[0]] * 3)
