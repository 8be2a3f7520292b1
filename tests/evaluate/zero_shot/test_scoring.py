"""What is picked of items, and what stands in the way of luck and leaks."""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
import pytest

from lmjax.config.schema import (
    EvaluateConfig,
    LongItems,
    ParallelConfig,
    Ties,
    ZeroShotBackend,
)
from lmjax.core.errors import UserError
from lmjax.evaluate.probes import Probe, Prober
from lmjax.evaluate.zero_shot import scoring
from lmjax.evaluate.zero_shot.items import Item, Task
from lmjax.evaluate.zero_shot.scoring import ZeroShot, choose
from lmjax.parallel.mesh import build_mesh
from tests.evaluate.zero_shot.texts import (
    BOS,
    FIRST,
    MASK,
    Pieces,
    item,
    scorer,
    task,
)

NAN = math.nan


def _zero_shot(prober: Any, *, causal: bool = True, **changes: Any) -> ZeroShot:
    settings = {"max_length": 16, "opening": (BOS,), "tokenizer": Pieces()}
    fields = {field.name for field in dataclasses.fields(EvaluateConfig)}
    settings |= {name: changes[name] for name in changes if name not in fields}
    return ZeroShot(
        EvaluateConfig(**{name: changes[name] for name in changes if name in fields}),
        prober,
        mask_id=MASK,
        causal=causal,
        dtype="float32",
        **settings,
    )


def _constant(value: float) -> Any:
    return scorer(lambda probe: np.full(len(probe.places), value))


@pytest.fixture(scope="module")
def pairs() -> Task:
    """60 pairs of all lengths in three groups, the right one first or second."""
    generator = np.random.default_rng(0)

    def letters(count: int) -> str:
        return "".join(chr(97 + n) for n in generator.integers(0, 26, count))

    items = []
    for number in range(60):
        prefix = letters(int(generator.integers(0, 4)))
        length = int(generator.integers(1, 6))
        ends = (letters(length), letters(length + number % 2))
        items.append(
            item(*ends, prefix=prefix, label=number % 2, uid="abc"[number % 3])
        )
    return task(*items)


def _swapped(pairs: Task) -> Task:
    items = [dataclasses.replace(each, label=1 - each.label) for each in pairs.items]
    return dataclasses.replace(pairs, items=tuple(items))


@dataclasses.dataclass(frozen=True, eq=False)
class Tiny:
    """A two-layer model with random parameters."""

    model: Any
    params: Any

    def prober(self, devices: int = 1, **changes: Any) -> Prober:
        return Prober(
            self.model.bind,
            build_mesh(ParallelConfig(), jax.devices()[:devices]),
            **{"max_length": 16, "pad_id": 0, "batch_tokens": 128} | changes,
            causal=self.model.setting.causal,
            chunk_tokens=16,
        )


@pytest.fixture(scope="module", params=["causal", "both ways"])
def tiny(request: pytest.FixtureRequest, make_model: Any, random_params: Any) -> Tiny:
    model = make_model(causal=request.param == "causal")
    return Tiny(model, random_params(model))


@pytest.mark.parametrize("value", [0.0, -7.0, -math.inf, NAN])
@pytest.mark.parametrize("backend", ["causal", "mlm", "elbo", "chain"])
def test_a_model_that_knows_nothing_is_never_right(value: float, backend: str) -> None:
    alike = task(*[item("ab", "cd", "ef", label=n % 3) for n in range(30)])
    kind = ZeroShotBackend(backend)
    zero_shot = _zero_shot(
        _constant(value), causal=backend == "causal", backend=kind, elbo_draws=3
    )
    result = zero_shot.evaluate(None, alike)
    assert not result.right().any()
    assert result.average().value == 0.0
    assert (result.ties, result.nans) == (30, 30 if math.isnan(value) else 0)


def test_officially_it_is_right_by_chance() -> None:
    alike = task(*[item("ab", "cd", label=n % 2) for n in range(400)])
    zero_shot = _zero_shot(_constant(0.0), ties=Ties.OFFICIAL)
    result = zero_shot.evaluate(None, alike)
    assert 0.4 < result.average().value < 0.6
    assert result.ties == 400
    again = _zero_shot(_constant(0.0), ties=Ties.OFFICIAL).evaluate(None, alike)
    np.testing.assert_array_equal(result.chosen, again.chosen)


@pytest.mark.parametrize(
    ("scores", "label", "wrong", "official"),
    [
        ([-1.0, -2.0], 0, 0, {0}),
        ([-1.0, -2.0], 1, 0, {0}),
        ([-2.0, -2.0], 0, 1, {0, 1}),
        ([-2.0, -2.0], 1, 0, {0, 1}),
        ([-2.0, -2.0, -3.0], 2, 0, {0, 1}),
        ([-9.0, -2.0, -2.0], 1, 2, {1, 2}),
        ([-1.0, NAN], 0, 1, {0}),
        ([-1.0, NAN], 1, 0, {0}),
        ([NAN, NAN], 0, 1, {0, 1}),
        ([-math.inf, -math.inf], 0, 1, {0, 1}),
        ([-math.inf, -5.0], 1, 1, {1}),
        ([NAN, -math.inf], 1, 0, {0, 1}),
    ],
)
def test_ties_and_nan_are_wrong_or_officially_a_draw(
    scores: list[float], label: int, wrong: int, official: set[int]
) -> None:
    generator = np.random.default_rng(0)
    choice = choose(np.array(scores), label, Ties.WRONG, generator)
    assert choice.index == wrong
    assert choice.nan == bool(np.isnan(scores).any())
    drawn = {
        choose(np.array(scores), label, Ties.OFFICIAL, generator).index
        for _ in range(50)
    }
    assert drawn == official
    assert choice.tied == (len(official) > 1)


