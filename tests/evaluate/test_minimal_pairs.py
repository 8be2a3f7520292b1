"""Which of two sentences scores higher, against hand-made models and brute force."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lmjax.config.schema import ParallelConfig
from lmjax.diffusion.process import MaskProcess
from lmjax.diffusion.schedules import LightCosineSchedule
from lmjax.evaluate import minimal_pairs
from lmjax.evaluate.likelihood import Scorer
from lmjax.evaluate.minimal_pairs import Pair, PairAccuracy, evaluate_pairs
from lmjax.models.build import Model
from lmjax.objectives.autoregressive import Autoregressive
from lmjax.objectives.masked_diffusion import MaskedDiffusion
from lmjax.parallel.mesh import build_mesh

BOS, MASK, EOS, PAD = 1, 2, 3, 0
AUTOREGRESSIVE = Autoregressive(bos_id=BOS, chunk_tokens=4096)
DIFFUSION = MaskedDiffusion(
    process=MaskProcess(
        mask_id=MASK, schedule=LightCosineSchedule(), predictable=np.arange(3, 31)
    ),
    chunk_tokens=4096,
)


def _scorer(bind: Callable[..., Any], objective: Any, num_devices: int = 1) -> Scorer:
    mesh = build_mesh(ParallelConfig(), jax.devices()[:num_devices])
    return Scorer(bind, objective, mesh)


def _evaluate(scorer: Scorer, params: Any, pairs: Sequence[Pair]) -> PairAccuracy:
    return evaluate_pairs(scorer, params, pairs, opening=[EOS], eos_id=EOS, pad_id=PAD)


@pytest.fixture(scope="module")
def pairs() -> list[Pair]:
    """40 pairs that differ in one token or in length, each a phenomenon of its own."""
    generator = np.random.default_rng(0)
    made = []
    for number in range(40):
        good = generator.integers(4, 31, size=generator.integers(1, 7)).tolist()
        bad = [*good, int(generator.integers(4, 31))]
        if number % 4:
            bad = list(good)
            place = int(generator.integers(len(good)))
            bad[place] = 4 + (good[place] - 4 + int(generator.integers(1, 27))) % 27
        made.append(Pair(good, bad, f"{number:02}"))
    return made


@dataclasses.dataclass(frozen=True)
class Tiny:
    """A two-layer model with random parameters, and its scorer."""

    model: Model
    params: Any
    scorer: Scorer
    logits: Callable[..., jax.Array]  # (params, tokens, lengths), compiled


@pytest.fixture(scope="module", params=["causal", "both ways"])
def tiny(
    request: pytest.FixtureRequest,
    make_model: Callable[..., Model],
    random_params: Callable[..., Any],
) -> Tiny:
    causal = request.param == "causal"
    model = make_model(causal=causal)
    scorer = _scorer(model.bind, AUTOREGRESSIVE if causal else DIFFUSION)

    @jax.jit
    def logits(params: Any, tokens: jax.Array, lengths: jax.Array) -> jax.Array:
        bound = model.bind(params)
        return bound.logits(bound(tokens, lengths_B=lengths))

    return Tiny(model, random_params(model), scorer, logits)


def test_pairs_that_score_alike_are_wrong(tiny: Tiny, pairs: list[Pair]) -> None:
    """A fresh model finds all sentences of a length equally likely."""
    alike = [pair for pair in pairs if len(pair.good) == len(pair.bad)]
    fresh = jax.jit(tiny.model.init)(jax.random.key(0))
    assert _evaluate(tiny.scorer, fresh, alike).accuracy == 0.0


@dataclasses.dataclass(frozen=True)
class Constant:
    """A scorer that gives every row the same."""

    value: float
    objective: Any = AUTOREGRESSIVE

    @property
    def mesh(self) -> Any:
        return build_mesh(ParallelConfig(), jax.devices()[:1])

    def nll_B(self, params: Any, batch: Any, draws: Any) -> np.ndarray:
        return np.full(len(batch.tokens), self.value)


@pytest.mark.parametrize("value", [0.0, 7.0, np.nan, np.inf])
def test_a_model_that_knows_nothing_is_never_right(
    value: float, pairs: list[Pair]
) -> None:
    found = _evaluate(Constant(value), None, pairs)
    assert (found.accuracy, found.standard_error, found.pairs) == (0.0, 0.0, 40)


def test_swapping_good_and_bad_turns_right_into_wrong(
    tiny: Tiny, pairs: list[Pair]
) -> None:
    swapped = [Pair(pair.bad, pair.good, pair.phenomenon) for pair in pairs]
    found = _evaluate(tiny.scorer, tiny.params, pairs)
    other = _evaluate(tiny.scorer, tiny.params, swapped)
    assert 0.2 < found.accuracy < 0.8
    assert found.accuracy + other.accuracy == pytest.approx(1.0)
    for name, share in found.phenomena.items():
        assert share + other.phenomena[name] == 1.0
    a = found.accuracy
    assert found.standard_error == pytest.approx((a * (1 - a) / 40) ** 0.5)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class BigramModel:
    """The next token's logits are those of the last token's row."""

    table: jax.Array  # [V, V]

    def __call__(self, tokens_BL: jax.Array, **_: object) -> jax.Array:
        return self.table[tokens_BL]

    def logits(self, hidden: jax.Array) -> jax.Array:
        return hidden


def test_a_hand_made_model_ranks_as_it_was_made() -> None:
    """A sentence follows the end of another, and its own end counts."""
    table = np.zeros((32, 32), np.float32)
    table[5, 6] = 2.0  # after 5 rather 6 than any other
    table[EOS, 8] = 2.0  # sentences begin with 8
    table[BOS, 9] = 9.0  # and not as windows do
    table[6, EOS] = 3.0  # and end after 6
    scorer = _scorer(BigramModel, AUTOREGRESSIVE)
    pairs = [
        Pair([5, 6], [5, 7], "next"),
        Pair([8, 4], [9, 4], "start"),
        Pair([4, 6], [6, 4], "end"),
        Pair([5, 7], [5, 6], "reversed"),
        Pair([5, 6, 4], [5, 7, 4], "next"),
    ]
    found = _evaluate(scorer, table, pairs)
    right = {"next": 1.0, "start": 1.0, "end": 1.0, "reversed": 0.0}
    assert found.phenomena == right
    assert found.accuracy == pytest.approx(4 / 5)
    assert found.score == "log-likelihood"


def _brute_force(tiny: Tiny, sentence: Sequence[int]) -> float:
    """The sum over tokens and the end of log p(token | the rest, or what is before)."""
    causal = tiny.model.setting.causal
    row = [EOS, *sentence, EOS]
    total = 0.0
    for i in range(1, len(row)):
        seen = [BOS, *row[:i]] if causal else [*row[:i], MASK, *row[i + 1 :]]
        tokens = np.full((1, 10), PAD, np.int32)
        tokens[0, : len(seen)] = seen
        found = tiny.logits(tiny.params, tokens, np.array([len(seen)]))
        logits = np.asarray(found, np.float64)[0, i]
        total += logits[row[i]] - np.log(np.exp(logits).sum())
    return total


def test_scores_are_the_sums_of_each_token_given_the_others(
    tiny: Tiny, pairs: list[Pair], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Given all others for masked diffusion, those before it for a causal model."""
    nats = []
    nll_B = tiny.scorer.nll_B

    def recorded(*inputs: Any) -> jax.Array:
        nats.append(float(jnp.sum(nll_B(*inputs))))
        return nll_B(*inputs)

    monkeypatch.setattr(tiny.scorer, "nll_B", recorded)
    found = _evaluate(tiny.scorer, tiny.params, pairs)
    expected = [(_brute_force(tiny, p.good), _brute_force(tiny, p.bad)) for p in pairs]
    assert -sum(nats) == pytest.approx(np.sum(expected), rel=1e-5)
    right = {
        p.phenomenon: float(g > b) for p, (g, b) in zip(pairs, expected, strict=True)
    }
    assert found.phenomena == right
    pseudo = not tiny.model.setting.causal
    assert found.score == ("pseudo-" if pseudo else "") + "log-likelihood"


