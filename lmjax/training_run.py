"""Config and prepared corpus become a training run: its lengths, optimizer and step."""

import dataclasses
import functools
import math
from collections.abc import Iterator, Sequence

import jax
import numpy as np
import optax
from absl import logging
from jax.sharding import Mesh

from lmjax.config.schema import Config, OptimConfig, TrainConfig
from lmjax.core import durations
from lmjax.core.errors import ConfigError
from lmjax.data import pipeline
from lmjax.data.batch import Batch
from lmjax.data.mixing import Mixture
from lmjax.data.preparation.manifest import Prepared
from lmjax.doctor import targets
from lmjax.experiment import System
from lmjax.optim.learning_rates import learning_rate, over_lengths
from lmjax.optim.optimizers import build_optimizer
from lmjax.parallel import rules
from lmjax.parallel.rules import Layout
from lmjax.train import milestones
from lmjax.train.guard import Guard
from lmjax.train.loop import Intervals
from lmjax.train.state import StateMaker
from lmjax.train.step import TrainStep


@dataclasses.dataclass(frozen=True, kw_only=True)
class Run:
    """One training run: its lengths in steps, its optimizer and its step."""

    scale: durations.RunScale
    intervals: Intervals
    warmup_steps: int
    num_microbatches: int
    schedule: optax.Schedule
    optimizer: optax.GradientTransformation
    step: TrainStep
    state_maker: StateMaker
    profiled: tuple[int, int] = (0, 0)  # first and last step of a trace; 0: none
    why_so_many: str = ""  # microbatches, where they were not asked for

    def with_microbatches(self, count: int, why: str) -> "Run":
        """The same run, each batch cut into another number of forward passes."""
        step = dataclasses.replace(self.step, num_microbatches=count)
        return dataclasses.replace(
            self, num_microbatches=count, step=step, why_so_many=why
        )


def build_run(
    config: Config,
    system: System,
    prepared: Prepared,
    lengths: Sequence[Sequence[int]] = (),
) -> Run:
    """Lengths, optimizer and step of a training run.

    Args:
      lengths: those it was given so far, see `Progress.lengths`.
    """
    scale = run_scale(config, prepared)
    total = scale.total_steps
    steps = functools.partial(durations.to_steps, scale=scale)
    warmup_steps = steps(config.optim.warmup)
    if warmup_steps >= total:
        logging.warning(
            "the warm-up (%d steps) is as long as the run (%d): the learning rate "
            "never reaches its peak; lower optim.warmup",
            warmup_steps,
            total,
        )
    _check_offload(config.train, system.mesh)
    schedule = _learning_rate(config.optim, scale, lengths or [[0, total]])
    max_words = _max_words(config)
    optimizer = build_optimizer(config.optim, schedule, system.model.names)
    batch_size = config.train.batch_size
    num_microbatches = batch_size // (config.train.microbatch_size or batch_size)
    guard = Guard(
        spike_deviations=config.train.spike_deviations,
        spike_window=config.train.spike_window,
        scales_loss=system.dtype == np.float16,
    )
    use_dropout = config.model.dropout > 0
    layout = Layout(system.mesh, replica_axis="" if use_dropout else "data")
    return Run(
        scale=scale,
        intervals=Intervals(
            total=total,
            log=max(1, steps(config.log.every)),
            evaluate=steps(config.evaluate.every),
            generate=steps(config.generate.every),
            save=steps(config.checkpoint.every),
            save_after=durations.to_seconds(config.checkpoint.save_after),
            save_evaluated=config.checkpoint.keep_best > 0,
            max_bad_steps=config.train.max_bad_steps,
            max_words=max_words,
            milestones=milestones.parse(
                config.checkpoint.milestones,
                max_words or math.ceil(1.01 * total * scale.words_per_step),
            ),
        ),
        warmup_steps=warmup_steps,
        num_microbatches=num_microbatches,
        schedule=schedule,
        optimizer=optimizer,
        step=TrainStep(
            bind=system.model.on(layout).bind,
            objective=dataclasses.replace(
                system.objective,
                chunk_tokens=system.objective.chunk_tokens // layout.num_replicas,
            ),
            optimizer=optimizer,
            schedule=schedule,
            ema_decay=config.optim.ema_decay,
            num_microbatches=num_microbatches,
            use_dropout=use_dropout,
            seed=config.seed,
            total_steps=total,
            names=system.model.names,
            guard=guard,
            offload=config.train.offload_optimizer,
            layout=layout,
        ),
        state_maker=StateMaker(
            init=system.model.init,
            names=system.model.names,
            optimizer=optimizer,
            use_ema=config.optim.ema_decay > 0,
            mesh=system.mesh,
            guard=guard,
            offload=config.train.offload_optimizer,
        ),
        profiled=_profiled(config.log.profile, total),
    )