def test_swapping_right_and_wrong_turns_the_accuracy_over(
    tiny: Tiny, pairs: Task
) -> None:
    zero_shot = _zero_shot(tiny.prober(), causal=tiny.model.setting.causal)
    found = zero_shot.evaluate(tiny.params, pairs)
    swapped = zero_shot.evaluate(tiny.params, _swapped(pairs))
    assert 0 < found.right().sum() < 60
    assert found.right().sum() + swapped.right().sum() == 60 - found.ties


def test_a_fresh_model_is_at_chance(make_model: Any) -> None:
    """Its interval holds chance, over pairs of equal lengths whose labels are drawn."""
    generator = np.random.default_rng(1)
    words = [
        "".join(chr(97 + n) for n in generator.integers(0, 26, 5)) for _ in range(600)
    ]
    labels = generator.integers(0, 2, 300)
    both = zip(words[::2], words[1::2], labels, strict=True)
    fair = task(*[item(a, b, label=int(label)) for a, b, label in both])
    model = make_model(causal=True, tied_embeddings=True)
    tiny = Tiny(model, jax.jit(model.init)(jax.random.key(0)))
    average = _zero_shot(tiny.prober()).evaluate(tiny.params, fair).average()
    assert average.low <= 0.5 <= average.high
    assert 0.3 < average.value < 0.7


@pytest.mark.parametrize("backend", ["auto", "elbo", "chain"])
def test_batches_and_devices_do_not_matter(
    backend: str, tiny: Tiny, pairs: Task, monkeypatch: pytest.MonkeyPatch
) -> None:
    causal = tiny.model.setting.causal
    if causal and backend != "auto":
        pytest.skip("a causal model has one backend")
    settings = {
        "causal": causal,
        "backend": ZeroShotBackend(backend),
        "elbo_draws": 4,
    }
    found = _zero_shot(tiny.prober(), **settings).scores(tiny.params, pairs)
    monkeypatch.setattr(scoring, "SLICE", 7)
    other = tiny.prober(devices=8, batch_tokens=256)
    again = _zero_shot(other, **settings).scores(tiny.params, pairs)
    for a, b in zip(found, again, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-4)


def test_scores_are_sums_or_means_over_the_completion() -> None:
    """A scorer that gives each id its own number: -1 for "a", -2 for "b", ..."""

    def score(probe: Probe) -> Sequence[float]:
        return [FIRST - 1.0 - target for target in probe.targets]

    summed = item("ab", "abc", prefix="zz")
    mean = dataclasses.replace(summed, per_token=True)
    zero_shot = _zero_shot(scorer(score))
    scores = zero_shot.scores(None, task(summed, mean))
    np.testing.assert_allclose(scores, [[-3.0, -6.0], [-1.5, -2.0]])


def test_checkpoints_share_programs_and_encoded_items(tiny: Tiny, pairs: Task) -> None:
    prober, calls = tiny.prober(), []

    class Counting(Pieces):
        def encode_aligned(self, text: str) -> tuple[np.ndarray, np.ndarray]:
            calls.append(text)
            return super().encode_aligned(text)

    zero_shot = _zero_shot(
        prober, causal=tiny.model.setting.causal, tokenizer=Counting()
    )
    first = zero_shot.evaluate(tiny.params, pairs)
    programs, encoded = set(prober.shapes), len(calls)
    other = jax.tree.map(lambda leaf: 0.7 * leaf, tiny.params)
    second = zero_shot.evaluate(other, pairs)
    assert not np.array_equal(first.chosen, second.chosen)
    assert prober.shapes == programs
    assert len(programs) <= 4
    assert prober._score._cache_size() == len(programs)
    assert len(calls) == encoded == 120


def test_a_causal_model_takes_one_id_more_than_it_reads() -> None:
    longest = task(item("abcd", "dcba"))
    assert _zero_shot(_constant(0.0), max_length=4).evaluate(None, longest).ties == 1
    with pytest.raises(UserError, match="takes 5 tokens"):
        _zero_shot(_constant(0.0), max_length=4, causal=False).scores(None, longest)
    with pytest.raises(UserError, match="takes 5 tokens"):
        _zero_shot(_constant(0.0), max_length=3).scores(None, longest)


def test_the_stamp_says_how_figures_came_about() -> None:
    long: Item = item("de", "ed", prefix="abc")
    given = task(item("a", "b"), long, rule="as of today")
    result = _zero_shot(
        _constant(0.0),
        causal=False,
        backend=ZeroShotBackend.ELBO,
        elbo_draws=5,
        max_length=4,
        long_items=LongItems.TRUNCATE,
    ).evaluate(None, given)
    assert result.truncated == 1
    stamp = result.stamp.to_json()
    assert stamp.pop("scorer").startswith("lmjax zero-shot")
    assert stamp.pop("lmjax")
    assert stamp == {
        "backend": "elbo",
        "tie_rule": "wrong",
        "dtype": "float32",
        "draws": 5,
        "rule": "as of today",
    }
