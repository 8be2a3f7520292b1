"""Named sizes and recipes: functions that return sections, and whole configs."""

import dataclasses
import math
from collections.abc import Callable, Sequence

from lmjax.config.fields import nearest
from lmjax.config.schema import (
    SAMPLE_CORPUS,
    AutoregressiveConfig,
    Backbone,
    Config,
    DocumentUnit,
    LayerLayout,
    MaskedDiffusionConfig,
    MLPKind,
    ModelConfig,
    NormKind,
    OptimizerKind,
    Remat,
    UniformDiffusionConfig,
)
from lmjax.core.errors import ConfigError

OBJECTIVES = {
    "diffusion": MaskedDiffusionConfig,
    "uniform": UniformDiffusionConfig,
    "ar": AutoregressiveConfig,
}
DEFAULT_OBJECTIVE = "diffusion"
DEFAULT_SIZE = "small"
SAMPLE = "sample"  # the variant that trains on the built-in corpus


MILLION = 10**6
# The words seen at which BabyLM compares models: 19 of them, and 28.
SMALL_MILESTONES = (*range(1, 10), *range(10, 101, 10))
MILESTONES = (*SMALL_MILESTONES, *range(200, 1001, 100))


def nano() -> ModelConfig:
    """A model that a CPU trains in minutes."""
    return ModelConfig(
        num_layers=4,
        width=128,
        num_heads=4,
        mlp=MLPKind.SWIGLU,
        mlp_width=384,
        max_length=128,
        dropout=0.0,
    )


def tiny() -> ModelConfig:
    """8 layers of 512: 45M parameters with 16,384 ids (ar: 42M)."""
    return _guide_size(num_layers=8, width=512, num_heads=8)


def small() -> ModelConfig:
    """12 layers of 768: 118M parameters with 16,384 ids (ar: 110M)."""
    return _guide_size(num_layers=12, width=768, num_heads=12)


def medium() -> ModelConfig:
    """24 layers of 1024: 355M parameters with 16,384 ids (ar: 337M)."""
    return _guide_size(num_layers=24, width=1024, num_heads=16)


def xl() -> ModelConfig:
    """20 layers of 2048, heads of 128: 1.1B parameters with 16,384 ids.

    One compiled layer in a loop: as many of them unrolled would compile for minutes.
    """
    return dataclasses.replace(
        _guide_size(num_layers=20, width=2048, num_heads=16),
        layers=LayerLayout.SCAN,
        dropout=0.0,
    )


SIZES: dict[str, Callable[[], ModelConfig]] = {
    "nano": nano,
    "tiny": tiny,
    "small": small,
    "medium": medium,
    "xl": xl,
}


def strict_small(config: Config) -> None:
    """The track strict-small: 10M words of text, 100M seen, 19 milestones."""
    _use_track(config, 10, SMALL_MILESTONES)


def strict(config: Config) -> None:
    """The track strict: 100M words of text, 1B seen, 28 milestones."""
    _use_track(config, 100, MILESTONES)


TRACKS: dict[str, Callable[[Config], None]] = {
    "strict_small": strict_small,
    "strict": strict,
}


def babylm(variants: Sequence[str] = ()) -> Config:
    """The BabyLM recipe: masked diffusion of size small, unless variants say otherwise.

    Args:
      variants: names in any order, at most one of `OBJECTIVES`, one of `SIZES` and one
        of `TRACKS`, and "sample" for the built-in corpus; blanks are left out.

    Raises:
      ConfigError: on an unknown variant, and on two that exclude each other.
    """
    names = list(dict.fromkeys(name.strip().lower() for name in variants))
    names = [name for name in names if name]
    _reject_unknown(names)
    sample = SAMPLE in names
    objective = _choose("objectives", names, OBJECTIVES, DEFAULT_OBJECTIVE)
    size = _choose("sizes", names, SIZES, "" if sample else DEFAULT_SIZE)
    model = SIZES[size]() if size else _sample_model()
    config = Config(model=model, objective=OBJECTIVES[objective]())
    _fit_backbone(config)
    if size in ("nano", ""):
        _train_nano(config)
    if size == "xl":
        _train_xl(config)
    if sample:
        _use_sample_corpus(config)
    if track := _choose("tracks", names, TRACKS, ""):
        TRACKS[track](config)
    return config


