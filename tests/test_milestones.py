"""Milestones of a whole run: interruptions change neither ledger nor weights."""

import dataclasses
import json
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from lmjax import experiment, modes, training_run
from lmjax.config import load
from lmjax.config.presets import OBJECTIVES
from lmjax.config.schema import (
    CheckpointConfig,
    Config,
    DataConfig,
    EvaluateConfig,
    GenerateConfig,
    LogConfig,
    ModelConfig,
    OptimConfig,
    TokenizerConfig,
    TrainConfig,
)
from lmjax.core import trees
from lmjax.core.errors import ConfigError
from lmjax.data.batch import Batch
from lmjax.data.sample import corpus as sample_corpus
from lmjax.modes import fitting
from lmjax.run_folder import MILESTONES, RunFolder, weights_of
from lmjax.train.milestones import read_ledger

pytestmark = pytest.mark.usefixtures("one_device")

EVERY = 250  # words; about two steps


class Killed(BaseException):
    """Stands for a process that ends without a word."""


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("corpus")
    sample_corpus.write_corpus(folder / "text.train", seed=0, num_words=1500)
    return folder


def _config(corpus: Path, **changes: Any) -> Config:
    config = Config(
        tokenizer=TokenizerConfig(vocab_size=300),
        data=DataConfig(
            train=(str(corpus),),
            sequence_length=16,
            valid_fraction=0.1,
            cache_dir=str(corpus.parent / "cache"),
        ),
        model=ModelConfig(
            num_layers=1, width=16, num_heads=2, mlp_width=32, max_length=16
        ),
        objective=OBJECTIVES["ar"](),
        optim=OptimConfig(learning_rate=1e-2, ema_decay=0.9),
        train=TrainConfig(budget="3000 words", batch_size=32),
        checkpoint=CheckpointConfig(
            every="5 steps", milestones=(f"every {EVERY} words",)
        ),
        evaluate=EvaluateConfig(every="0", batches=1),
        generate=GenerateConfig(every="0"),
        log=LogConfig(every="1 steps", tensorboard=False),
    )
    for name, value in changes.items():
        section, field = name.split("__")
        setattr(getattr(config, section), field, value)
    return config