@pytest.mark.parametrize("num_devices", [1, 3, 8])
def test_neither_devices_nor_batches_change_the_ranking(
    num_devices: int, tiny: Tiny, pairs: list[Pair], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also three devices, which divide no power of two."""
    expected = _evaluate(tiny.scorer, tiny.params, pairs)
    monkeypatch.setattr(minimal_pairs, "ROWS", 64)
    scorer = _scorer(tiny.model.bind, tiny.scorer.objective, num_devices)
    assert _evaluate(scorer, tiny.params, pairs) == expected


def test_a_document_mask_hides_the_end_of_the_document_before(
    tiny: Tiny, pairs: Sequence[Pair], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The opening's EOS is a document of its own: only its place as an input counts."""
    seen = []

    def spy(self: Scorer, params: Any, batch: Any, draws: Any) -> jax.Array:
        seen.append(batch)
        return jnp.zeros(len(batch.tokens))

    monkeypatch.setattr(Scorer, "nll_B", spy)
    evaluate_pairs(
        _scorer(tiny.model.bind, AUTOREGRESSIVE),
        tiny.params,
        pairs[:1],
        opening=[EOS, BOS],
        eos_id=EOS,
        pad_id=PAD,
        document_mask=True,
    )
    (batch,) = seen
    good = pairs[0].good
    used = len(good) + 3
    assert batch.tokens[0, :used].tolist() == [EOS, BOS, *good, EOS]
    assert batch.weights[0, :used].tolist() == [0, 0, *[1] * (len(good) + 1)]
    assert batch.segments[0, :used].tolist() == [1, *[2] * (used - 1)]
    assert batch.positions[0, :used].tolist() == [0, *range(used - 1)]
    assert not batch.segments[0, used:].any()
