"""The one training loop, whatever the model and the objective."""

import dataclasses
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

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
from lmjax.train.stopping import Stopped, StopSignal

# What a process can ask all of them to do after a step; see `parallel.hosts.Votes`.
_STOP, _SAVE = 1, 2


@dataclasses.dataclass(frozen=True, kw_only=True)
class Intervals:
    """Lengths in steps; 0 means never.

    Attributes:
      save_after: seconds of the clock since the last save, after which one more is due.
      save_evaluated: whether what was evaluated is saved, so that the best can be kept.
      max_bad_steps: updates in a row that may be skipped before the run ends.
      max_words: whitespace words that may be seen, repeats included: the run ends with
        the last step that does not exceed them. 0: no limit.
      milestones: words seen at which the weights are kept, in order.
    """

    total: int
    log: int
    evaluate: int
    generate: int
    save: int
    save_after: float = 0.0
    save_evaluated: bool = False
    max_bad_steps: int = 10
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

    `milestone` is told which ones the last step reached. `explain` gets the figures of
    a step whose update was skipped, and says why it was. `ended` is told, in words,
    whatever ended: so somebody can notice that nothing does.
    """

    evaluate: Callable[[TrainState, int], dict[str, float]]
    generate: Callable[[TrainState, int], None]
    save: Callable[[TrainState, Progress], None]
    milestone: Callable[[TrainState, tuple[int, ...], Progress], None]
    explain: Callable[[Mapping[str, Any]], str]
    ended: Callable[[str], None] = lambda what: None


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
    """Trains until the budget is used up, or somebody asks to stop.

    The order matters: evaluate and save what stands, fetch, step, log. Step n is
    dispatched before the figures of step n-1 are read, so the device never waits for
    the host; the host waits for the device only to evaluate, sample and save. Words
    are counted on the host, from the batches that are fed: so a milestone is known when
    its step is dispatched, before the next one takes its place.

    A request to stop is heeded after the step that runs. Evaluation, sampling and the
    wait for data are interrupted; what of them was not done is noted in the progress.
    Several processes agree on what they do after a step, whoever was asked.

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
      UserError: when too many updates in a row were skipped.
    """
    log = _Log(progress, logger, clock, intervals, hooks, steps_per_epoch)
    pauses = _Pauses(progress, intervals, hooks, logger, clock, hosts.Votes(mesh), stop)
    words = progress.words
    sharding = rules.batch_sharding(mesh)
    counts_words = intervals.max_words > 0 or bool(intervals.milestones)
    try:
        for number in range(progress.step, intervals.total):
            if pauses.due(number):
                log.read_pending()
                if not pauses.take(state):
                    return state, False
            with clock.spent.on("data"), stop.interruptible("waiting for data"):
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
                with clock.paused("save"):
                    hooks.milestone(state, reached, progress)
    except Stopped:
        log.read_pending()
        return state, False
    log.read_pending()
    return state, True


@dataclasses.dataclass
class _Pauses:
    """What is done between two steps: evaluate, sample, save, or stop."""

    progress: Progress
    intervals: Intervals
    hooks: Hooks
    logger: RunLogger
    clock: Clock
    votes: hosts.Votes
    stop: StopSignal

    def __post_init__(self) -> None:
        self._start = self.progress.step
        self._saved = time.monotonic()
        self._names: list[str] = []
        self._asked = 0

    def due(self, step: int) -> bool:
        """Whether there is a pause after `step` steps; all processes must ask."""
        wait = self.intervals.save_after
        late = wait > 0 and time.monotonic() - self._saved > wait
        self._asked = self.votes.cast(_STOP * bool(self.stop) | _SAVE * late)
        done = self.progress.done if step == self._start else ()
        self._names = [
            name
            for name in ("evaluate", "generate")
            if self.intervals.due(name, step) and name not in done
        ]
        saves = self._asked & _SAVE or self.intervals.due("save", step)
        if self.intervals.save_evaluated and "evaluate" in self._names:
            saves = True
        if saves and step > self._start:
            self._names.append("save")
        return bool(self._names or self._asked)

    def take(self, state: TrainState) -> bool:
        """Does what is due, and notes it; False where the run is to stop instead.

        Raises:
          Stopped: in the middle of it.
        """
        step = self.progress.step
        if self._asked & _STOP:
            return False
        for name in self._names:
            with self.clock.paused(name):
                self._do(name, state, step)
            if name != "save":
                self.progress.done.append(name)
        return True

    def _do(self, name: str, state: TrainState, step: int) -> None:
        match name:
            case "evaluate":
                values = self.hooks.evaluate(state, step)
                self.logger.metrics(step, "valid", values)
                self.progress.score = values["nll_per_token"]
            case "generate":
                self.hooks.generate(state, step)
            case "save":
                self.hooks.save(state, self.progress)
                self._saved = time.monotonic()


@dataclasses.dataclass
class _Log:
    """Reads a step's figures one step late, counts them, and writes the log line."""

    progress: Progress
    logger: RunLogger
    clock: Clock
    intervals: Intervals
    hooks: Hooks
    steps_per_epoch: float
    pending: dict[str, jax.Array] | None = None

    def read_pending(self) -> None:
        if self.pending is None:
            return
        pending, self.pending = self.pending, None
        metrics = {
            name: float(np.asarray(value))
            for name, value in pending.items()
            if value.ndim == 0
        }
        self.progress.add(metrics)
        self.clock.add(metrics["weight"])
        step = self.progress.step
        self.hooks.ended(f"step {step:,}")
        if metrics.get("skipped"):
            self._tell_skipped(pending, metrics)
        if step % self.intervals.log == 0 or step == self.intervals.total:
            self._write(step, metrics)

    def _write(self, step: int, metrics: dict[str, float]) -> None:
        values = self.progress.take_means()
        values["gradient_norm"] = metrics["gradient_norm"]
        values["learning_rate"] = metrics["learning_rate"]
        values["epoch"] = step / self.steps_per_epoch
        values["words_seen"] = self.progress.words
        values["tokens_seen"] = self.progress.tokens
        if self.progress.skipped:
            values["skipped_steps"] = self.progress.skipped
        if "loss_scale" in metrics:
            values["loss_scale"] = metrics["loss_scale"]
        speed = self.clock.read(step)
        self.logger.metrics(step, "train", values)
        self.logger.metrics(step, "speed", speed)
        self.logger.progress(
            step, format_line(step, self.intervals.total, values | speed)
        )

    def _tell_skipped(
        self, pending: Mapping[str, Any], metrics: Mapping[str, float]
    ) -> None:
        """Says why an update was left out; too many in a row end the run."""
        step, in_a_row = self.progress.step, round(metrics["bad_in_a_row"])
        why = self.hooks.explain(pending)
        self.logger.line(f"step {step:,} skipped (batch {step - 1:,}): {why}")
        if in_a_row < self.intervals.max_bad_steps:
            return
        raise UserError(
            f"{in_a_row} updates in a row were skipped; at step {step:,} {why}",
            where=f"training, batches {step - in_a_row:,} to {step - 1:,} "
            "(a batch is a function of the seed and its number)",
            remedy="go on from an earlier checkpoint with a lower optim.learning_rate "
            "or optim.clip_norm, or with train.precision=float32; the weights before "
            "the first of them stand in the last checkpoint",
        )


def format_line(step: int, total: int, values: dict[str, float]) -> str:
    """One line of training for a person."""
    parts = [f"step {step:,}/{total:,}", f"epoch {values['epoch']:.2f}"]
    if "loss" in values:
        parts += [
            f"loss {values['loss']:.4f}",
            f"ppl {values['perplexity']:.2f}",
            f"bpb {values['bits_per_byte']:.3f}",
        ]
    else:
        parts.append("all updates skipped")
    parts += [
        f"lr {values['learning_rate']:.1e}",
        f"grad {values['gradient_norm']:.2f}",
        f"{values['tokens_per_second']:,.0f} tok/s",
    ]
    if "skipped_steps" in values:
        parts.append(f"skipped {values['skipped_steps']}")
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
