"""A device that runs out of memory: the run says what would fit, and that does."""

import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import pytest

from lmjax import modes, training_run
from lmjax.config.schema import Config, ParallelConfig
from lmjax.core.errors import UserError
from lmjax.data.sample import corpus as sample_corpus
from lmjax.doctor import memory
from lmjax.experiment import System
from lmjax.modes import fitting
from lmjax.train import loop
from lmjax.training_run import Run
from lmjax.training_run import train_batches as training_batches
from tests.conftest import devices_of_runs
from tests.faults.small_runs import small_config

# Bytes by microbatch.
NEEDS = {32: 4_000_000, 16: 2_500_000, 8: 1_500_000}
OUT = jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 9 bytes")


@pytest.fixture
def config(tmp_path: Path) -> Iterator[Config]:
    text = tmp_path / "text.train"
    sample_corpus.write_corpus(text, seed=0, num_words=900)
    config = small_config(text, budget="2 steps", batch_size=32)
    config.parallel = ParallelConfig(data=1, fsdp=2)
    with devices_of_runs(2):
        yield config


def _one_batch(*arguments: Any) -> Iterator[Any]:
    """Training batches; a signal comes while the second is waited for."""
    for number, batch in enumerate(training_batches(*arguments), start=1):
        if number == 2:
            signal.raise_signal(signal.SIGTERM)
        yield batch


def _fails(*_: Any, **__: Any) -> Any:
    raise OUT


@pytest.mark.parametrize(
    ("holder", "name", "doing"),
    [
        (loop, "train", "training"),
        (fitting, "compile_step", "compiling the training"),
    ],
)
def test_the_advice_is_what_the_compiler_says(
    holder: Any,
    name: str,
    doing: str,
    config: Config,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Two microbatches of 16, or of 8; all in one needs more than there is."""
    config.train.microbatch_size = 32
    monkeypatch.setattr(memory, "device_bytes", lambda device: 2_000_000)
    with pytest.MonkeyPatch.context() as patch:
        compile_step = fitting.compile_step
        calls = []

        def compiled(config: Config, *arguments: Any) -> Any:
            calls.append(config.train.microbatch_size)
            if name == "compile_step" and len(calls) == 1:
                raise OUT
            return calls[-1] if len(calls) > 1 else compile_step(config, *arguments)

        patch.setattr(fitting, "compile_step", compiled)
        patch.setattr(memory, "program_bytes", lambda made: NEEDS.get(made, 3_000_000))
        if name == "train":
            patch.setattr(loop, "train", _fails)
        with pytest.raises(UserError) as error:
            modes.train(config, tmp_path / "run")
    assert error.value.what.startswith(f"out of memory while {doing}")
    assert "4.0 MB of 2.0 MB per device" in error.value.what
    assert error.value.remedy == "add --config.train.microbatch_size=8 (1.5 MB)"
    config.train.microbatch_size = 8
    modes.train(config, tmp_path / "run")
    assert (tmp_path / "run" / "report.json").exists()


def test_other_errors_of_the_runtime_are_left_as_they_are(
    config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(**_: Any) -> Any:
        raise jax.errors.JaxRuntimeError("INTERNAL: something else")

    monkeypatch.setattr(loop, "train", fails)
    with pytest.raises(jax.errors.JaxRuntimeError, match="something else"):
        modes.train(config, tmp_path / "run")


def test_a_run_takes_the_largest_microbatch_that_fits_and_keeps_it(
    config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of 32 the compiler wants too much, of 16 it refuses, 8 fits."""
    config.log.every = "1 steps"
    limit, compile_step, tried = [2_000_000], fitting.compile_step, []

    def compiled(config: Config, system: System, run: Run) -> Any:
        tried.append(32 // run.num_microbatches)
        if tried[-1] == 16:
            raise OUT
        return 32 if tried[-1] == 32 else compile_step(config, system, run)

    monkeypatch.setattr(memory, "device_bytes", lambda device: limit[0])
    monkeypatch.setattr(memory, "program_bytes", lambda made: NEEDS.get(made, 1))
    monkeypatch.setattr(fitting, "compile_step", compiled)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(training_run, "train_batches", _one_batch)
        modes.train(config, tmp_path / "run")
    log = (tmp_path / "run" / "log.txt").read_text()
    assert tried == [32, 16, 8]
    assert "in 4 pass(es) of 8, the most that fits 95% of 2.0 MB" in log
    # There is room now, but the same bits are wanted.
    limit[0] = 100_000_000
    modes.train(config, tmp_path / "run")
    assert tried == [32, 16, 8, 8]
    assert "of 8, as at the first start" in (tmp_path / "run" / "log.txt").read_text()


def test_nothing_that_fits_is_an_error_with_a_remedy(
    config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(memory, "device_bytes", lambda device: 1_000_000)
    monkeypatch.setattr(memory, "program_bytes", lambda made: 2_000_000)
    monkeypatch.setattr(fitting, "compile_step", lambda *_: 0)
    with pytest.raises(UserError, match=r"compiling.*2\.0 MB of 1\.0 MB") as error:
        modes.train(config, tmp_path / "run")
    assert "no smaller step fits" in error.value.remedy
