"""The BabyLM recipe: what its variants set, and which of them exclude each other."""

import dataclasses
import itertools

import pytest

from lmjax.config import presets
from lmjax.config.schema import (
    SAMPLE_CORPUS,
    Architecture,
    AutoregressiveConfig,
    Backbone,
    MaskedDiffusionConfig,
    MLPKind,
    NormKind,
    UniformDiffusionConfig,
)
from lmjax.core.errors import ConfigError
from lmjax.export.architectures import choose_architecture
from lmjax.train.milestones import parse


def test_without_variants_it_is_small_masked_diffusion() -> None:
    config = presets.babylm()
    assert isinstance(config.objective, MaskedDiffusionConfig)
    assert config.model == presets.small()
    assert config.data.train == ()


@pytest.mark.parametrize(
    ("size", "num_layers", "width", "num_heads", "mlp_width"),
    [
        (presets.tiny, 8, 512, 8, 2048),
        (presets.small, 12, 768, 12, 3072),
        (presets.medium, 24, 1024, 16, 4096),
    ],
)
def test_sizes_are_those_of_the_guide(
    size, num_layers: int, width: int, num_heads: int, mlp_width: int
) -> None:
    model = size()
    assert model.num_layers == num_layers
    assert model.width == width
    assert model.num_heads == num_heads
    assert model.mlp_width == mlp_width
    assert (model.max_length, model.dropout, model.condition_width) == (1024, 0.1, 128)
    assert (model.mlp, model.norm) == (MLPKind.GELU, NormKind.LAYER)
    assert model.norm_epsilon == 1e-5
    assert model.mlp_bias and model.head_bias
    assert not (model.attention_bias or model.qk_norm or model.tied_embeddings)


@pytest.mark.parametrize("size", ["tiny", "small", "medium"])
def test_sizes_of_the_guide_are_a_dit_and_its_twin_a_transformer(size: str) -> None:
    dit, twin = (presets.babylm([size, name]).model for name in ("diffusion", "ar"))
    assert (dit.backbone, dit.time_conditioning) == (Backbone.DIT, False)
    for name in ("num_layers", "width", "num_heads", "max_length", "dropout"):
        assert getattr(twin, name) == getattr(dit, name)
    assert twin.backbone is Backbone.TRANSFORMER
    assert choose_architecture(Architecture.AUTO, twin, causal=True) is (
        Architecture.LLAMA
    )
    # Three matrices of the mlp have as many numbers as two of 4 times the width.
    assert 3 * twin.mlp_width == pytest.approx(2 * dit.mlp_width, rel=0.04)


@pytest.mark.parametrize("name", ["nano", "sample"])
@pytest.mark.parametrize("objective", ["diffusion", "ar"])
def test_small_models_are_a_plain_transformer(name: str, objective: str) -> None:
    model = presets.babylm([name, objective]).model
    assert (model.backbone, model.time_conditioning) == (Backbone.TRANSFORMER, False)
    assert (model.norm, model.mlp) == (NormKind.RMS, MLPKind.SWIGLU)
    assert not (model.attention_bias or model.mlp_bias or model.head_bias)


@pytest.mark.parametrize("name", [*presets.SIZES, "sample"])
def test_uniform_noise_needs_a_dit_that_is_told_the_time(name: str) -> None:
    config = presets.babylm([name, "uniform"])
    assert isinstance(config.objective, UniformDiffusionConfig)
    model = config.model
    assert (model.backbone, model.time_conditioning) == (Backbone.DIT, True)
    plain = presets.babylm([name]).model
    assert model == dataclasses.replace(
        plain, backbone=Backbone.DIT, time_conditioning=True
    )


def test_variants_mean_the_same_in_any_order() -> None:
    expected = presets.babylm(["ar", "tiny", "sample"])
    for order in itertools.permutations(["ar", "tiny", "sample"]):
        assert presets.babylm(order) == expected


def test_each_variant_changes_the_config() -> None:
    seen = [
        presets.babylm([name])
        for name in ("ar", "uniform", "nano", "tiny", "medium", "sample")
    ]
    seen.append(presets.babylm())
    for one, other in itertools.combinations(seen, 2):
        assert one != other


def test_blanks_and_repeats_among_variants_are_harmless() -> None:
    assert presets.babylm(["", " AR", "ar"]) == presets.babylm(["ar"])


def test_sample_takes_the_built_in_corpus_and_a_model_unless_a_size_is_named() -> None:
    assert presets.babylm(["sample"]).data.train == (SAMPLE_CORPUS,)
    half = dataclasses.replace(presets.nano(), num_layers=2)
    assert presets.babylm(["sample"]).model == half
    assert presets.babylm(["sample", "nano"]).model == presets.nano()
    assert presets.babylm(["sample", "tiny"]).model == presets.tiny()


def test_sample_keeps_the_objective() -> None:
    objective = presets.babylm(["sample", "ar"]).objective
    assert isinstance(objective, AutoregressiveConfig)


def test_configs_share_no_section() -> None:
    presets.babylm().model.width = 2
    assert presets.babylm().model.width == 768


def test_an_unknown_variant_lists_all_and_names_the_nearest() -> None:
    with pytest.raises(ConfigError) as caught:
        presets.babylm(["meduim", "ar"])
    message = str(caught.value)
    assert "no such variant: meduim" in message
    assert "medium for meduim" in message
    for name in [*presets.OBJECTIVES, *presets.SIZES, "sample"]:
        assert name in message


@pytest.mark.parametrize("pair", [["ar", "diffusion"], ["nano", "tiny"]])
def test_two_of_a_kind_are_refused(pair: list[str]) -> None:
    with pytest.raises(
        ConfigError, match=f"two .*{pair[0]}, {pair[1]}|two .*{pair[1]}"
    ):
        presets.babylm(pair)


@pytest.mark.parametrize(
    ("track", "words", "milestones"), [("strict_small", 10, 19), ("strict", 100, 28)]
)
def test_a_track_has_its_limits_and_its_milestones(
    track: str, words: int, milestones: int
) -> None:
    config = presets.babylm([track, "nano", "ar"])
    assert config.data.max_words == words * 10**6
    assert config.train.max_words == 10 * config.data.max_words
    assert config.train.budget == "10 epochs" and config.data.max_epochs == ("10",)
    found = parse(config.checkpoint.milestones, config.train.max_words)
    assert len(found) == milestones
    assert found[:11] == (*range(10**6, 10**7 + 1, 10**6), 2 * 10**7)
    assert found[-1] == config.train.max_words
    assert config.data.bos


@pytest.mark.parametrize(
    ("size", "millions"),
    [
        ("138m", 137.8),
        ("350m", 341.1),
        ("435m", 435.5),
        ("700m", 675.4),
        ("880m", 879.9),
    ],
)
def test_sizes_of_rscalm_have_the_parameters_they_say(
    size: str, millions: float
) -> None:
    """With 32,000 ids, tied: tables, three matrices of the mlp, four of attention."""
    model = presets.rscalm(size).model
    width, layers = model.width, model.num_layers
    assert width // model.num_heads == 64 and width % model.num_heads == 0
    layer = 4 * width**2 + 3 * width * model.mlp_width + 2 * width
    total = 32_000 * width + layers * layer + width
    assert round(total / 1e6, 1) == millions


def test_an_unknown_size_of_rscalm_names_the_nearest() -> None:
    with pytest.raises(ConfigError, match="140m") as error:
        presets.rscalm("140m")
    assert "138m" in error.value.remedy
