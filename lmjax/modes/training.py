"""Modes train and plan: one start of a run, or what it would be."""

import pathlib
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax

from lmjax import experiment, plan, report, training_run
from lmjax.config import serialize
from lmjax.config.schema import Config
from lmjax.core import rng
from lmjax.data.batch import synthetic
from lmjax.data.preparation.manifest import Prepared
from lmjax.doctor import flops, memory
from lmjax.evaluate.likelihood import Scorer
from lmjax.experiment import System
from lmjax.modes.generation import build_generator, check_prompts
from lmjax.run_folder import RunFolder
from lmjax.starting_weights import begin_with
from lmjax.train import loop
from lmjax.train.clock import Clock
from lmjax.train.loggers import RunLogger
from lmjax.train.milestones import name_of
from lmjax.train.progress import Progress
from lmjax.train.state import TrainState
from lmjax.train.stopping import StopSignal
from lmjax.training_run import Run


def plan_only(config: Config, workdir: pathlib.Path) -> None:
    """Shows what a training run would do, compiled but not started."""
    prepared = experiment.prepare_corpus(config)
    system = experiment.build_system(config, prepared.tokenizer, prepared=prepared)
    run = training_run.build_run(config, system, prepared)
    abstract = run.state_maker.abstract()
    compiled = _compile(config, system, run, abstract)
    for line in _plan(config, system, run, prepared, compiled, start_step=0):
        print(line)
    print(f"run folder: {workdir} (nothing was written)")


def train(config: Config, workdir: pathlib.Path) -> None:
    """Prepares, trains, evaluates and samples; goes on where the run folder stands."""
    prepared = experiment.prepare_corpus(config)
    system = experiment.build_system(config, prepared.tokenizer, prepared=prepared)
    with RunFolder.open(workdir, config, prepared) as folder, StopSignal() as stop:
        progress = folder.progress()
        progress.set_length(training_run.run_scale(config, prepared).total_steps)
        run = training_run.build_run(config, system, prepared, progress.lengths)
        if run.intervals.generate:
            check_prompts(config, system)
        folder.begin()
        with RunLogger(
            workdir,
            config.log,
            total_steps=run.intervals.total,
            start_step=folder.start_step,
            writes=jax.process_index() == 0,
        ) as logger:
            _train(config, folder, prepared, system, run, progress, logger, stop)


def _train(
    config: Config,
    folder: RunFolder,
    prepared: Prepared,
    system: System,
    run: Run,
    progress: Progress,
    logger: RunLogger,
    stop: StopSignal,
) -> None:
    """One start of a training run: from the last checkpoint to the end, or a signal."""
    maker, start = run.state_maker, folder.start_step
    abstract = maker.abstract()
    compiled = _compile(config, system, run, abstract)
    lines = _plan(config, system, run, prepared, compiled, start_step=start)
    for line in (f"run folder  {folder.path}", *lines):
        logger.line(line)
    logger.text(start, "config", serialize.to_json(config))
    logger.text(start, "plan", "\n".join(lines))
    if start:
        state = folder.restore(abstract)
    else:
        state = maker.make(rng.stream(config.seed, "init"))
        if config.checkpoint.init_from:
            state = begin_with(state, config, system)
    kept = folder.open_milestones(run.intervals.milestones)
    clock = Clock(
        total_steps=run.intervals.total,
        flops_per_token=plan.training_flops_per_token(config, system),
        peak_flops=_peak(system),
    )
    began, seconds_before = time.perf_counter(), progress.seconds

    def count_seconds() -> None:
        progress.seconds = seconds_before + time.perf_counter() - began

    def keep(state: TrainState, reached: Sequence[int], progress: Progress) -> None:
        count_seconds()
        kept.write(state.evaluation_params, reached, progress)

    def save(state: TrainState, progress: Progress) -> None:
        count_seconds()
        # A run that goes on from here must find the milestones that lie behind it.
        kept.wait()
        folder.save(state, progress)

    scorer = Scorer(system.model.bind, system.objective, system.mesh)
    hooks = _hooks(config, prepared, system, scorer, logger, save, keep)
    state, finished = loop.train(
        state=state,
        progress=progress,
        step=compiled,
        batches=training_run.train_batches(config, prepared, start),
        mesh=system.mesh,
        intervals=run.intervals,
        hooks=hooks,
        logger=logger,
        clock=clock,
        steps_per_epoch=run.scale.steps_per_epoch,
        stop=stop,
    )
    if finished:
        kept.finish(state.evaluation_params, progress, run.intervals.max_words)
    save(state, progress)
    folder.wait()
    kept.close()
    again = f"python -m lmjax.main --workdir {folder.path}"
    if not finished:
        logger.line(
            f"stopped by {stop.name} after step {progress.step:,}, which is saved; "
            f"resume with: {again}"
        )
        return
    if run.intervals.generate:
        hooks.generate(state, progress.step)
    params = state.evaluation_params
    summary = report.make(config, prepared, system, scorer, params, progress)
    logger.metrics(progress.step, "final", report.scalars(summary))
    for line in report.table(summary).splitlines():
        logger.line(line)
    logger.line(f"report: {report.write(summary, folder.path)}")
    logger.line(
        f'write with it: {again} --mode generate --config.generate.prompts="..."'
    )


def _hooks(
    config: Config,
    prepared: Prepared,
    system: System,
    scorer: Scorer,
    logger: RunLogger,
    save: Callable[[TrainState, Progress], None],
    keep: Callable[[TrainState, tuple[int, ...], Progress], None],
) -> loop.Hooks:
    """Evaluation, sampling and saving at intervals, and weights at milestones."""
    generator = build_generator(config, system)

    def evaluate(state: TrainState, step: int) -> dict[str, float]:
        batches = training_run.eval_batches(config, prepared, config.evaluate.batches)
        total = scorer.evaluate(state.evaluation_params, batches, draws=1)[-1]
        logger.line(
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

    def generate(state: TrainState, step: int) -> None:
        samples = generator(
            state.evaluation_params,
            rng.stream(config.seed, "generate", step),
            config.generate.prompts,
            num_samples=config.generate.num_samples,
            max_new_tokens=config.generate.max_new_tokens,
        )
        logger.line(f"step {step:,} samples:")
        for sample in samples:
            logger.sample(step, sample.prompt, sample.text)
        texts = "\n\n---\n\n".join(sample.text for sample in samples)
        logger.text(step, "samples", texts)

    def milestone(
        state: TrainState, reached: tuple[int, ...], progress: Progress
    ) -> None:
        keep(state, reached, progress)
        logger.line(
            f"step {progress.step:,} milestone {', '.join(map(name_of, reached))}: "
            f"{progress.words:,} words seen"
        )

    return loop.Hooks(
        evaluate=evaluate, generate=generate, save=save, milestone=milestone
    )


def _compile(config: Config, system: System, run: Run, abstract: TrainState) -> Any:
    batch = synthetic(
        config.train.batch_size,
        config.data.sequence_length,
        document_mask=config.data.document_mask,
    )
    return run.step.compile(abstract, batch, system.mesh)


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
