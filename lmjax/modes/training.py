"""Mode train: one start of a run."""

import contextlib
import dataclasses
import functools
import pathlib
import time
from collections.abc import Iterator
from typing import Any

import jax

from lmjax import experiment, plan, report, starting_weights, training_run
from lmjax.config import serialize
from lmjax.config.schema import Config
from lmjax.core import allocator, durations, rng
from lmjax.core.types import PyTree
from lmjax.data.batch import Batch
from lmjax.data.preparation.manifest import Prepared
from lmjax.doctor import flops, memory
from lmjax.evaluate.likelihood import Scorer
from lmjax.experiment import System
from lmjax.modes import fitting
from lmjax.modes.generation import build_generator, check_prompts
from lmjax.parallel import hosts, notices
from lmjax.run_folder import RunFolder
from lmjax.sampling.prompts import Generator
from lmjax.train import loop
from lmjax.train.clock import Clock, TimeSpent
from lmjax.train.loggers import RunLogger
from lmjax.train.milestones import name_of
from lmjax.train.profile import ProfiledStep
from lmjax.train.progress import Progress
from lmjax.train.state import TrainState
from lmjax.train.stopping import Stopped, StopSignal
from lmjax.train.watchdog import Watchdog
from lmjax.training_run import Run


def train(config: Config, workdir: pathlib.Path) -> None:
    """Prepares, trains, evaluates and samples; goes on where the run folder stands.

    Raises:
      Stopped: when it was asked to stop before there was anything to save.
    """
    spent = TimeSpent("prepare")
    after, told = config.train.stop_after, f"train.stop_after={config.train.stop_after}"
    with (
        StopSignal(durations.to_seconds(after), told) as stop,
        notices.watch(stop.request) or contextlib.nullcontext(),
    ):
        with stop.interruptible("preparing the corpus"):
            prepared = experiment.prepare_corpus(config)
        stop.together = jax.process_count() > 1
        with stop.interruptible("building the model"):
            system = experiment.build_system(
                config, prepared.tokenizer, prepared=prepared
            )
        scale = training_run.run_scale(config, prepared)
        keep_every = durations.to_steps(config.checkpoint.keep_every, scale)
        with RunFolder.open(workdir, config, prepared, keep_every=keep_every) as folder:
            progress = folder.progress()
            progress.set_length(scale.total_steps)
            run = training_run.build_run(config, system, prepared, progress.lengths)
            if run.intervals.generate:
                check_prompts(config, system)
            weights = None
            if not folder.start_step:
                with stop.interruptible("reading the weights to begin with"):
                    weights = starting_weights.read(config, system)
            folder.begin()
            with (
                RunLogger(
                    workdir,
                    config.log,
                    total_steps=run.intervals.total,
                    start_step=folder.start_step,
                    done=progress.done,
                    writes=jax.process_index() == 0,
                ) as logger,
                Watchdog(
                    durations.to_seconds(config.train.watchdog),
                    workdir / "log.txt",
                    exits=config.train.watchdog_exit,
                ) as watchdog,
            ):
                start = _Start(
                    config=config,
                    folder=folder,
                    prepared=prepared,
                    system=system,
                    run=run,
                    weights=weights,
                    progress=progress,
                    logger=logger,
                    stop=stop,
                    watchdog=watchdog,
                    spent=spent,
                )
                start.train()


