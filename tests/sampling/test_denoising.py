"""Texts of diffusion on padded canvases: the same as on canvases of their own."""

from collections.abc import Callable
from typing import Any

import jax
import numpy as np
import pytest

from lmjax.config.schema import Backbone
from lmjax.data.tokenization.byte_tokenizer import ByteTokenizer
from lmjax.diffusion.process import MaskProcess, UniformProcess
from lmjax.diffusion.schedules import LightCosineSchedule
from lmjax.models.build import Model
from lmjax.sampling.confidence import Confidence
from lmjax.sampling.denoising import DiffusionSampler
from lmjax.sampling.logits import TokenSampler
from lmjax.sampling.masked_diffusion import MaskedDiffusionSampler
from lmjax.sampling.prompts import Generator
from lmjax.sampling.reveal_rules import Ancestral, FirstHitting
from lmjax.sampling.texts import Ending
from lmjax.sampling.uniform_diffusion import UniformDiffusionSampler

BYTES = ByteTokenizer()
EOS, MASK, PAD = BYTES.special.eos, BYTES.special.mask, BYTES.special.pad
LETTERS = [EOS, *BYTES.encode("abcdefghijkl ")]
NEVER = tuple(sorted({*range(BYTES.vocab_size)} - {*LETTERS}))
SCHEDULE = LightCosineSchedule()
RULES = {
    "ancestral": Ancestral(steps=5, cached=True),
    "confidence": Confidence(steps=5, block_length=4),
    "uniform": None,
}
Make = Callable[[str], tuple[DiffusionSampler, Any]]


@pytest.fixture(scope="module")
def make(make_model: Callable[..., Model], random_params: Callable[..., Any]) -> Make:
    """Makes a sampler of a kind, and parameters of its model."""

    def maker(kind: str) -> tuple[DiffusionSampler, Any]:
        uniform = RULES[kind] is None
        model = make_model(
            causal=False,
            num_layers=1,
            vocab_size=BYTES.vocab_size,
            unpredictable=NEVER,
            max_length=64,
            backbone=Backbone.DIT if uniform else Backbone.TRANSFORMER,
            time_conditioning=uniform,
        )
        common = {"bind": model.bind, "draw": TokenSampler(min_p=0.01)}
        predictable = np.array(sorted(LETTERS))
        if uniform:
            process = UniformProcess(schedule=SCHEDULE, predictable=predictable)
            sampler = UniformDiffusionSampler(process=process, steps=5, **common)
        else:
            process = MaskProcess(
                mask_id=MASK, schedule=SCHEDULE, predictable=predictable
            )
            sampler = MaskedDiffusionSampler(
                process=process, rule=RULES[kind], eos_id=EOS, **common
            )
        return sampler, random_params(model)

    return maker


@pytest.mark.parametrize("kind", list(RULES))
def test_padding_and_neighbours_change_no_text(make: Make, kind: str) -> None:
    """Against one canvas after the other, each exactly as long as its text."""
    sampler, params = make(kind)
    generator = Generator(sampler, BYTES, max_length=64, opening=[EOS])
    prompts = ["", "fed", "ab[[5]]c"]
    found = generator(
        params, jax.random.key(3), prompts, num_samples=2, max_new_tokens=7
    )
    fill = jax.jit(sampler)
    texts = set()
    for number, (sample, draft) in enumerate(
        zip(found[::2], generator._drafts(prompts, 7), strict=True)
    ):
        key = jax.random.key(3)
        for part in (number, 0, 0):  # prompt, sample, window
            key = jax.random.fold_in(key, part)
        filled = fill(params, key[None], draft.tokens_L[None], draft.given_L[None])
        tokens = np.asarray(filled.tokens_BL)[0]
        told = tokens[draft.skip : draft.end(tokens, EOS)]
        assert sample.text == BYTES.decode(told[told != EOS])
        texts.add(sample.text)
    assert len(texts) == len(prompts)


def test_padding_keeps_no_finished_text_at_work(
    make_model: Callable[..., Model], random_params: Callable[..., Any]
) -> None:
    """Where every token is the end, work ends with the first one that is revealed."""
    never = tuple(sorted({*range(BYTES.vocab_size)} - {EOS}))
    model = make_model(causal=False, vocab_size=BYTES.vocab_size, unpredictable=never)
    sampler = MaskedDiffusionSampler(
        bind=model.bind,
        process=MaskProcess(
            mask_id=MASK, schedule=SCHEDULE, predictable=np.array([EOS])
        ),
        rule=FirstHitting(),
        draw=TokenSampler(),
        eos_id=EOS,
    )
    params, key = random_params(model), jax.random.key(0)
    canvas = np.full((1, 16), PAD, np.int32)
    given = np.isin(np.arange(16), [0, 1, 12, 13, 14, 15])[None]
    fill = jax.jit(sampler)
    alone = fill(params, key[None], canvas[:, :12], given[:, :12])
    padded = fill(params, key[None], canvas, given, np.array([12], np.int32))
    assert 0 < int(alone.calls) < 10
    assert int(padded.calls) == int(alone.calls)


def test_any_mix_of_lengths_compiles_few_programs(make: Make) -> None:
    """22 lengths of canvases, with gaps and without: sizes 16 and 32."""
    sampler, params = make("ancestral")
    sizes = set()

    def fill(params: Any, keys_B: Any, canvas_BL: Any, *rest: Any) -> Any:
        sizes.add(canvas_BL.shape)
        return sampler(params, keys_B, canvas_BL, *rest)

    generator = Generator(sampler, BYTES, max_length=64, opening=[EOS], batch_size=2)
    generator._writer._fill = jax.jit(fill)
    prompts = ["a" * size + "[[2]]b" * (size % 2) for size in range(22)]
    generator(params, jax.random.key(0), prompts, num_samples=1, max_new_tokens=9)
    assert {size for _, size in sizes} == {16, 32}
    assert {rows for rows, _ in sizes} <= {1, 2}


def test_a_stop_string_cuts_a_text_that_is_continued(make: Make) -> None:
    sampler, params = make("ancestral")
    key, prompts = jax.random.key(1), ["ab", "a[[6]]b"]
    asked = {"num_samples": 6, "max_new_tokens": 12}
    generator = Generator(sampler, BYTES, max_length=64, opening=[EOS])
    whole = generator(params, key, prompts, **asked)
    generator.stops = ("b", "e")
    cut = generator(params, key, prompts, **asked)
    assert cut[6:] == whole[6:]
    for short, sample in zip(cut[:6], whole[:6], strict=True):
        places = [p for s in "be" if (p := sample.continuation.find(s)) >= 0]
        if places:
            assert short.continuation == sample.continuation[: min(places)]
            assert short.ending is Ending.STOP
        else:
            assert short == sample
    assert {short.ending for short in cut[:6]} >= {Ending.STOP}
