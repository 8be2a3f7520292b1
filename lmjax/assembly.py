"""Sections of the config that describe a method become its objects.

The part of the composition root that knows objectives; `experiment` knows the rest.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np

from lmjax.config.schema import (
    AutoregressiveConfig,
    Config,
    DiffusionConfig,
    Estimator,
    EvaluateConfig,
    GenerateConfig,
    MaskedDiffusionConfig,
    Parameterization,
    SamplerKind,
    ScheduleKind,
    TimeDensity,
    UniformDiffusionConfig,
)
from lmjax.core.errors import ConfigError
from lmjax.core.types import PyTree
from lmjax.diffusion import schedules
from lmjax.diffusion.parameterizations import Sedd, Subs
from lmjax.diffusion.process import MaskProcess, UniformProcess
from lmjax.objectives.autoregressive import Autoregressive
from lmjax.objectives.base import Objective
from lmjax.objectives.d3pm import D3PM
from lmjax.objectives.mask_draws import (
    ContinuousMasks,
    CountMasks,
    DiscreteMasks,
    DrawMasks,
    TrainingMasks,
)
from lmjax.objectives.masked_diffusion import MaskedDiffusion
from lmjax.objectives.uniform_diffusion import UniformDiffusion
from lmjax.sampling import reveal_rules
from lmjax.sampling.autoregressive import AutoregressiveSampler
from lmjax.sampling.confidence import Confidence
from lmjax.sampling.denoising import DiffusionSampler
from lmjax.sampling.logits import TokenSampler
from lmjax.sampling.masked_diffusion import MaskedDiffusionSampler
from lmjax.sampling.remasking import Remask
from lmjax.sampling.reveal_rules import Rule
from lmjax.sampling.uniform_diffusion import UniformDiffusionSampler


def build_objective(
    config: Config,
    *,
    bos_id: int,
    mask_id: int,
    predictable: np.ndarray,
    chunk_tokens: int,
    token_counts: np.ndarray | None = None,
) -> Objective:
    """The objective of a config.

    Args:
      predictable: int32, sorted: ids that the model can predict.
      chunk_tokens: tokens, over all devices, whose logits exist at once.
      token_counts: how often each id stands in the training text, for masking by
        frequency; None where nothing is trained.

    Raises:
      ConfigError: the schedule is outside its domain.
    """
    section = config.objective
    if isinstance(section, AutoregressiveConfig):
        return Autoregressive(bos_id=bos_id, chunk_tokens=chunk_tokens)
    try:
        schedule = build_schedule(section)
    except ValueError as error:
        raise ConfigError(
            str(error),
            where=f"objective.schedule={section.schedule.value}",
            remedy="change the field named there, or take another schedule",
        ) from error
    if isinstance(section, UniformDiffusionConfig):
        return UniformDiffusion(
            process=UniformProcess(schedule=schedule, predictable=predictable),
            time_sampling=section.time_sampling,
            chunk_tokens=chunk_tokens,
        )
    process = MaskProcess(mask_id=mask_id, schedule=schedule, predictable=predictable)
    match section.parameterization:
        case Parameterization.D3PM:
            return D3PM(
                process=process,
                steps=section.steps,
                time_sampling=section.time_sampling,
                chunk_tokens=chunk_tokens,
            )
        case Parameterization.SUBS:
            parameterization = Subs()
        case Parameterization.SEDD:
            parameterization = Sedd(len(predictable))
    length = config.data.sequence_length
    return MaskedDiffusion(
        process=process,
        parameterization=parameterization,
        training=_training_masks(section, length, token_counts),
        evaluation=_evaluation_masks(config.evaluate, section.steps),
        chunk_tokens=chunk_tokens,
    )


def build_schedule(config: DiffusionConfig) -> schedules.Schedule:
    """Raises ValueError when a field is outside the schedule's domain."""
    match config.schedule:
        case ScheduleKind.LINEAR:
            return schedules.LinearSchedule()
        case ScheduleKind.COSINE_LIGHT:
            return schedules.LightCosineSchedule()
        case ScheduleKind.COSINE_HEAVY:
            return schedules.HeavyCosineSchedule()
        case ScheduleKind.COSINE_SQUARED:
            return schedules.SquaredCosineSchedule()
        case ScheduleKind.POLYNOMIAL:
            return schedules.PolynomialSchedule(config.schedule_power)
        case ScheduleKind.GEOMETRIC:
            return schedules.GeometricSchedule(config.sigma_min, config.sigma_max)
        case ScheduleKind.BIMODAL_GAUSSIAN:
            return schedules.BimodalGaussianSchedule(
                low_mean=config.low_mean,
                low_std=config.low_std,
                low_share=config.low_share,
                high_mean_start=config.high_mean_start,
                high_mean_end=config.high_mean_end,
                high_std=config.high_std,
                uniform_share=config.uniform_share,
            )


