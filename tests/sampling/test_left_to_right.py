"""Batches of any mix of prompts: the same texts, in few programs; where they end."""

import collections
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
import pytest

from lmjax.data.tokenization.byte_tokenizer import ByteTokenizer
from lmjax.models.build import Model
from lmjax.sampling.autoregressive import AutoregressiveSampler
from lmjax.sampling.left_to_right import LeftToRight
from lmjax.sampling.logits import TokenSampler
from lmjax.sampling.prompts import Generator, Sample
from lmjax.sampling.texts import Ending

BYTES = ByteTokenizer()
BOS, EOS = BYTES.special.bos, BYTES.special.eos
IDS = BYTES.vocab_size
LONGEST = 96
# Bytes of ASCII letters, and now and then the end.
NEVER = tuple(sorted({*range(IDS)} - {EOS, *BYTES.encode("abcdefghijkl ")}))
PROMPTS = ("", "dad " * 6, "a", "bcd" * 3, "face", "a bad cage " * 2)


@pytest.fixture(scope="module")
def model(make_model: Callable[..., Model]) -> Model:
    return make_model(
        causal=True, vocab_size=IDS, unpredictable=NEVER, max_length=LONGEST
    )


@pytest.fixture(scope="module")
def params(model: Model, random_params: Callable[..., Any]) -> Any:
    return random_params(model, seed=1)


def _generator(model: Model, **options: Any) -> Generator:
    draw = options.pop("draw", {})
    sampler = AutoregressiveSampler(
        bind=model.bind,
        bos_id=BOS,
        eos_id=options.pop("eos_id", EOS),
        draw=TokenSampler(**draw),
        repetition_penalty=options.pop("penalty", 1.0),
    )
    return Generator(sampler, BYTES, max_length=LONGEST, opening=[EOS], **options)


def _write(
    generator: Generator, params: Any, prompts: Sequence[str], **options: Any
) -> list[Sample]:
    asked = {"num_samples": 2, "max_new_tokens": 40} | options
    return list(generator.write(params, jax.random.key(5), prompts, **asked))


@pytest.fixture(scope="module")
def generator(model: Model) -> Generator:
    """Its programs are compiled once."""
    return _generator(model)


@pytest.fixture(scope="module")
def texts(generator: Generator, params: Any) -> list[Sample]:
    return _write(generator, params, PROMPTS)


def test_a_text_is_the_same_whatever_is_written_beside_it(
    model: Model, generator: Generator, params: Any, texts: list[Sample]
) -> None:
    """In batches of another size, and without the prompts behind it."""
    assert len({sample.text for sample in texts}) == 2 * len(PROMPTS)
    assert {sample.ending for sample in texts} == {Ending.EOS, Ending.LENGTH}
    assert _write(_generator(model, batch_size=3), params, PROMPTS) == texts
    assert _write(generator, params, PROMPTS[:2]) == texts[:4]
    shorter = _write(generator, params, PROMPTS[:2], max_new_tokens=9)
    for short, sample in zip(shorter, texts, strict=False):
        assert short.continuation == sample.continuation[:9]


def test_samples_of_a_prompt_and_of_equal_prompts_differ(
    generator: Generator, params: Any
) -> None:
    found = _write(generator, params, ["a", "a"], num_samples=3)
    assert len({sample.text for sample in found}) == 6
    assert [sample.number for sample in found] == [0, 1, 2] * 2


def test_any_mix_of_prompts_compiles_few_programs(model: Model, params: Any) -> None:
    """30 lengths: sizes 16 and 32 of prompts; batches of 1, 2 and 4 rows."""
    counts: collections.Counter[str] = collections.Counter()

    class Counted(AutoregressiveSampler):
        def begin(self, *arguments: Any, **options: Any) -> Any:
            counts["begin"] += 1
            return super().begin(*arguments, **options)

        def go_on(self, *arguments: Any, **options: Any) -> Any:
            counts["go on"] += 1
            return super().go_on(*arguments, **options)

    sampler = Counted(bind=model.bind, bos_id=BOS, eos_id=EOS, draw=TokenSampler())
    generator = Generator(
        sampler, BYTES, max_length=LONGEST, opening=[EOS], batch_size=4
    )
    rng = np.random.default_rng(0)
    for _ in range(3):
        sizes = rng.permutation(30)[: rng.integers(10, 30)]
        found = _write(
            generator, params, ["a" * size for size in sizes], max_new_tokens=8
        )
        assert [len(sample.prompt) for sample in found[::2]] == sizes.tolist()
    assert 2 <= counts["begin"] <= 2 * 3 and 2 <= counts["go on"] <= 2 * 3