def run_scale(config: Config, prepared: Prepared) -> durations.RunScale:
    """What a step and an epoch of this corpus are worth, and the run's length."""
    batch_size = config.train.batch_size
    counts = [records.counts for records in prepared.train.records]
    windows = np.array([count.windows for count in counts])
    mix = mixture(config, prepared)
    drawn = batch_size * mix.shares(windows) / windows  # of each source, per step
    drawn *= pipeline.kept_share(config.data.sequence_length, config.data.random_length)
    scale = durations.RunScale(
        steps_per_epoch=windows[mix.weights > 0].sum() / batch_size,
        tokens_per_step=float(drawn @ [count.tokens for count in counts]),
        words_per_step=float(drawn @ [count.words for count in counts]),
    )
    total = durations.to_steps(config.train.budget, scale)
    if config.train.max_words:
        fitting = math.floor(config.train.max_words / scale.words_per_step)
        total = min(total, max(1, fitting))
    most = mix.num_windows(windows) // batch_size
    if total == most + 1:  # a step that would be begun and not finished
        total = int(most)
    if total > most:
        raise ConfigError(
            f"the run takes {total:,} steps, but data.max_epochs leaves text for "
            f"{most:,.0f}",
            where=f"train.budget={config.train.budget!r}",
            remedy=f'--config.train.budget="{most:.0f} steps", or allow more passes in '
            "data.max_epochs"
            if most
            else "lower train.batch_size, or allow more passes in data.max_epochs",
        )
    return dataclasses.replace(scale, total_steps=total)


def _check_offload(config: TrainConfig, mesh: Mesh) -> None:
    """Raises ConfigError where the optimizer's state can't stay with the host.

    Devices that a plan is made for can't be asked; all that have names can do it.
    """
    if not config.offload_optimizer or targets.is_absent(mesh.devices.flat[0]):
        return
    device = mesh.local_mesh.devices.flat[0]
    if not rules.has_host_memory(device):
        kinds = ", ".join(sorted(m.kind for m in device.addressable_memories()))
        raise ConfigError(
            f"{device.device_kind} reads no memory of its host (it has: {kinds})",
            where="train.offload_optimizer=True",
            remedy="set it to false; --config.parallel.fsdp=N spreads the optimizer's "
            "state over N devices instead",
        )


def _profiled(text: str, total_steps: int) -> tuple[int, int]:
    """First and last step of the trace that is asked for; zeros where none is.

    Raises:
      ConfigError: the run ends before.
    """
    if not text:
        return 0, 0
    first, last = durations.step_range(text)
    if last > total_steps:
        raise ConfigError(
            f"the run ends after step {total_steps:,}",
            where=f"log.profile={text!r}",
            remedy="name earlier steps, after the first ones, which are slower",
        )
    return first, last


def _max_words(config: Config) -> int:
    """Words that a run may see, by its limit and its budget; 0 where it may see all."""
    budget = durations.parse(config.train.budget)
    in_words = int(budget.amount) if budget.unit == "words" else 0
    return min(filter(None, (config.train.max_words, in_words)), default=0)


def _learning_rate(
    config: OptimConfig, scale: durations.RunScale, lengths: Sequence[Sequence[int]]
) -> optax.Schedule:
    def make(total_steps: int) -> optax.Schedule:
        of_length = dataclasses.replace(scale, total_steps=total_steps)
        return learning_rate(
            config,
            total_steps=total_steps,
            warmup_steps=durations.to_steps(config.warmup, of_length),
            decay_steps=max(1, durations.to_steps(config.decay, of_length)),
        )

    start, total = lengths[-1]
    last = dataclasses.replace(scale, total_steps=max(1, total - start))
    warmup_steps = durations.to_steps(config.warmup, last)
    return over_lengths(make, lengths, config.on_extend, warmup_steps)


def mixture(config: Config, prepared: Prepared) -> Mixture:
    """How training draws from the sources of the training split."""
    sources = [records.source for records in prepared.train.records]
    return Mixture.parse(config.data.weights, config.data.max_epochs, sources)


def train_batches(
    config: Config, prepared: Prepared, start_step: int
) -> Iterator[Batch]:
    """This host's training batches from `start_step` on."""
    return pipeline.train_batches(
        prepared,
        batch_size=config.train.batch_size,
        seed=config.seed,
        mixture=mixture(config, prepared),
        document_mask=config.data.document_mask,
        random_length=config.data.random_length,
        start_step=start_step,
        process_index=jax.process_index(),
        process_count=jax.process_count(),
    )


def eval_batches(
    config: Config, prepared: Prepared, num_batches: int
) -> Iterator[Batch]:
    """This host's held-out batches; 0 means all."""
    return pipeline.eval_batches(
        prepared,
        batch_size=config.evaluate.batch_size or config.train.batch_size,
        num_batches=num_batches,
        document_mask=config.data.document_mask,
        process_index=jax.process_index(),
        process_count=jax.process_count(),
    )
