"""What fits together among objective, estimator and sampler; see `rules.Rule`."""

from typing import Any

from lmjax.config.rules import Rule
from lmjax.config.schema import (
    AutoregressiveConfig,
    Backbone,
    Estimator,
    LossWeighting,
    MaskedDiffusionConfig,
    Parameterization,
    SamplerKind,
    ScheduleKind,
    TimeDensity,
    UniformDiffusionConfig,
)

# What each way to model a text can be sampled and estimated with, besides AUTO.
_SAMPLERS = {
    "autoregressive": {SamplerKind.LEFT_TO_RIGHT},
    "uniform": {SamplerKind.ANCESTRAL},
    Parameterization.SUBS: set(SamplerKind) - {SamplerKind.LEFT_TO_RIGHT},
    Parameterization.SEDD: {SamplerKind.ANALYTIC},
    Parameterization.D3PM: {SamplerKind.ANCESTRAL},
}
_ESTIMATORS = {
    "autoregressive": set(),
    "uniform": {Estimator.CONTINUOUS},
    Parameterization.SUBS: set(Estimator),
    Parameterization.SEDD: set(Estimator) - {Estimator.DISCRETE},
    Parameterization.D3PM: {Estimator.DISCRETE},
}


def _method(objective: Any) -> Any:
    """Key of the tables above."""
    if isinstance(objective, AutoregressiveConfig):
        return "autoregressive"
    if isinstance(objective, UniformDiffusionConfig):
        return "uniform"
    return objective.parameterization


def _masks(objective: Any) -> bool:
    return isinstance(objective, MaskedDiffusionConfig)


METHOD_RULES = (
    Rule(
        ("objective.parameterization", "objective.steps"),
        lambda kind, steps: kind is not Parameterization.D3PM or steps >= 1,
        "is a process in discrete time, but objective.steps={1}",
        "set --config.objective.steps=1000, or any number from 1 on",
    ),
    Rule(
        ("objective.steps", "objective.parameterization"),
        lambda steps, kind: steps == 0 or kind is not Parameterization.SEDD,
        "must be 0 for the parameterization sedd, which has no discrete time",
        "set --config.objective.steps=0, or take subs or d3pm",
    ),
    Rule(
        ("objective.steps", "objective"),
        lambda steps, objective: steps == 0 or _masks(objective),
        "must be 0 for uniform diffusion, which is in continuous time here",
        "set --config.objective.steps=0",
    ),
    Rule(
        ("objective.steps", "objective.time_density", "objective.weighting"),
        lambda steps, density, weighting: (
            steps == 0
            or (density is TimeDensity.SCHEDULE and weighting is LossWeighting.BOUND)
        ),
        "in discrete time steps are uniform and weigh as the bound says, but "
        "time_density={1.value} and weighting={2.value}",
        "set --config.objective.steps=0, or time_density=schedule and weighting=bound",
    ),
    Rule(
        ("objective.time_density", "objective.weighting"),
        lambda density, weighting: (
            density is not TimeDensity.COUNT or weighting is LossWeighting.BOUND
        ),
        "has no rate that objective.weighting={1.value} could weigh",
        "set --config.objective.weighting=bound, or another time_density",
    ),
    Rule(
        (
            "objective.frequency_masking",
            "objective.steps",
            "objective.time_density",
        ),
        lambda tilt, steps, density: (
            tilt == 0 or (steps == 0 and density is not TimeDensity.COUNT)
        ),
        "needs a rate in continuous time, but objective.steps={1} and "
        "objective.time_density={2.value}",
        "set --config.objective.steps=0 and --config.objective.time_density=schedule",
    ),
    Rule(
        ("objective.frequency_masking", "objective.schedule"),
        lambda tilt, schedule: tilt == 0 or schedule is not ScheduleKind.GEOMETRIC,
        "needs a schedule that ends all masked, which {1.value} does not",
        "take another schedule, such as linear",
    ),
    Rule(
        ("objective.schedule", "objective.steps", "objective"),
        lambda schedule, steps, objective: (
            schedule is not ScheduleKind.BIMODAL_GAUSSIAN
            or (steps == 0 and _masks(objective))
        ),
        "moves in the course of training, which is for masked diffusion in continuous "
        "time",
        "set --config.objective.steps=0, or take another schedule",
    ),
    Rule(
        ("objective.schedule", "objective"),
        lambda schedule, objective: (
            schedule is not ScheduleKind.GEOMETRIC
            or not isinstance(objective, UniformDiffusionConfig)
        ),
        "does not end in pure noise, which uniform diffusion begins with",
        "take another schedule, such as linear",
    ),
    Rule(
        ("model.time_conditioning", "model.backbone", "objective"),
        lambda timed, backbone, objective: (
            not isinstance(objective, UniformDiffusionConfig)
            or (timed and backbone is Backbone.DIT)
        ),
        "must be True, of a dit, for uniform diffusion: what is seen does not tell how "
        "much of it is noise",
        "set --config.model.backbone=dit and --config.model.time_conditioning=true",
    ),
    Rule(
        ("evaluate.estimator", "objective"),
        lambda estimator, objective: (
            estimator is Estimator.AUTO or estimator in _ESTIMATORS[_method(objective)]
        ),
        "is not an estimator of this objective's likelihood",
        "set --config.evaluate.estimator=auto",
    ),
    Rule(
        ("generate.sampler", "objective"),
        lambda sampler, objective: (
            sampler is SamplerKind.AUTO or sampler in _SAMPLERS[_method(objective)]
        ),
        "needs a model of another kind than the one this objective trains",
        "set --config.generate.sampler=auto, or use a run of the other kind",
    ),
    Rule(
        ("generate.guidance", "objective"),
        lambda guidance, objective: guidance == 0 or _masks(objective),
        "needs a model that can do without the prompt: masked diffusion",
        "set --config.generate.guidance=0",
    ),
    Rule(
        ("generate.guidance", "generate.prompts"),
        lambda guidance, prompts: guidance == 0 or any(map(str.strip, prompts)),
        "leads towards a prompt, and there is none",
        "give --config.generate.prompts, or set generate.guidance to 0",
    ),
    Rule(
        ("generate.repetition_penalty", "objective"),
        lambda penalty, objective: (
            penalty == 1 or isinstance(objective, AutoregressiveConfig)
        ),
        "needs a text that grows from left to right: tokens that diffusion writes at "
        "once can't tell what the others repeat",
        "set --config.generate.repetition_penalty=1, or try generate.min_p",
    ),
    Rule(
        ("generate.stop",),
        lambda stops: all(stops),
        "holds an empty entry, which every text holds",
        "leave it out; () is the default",
    ),
    Rule(
        ("generate.show_steps", "objective"),
        lambda shown, objective: (
            shown == 0 or not isinstance(objective, AutoregressiveConfig)
        ),
        "is for diffusion: an autoregressive text grows from left to right",
        "set --config.generate.show_steps=0",
    ),
    Rule(
        ("generate.block_length", "generate.steps", "generate.max_new_tokens"),
        lambda block, steps, tokens: block == 0 or -(-tokens // block) <= steps,
        "makes more blocks of generate.max_new_tokens={2} than there are "
        "generate.steps={1}",
        "use longer blocks, or more steps",
    ),
    Rule(
        ("generate.stride", "model.max_length"),
        lambda stride, longest: stride < longest,
        "must be below model.max_length={1}: a window begins with tokens of the last",
        "half of it is usual; 0 is for texts that fit the model's context",
    ),
)
