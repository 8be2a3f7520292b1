"""Texts in, texts out: a tokenizer of letters around the tiny models."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lmjax.core.errors import ConfigError
from lmjax.data.tokenization.tokenizers import SpecialIds
from lmjax.diffusion.process import MaskProcess
from lmjax.diffusion.schedules import CosineSchedule
from lmjax.models.build import Model
from lmjax.sampling.autoregressive import AutoregressiveSampler
from lmjax.sampling.logits import TokenSampler
from lmjax.sampling.masked_diffusion import MaskedDiffusionSampler
from lmjax.sampling.prompts import Generator

MAX_LENGTH = 16


class Letters:
    """a is 5, z is 30; the tiny models predict 3 (the end) to 30."""

    special = SpecialIds(unk=4, bos=1, eos=3, pad=0, mask=2)
    vocab_size = 31

    def encode(self, text: str) -> list[int]:
        return [ord(letter) - ord("a") + 5 for letter in text]

    def decode(self, ids: Sequence[int]) -> str:
        assert self.special.eos not in ids, "an end is no text"
        return "".join(chr(i - 5 + ord("a")) if i > 4 else "?" for i in ids)


@pytest.fixture(scope="module", params=["autoregressive", "masked diffusion"])
def generate(
    request: pytest.FixtureRequest,
    make_model: Callable[..., Model],
    random_params: Callable[..., Any],
) -> Callable[..., list[Any]]:
    causal = request.param == "autoregressive"
    model = make_model(causal=causal)
    if causal:
        sampler = AutoregressiveSampler(
            bind=model.bind, bos_id=1, eos_id=3, draw=TokenSampler()
        )
    else:
        process = MaskProcess(mask_id=2, schedule=CosineSchedule())
        sampler = MaskedDiffusionSampler(
            bind=model.bind, process=process, steps=4, draw=TokenSampler()
        )
    generator = Generator(sampler, Letters(), max_length=MAX_LENGTH, opening=[3])
    params = random_params(model)

    def run(prompts: Sequence[str], *, seed: int = 0, **options: Any) -> list[Any]:
        options = {"num_samples": 1, "max_new_tokens": 6} | options
        return generator(params, jax.random.key(seed), prompts, **options)

    return run


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
    assert error.value.remedy == "shorten the prompt"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Canned(AutoregressiveSampler):
    """Writes what it is told, whatever the model."""

    written: tuple[int, ...]

    def __call__(self, params: Any, key: Any, canvas: Any, lengths: Any) -> jax.Array:
        del params, key, lengths
        return jnp.asarray(canvas).at[:, 1:].set(np.array(self.written))


@pytest.mark.parametrize(
    ("written", "text"),
    [
        ([5, 6, 7, 8, 3, 3], "abcd"),
        ([5, 6, 7, 8, 9, 10], "abcdef"),
        ([5, 6, 3, 8, 3, 9], "ab"),
        ([5, 6, 4, 8, 3, 9], "ab?d"),
    ],
)
def test_a_text_ends_with_its_document(written: list[int], text: str) -> None:
    sampler = Canned(
        bind=None, bos_id=1, eos_id=3, draw=TokenSampler(), written=tuple(written)
    )
    generator = Generator(sampler, Letters(), max_length=MAX_LENGTH, opening=[3])
    samples = generator(
        None, jax.random.key(0), ["ab"], num_samples=1, max_new_tokens=4
    )
    assert [sample.text for sample in samples] == [text]


def test_prompts_can_be_checked_before_there_is_a_model() -> None:
    sampler = Canned(bind=None, bos_id=1, eos_id=3, draw=TokenSampler(), written=())
    generator = Generator(sampler, Letters(), max_length=MAX_LENGTH, opening=[3])
    generator.check(["a" * 9, ""], max_new_tokens=6)
    generator.check([], max_new_tokens=15)
    with pytest.raises(ConfigError, match="context of 16"):
        generator.check(["a" * 10], max_new_tokens=6)
    with pytest.raises(ConfigError, match="context of 16"):
        generator.check([], max_new_tokens=16)


@pytest.mark.parametrize("opening", [(), (3,), (3, 1)])
def test_the_opening_stands_before_the_prompt_and_is_not_told(
    opening: tuple[int, ...],
) -> None:
    seen = []

    def fill(params: Any, key: Any, canvas: Any, lengths: Any) -> Any:
        seen.append((canvas, lengths))
        return canvas

    sampler = Canned(bind=None, bos_id=1, eos_id=3, draw=TokenSampler(), written=())
    generator = Generator(sampler, Letters(), max_length=MAX_LENGTH, opening=opening)
    generator._fill = fill
    (sample,) = generator(
        None, jax.random.key(0), ["cab"], num_samples=1, max_new_tokens=2
    )
    canvas, lengths = seen[0]
    prompt = Letters().encode("cab")
    assert canvas[0, : len(opening) + 3].tolist() == [*opening, *prompt]
    assert lengths.tolist() == [len(opening) + 3]
    assert sample.text.startswith("cab")