def _llama_size(
    num_layers: int, width: int, num_heads: int, mlp_width: int
) -> ModelConfig:
    """A model of RSCaLM's kind, with heads of 64."""
    return ModelConfig(
        num_layers=num_layers,
        width=width,
        num_heads=num_heads,
        mlp=MLPKind.SWIGLU,
        mlp_width=mlp_width,
        max_length=1024,
        dropout=0.0,
        tied_embeddings=True,
    )


# By the parameters with 32,000 ids.
RSCALM_SIZES: dict[str, Callable[[], ModelConfig]] = {
    "nano": lambda: dataclasses.replace(nano(), tied_embeddings=True),
    "138m": lambda: _llama_size(12, 768, 12, 3072),
    "350m": lambda: _llama_size(24, 1024, 16, 2816),
    "435m": lambda: _llama_size(24, 1024, 16, 4096),
    "700m": lambda: _llama_size(32, 1280, 20, 3456),
    "880m": lambda: _llama_size(32, 1280, 20, 5120),
}


def rscalm(size: str = "138m") -> Config:
    """The recipe of the RSCaLM guide: 200,000 steps of 65,536 tokens.

    Raises:
      ConfigError: on an unknown size.
    """
    name = size.strip().lower() or "138m"
    if name not in RSCALM_SIZES:
        guess = nearest(name, RSCALM_SIZES)
        raise ConfigError(
            f"no such size: {size}",
            where="the part of --config after the colon",
            remedy=f"did you mean {guess}? " * bool(guess)
            + f"sizes: {', '.join(RSCALM_SIZES)}",
        )
    config = Config(model=RSCALM_SIZES[name](), objective=AutoregressiveConfig())
    config.tokenizer.vocab_size = 32_000
    config.data.documents = DocumentUnit.LINE
    config.optim.learning_rate, config.optim.min_learning_rate = 6e-4, 6e-5
    config.optim.warmup = "2000 steps"
    config.optim.ema_decay = 0.0
    config.train.budget = "200000 steps"
    config.train.batch_size, config.train.microbatch_size = 64, 16
    config.checkpoint.every = config.evaluate.every = "1000 steps"
    if name == "nano":
        _train_nano(config)
        config.optim.warmup, config.train.microbatch_size = "5%", 0
        config.checkpoint.every = config.evaluate.every = "10%"
    return config


def _guide_size(num_layers: int, width: int, num_heads: int) -> ModelConfig:
    """A model of the guide: the DiT of MDLM, which isn't told the noise level."""
    return ModelConfig(
        num_layers=num_layers,
        width=width,
        num_heads=num_heads,
        mlp=MLPKind.GELU,
        mlp_width=4 * width,
        max_length=1024,
        backbone=Backbone.DIT,
        norm=NormKind.LAYER,
        norm_epsilon=1e-5,
        mlp_bias=True,
        head_bias=True,
        dropout=0.1,
        condition_width=128,
    )


def _fit_backbone(config: Config) -> None:
    """A causal model has no noise level; one of uniform noise has to be told it."""
    if isinstance(config.objective, AutoregressiveConfig):
        config.model = _llama_twin(config.model)
    elif isinstance(config.objective, UniformDiffusionConfig):
        config.model.backbone = Backbone.DIT
        config.model.time_conditioning = True


def _llama_twin(model: ModelConfig) -> ModelConfig:
    """The causal model beside a DiT: of Llama's kind, which transformers holds.

    With three matrices of 8/3 of the width, instead of two of 4, its blocks have as
    many parameters as those of the DiT without adaptive norms.
    """
    if model.backbone is Backbone.TRANSFORMER:
        return model
    return dataclasses.replace(
        model,
        backbone=Backbone.TRANSFORMER,
        norm=NormKind.RMS,
        mlp=MLPKind.SWIGLU,
        mlp_width=64 * math.ceil(model.width * 8 / 3 / 64),
        mlp_bias=False,
        head_bias=False,
    )