@pytest.fixture(scope="module")
def whole(corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("whole") / "run"
    modes.train(_config(corpus), run)
    return run


def _stop_at(patch: pytest.MonkeyPatch, number: int, kill: bool) -> None:
    """Ends a start of the run when its batch of this number is fetched."""
    batches = training_run.train_batches

    def stopped(*arguments: Any) -> Iterator[Batch]:
        for index, batch in enumerate(batches(*arguments), start=1):
            if index == number and kill:
                raise Killed
            if index == number:
                signal.raise_signal(signal.SIGTERM)
            yield batch

    patch.setattr(training_run, "train_batches", stopped)


def _weights(config: Config, run: Path) -> dict[str, dict[str, np.ndarray]]:
    """Every milestone's arrays by path."""
    prepared = experiment.prepare_corpus(config)
    system = experiment.build_system(config, prepared.tokenizer)
    found = {}
    for saved in weights_of(run):
        config.checkpoint.resume = saved.path.name
        with RunFolder.read(run, config) as folder:
            arrays: dict[str, np.ndarray] = {}
            trees.map_named(
                lambda name, leaf, arrays=arrays: arrays.update(
                    {name: np.asarray(leaf)}
                ),
                folder.restore_params(system),
            )
        found[saved.path.name] = arrays
    return found


def _metrics(run: Path) -> list[dict[str, Any]]:
    lines = map(json.loads, (run / "metrics.jsonl").read_text().splitlines())
    return [line for line in lines if line["split"] == "train"]


def test_a_run_stops_before_it_sees_more_words_than_it_may(
    whole: Path, corpus: Path
) -> None:
    seen = [line["words_seen"] for line in _metrics(whole)]
    assert seen[-1] <= 3000
    assert 3000 - seen[-1] < max(np.diff([0, *seen]))
    report = json.loads((whole / "report.json").read_text())
    assert report["words_seen"] == seen[-1]


def test_a_milestone_is_the_first_step_that_reaches_its_words(whole: Path) -> None:
    seen = {line["step"]: line["words_seen"] for line in _metrics(whole)}
    ledger = read_ledger(whole / MILESTONES)
    reached = [entry for entry in ledger if entry["overshoot"] >= 0]
    assert len(reached) >= 10
    for entry in reached:
        step = entry["step"]
        assert seen.get(step - 1, 0) < entry["milestone"] <= seen[step]
        assert entry["words"] == seen[step]
        assert entry["overshoot"] == seen[step] - entry["milestone"]
    assert [e["milestone"] for e in ledger] == list(range(EVERY, 3001, EVERY))
    assert ledger[-1]["words"] == seen[max(seen)], "the last one is the end of the run"


def test_interruptions_change_neither_ledger_nor_weights(
    whole: Path, corpus: Path, tmp_path: Path
) -> None:
    """Five ends at random places, of which some leave nothing saved."""
    config, run = _config(corpus), tmp_path / "run"
    rng = np.random.default_rng(5)
    for number in range(5):
        kill = bool(number % 2)
        with pytest.MonkeyPatch.context() as patch:
            _stop_at(patch, int(rng.integers(2, 7)), kill)
            if kill:
                with pytest.raises(Killed):
                    modes.train(config, run)
            else:
                modes.train(config, run)
        assert not (run / "report.json").exists()
    modes.train(config, run)
    ledger = (run / MILESTONES / "ledger.json").read_bytes()
    assert ledger == (whole / MILESTONES / "ledger.json").read_bytes()
    expected, found = _weights(_config(corpus), whole), _weights(config, run)
    assert len(found) == 12 and found.keys() == expected.keys()
    jax.tree.map(np.testing.assert_array_equal, found, expected)
    assert _metrics(run)[-1] == _metrics(whole)[-1]


def test_a_finished_run_that_is_run_again_keeps_its_ledger(
    whole: Path, corpus: Path
) -> None:
    before = (whole / MILESTONES / "ledger.json").read_bytes()
    modes.train(_config(corpus), whole)
    assert (whole / MILESTONES / "ledger.json").read_bytes() == before


def test_a_run_can_begin_with_the_weights_of_a_milestone(
    whole: Path, corpus: Path, tmp_path: Path
) -> None:
    start = whole / MILESTONES / f"chck_{EVERY}"
    config = _config(corpus, checkpoint__init_from=str(start), train__budget="1 steps")
    config.checkpoint.milestones = ("1 words",)
    config.optim.learning_rate = config.optim.min_learning_rate = 1e-12
    config.optim.ema_decay = 0.0
    modes.train(config, tmp_path / "run")
    begun = _weights(config, tmp_path / "run")["chck_1"]
    expected = _weights(_config(corpus), whole)[start.name]
    for name, leaf in expected.items():
        np.testing.assert_allclose(begun[name], leaf, rtol=1e-5, atol=1e-9)


def test_weights_of_another_model_or_tokenizer_are_refused(
    whole: Path, corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At once, and not after minutes of compiling."""
    monkeypatch.setattr(fitting, "compile_step", lambda *_: pytest.fail("compiled"))
    for changes, told in (
        ({"model__mlp_width": 64}, "another model"),
        ({"tokenizer__vocab_size": 310}, "another tokenizer"),
    ):
        config = _config(corpus, checkpoint__init_from=str(whole), **changes)
        with pytest.raises(ConfigError, match=told):
            modes.train(config, tmp_path / "run")
    config = _config(corpus, checkpoint__init_from=str(tmp_path))
    with pytest.raises(ConfigError, match="no weights to begin with"):
        modes.train(config, tmp_path / "run")


def test_a_milestone_is_read_by_its_name_and_not_gone_on_from(
    whole: Path, corpus: Path
) -> None:
    config = _config(corpus)
    config.checkpoint.resume = f"chck_{2 * EVERY}"
    with RunFolder.read(whole, config) as folder:
        entry = read_ledger(whole / MILESTONES)[1]
        assert folder.counts().words == entry["words"]
        assert folder.label == entry["name"]
    with pytest.raises(ConfigError, match="no run goes on from it"):
        modes.train(config, whole)
    config.checkpoint.resume = "chck_3"
    with pytest.raises(ConfigError, match="no such checkpoint") as error:
        RunFolder.read(whole, config)
    assert f"chck_{EVERY}" in error.value.remedy


def test_more_text_than_a_track_allows_is_refused(corpus: Path, tmp_path: Path) -> None:
    config = _config(corpus, data__max_words=500)
    with pytest.raises(ConfigError, match="500 are allowed"):
        modes.train(config, tmp_path / "run")


def test_a_longer_budget_needs_a_word_on_the_learning_rate(
    corpus: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    short = _config(corpus, train__budget="6 steps")
    short.checkpoint.milestones = ()
    modes.train(short, run)
    longer = dataclasses.replace(
        short, train=dataclasses.replace(short.train, budget="12 steps")
    )
    with pytest.raises(ConfigError, match="learning rate would jump") as error:
        modes.train(longer, run)
    assert "rewarm" in error.value.remedy
    saved = json.loads((run / "config.json").read_text())
    assert saved["train"]["budget"] == "6 steps", "what was refused left no trace"
    longer.optim.on_extend = type(longer.optim.on_extend).HOLD
    with pytest.MonkeyPatch.context() as patch:
        _stop_at(patch, 3, kill=False)
        modes.train(longer, run)
    modes.train(longer, run)  # the second start knows of both lengths
    rates = [line["learning_rate"] for line in _metrics(run)]
    assert rates[6:] == [pytest.approx(3e-5)] * 6


def test_a_run_that_began_at_a_step_goes_on_from_its_end(
    corpus: Path, tmp_path: Path
) -> None:
    """The step that one start was told to begin with is not that of the next."""
    run = tmp_path / "run"
    config = _config(corpus, train__budget="12 steps")
    config.checkpoint.keep = 5
    modes.train(config, run)
    ledger = (run / MILESTONES / "ledger.json").read_bytes()
    config.checkpoint.resume = "5"
    with pytest.MonkeyPatch.context() as patch:
        _stop_at(patch, 4, kill=False)
        modes.train(config, run)
    again = load.load_config(str(run / "config.json"))
    assert again.checkpoint.resume == "latest"
    with RunFolder.read(run, again) as folder:
        assert folder.counts().step == 8 and folder.label == "main"
    again.checkpoint.resume = "5"
    with RunFolder.read(run, again) as folder:
        assert folder.label == "step_5"
    modes.train(load.load_config(str(run / "config.json")), run)
    assert (run / MILESTONES / "ledger.json").read_bytes() == ledger


def test_milestones_without_their_checkpoints_are_not_written_over(
    whole: Path, corpus: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    shutil.copytree(whole, run)
    shutil.rmtree(run / "checkpoints")
    with pytest.raises(ConfigError, match="milestones stand"):
        modes.train(_config(corpus), run)
    with pytest.raises(ConfigError, match=r"another run: model\.width"):
        modes.train(_config(corpus, model__width=32), run)
    assert (run / MILESTONES / f"chck_{EVERY}").is_dir()
    (run / MILESTONES / "chck_9.orbax-checkpoint-tmp-1" / "meta").mkdir(parents=True)
    (run / MILESTONES / "chck_9.orbax-checkpoint-tmp-1" / "params").mkdir()
    assert len(weights_of(run)) == 12
