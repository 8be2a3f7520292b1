"""The start-up plan: what is about to run, before it runs."""

import math
from collections.abc import Sequence

import jax
import numpy as np

from lmjax import training_run
from lmjax.config.fields import kind_name
from lmjax.config.schema import (
    Backbone,
    Config,
    DiffusionConfig,
    LossWeighting,
    MaskedDiffusionConfig,
    ModelConfig,
    Parameterization,
    TimeDensity,
)
from lmjax.core import trees
from lmjax.data.preparation.manifest import Prepared
from lmjax.doctor.flops import flops_per_token
from lmjax.doctor.memory import device_bytes, format_bytes
from lmjax.experiment import System
from lmjax.train.milestones import name_of
from lmjax.training_run import Run


def matmul_params(system: System) -> int:
    """Parameters that multiply every token: all matrices but the embedding table.

    Those that turn the noise level into the modulations of a DiT work once per row.
    """
    params = trees.count(system.model.shapes, r"(kernel|head)$")
    params -= trees.count(
        system.model.shapes, r"(noise_embedding|modulation)/.*kernel$"
    )
    if system.model.config.tied_embeddings:
        params += trees.count(system.model.shapes, r"vocabulary/table$")
    return params


def training_flops_per_token(config: Config, system: System) -> float:
    """FLOPs that training spends on a token."""
    return flops_per_token(
        config.model,
        matmul_params=matmul_params(system),
        length=config.data.sequence_length,
        causal=system.objective.causal,
    )


def plan_lines(
    config: Config,
    system: System,
    run: Run,
    prepared: Prepared,
    *,
    memory_bytes: int,
    peak_flops: float,
    start_step: int,
) -> list[str]:
    """The plan, a line per fact.

    Args:
      memory_bytes: what the compiler reports for the step, per device.
      peak_flops: of all devices together; 0 if unknown.
      start_step: step the run goes on from.
    """
    model, total = config.model, run.intervals.total
    devices = list(system.mesh.devices.flat)
    params = trees.count(system.model.shapes)
    embedding = trees.count(system.model.shapes, r"vocabulary/")
    tokens = config.train.batch_size * config.data.sequence_length
    epochs = total / run.scale.steps_per_epoch
    kv_heads = model.num_kv_heads or model.num_heads
    rows = [
        ("devices", _devices(devices)),
        ("mesh", ", ".join(f"{k} {v}" for k, v in system.mesh.shape.items())),
        ("objective", _objective(config)),
        ("loss", _loss(config, system)),
        (
            "model",
            f"{model.num_layers} layers, width {model.width}, {model.num_heads} heads"
            f" ({kv_heads} kv), {_backbone(model)}, "
            f"{'scanned' if system.model.setting.scan else 'unrolled'}, "
            f"{system.dtype.name}",
        ),
        (
            "attention",
            f"{system.attention.kind.value} ({system.attention.reason})",
        ),
        (
            "parameters",
            f"{params:,} = {embedding:,} embeddings and head + "
            f"{params - embedding:,} body",
        ),
        ("tokens", _tokens(config, run)),
        (
            "length",
            f"{total:,} steps = {epochs:,.2f} epochs = "
            f"{round(total * run.scale.tokens_per_step):,} tokens = "
            f"{round(total * run.scale.words_per_step):,} words "
            f"(an epoch has {prepared.train.counts.words:,})",
        ),
        (
            "warm-up",
            f"{run.warmup_steps:,} steps to {config.optim.learning_rate:g}, then "
            f"{config.optim.schedule.value}",
        ),
        ("memory", _memory(memory_bytes, devices[0])),
        (
            "first log",
            f"{_first_loss(config, system)}a line every {run.intervals.log:,} step(s)",
        ),
    ]
    if run.intervals.max_words:
        limit = f"{run.intervals.max_words:,} words; no step is taken beyond them"
        rows.append(("limit", limit))
    if kept := run.intervals.milestones:
        names = ", ".join(map(name_of, kept if len(kept) < 4 else (kept[0], kept[1])))
        last = f", ..., {name_of(kept[-1])}" if len(kept) > 3 else ""
        rows.append(("milestones", f"{len(kept)}: {names}{last}"))
    if config.data.weights or config.data.max_epochs:
        rows.append(("mixture", _mixture(config, prepared, total)))
    if run.profiled[0]:
        rows.append(("profile", f"steps {run.profiled[0]:,} to {run.profiled[1]:,}"))
    if start_step:
        rows.append(("resumes", f"after step {start_step:,}"))
    if peak_flops:
        flops = training_flops_per_token(config, system) * tokens * (total - start_step)
        rows.append(
            (
                "compute",
                f"{flops:.2e} FLOPs; {duration(flops / (0.4 * peak_flops))} at 40 % "
                f"of a peak of {peak_flops / 1e12:.2f} TFLOP/s",
            )
        )
    width = max(len(name) for name, _ in rows)
    return [f"{name:<{width}}  {value}" for name, value in rows]