def build_sampler(
    config: GenerateConfig,
    objective: Objective,
    bind: Callable[[PyTree], Any],
    *,
    first_id: int,
    eos_id: int,
) -> AutoregressiveSampler | DiffusionSampler:
    """The sampler that `config.sampler` names, of those that fit the objective.

    Args:
      first_id: what a causal model reads before the first token of a canvas.
      eos_id: ends a text.
    """
    draw = TokenSampler(
        temperature=config.temperature,
        top_k=config.top_k,
        top_p=config.top_p,
        min_p=config.min_p,
    )
    match objective:
        case Autoregressive():
            return AutoregressiveSampler(
                bind=bind,
                bos_id=first_id,
                eos_id=eos_id,
                draw=draw,
                repetition_penalty=config.repetition_penalty,
            )
        case UniformDiffusion():
            return UniformDiffusionSampler(
                bind=bind, process=objective.process, steps=config.steps, draw=draw
            )
        case D3PM():
            rule = reveal_rules.D3PM(
                steps=config.steps, noise_removal=config.noise_removal
            )
        case MaskedDiffusion():
            rule = _reveal_rule(config, objective.parameterization)
        case _:
            raise TypeError(f"no sampler for {type(objective).__name__}")
    return MaskedDiffusionSampler(
        bind=bind,
        process=objective.process,
        rule=rule,
        draw=draw,
        guidance=config.guidance,
        eos_id=eos_id if config.stop_at_eos else None,
    )


def _reveal_rule(config: GenerateConfig, parameterization: Subs | Sedd) -> Rule:
    kind = config.sampler
    if kind is SamplerKind.AUTO:
        normalized = parameterization.normalized
        kind = SamplerKind.CACHED if normalized else SamplerKind.ANALYTIC
    match kind:
        case SamplerKind.ANCESTRAL | SamplerKind.CACHED:
            return reveal_rules.Ancestral(
                steps=config.steps, cached=kind is SamplerKind.CACHED
            )
        case SamplerKind.ANALYTIC:
            return reveal_rules.Analytic(
                steps=config.steps,
                parameterization=parameterization,
                noise_removal=config.noise_removal,
            )
        case SamplerKind.FIRST_HITTING:
            return reveal_rules.FirstHitting(tokens_per_call=config.tokens_per_call)
        case SamplerKind.CONFIDENCE:
            return Confidence(steps=config.steps, block_length=config.block_length)
        case SamplerKind.REMASK:
            return Remask(
                kind=config.remasking,
                strength=config.remask_strength,
                steps=config.steps,
            )
    raise ValueError(f"{kind.value} does not sample masked diffusion")


def pair_objective(objective: Objective) -> Objective | None:
    """What scores a sentence of a minimal pair; None where nothing does.

    Score ratios over their sum are the probabilities of a token given all others.
    """
    match objective:
        case Autoregressive():
            return objective
        case MaskedDiffusion():
            return dataclasses.replace(objective, parameterization=Subs())
        case _:
            return None


def rarity(token_counts: np.ndarray) -> np.ndarray:
    """How rare each id is, float32 [V]: -1 the most frequent one, 1 the rarest.

    The share of the text that more frequent tokens make up, from -1 to 1: so the mean
    over the text is 0, and tilting masks by it hardly changes how many there are.
    """
    counts = np.asarray(token_counts, np.float64)
    order = np.argsort(-counts, kind="stable")
    shares = counts[order] / max(counts.sum(), 1.0)
    found = np.empty(len(counts))
    found[order] = 2 * (np.cumsum(shares) - shares / 2) - 1
    return found.astype(np.float32)


def _training_masks(
    config: MaskedDiffusionConfig, length: int, token_counts: np.ndarray | None
) -> TrainingMasks:
    match config.time_density:
        case TimeDensity.SCHEDULE:
            density = None
        case TimeDensity.CHANGE_OF_VARIABLES:
            density = schedules.LogRateSchedule()
        case TimeDensity.IMPORTANCE:
            density = schedules.ImportanceSchedule(length)
        case TimeDensity.COUNT:
            density = CountMasks()
    tilted = config.frequency_masking > 0 and token_counts is not None
    return TrainingMasks(
        density=density,
        sampling=config.time_sampling,
        steps=config.steps,
        weighting=config.weighting,
        softening=config.softening,
        rarity=rarity(token_counts) if tilted else None,
        tilt=config.frequency_masking,
    )


def _evaluation_masks(config: EvaluateConfig, steps: int) -> DrawMasks:
    """What AUTO means follows from `steps`, T of the objective."""
    match config.estimator:
        case Estimator.AUTO:
            return DiscreteMasks(steps) if steps else CountMasks()
        case Estimator.COUNT:
            return CountMasks()
        case Estimator.CONTINUOUS:
            return ContinuousMasks(stratified=True)
        case Estimator.PLAIN:
            return ContinuousMasks(stratified=False)
        case Estimator.DISCRETE:
            return DiscreteMasks(config.steps)