def _train_nano(config: Config) -> None:
    """Data and training that go with the size nano."""
    config.tokenizer.vocab_size = 4096
    config.data.sequence_length = 128
    # After 125 steps Muon is lower than AdamW at 2e-3 after 250 (ar, BabyLM).
    config.optim.kind = OptimizerKind.MUON
    config.optim.learning_rate = 1e-2
    config.optim.min_learning_rate = 1e-4
    config.train.budget = "10 epochs"
    config.train.batch_size = 32
    config.generate.max_new_tokens = 64
    config.generate.steps = 64


def _train_xl(config: Config) -> None:
    """Training that goes with a billion parameters: on several devices, as a rule.

    Without parallel.fsdp every device holds 16 bytes for each parameter.
    """
    config.optim.learning_rate = 2e-4
    config.optim.min_learning_rate = 2e-5
    config.train.batch_size = 512
    config.train.remat = Remat.FULL


def _sample_model() -> ModelConfig:
    """Nano with half its layers: on two cores, tokens seen count more than depth."""
    return dataclasses.replace(nano(), num_layers=2)


def _use_sample_corpus(config: Config) -> None:
    """The built-in corpus, and a run of minutes on two CPU cores.

    Many small steps learn the grammar fastest: at equal tokens a batch of 16 ended 29 %
    above the true entropy where a batch of 32 ended 50 % above it (masked diffusion,
    AdamW). A causal model, which learns from every token, has half the steps.
    """
    config.data.train = (SAMPLE_CORPUS,)
    config.tokenizer.vocab_size = 1024
    config.data.sequence_length = 64
    config.train.batch_size = 16
    config.optim.learning_rate = 6e-3
    causal = isinstance(config.objective, AutoregressiveConfig)
    config.train.budget = "1500 steps" if causal else "3000 steps"
    config.log.every = "100 steps"
    config.evaluate.every = "20%"
    config.evaluate.batch_size = 64
    config.evaluate.batches = 4
    config.generate.every = "50%"
    config.generate.max_new_tokens = 48


def _use_track(config: Config, words: int, milestones: Sequence[int]) -> None:
    """The rules of a BabyLM track, which a run then can't break.

    Args:
      words: millions of words of text, which may be seen ten times.
      milestones: in millions of words seen.
    """
    # A document opens with BOS, as evaluation gives each sentence to the model.
    config.data.bos = True
    config.data.max_words = words * MILLION
    config.data.max_epochs = ("10",)
    config.data.valid_fraction = 0.01
    config.train.budget = "10 epochs"
    config.train.max_words = 10 * words * MILLION
    config.checkpoint.milestones = tuple(f"{each}M words" for each in milestones)


def _reject_unknown(names: Sequence[str]) -> None:
    known = [*OBJECTIVES, *SIZES, *TRACKS, SAMPLE]
    unknown = [name for name in names if name not in known]
    if not unknown:
        return
    guesses = {name: nearest(name, known) for name in unknown}
    meant = [f"{guess} for {name}" for name, guess in guesses.items() if guess]
    raise ConfigError(
        f"no such variant: {', '.join(unknown)}",
        where="the part of --config after the colon",
        remedy=f"did you mean {', '.join(meant)}? "
        * bool(meant)
        + f"objectives: {', '.join(OBJECTIVES)}; sizes: {', '.join(SIZES)}; "
        f"tracks: {', '.join(TRACKS)}; corpus: {SAMPLE}",
    )


def _choose(
    what: str, names: Sequence[str], known: Sequence[str] | dict, default: str
) -> str:
    chosen = [name for name in names if name in known]
    if len(chosen) > 1:
        raise ConfigError(
            f"two {what}: {', '.join(chosen)}",
            where="the part of --config after the colon",
            remedy=f"name one of {', '.join(known)}",
        )
    return chosen[0] if chosen else default