def _mixture(config: Config, prepared: Prepared, total_steps: int) -> str:
    """Passes over each source in the whole run."""
    records = prepared.train.records
    windows = np.array([each.counts.windows for each in records])
    draws = config.train.batch_size * total_steps
    passes = training_run.mixture(config, prepared).draws(windows, draws) / windows
    return "passes over " + ", ".join(
        f"{each.source} {count:.2f}"
        for each, count in zip(records, passes, strict=True)
    )


def _tokens(config: Config, run: Run) -> str:
    """What a step reads, and in how many passes."""
    rows, length = config.train.batch_size, config.data.sequence_length
    return (
        f"{rows * length:,} per step = {rows} windows of {length}, in "
        f"{run.num_microbatches} pass(es){run.why_so_many}"
    )


def _devices(devices: Sequence[jax.Device]) -> str:
    return f"{len(devices)} x {devices[0].device_kind} ({devices[0].platform})"


def _backbone(model: ModelConfig) -> str:
    if model.backbone is Backbone.TRANSFORMER:
        return "transformer"
    return f"DiT {'with' if model.time_conditioning else 'without'} time conditioning"


def _objective(config: Config) -> str:
    section = config.objective
    words = [kind_name(type(section)).replace("_", " ")]
    if isinstance(section, DiffusionConfig):
        time = f"T={section.steps} steps" if section.steps else "continuous time"
        words += [f"{section.schedule.value} schedule", time]
    if isinstance(section, MaskedDiffusionConfig):
        words.insert(1, section.parameterization.value)
    return ", ".join(words)


def _loss(config: Config, system: System) -> str:
    """Which loss runs, and whether it may be read as a likelihood."""
    if system.objective.kind == "exact":
        return "exact negative log-likelihood"
    section, words = config.objective, []
    if isinstance(section, MaskedDiffusionConfig):
        words = [f"weighting {section.weighting.value}"]
        if section.time_density is not TimeDensity.SCHEDULE:
            words.append(f"rates by {section.time_density.value}")
        if section.frequency_masking:
            words.append(f"rare tokens earlier ({section.frequency_masking:g})")
    if system.objective.loss_is_bound:
        worth = "an upper bound on the negative log-likelihood"
    else:
        worth = "reweighted, not a bound; held-out figures are bounds all the same"
    return f"{worth} ({', '.join([*words, f'{section.time_sampling.value} times'])})"


def _first_loss(config: Config, system: System) -> str:
    """What a zero head costs, for losses of which that is known."""
    section = config.objective
    if isinstance(section, MaskedDiffusionConfig) and (
        section.weighting is LossWeighting.SOFTENED
        or section.parameterization is Parameterization.D3PM
    ):
        return ""
    count = system.num_predictable
    return f"loss near ln({count}) = {math.log(count):.3f} at step 1; "


def _memory(needed: int, device: jax.Device) -> str:
    if not needed:
        return "not reported by the compiler"
    limit = device_bytes(device)
    of = f" of {format_bytes(limit)}" if limit else ""
    return f"{format_bytes(needed)}{of} per device for the training step"


def duration(seconds: float) -> str:
    """A rough length of time for a person."""
    for unit, size in (("days", 86_400), ("hours", 3600), ("minutes", 60)):
        if seconds >= 2 * size:
            return f"about {seconds / size:.0f} {unit}"
    return f"about {seconds:.0f} seconds"