@dataclasses.dataclass(kw_only=True)
class _Start:
    """One start of a training run: from the last checkpoint to the end, or a stop."""

    config: Config
    folder: RunFolder
    prepared: Prepared
    system: System
    run: Run
    weights: PyTree | None  # that it begins with, rather than drawn ones
    progress: Progress
    logger: RunLogger
    stop: StopSignal
    watchdog: Watchdog
    spent: TimeSpent

    def __post_init__(self) -> None:
        self._began, self._before = time.perf_counter(), self.progress.seconds
        self.spent.add(self.progress.spent)
        self._again = f"python -m lmjax.main --workdir {self.folder.path}"
        self._scorer = Scorer(
            self.system.on_mesh.bind, self.system.objective, self.system.mesh
        )
        self._kept = self.folder.open_milestones(self.run.intervals.milestones)

    def train(self) -> None:
        """Trains, and ends as a run ends: with a report, or with how to go on."""
        try:
            with self.spent.on("compile"), self.stop.interruptible("compiling"):
                compiled = self._compile()
                state = self._first_state()
        except Stopped as stopped:
            self.logger.line(
                f"stopped by {stopped.reason} before the first step; "
                f"resume with: {self._again}"
            )
            return
        hooks = self._hooks()
        with (
            fitting.memory_explained(
                self.config, self.system, self.prepared, "training"
            ),
            self.spent.on("train"),
        ):
            state, finished = self._loop(state, compiled, hooks)
        with self.spent.on("save"):
            self._end(state, finished)
        if not finished:
            self.logger.line(
                f"stopped by {self.stop.name or 'another process'} after step "
                f"{self.progress.step:,}, which is saved; resume with: {self._again}"
            )
            return
        try:
            self._close(state, hooks)
        except Stopped as stopped:
            self.logger.line(
                f"stopped by {stopped}; the run is trained and saved; for its report "
                f"and samples: {self._again}"
            )

    def _end(self, state: TrainState, finished: bool) -> None:
        """Saves what was trained, and waits for it."""
        if finished:
            self._kept.finish(
                state.evaluation_params, self.progress, self.run.intervals.max_words
            )
        self._save(state, self.progress)
        self.folder.wait()
        self._kept.close()

    def _compile(self) -> Any:
        """The step's executable, and the plan that it allows, told to the logger."""
        step, logger = self.folder.start_step, self.logger
        what = "compiling the training step"
        with fitting.memory_explained(self.config, self.system, self.prepared, what):
            self.run, compiled = fitting.fit(
                self.config,
                self.system,
                self.prepared,
                self.run,
                chosen=self.progress.microbatch_size,
            )
        batch_size = self.config.train.batch_size
        size = batch_size // self.run.num_microbatches
        self.progress.microbatch_size = size
        self.config = fitting.with_microbatch(self.config, size)
        lines = _plan(
            self.config, self.system, self.run, self.prepared, compiled, start_step=step
        )
        for line in (f"run folder  {self.folder.path}", *lines):
            logger.line(line)
        if allocator.give_back_where_scarce(memory.program_bytes(compiled)):
            logger.line("memory      is scarce: large arrays are given back each step")
        self.folder.foresee_space(self.run.state_maker.abstract())
        self.folder.report(logger.line)
        logger.text(step, "config", serialize.to_json(self.config))
        logger.text(step, "plan", "\n".join(lines))
        self.watchdog.beat("compiling the step")
        return compiled

    def _first_state(self) -> TrainState:
        maker = self.run.state_maker
        if self.folder.start_step:
            return self.folder.restore(maker.abstract())
        state = maker.make(rng.stream(self.config.seed, "init"))
        if self.weights is not None:
            state = starting_weights.begin_with(state, self.weights)
            self.weights = None  # they are in the state now
        return state

    def _loop(
        self, state: TrainState, compiled: Any, hooks: loop.Hooks
    ) -> tuple[TrainState, bool]:
        run = self.run
        step = ProfiledStep(
            compiled,
            first=run.profiled[0],
            last=run.profiled[1],
            start_step=self.folder.start_step,
            folder=self.folder.path / "profile",
            tell=self.logger.line,
        )
        train = functools.partial(
            loop.train,
            state=state,
            progress=self.progress,
            batches=training_run.train_batches(
                self.config, self.prepared, self.folder.start_step
            ),
            mesh=self.system.mesh,
            intervals=run.intervals,
            hooks=hooks,
            logger=self.logger,
            clock=Clock(
                total_steps=run.intervals.total,
                flops_per_token=plan.training_flops_per_token(self.config, self.system),
                peak_flops=_peak(self.system),
                spent=self.spent,
            ),
            steps_per_epoch=run.scale.steps_per_epoch,
            stop=self.stop,
        )
        if not run.profiled[0]:
            return train(step=compiled)
        with step:
            return train(step=step)

    def _close(self, state: TrainState, hooks: loop.Hooks) -> None:
        """The figures and texts of a run that is finished."""
        logger, step = self.logger, self.progress.step
        if self.run.intervals.generate:
            with self.spent.on("generate"):
                hooks.generate(state, step)
        with self.spent.on("evaluate"), self.stop.interruptible("evaluating"):
            summary = report.make(
                self.config,
                self.prepared,
                self.system,
                self._scorer,
                state.evaluation_params,
                self.progress,
            )
        summary["spent"] = self.spent.read()
        logger.metrics(step, "final", report.scalars(summary))
        for line in report.table(summary).splitlines():
            logger.line(line)
        logger.line(f"report: {report.write(summary, self.folder.path)}")
        logger.line(
            f"write with it: {self._again} --mode generate "
            '--config.generate.prompts="..."'
        )

    def _count_seconds(self) -> None:
        seconds = time.perf_counter() - self._began
        self.progress.seconds = self._before + seconds
        self.progress.spent = self.spent.read()

    def _save(self, state: TrainState, progress: Progress) -> None:
        self._count_seconds()
        self.logger.flush()
        # A run that goes on from here must find the milestones that lie behind it.
        self._kept.wait()
        score = progress.score if progress.score >= 0 else None
        self.folder.save(state, progress, score=score)
        self.watchdog.beat(f"saving step {progress.step:,}")

    def _keep(
        self, state: TrainState, reached: tuple[int, ...], progress: Progress
    ) -> None:
        self._count_seconds()
        self._kept.write(state.evaluation_params, reached, progress)
        self.logger.line(
            f"step {progress.step:,} milestone {', '.join(map(name_of, reached))}: "
            f"{progress.words:,} words seen"
        )

    def _evaluate(self, state: TrainState, step: int) -> dict[str, float]:
        config = self.config
        batches = training_run.eval_batches(
            config, self.prepared, config.evaluate.batches
        )
        with self.stop.interruptible("evaluating"):
            total = self._scorer.evaluate(
                state.evaluation_params, self._supervised(batches), draws=1
            )[-1]
        self.logger.line(
            f"step {step:,} held-out: {total.kind} nll {total.nll_per_token:.4f} "
            f"± {total.standard_error:.4f}, ppl {total.perplexity:.2f}, "
            f"{total.bits_per('word'):.3f} bits per word"
        )
        return {
            "nll_per_token": total.nll_per_token,
            "standard_error": total.standard_error,
            "perplexity": total.perplexity,
            "bits_per_byte": total.bits_per("byte"),
            "bits_per_word": total.bits_per("word"),
        }

    def _supervised(self, batches: Iterator[Batch]) -> Iterator[Batch]:
        """Batches that are evaluated; between two of them all processes may stop."""
        votes = hosts.Votes(self.system.mesh)
        for number, batch in enumerate(batches, start=1):
            self.watchdog.beat(f"fetching batch {number} of an evaluation")
            if votes.cast(bool(self.stop)):
                raise Stopped(self.stop.name or "another process", "evaluating")
            yield batch

    def _generate(self, generator: Generator, state: TrainState, step: int) -> None:
        config = self.config.generate
        with self.stop.interruptible("sampling"):
            samples = generator(
                state.evaluation_params,
                rng.stream(self.config.seed, "generate", step),
                config.prompts,
                num_samples=config.num_samples,
                max_new_tokens=config.max_new_tokens,
            )
        self.logger.line(f"step {step:,} samples:")
        for sample in samples:
            self.logger.sample(step, sample.prompt, sample.text)
        texts = "\n\n---\n\n".join(sample.text for sample in samples)
        self.logger.text(step, "samples", texts)
        self.watchdog.beat("sampling")

    def _hooks(self) -> loop.Hooks:
        """What the loop calls at its intervals."""
        generator = build_generator(self.config, self.system)
        return loop.Hooks(
            evaluate=self._evaluate,
            generate=functools.partial(self._generate, generator),
            save=self._save,
            milestone=self._keep,
            explain=self.run.step.explain,
            ended=self.watchdog.beat,
        )


def _peak(system: System) -> float:
    """Peak FLOP/s of all devices together; fake CPU devices share one machine."""
    device = system.mesh.devices.flat[0]
    count = 1 if device.platform == "cpu" else system.mesh.size
    return flops.peak_flops(device) * count


def _plan(
    config: Config,
    system: System,
    run: Run,
    prepared: Prepared,
    compiled: Any,
    *,
    start_step: int,
) -> list[str]:
    return plan.plan_lines(
        config,
        system,
        run,
        prepared,
        memory_bytes=memory.program_bytes(compiled),
        peak_flops=_peak(system),
        start_step=start_step,
    )
