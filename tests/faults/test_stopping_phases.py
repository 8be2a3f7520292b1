"""A request to stop in each phase of a run: saved, told, and the same in the end.

In process, with a signal raised in the middle of the phase; what the command line makes
of it is shown in processes of its own.
"""

import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import pytest

from benchmarks.faults import content, differences
from lmjax import experiment, modes, report, training_run
from lmjax.config import serialize
from lmjax.config.schema import (
    Config,
    EvaluateConfig,
    GenerateConfig,
    OptimConfig,
)
from lmjax.data.sample import corpus as sample_corpus
from lmjax.evaluate.likelihood import Scorer
from lmjax.modes import fitting, training
from lmjax.run_folder import RunFolder
from lmjax.sampling.prompts import Generator
from lmjax.train.stopping import Stopped
from tests import children
from tests.faults.small_runs import small_config

STEPS = 8

pytestmark = pytest.mark.usefixtures("one_device")


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("corpus") / "text.train"
    sample_corpus.write_corpus(path, seed=0, num_words=1500)
    return path


def _config(corpus: Path) -> Config:
    config = small_config(corpus, budget=f"{STEPS} steps")
    config.optim = OptimConfig(learning_rate=1e-2, ema_decay=0.9)
    config.checkpoint.every, config.checkpoint.milestones = "3 steps", ("200 words",)
    config.evaluate = EvaluateConfig(every="4 steps", batches=2)
    config.generate = GenerateConfig(every="5 steps", max_new_tokens=4, num_samples=1)
    return config


