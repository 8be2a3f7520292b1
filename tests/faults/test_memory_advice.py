"""A device that runs out of memory: the run says what would fit, and that does."""

from pathlib import Path
from typing import Any

import jax
import pytest

from lmjax import modes
from lmjax.config.schema import Config, ParallelConfig
from lmjax.core.errors import UserError
from lmjax.data.sample import corpus as sample_corpus
from lmjax.doctor import memory
from lmjax.modes import training
from lmjax.train import loop
from tests.faults.small_runs import small_config

OUT = jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 9 bytes")


@pytest.fixture
def config(tmp_path: Path) -> Config:
    text = tmp_path / "text.train"
    sample_corpus.write_corpus(text, seed=0, num_words=900)
    config = small_config(text, budget="2 steps", batch_size=32)
    config.parallel = ParallelConfig(data=4, fsdp=2)
    return config


def _fails(*_: Any, **__: Any) -> Any:
    raise OUT


@pytest.mark.parametrize(
    ("holder", "name", "doing"),
    [(loop, "train", "training"), (training, "_compile", "compiling the training")],
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
    needs = {32: 4_000_000, 16: 2_500_000, 8: 1_500_000}
    monkeypatch.setattr(memory, "device_bytes", lambda device: 2_000_000)
    with pytest.MonkeyPatch.context() as patch:
        compile_step = training._compile
        calls = []

        def compiled(config: Config, *arguments: Any) -> Any:
            calls.append(config.train.microbatch_size or config.train.batch_size)
            if name == "_compile" and len(calls) == 1:
                raise OUT
            return calls[-1] if len(calls) > 1 else compile_step(config, *arguments)

        patch.setattr(training, "_compile", compiled)
        patch.setattr(memory, "program_bytes", lambda made: needs.get(made, 3_000_000))
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