def test_stop_strings_end_texts_and_nothing_else_changes(
    generator: Generator,
    params: Any,
    texts: list[Sample],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    stops = ("ab", " ", "gg")
    monkeypatch.setattr(generator, "stops", stops)
    found = _write(generator, params, PROMPTS)
    stopped = 0
    for sample, whole in zip(found, texts, strict=True):
        places = [p for s in stops if (p := whole.continuation.find(s)) >= 0]
        if places:
            stopped += 1
            assert sample.continuation == whole.continuation[: min(places)]
            assert sample.ending is Ending.STOP
        else:
            assert sample == whole
    assert 0 < stopped < len(texts)


def test_what_is_watched_is_what_is_written(
    generator: Generator, params: Any, texts: list[Sample]
) -> None:
    told: dict[int, list[str]] = collections.defaultdict(list)
    ended = []

    def watch(number: int, piece: str, ends: bool) -> None:
        assert number not in ended
        told[number].append(piece)
        ended.extend([number] * ends)

    assert _write(generator, params, PROMPTS, watch=watch) == texts
    assert sorted(ended) == list(range(len(texts)))
    pieces = ["".join(told[number]) for number in range(len(texts))]
    assert pieces == [sample.continuation for sample in texts]
    assert max(map(len, told.values())) > 2, "nothing came in parts"


@pytest.mark.parametrize("penalty", [1.0, 1.8])
def test_greedy_texts_are_those_of_a_loop_without_a_cache(
    model: Model, params: Any, penalty: float
) -> None:
    """What the prompt and the text hold is penalized; the opening is not."""

    @jax.jit
    def logits(params: Any, inputs_BL: jax.Array) -> jax.Array:
        bound = model.bind(params)
        return bound.logits(bound(inputs_BL))

    def next_token(tokens: list[int], told: set[int]) -> int:
        inputs = np.full((1, LONGEST), 4, np.int32)
        inputs[0, : len(tokens) + 1] = [BOS, *tokens]
        scores = np.asarray(logits(params, inputs))[0, len(tokens)].copy()
        for i in told if penalty != 1 else ():
            scores[i] = scores[i] * penalty if scores[i] < 0 else scores[i] / penalty
        return int(scores.argmax())

    prompts = ["", "cab", "dad " * 6]
    draw = {"temperature": 0.0}
    generator = _generator(model, draw=draw, penalty=penalty)
    found = _write(generator, params, prompts, num_samples=1, max_new_tokens=24)
    expected = []
    for prompt in prompts:
        prompt_ids = BYTES.encode(prompt)
        new: list[int] = []
        while len(new) < 24 and EOS not in new:
            told = {*prompt_ids, *new}
            new.append(next_token([EOS, *prompt_ids, *new], told))
        expected.append(prompt + BYTES.decode(new))
    assert [sample.text for sample in found] == expected
    distinct = len({*"".join(expected)})
    assert distinct >= (8 if penalty > 1 else 3), "a test of few letters"


def test_batches_are_as_large_as_the_memory_for_their_caches(
    generator: Generator, params: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes = []
    write = LeftToRight._write

    def watched(self: Any, params: Any, keys: Any, jobs: Any, *rest: Any) -> None:
        sizes.append(len(jobs))
        write(self, params, keys, jobs, *rest)

    monkeypatch.setattr(LeftToRight, "_write", watched)
    # Two layers, two heads of keys and values of 4 numbers, 16 + 8 - 1 slots ... and
    # a little more for what else a row carries.
    row = 2 * 2 * 2 * 4 * (16 + 16 - 1) * 4
    monkeypatch.setattr("lmjax.sampling.left_to_right._DEFAULT_BYTES", 5 * row)
    found = _write(generator, params, ["a"] * 10, num_samples=1, max_new_tokens=8)
    assert sizes == [4, 4, 2] and len(found) == 10