@pytest.fixture(scope="module")
def whole(corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("whole") / "run"
    modes.train(_config(corpus), run)
    return run


def _signalled(holder: Any, name: str) -> Callable[..., Any]:
    """A function as it is, but a signal comes in the middle of its first call."""
    original, calls = getattr(holder, name), iter(range(1000))

    def signalled(*args: Any, **options: Any) -> Any:
        if next(calls) == 0:
            signal.raise_signal(signal.SIGTERM)
        return original(*args, **options)

    return signalled


def _batches(number: int) -> Callable[..., Iterator[Any]]:
    """Training batches; a signal comes while one is waited for."""
    original = training_run.train_batches

    def signalled(*arguments: Any) -> Iterator[Any]:
        for index, batch in enumerate(original(*arguments), start=1):
            if index == number:
                signal.raise_signal(signal.SIGTERM)
            yield batch

    return signalled


# What is patched in each phase, as they follow each other, and what log.txt says of it.
PHASES = {
    "preparing": (experiment, "prepare", None),
    "building the model": (experiment, "build_mesh", None),
    "compiling": (fitting, "compile_step", "before the first step"),
    "saving": (RunFolder, "save", "after step 3"),
    "evaluating": (Scorer, "evaluate", "after step 4"),
    "sampling": (Generator, "__call__", "after step 5"),
    "waiting for data": (training_run, "train_batches", "after step 7"),
    "the last samples": (Generator, "__call__", "while sampling; the run is trained"),
    "the report": (report, "make", "while evaluating; the run is trained and saved"),
}


def test_a_run_that_is_stopped_in_every_phase_ends_as_one_that_was_not(
    corpus: Path, whole: Path, tmp_path: Path
) -> None:
    """Each start is stopped in the next phase, and the last one is not."""
    run = tmp_path / "run"
    for phase, (holder, name, told) in PHASES.items():
        with pytest.MonkeyPatch.context() as patch:
            signalled = _signalled(holder, name)
            if phase == "waiting for data":
                signalled = _batches(3)  # of this start, which goes on at step 6
            patch.setattr(holder, name, signalled)
            if told is None:
                with pytest.raises(Stopped, match="SIGTERM while"):
                    modes.train(_config(corpus), run)
            else:
                modes.train(_config(corpus), run)
                lines = (run / "log.txt").read_text().splitlines()
                assert f"stopped by SIGTERM {told}" in "\n".join(lines[-3:]), phase
                assert f"--workdir {run}" in lines[-1], phase
        assert not (run / "report.json").exists(), phase
    modes.train(_config(corpus), run)
    assert differences(content(whole), content(run)) == []


# Between open() and its with, an interruption leaves the file to the garbage collector.
@pytest.mark.filterwarnings("ignore:unclosed file:ResourceWarning")
def test_a_deadline_saves_in_time(corpus: Path, whole: Path, tmp_path: Path) -> None:
    """The deadline passes at once: nothing is interrupted that has to be finished."""
    run = tmp_path / "run"
    config = _config(corpus)
    config.train.stop_after = "0.001 seconds"
    with pytest.raises(Stopped, match=r"train\.stop_after=0\.001 seconds while prep"):
        modes.train(config, run)
    # It passes in the fifth step.
    config.train.stop_after = "1000 seconds"
    with pytest.MonkeyPatch.context() as patch:
        original = training_run.train_batches

        def late(*arguments: Any) -> Iterator[Any]:
            for index, batch in enumerate(original(*arguments), start=1):
                if index == 6:
                    timers[-1].function(*timers[-1].args)
                yield batch

        timers: list[Any] = []
        make = training.StopSignal

        def remember(*arguments: Any) -> Any:
            stop = make(*arguments)
            timers.append(stop._deadline)
            return stop

        patch.setattr(training, "StopSignal", remember)
        patch.setattr(training_run, "train_batches", late)
        modes.train(config, run)
    log = (run / "log.txt").read_text()
    assert (
        "stopped by train.stop_after=1000 seconds after step 5, which is saved" in log
    )
    modes.train(_config(corpus), run)
    assert differences(content(whole), content(run)) == []


def test_a_clock_that_is_set_back_changes_nothing(
    corpus: Path, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, times = tmp_path / "run", iter(range(10**9, 0, -3600))
    monkeypatch.setattr(time, "time", lambda: float(next(times)))
    modes.train(_config(corpus), run)
    assert differences(content(whole), content(run)) == []


def _start(corpus: Path, run: Path, *flags: str) -> "subprocess.Popen[str]":
    config, cache = run.parent / "config.json", jax.config.jax_compilation_cache_dir
    serialize.save(_config(corpus), config)
    command = [sys.executable, "-m", "lmjax.main", "--config", str(config)]
    command += ["--workdir", str(run), f"--compilation_cache={cache}"]
    return subprocess.Popen(
        [*command, *flags],
        stderr=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        text=True,
        env=children.environment(),
    )


def _wait_for(process: "subprocess.Popen[str]", told: str) -> None:
    seen = ""
    for line in process.stderr:
        seen += line
        if told in line:
            return
    raise AssertionError(seen)


def test_the_command_line_says_how_to_go_on_and_ends_well(
    corpus: Path, tmp_path: Path
) -> None:
    """After SIGTERM while it prepares, and Slurm's SIGUSR1 while it trains."""
    run = tmp_path / "run"
    flags = (
        f"--config.data.cache_dir={tmp_path / 'cache'}",
        "--config.train.budget=1B steps",
    )
    process = _start(corpus, run, *flags)
    _wait_for(process, "Training a tokenizer")
    process.send_signal(signal.SIGTERM)
    told = process.communicate(timeout=120)[1]
    assert process.returncode == 0, told
    assert "stopped by SIGTERM while preparing the corpus" in told
    again = (
        f"resume with: python -m lmjax.main --config {tmp_path}/config.json --workdir"
    )
    assert again in told

    process = _start(corpus, run, *flags)
    _wait_for(process, "step 5/")
    process.send_signal(signal.SIGUSR1)
    told = process.communicate(timeout=120)[1]
    assert process.returncode == 0, told
    assert "stopped by SIGUSR1 after step" in told and f"--workdir {run}" in told
    lines = (run / "metrics.jsonl").read_text().splitlines()
    assert json.loads(lines[-1])["step"] >= 5
