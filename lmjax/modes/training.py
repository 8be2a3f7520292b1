"""Modes train and plan: one start of a run, or what it would be."""

import contextlib
import dataclasses
import functools
import pathlib
import time
from collections.abc import Iterator
from typing import Any

import jax

from lmjax import experiment, plan, report, training_run
from lmjax.config import serialize
from lmjax.config.schema import Config, Remat
from lmjax.core import durations, rng
from lmjax.core.errors import UserError
from lmjax.data.batch import Batch, synthetic
from lmjax.data.preparation.manifest import Prepared
from lmjax.doctor import flops, memory
from lmjax.evaluate.likelihood import Scorer
from lmjax.experiment import System
from lmjax.modes.generation import build_generator, check_prompts
from lmjax.parallel import hosts, notices
from lmjax.run_folder import RunFolder
from lmjax.sampling.prompts import Generator
from lmjax.starting_weights import begin_with
from lmjax.train import loop
from lmjax.train.clock import Clock
from lmjax.train.loggers import RunLogger
from lmjax.train.milestones import name_of
from lmjax.train.progress import Progress
from lmjax.train.state import TrainState
from lmjax.train.stopping import Stopped, StopSignal
from lmjax.train.watchdog import Watchdog
from lmjax.training_run import Run


def plan_only(config: Config, workdir: pathlib.Path) -> None:
    """Shows what a training run would do, compiled but not started."""
    prepared = experiment.prepare_corpus(config)
    system = experiment.build_system(config, prepared.tokenizer, prepared=prepared)
    run = training_run.build_run(config, system, prepared)
    compiled = _compile(config, system, run)
    for line in _plan(config, system, run, prepared, compiled, start_step=0):
        print(line)
    print(f"run folder: {workdir} (nothing was written)")


def train(config: Config, workdir: pathlib.Path) -> None:
    """Prepares, trains, evaluates and samples; goes on where the run folder stands.

    Raises:
      Stopped: when it was asked to stop before there was anything to save.
    """
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
                    progress=progress,
                    logger=logger,
                    stop=stop,
                    watchdog=watchdog,
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
    progress: Progress
    logger: RunLogger
    stop: StopSignal
    watchdog: Watchdog

    def __post_init__(self) -> None:
        self._began, self._before = time.perf_counter(), self.progress.seconds
        self._again = f"python -m lmjax.main --workdir {self.folder.path}"
        self._scorer = Scorer(
            self.system.model.bind, self.system.objective, self.system.mesh
        )
        self._kept = self.folder.open_milestones(self.run.intervals.milestones)

    def train(self) -> None:
        """Trains, and ends as a run ends: with a report, or with how to go on."""
        try:
            with self.stop.interruptible("compiling"):
                compiled = self._compile()
                state = self._first_state()
        except Stopped as stopped:
            self.logger.line(
                f"stopped by {stopped.reason} before the first step; "
                f"resume with: {self._again}"
            )
            return
        hooks = self._hooks()
        with _memory_explained(self.config, self.system, self.prepared, "training"):
            state, finished = self._loop(state, compiled, hooks)
        if finished:
            self._kept.finish(
                state.evaluation_params, self.progress, self.run.intervals.max_words
            )
        self._save(state, self.progress)
        self.folder.wait()
        self._kept.close()
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

    def _compile(self) -> Any:
        """The step's executable, and the plan that it allows, told to the logger."""
        step, logger = self.folder.start_step, self.logger
        what = "compiling the training step"
        with _memory_explained(self.config, self.system, self.prepared, what):
            compiled = _compile(self.config, self.system, self.run)
        lines = _plan(
            self.config, self.system, self.run, self.prepared, compiled, start_step=step
        )
        for line in (f"run folder  {self.folder.path}", *lines):
            logger.line(line)
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
        if self.config.checkpoint.init_from:
            state = begin_with(state, self.config, self.system)
        return state

    def _loop(
        self, state: TrainState, compiled: Any, hooks: loop.Hooks
    ) -> tuple[TrainState, bool]:
        run = self.run
        return loop.train(
            state=state,
            progress=self.progress,
            step=compiled,
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
            ),
            steps_per_epoch=run.scale.steps_per_epoch,
            stop=self.stop,
        )

    def _close(self, state: TrainState, hooks: loop.Hooks) -> None:
        """The figures and texts of a run that is finished."""
        logger, step = self.logger, self.progress.step
        if self.run.intervals.generate:
            hooks.generate(state, step)
        with self.stop.interruptible("evaluating"):
            summary = report.make(
                self.config,
                self.prepared,
                self.system,
                self._scorer,
                state.evaluation_params,
                self.progress,
            )
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


def _compile(config: Config, system: System, run: Run) -> Any:
    batch = synthetic(
        config.train.batch_size,
        config.data.sequence_length,
        document_mask=config.data.document_mask,
    )
    return run.step.compile(run.state_maker.abstract(), batch, system.mesh)


@contextlib.contextmanager
def _memory_explained(
    config: Config, system: System, prepared: Prepared, what: str
) -> Iterator[None]:
    """Turns an error for want of memory into advice; every other one passes through.

    Args:
      what: is done meanwhile, such as "compiling the training step".
    """
    try:
        yield
    except (jax.errors.JaxRuntimeError, MemoryError) as error:
        if not memory.is_out_of_memory(error):
            raise
        raise _less_memory(config, system, prepared, what) from error


def _less_memory(
    config: Config, system: System, prepared: Prepared, what: str
) -> UserError:
    """What would fit the devices, by the compiler's own figures."""

    def measure(remat: Remat, microbatch_size: int) -> int:
        train = dataclasses.replace(
            config.train, microbatch_size=microbatch_size, remat=remat
        )
        changed = dataclasses.replace(config, train=train)
        system = experiment.build_system(changed, prepared.tokenizer, prepared=prepared)
        run = training_run.build_run(changed, system, prepared)
        return memory.program_bytes(_compile(changed, system, run))

    device = system.mesh.devices.flat[0]
    return memory.advice(
        what,
        functools.partial(measure, config.train.remat),
        batch_size=config.train.batch_size,
        microbatch_size=config.train.microbatch_size,
        limit_bytes=memory.device_bytes(device),
        multiple=system.mesh.shape["data"] * system.mesh.shape["fsdp"],
        others={
            f"--config.train.remat={remat.value}": functools.partial(measure, remat)
            for remat in (Remat.DOTS, Remat.FULL)
            if config.train.remat not in (remat, Remat.FULL)
        },
        where=f"{device.device_kind}, {system.mesh.size} of them",
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
