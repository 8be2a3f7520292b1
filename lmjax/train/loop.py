"""The one training loop, whatever the model and the objective."""

import dataclasses
import math
from collections.abc import Callable, Iterator

import jax
import numpy as np
from jax.sharding import Mesh

from lmjax.core.errors import UserError
from lmjax.data.batch import Batch
from lmjax.parallel import hosts, rules
from lmjax.train.clock import Clock
from lmjax.train.loggers import RunLogger
from lmjax.train.progress import Progress
from lmjax.train.state import TrainState
from lmjax.train.stopping import StopSignal


@dataclasses.dataclass(frozen=True, kw_only=True)
class Intervals:
    """Lengths in optimizer steps; 0 means never.

    Attributes:
      max_words: whitespace words that may be seen, repeats included: the run ends with
        the last step that does not exceed them. 0: no limit.
      milestones: words seen at which the weights are kept, in order.
    """

    total: int
    log: int
    evaluate: int
    generate: int
    save: int
    max_words: int = 0
    milestones: tuple[int, ...] = ()

    def due(self, name: str, step: int) -> bool:
        """Whether something is done after `step` steps; the end has its own turn."""
        every = getattr(self, name)
        return every > 0 and 0 < step < self.total and step % every == 0

    def reached(self, before: int, after: int) -> tuple[int, ...]:
        """Milestones of a step that takes the words seen from one to the other."""
        return tuple(words for words in self.milestones if before < words <= after)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Hooks:
    """What the loop calls at its intervals; each gets the state and the progress.

    `milestone` is told which ones the last step reached.
    """

    evaluate: Callable[[TrainState, int], dict[str, float]]
    generate: Callable[[TrainState, int], None]
    save: Callable[[TrainState, Progress], None]
    milestone: Callable[[TrainState, tuple[int, ...], Progress], None]


def train(
    *,
    state: TrainState,
    progress: Progress,
    step: Callable[[TrainState, Batch], tuple[TrainState, dict[str, jax.Array]]],
    batches: Iterator[Batch],
    mesh: Mesh,
    intervals: Intervals,
    hooks: Hooks,
    logger: RunLogger,
    clock: Clock,
    steps_per_epoch: float,
    stop: StopSignal,
) -> tuple[TrainState, bool]:
    """Trains until the budget is used up, or a signal asks to stop.

    The order matters: evaluate and save what stands, fetch, step, log. Step n is
    dispatched before the figures of step n-1 are read, so the device never waits for
    the host; the host waits for the device only to evaluate, sample and save. Words
    are counted on the host, from the batches that are fed: so a milestone is known when
    its step is dispatched, before the next one takes its place.

    Args:
      state: donated; what is returned takes its place.
      progress: counts so far; updated in place, and complete on return.
      step: the compiled step.
      batches: this host's slices, from `progress.step` on.
      mesh: where batches go.
      intervals: when to do what.
      hooks: what to do.
      logger: where figures go.
      clock: measures the speed.
      steps_per_epoch: for the log line.
      stop: true when the run is asked to stop.

    Returns:
      The state, and whether the run is finished, rather than stopped.

    Raises:
      UserError: when the loss is no longer finite.
    """
    log = _Log(progress, logger, clock, intervals, steps_per_epoch)
    start, words = progress.step, progress.words
    sharding = rules.batch_sharding(mesh)
    counts_words = intervals.max_words > 0 or bool(intervals.milestones)
    for number in range(start, intervals.total):
        pauses = number > start and any(
            intervals.due(name, number) for name in ("evaluate", "generate", "save")
        )
        if pauses or stop:
            log.read_pending()
            clock.pause()
            if stop:
                return state, False
            if intervals.due("evaluate", number):
                logger.metrics(number, "valid", hooks.evaluate(state, number))
            if intervals.due("generate", number):
                hooks.generate(state, number)
            if intervals.due("save", number):
                hooks.save(state, progress)
            clock.go()
        batch = next(batches)
        before = words
        if counts_words:
            words += hosts.sum_over_hosts(int(batch.words.sum()))
        if 0 < intervals.max_words < words:
            break
        with jax.transfer_guard_device_to_host("disallow"):
            state, metrics = step(state, hosts.to_global(batch, sharding))
        log.read_pending()
        log.pending = metrics
        if reached := intervals.reached(before, words):
            log.read_pending()
            clock.pause()
            hooks.milestone(state, reached, progress)
            clock.go()
    log.read_pending()
    return state, True


@dataclasses.dataclass
class _Log:
    """Reads a step's figures one step late, counts them, and writes the log line."""

    progress: Progress
    logger: RunLogger
    clock: Clock
    intervals: Intervals
    steps_per_epoch: float
    pending: dict[str, jax.Array] | None = None

    def read_pending(self) -> None:
        if self.pending is None:
            return
        metrics = {name: float(np.asarray(v)) for name, v in self.pending.items()}
        self.pending = None
        if not math.isfinite(metrics["loss_sum"]):
            raise UserError(
                f"the loss is {metrics['loss_sum']} at step {self.progress.step + 1}",
                where="training",
                remedy="lower optim.learning_rate or optim.clip_norm, then run the "
                "same command again: it goes on from the last checkpoint",
            )
        self.progress.add(metrics)
        self.clock.add(metrics["weight"])
        step = self.progress.step
        if step % self.intervals.log == 0 or step == self.intervals.total:
            values = self.progress.take_means()
            values["gradient_norm"] = metrics["gradient_norm"]
            values["learning_rate"] = metrics["learning_rate"]
            values["epoch"] = step / self.steps_per_epoch
            values["words_seen"] = self.progress.words
            values["tokens_seen"] = self.progress.tokens
            speed = self.clock.read(step)
            self.logger.metrics(step, "train", values)
            self.logger.metrics(step, "speed", speed)
            self.logger.progress(
                step, format_line(step, self.intervals.total, values | speed)
            )


def format_line(step: int, total: int, values: dict[str, float]) -> str:
    """One line of training for a person."""
    parts = [
        f"step {step:,}/{total:,}",
        f"epoch {values['epoch']:.2f}",
        f"loss {values['loss']:.4f}",
        f"ppl {values['perplexity']:.2f}",
        f"bpb {values['bits_per_byte']:.3f}",
        f"lr {values['learning_rate']:.1e}",
        f"grad {values['gradient_norm']:.2f}",
        f"{values['tokens_per_second']:,.0f} tok/s",
    ]
    if "mfu" in values:
        parts.append(f"mfu {values['mfu']:.0%}")
    parts.append(f"eta {format_seconds(values['eta_seconds'])}")
    return " | ".join(parts)


def format_seconds(seconds: float) -> str:
    """Seconds as "48 s", "3:20" or "5:03:20"."""
    if round(seconds) < 60:
        return f"{seconds:.0f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
