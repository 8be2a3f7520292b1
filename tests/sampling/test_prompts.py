"""Texts in, texts out: a tokenizer of letters around the tiny models."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lmjax.core.errors import ConfigError
from lmjax.data.tokenization.tokenizers import SpecialIds
from lmjax.diffusion.process import MaskProcess
from lmjax.diffusion.schedules import LightCosineSchedule
from lmjax.models.build import Model
from lmjax.models.decoder import Decoder, take_apart
from lmjax.sampling.autoregressive import AutoregressiveSampler
from lmjax.sampling.logits import TokenSampler
from lmjax.sampling.masked_diffusion import MaskedDiffusionSampler
from lmjax.sampling.prompts import Generator
from lmjax.sampling.reveal_rules import Ancestral, FirstHitting

MAX_LENGTH = 16


class Letters:
    """a is 5, z is 30; the tiny models predict 3 (the end) to 30."""

    special = SpecialIds(unk=4, bos=1, eos=3, pad=0, mask=2)
    vocab_size = 31
    piece_bytes = (b"",) * 5 + tuple(bytes([ord("a") + i]) for i in range(26))

    def encode(self, text: str) -> list[int]:
        return [ord(letter) - ord("a") + 5 for letter in text]

    def decode(self, ids: Sequence[int]) -> str:
        assert self.special.eos not in ids, "an end is no text"
        return "".join(chr(i - 5 + ord("a")) if i > 4 else "?" for i in ids)


def _masked(model: Model, rule: Any, **changes: Any) -> MaskedDiffusionSampler:
    process = MaskProcess(
        mask_id=2, schedule=LightCosineSchedule(), predictable=np.arange(3, 31)
    )
    changes = {"draw": TokenSampler()} | changes
    return MaskedDiffusionSampler(
        bind=model.bind, process=process, rule=rule, **changes
    )


def _causal(model: Model, **draw: Any) -> AutoregressiveSampler:
    return AutoregressiveSampler(
        bind=model.bind, bos_id=1, eos_id=3, draw=TokenSampler(**draw)
    )


Make = Callable[..., Callable[..., list[Any]]]


@pytest.fixture(scope="module")
def make(make_model: Callable[..., Model], random_params: Callable[..., Any]) -> Make:
    """Makes a function that writes, of a kind; keywords go to the Generator."""

    def maker(kind: str, **options: Any) -> Callable[..., list[Any]]:
        model = make_model(causal=kind == "autoregressive")
        if kind == "autoregressive":
            sampler: Any = _causal(model)
        else:
            sampler = _masked(model, Ancestral(steps=4))
        generator = Generator(
            sampler, Letters(), max_length=MAX_LENGTH, opening=[3], **options
        )
        params = random_params(model)

        def run(prompts: Sequence[str], *, seed: int = 0, **asked: Any) -> list[Any]:
            asked = {"num_samples": 1, "max_new_tokens": 6} | asked
            return generator(params, jax.random.key(seed), prompts, **asked)

        return run

    return maker


@pytest.fixture(scope="module", params=["autoregressive", "masked diffusion"])
def generate(request: pytest.FixtureRequest, make: Make) -> Callable[..., list[Any]]:
    return make(request.param)


def test_each_prompt_begins_as_many_texts_as_are_asked_for(
    generate: Callable[..., list[Any]],
) -> None:
    samples = generate(["cat", "a"], num_samples=3)
    assert [sample.prompt for sample in samples] == ["cat"] * 3 + ["a"] * 3
    assert all(sample.text.startswith(sample.prompt) for sample in samples)
    assert len({sample.text for sample in samples}) > 3
    assert generate(["cat"], num_samples=0) == []


def test_no_text_is_longer_than_its_prompt_and_the_new_tokens(
    generate: Callable[..., list[Any]],
) -> None:
    """Also where a longer prompt of the batch makes a longer canvas."""
    samples = generate(["abcdefg", ""], num_samples=8)
    lengths = [len(sample.text) - len(sample.prompt) for sample in samples]
    assert max(lengths[:8]) == max(lengths[8:]) == 6


def test_without_a_prompt_texts_are_written_from_scratch(
    generate: Callable[..., list[Any]],
) -> None:
    samples = generate([], num_samples=4)
    assert [sample.prompt for sample in samples] == [""] * 4
    assert any(sample.text for sample in samples)


def test_the_same_key_writes_the_same_texts(
    generate: Callable[..., list[Any]],
) -> None:
    first = generate(["cat", ""], num_samples=2)
    assert generate(["cat", ""], num_samples=2) == first
    assert generate(["cat", ""], num_samples=2, seed=1) != first


def test_a_prompt_that_fills_the_context_is_refused(
    generate: Callable[..., list[Any]],
) -> None:
    """The end of a document goes before it: 1 + 9 + 6 = 16 tokens fit."""
    assert generate(["a" * 9])[0].text.startswith("a" * 9)
    with pytest.raises(ConfigError) as error:
        generate(["cat", "a" * 10])
    for told in ("context of 16 tokens", "'aaaaaaaaaa'", "generate.prompts", "5 or"):
        assert told in str(error.value)
    with pytest.raises(ConfigError) as error:
        generate(["a" * 16], max_new_tokens=1)
    assert error.value.remedy.startswith("shorten the prompt, or write window by")
    with pytest.raises(ConfigError, match="nothing to fill"):
        generate(["cat"], max_new_tokens=0)


def _generator(model: Any = None, **options: Any) -> Generator:
    sampler = _causal(model) if model else _idle()
    return Generator(
        sampler, Letters(), **({"max_length": MAX_LENGTH, "opening": [3]} | options)
    )


def _idle() -> AutoregressiveSampler:
    return AutoregressiveSampler(bind=None, bos_id=1, eos_id=3, draw=TokenSampler())


def test_prompts_can_be_checked_before_there_is_a_model() -> None:
    generator = _generator()
    generator.check(["a" * 9, ""], max_new_tokens=6)
    generator.check([], max_new_tokens=15)
    with pytest.raises(ConfigError, match="context of 16"):
        generator.check(["a" * 10], max_new_tokens=6)
    with pytest.raises(ConfigError, match="context of 16"):
        generator.check([], max_new_tokens=16)


@pytest.mark.parametrize("opening", [(), (3,), (3, 1)])
def test_the_opening_stands_before_the_prompt_and_is_not_told(
    opening: tuple[int, ...],
    make_model: Callable[..., Model],
    random_params: Callable[..., Any],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """And before both what the model reads first; then there is padding in front."""
    seen = []
    begin = AutoregressiveSampler.begin

    def watched(self: Any, params: Any, prompts: Any, **options: Any) -> Any:
        jax.debug.callback(lambda *read: seen.append(read), *prompts[:2])
        return begin(self, params, prompts, **options)

    monkeypatch.setattr(AutoregressiveSampler, "begin", watched)
    model = make_model(causal=True)
    (sample,) = _generator(model, opening=opening)(
        random_params(model),
        jax.random.key(0),
        ["cab"],
        num_samples=1,
        max_new_tokens=2,
    )
    jax.effects_barrier()
    inputs_BL, pads_B = seen[0]
    read = [1, *opening, *Letters().encode("cab")]
    assert inputs_BL[0, pads_B[0] :].tolist() == read
    assert pads_B[0] == inputs_BL.shape[1] - len(read)
    assert sample.text.startswith("cab")


def test_texts_longer_than_the_context_are_written_window_by_window(
    make: Make,
) -> None:
    """Every window begins with the last tokens of what is written."""
    for kind in ("autoregressive", "masked diffusion"):
        run = make(kind, stride=5)
        texts = run(["cat", "abcdefghijklmnopqrstuvwxyz"], max_new_tokens=20)
        repeated = run(["cat", "abcdefghijklmnopqrstuvwxyz"], max_new_tokens=20)
        assert texts == repeated
        for sample in texts:
            assert sample.text.startswith(sample.prompt)
            assert len(sample.text) <= len(sample.prompt) + 20
        many = run(["cat"], num_samples=16, max_new_tokens=30)
        lengths = [len(sample.text) for sample in many]
        assert max(lengths) > MAX_LENGTH
        with pytest.raises(ConfigError, match="context of 16"):
            make(kind)(["cat"], max_new_tokens=30)


def test_draws_go_on_from_window_to_window(
    make_model: Callable[..., Model], random_params: Callable[..., Any]
) -> None:
    """With a head of zeros a text is nothing but its draws: windows change none."""
    model = make_model(causal=True, unpredictable=(0, 1, 2, 3, 4, 31))
    params = random_params(model)
    params["vocabulary"]["head"] *= 0.0
    texts = []
    for options in ({"stride": 5}, {"max_length": 64}):
        samples = _generator(model, **options)(
            params, jax.random.key(0), ["cab", ""], num_samples=1, max_new_tokens=40
        )
        texts.append([sample.text for sample in samples])
    assert texts[0] == texts[1]
    assert texts[0][0][-40:] != texts[0][1][-40:] and len(set(texts[0][0])) > 15


@pytest.mark.parametrize("stride", [-1, 16, 99])
def test_a_window_that_begins_with_nothing_is_refused(stride: int, make: Make) -> None:
    with pytest.raises(ConfigError, match="can't move by"):
        make("autoregressive", stride=stride)


def test_after_a_slide_the_cache_holds_what_the_whole_window_gives(
    make_model: Callable[..., Model], random_params: Callable[..., Any]
) -> None:
    """Logits of the cached model against those without a cache, in every window.

    Then greedy texts of 40 tokens against a loop without any cache.
    """
    model = make_model(causal=True, unpredictable=(0, 1, 2, 3, 4, 31))
    params = random_params(model, seed=2)
    stride, total = 6, 41

    @jax.jit
    def whole(params: Any, inputs_BL: Any) -> jax.Array:
        bound = model.bind(params)
        return bound.logits(bound(inputs_BL))

    @jax.jit
    def cached(params: Any, inputs_BL: Any) -> jax.Array:
        """Reads what is kept at once, and the rest token by token."""
        decoder = Decoder(model.bind, take_apart(params))
        kept, none = MAX_LENGTH - stride, np.zeros(1, np.int32)
        hidden, cache = decoder.read(inputs_BL[:, :kept], none, MAX_LENGTH)
        found = [hidden]
        for i in range(kept, MAX_LENGTH):
            hidden, cache = decoder.extend(inputs_BL[:, i], i, none, cache)
            found.append(hidden[:, None])
        return decoder.logits(jnp.concatenate(found, axis=1))

    tokens = [3]
    starts = [*range(0, total - MAX_LENGTH, stride), total - MAX_LENGTH]
    for start in starts:
        while len(tokens) < start + MAX_LENGTH:
            window = np.full((1, MAX_LENGTH), 5, np.int32)
            inputs = [1, *tokens[start:]]
            window[0, : len(inputs)] = inputs
            logits = np.asarray(whole(params, window))[0]
            tokens.append(int(logits[len(inputs) - 1].argmax()))
        window = np.array([[1, *tokens[start : start + MAX_LENGTH - 1]]], np.int32)
        np.testing.assert_allclose(
            cached(params, window)[..., 5:31],
            whole(params, window)[..., 5:31],
            atol=1e-4,
        )
    generator = Generator(
        _causal(model, temperature=0.0),
        Letters(),
        max_length=MAX_LENGTH,
        opening=[3],
        stride=stride,
    )
    (sample,) = generator(
        params, jax.random.key(0), [""], num_samples=1, max_new_tokens=total - 1
    )
    assert sample.text == Letters().decode(tokens[1:])
    assert len(set(sample.text)) > 3, "a test of one letter"


def test_gaps_of_a_prompt_are_filled_and_nothing_is_written_behind(make: Make) -> None:
    run = make("masked diffusion")
    prompts = ["ab[[3]]cd[[1]]e", "catcat", "[[4]]xyz", "ab[[3]]cd[[1]]f"]
    samples = run(prompts, num_samples=8)
    assert [sample.prompt for sample in samples] == [
        p for p in prompts for _ in range(8)
    ]
    for sample in samples[:8] + samples[24:]:
        assert sample.text.startswith("ab") and sample.text[-1] == sample.prompt[-1]
        # The end of a document in a gap is no text.
        assert len(sample.text) <= 9 and "cd" in sample.text
    for sample in samples[16:24]:
        assert sample.text.endswith("xyz") and len(sample.text) <= 7
    assert len({sample.text for sample in samples[:8]}) == 8
    # A text does not depend on what it is written with.
    assert run(prompts[:1], num_samples=8) == samples[:8]


def test_gaps_that_cannot_be_filled_are_refused_before_any_work(make: Make) -> None:
    with pytest.raises(ConfigError) as error:
        make("autoregressive")(["a[[3]]b"])
    assert "diffusion" in error.value.remedy
    run = make("masked diffusion")
    for prompt, told in [
        ("a[[0]]b", "nothing to fill"),
        ("a[[15]]b", "context of 16"),
    ]:
        with pytest.raises(ConfigError, match=told):
            run(["cat", prompt])


def test_states_show_the_masks_of_a_text_while_it_is_written(
    make_model: Callable[..., Model], random_params: Callable[..., Any]
) -> None:
    model = make_model(causal=False, unpredictable=(0, 1, 2, 3, 4, 31))
    generator = Generator(
        _masked(model, FirstHitting()),
        Letters(),
        max_length=MAX_LENGTH,
        opening=[3],
        show_steps=3,
    )
    (sample,) = generator(
        random_params(model),
        jax.random.key(0),
        ["cat[[8]]s"],
        num_samples=1,
        max_new_tokens=1,
    )
    assert [state.count("_") for state in sample.states] == [6, 4, 2]
    for state in sample.states:
        assert state.startswith("cat") and state.endswith("s") and len(state) == 12
        assert all(
            shown in ("_", written)
            for shown, written in zip(state, sample.text, strict=True)
        )
