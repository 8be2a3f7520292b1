"""A whole run one of whose batches is bad, and one that is bad from there on."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lmjax import modes, training_run
from lmjax.config.schema import (
    AutoregressiveConfig,
    CheckpointConfig,
    Config,
    DataConfig,
    EvaluateConfig,
    GenerateConfig,
    LogConfig,
    ModelConfig,
    Precision,
    TokenizerConfig,
    TrainConfig,
)
from lmjax.core.errors import UserError
from lmjax.data.batch import Batch
from lmjax.data.sample import corpus as sample_corpus
from lmjax.train.checkpoints import Checkpoints, on_first_device
from lmjax.train.guard import FIRST_SCALE
from lmjax.train.step import TrainStep
from tests.faults.faulty import NAN, STEEP, Faulty

pytestmark = pytest.mark.usefixtures("one_device")

STEPS = 8


def _config(folder: Path) -> Config:
    corpus = folder / "text.train"
    if not corpus.exists():
        sample_corpus.write_corpus(corpus, seed=0, num_words=900)
    return Config(
        tokenizer=TokenizerConfig(vocab_size=300),
        data=DataConfig(
            train=(str(corpus),),
            valid_fraction=0.2,
            sequence_length=16,
            cache_dir=str(folder / "cache"),
        ),
        model=ModelConfig(
            num_layers=2, width=16, num_heads=2, mlp_width=32, max_length=32
        ),
        objective=AutoregressiveConfig(),
        train=TrainConfig(
            budget=f"{STEPS} steps",
            batch_size=8,
            max_bad_steps=3,
            precision=Precision.FLOAT16,
            spike_deviations=6.0,
            spike_window=3,
        ),
        checkpoint=CheckpointConfig(every="1 steps"),
        evaluate=EvaluateConfig(every="0", batches=1),
        generate=GenerateConfig(every="0"),
        log=LogConfig(every="2 steps", tensorboard=False),
    )


@pytest.fixture
def faults(monkeypatch: pytest.MonkeyPatch) -> dict[int, int]:
    """Faults of the runs that follow, by the number of the batch."""
    faults: dict[int, int] = {}
    batches = training_run.train_batches

    def spoiled(config: Config, prepared: Any, start_step: int) -> Iterator[Batch]:
        given = batches(config, prepared, start_step)
        for number, batch in enumerate(given, start=start_step):
            batch.source[:1] = faults.get(number, 0)
            yield batch

    def faulty_step(*, objective: Any, **keywords: Any) -> TrainStep:
        return TrainStep(objective=Faulty(objective), **keywords)

    monkeypatch.setattr(training_run, "train_batches", spoiled)
    monkeypatch.setattr(training_run, "TrainStep", faulty_step)
    return faults


def test_a_bad_batch_is_told_and_the_run_ends_well(
    tmp_path: Path, faults: dict[int, int]
) -> None:
    faults[3] = NAN
    run = tmp_path / "run"
    modes.train(_config(tmp_path), run)
    log = (run / "log.txt").read_text()
    assert (
        "step 4 skipped (batch 3): the loss is nan, though all parameters are finite"
    ) in log
    assert log.count("skipped (batch") == 1
    report = json.loads((run / "report.json").read_text())
    assert report["steps"] == STEPS
    lines = (run / "metrics.jsonl").read_text().splitlines()
    losses = [each["loss"] for each in map(json.loads, lines) if "loss" in each]
    assert np.isfinite(losses).all()


def test_a_run_that_stays_bad_ends_and_can_go_on_in_another_precision(
    tmp_path: Path, faults: dict[int, int]
) -> None:
    faults.update({4: STEEP, 5: NAN, 6: STEEP, 7: STEEP})
    run, config = tmp_path / "run", _config(tmp_path)
    config.train.precision = Precision.FLOAT32
    with pytest.raises(UserError, match="3 updates in a row were skipped") as error:
        modes.train(config, run)
    assert "the gradient of blocks/mlp/up/kernel[1] is not finite" in str(error.value)
    faults.clear()
    config = _config(tmp_path)  # float16: what the guard remembers has other parts
    config.train.spike_deviations = 0.0
    modes.train(config, run)
    assert json.loads((run / "report.json").read_text())["steps"] == STEPS
    memory = _saved_memory(run)
    assert float(memory["scale"]) == FIRST_SCALE
    assert int(memory["skipped"]) >= 2
    assert not memory["losses"]


def _saved_memory(run: Path) -> Any:
    checkpoints = Checkpoints(run / "checkpoints", read_only=True)
    tree = on_first_device(checkpoints.saved_tree(STEPS))
    memory = checkpoints.restore(STEPS, tree)["guard"]
    checkpoints.close()
    return memory
