"""The main job end to end: raw text in; a trained, evaluated, sampled model out.

A tiny model on two small files, in process; only where signals and the exit status
matter in a process of its own. One objective has it all: two layers, eight devices and
a profile; the others differ in what is theirs.
"""

import dataclasses
import functools
import json
import math
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from lmjax import modes, training_run
from lmjax.config import checks, fields, load
from lmjax.config.presets import OBJECTIVES
from lmjax.config.schema import (
    AutoregressiveConfig,
    CheckpointConfig,
    Config,
    DataConfig,
    EvaluateConfig,
    GenerateConfig,
    LogConfig,
    ModelConfig,
    OptimConfig,
    Packing,
    TokenizerConfig,
    TrainConfig,
)
from lmjax.data.batch import Batch
from lmjax.data.sample import corpus as sample_corpus
from lmjax.train.checkpoints import Checkpoints, on_first_device
from lmjax.train.step import TrainStep
from tests import children
from tests.conftest import devices_of_runs

ROOT = Path(__file__).resolve().parents[1]
STEPS = 11
STOP_AFTER = 7  # in the middle of an interval of the log, with no checkpoint of its own
REPORT_FIELDS = {
    "params",
    "steps",
    "tokens_seen",
    "words_seen",
    "seconds",
    "spent",
    "tokens_per_second",
    "eval",
}
EVAL_FIELDS = {
    "kind",
    "nll_per_token",
    "perplexity",
    "bits_per_byte",
    "bits_per_word",
    "standard_error",
}


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("corpus")
    for seed, name in enumerate(("first.train", "second.train")):
        sample_corpus.write_corpus(folder / name, seed=seed, num_words=900)
    return folder


# What a run draws on: a mixture of documents that do not see each other, and windows of
# one document that overlap.
DATA = {
    "ar": {"document_mask": True, "bos": True, "weights": ("first=2",)},
    "diffusion": {
        "packing": Packing.DOCUMENTS,
        "stride": 8,
        "max_epochs": ("50",),
        "random_length": 0.3,
    },
    "uniform": {},
}
# What changes in the course of a run has to go on where it was.
OBJECTIVE = {
    "ar": {},
    "diffusion": {
        "objective.schedule": "bimodal_gaussian",
        "objective.weighting": "softened",
        "objective.frequency_masking": 0.5,
    },
    "uniform": {"model.backbone": "dit", "model.time_conditioning": True},
}


DEVICES = {"ar": 8, "diffusion": 2, "uniform": 1}


def _config(corpus: Path, objective: str) -> Config:
    """Microbatches, dropout and the moving average on."""
    config = Config(
        seed=3,
        tokenizer=TokenizerConfig(vocab_size=300),
        data=DataConfig(
            train=(str(corpus),),
            valid_fraction=0.2,
            sequence_length=16,
            cache_dir=str(corpus.parent / "cache"),
            **DATA[objective],
        ),
        model=ModelConfig(
            num_layers=2 if objective == "ar" else 1,
            width=16,
            num_heads=2,
            mlp_width=32,
            max_length=32,
            dropout=0.2,
        ),
        objective=OBJECTIVES[objective](),
        optim=OptimConfig(learning_rate=1e-2, warmup="2 steps", ema_decay=0.9),
        train=TrainConfig(budget=f"{STEPS} steps", batch_size=16, microbatch_size=8),
        checkpoint=CheckpointConfig(every="5 steps"),
        evaluate=EvaluateConfig(every="4 steps", batches=1, draws=2),
        generate=GenerateConfig(
            every="6 steps", prompts=("the dog",), max_new_tokens=4, steps=2
        ),
        log=LogConfig(every="3 steps", tensorboard=False),
    )
    if objective == "ar":
        config.log.profile = "steps 4-5"
    fields.assign(config, OBJECTIVE[objective])
    return config


@dataclasses.dataclass
class Traces:
    """How often the training step was compiled and traced."""

    compiled: int = 0
    traced: int = 0

    @classmethod
    def count(cls, monkeypatch: pytest.MonkeyPatch) -> "Traces":
        traces = cls()
        compile_step, call = TrainStep.compile, TrainStep.__call__

        def count_compile(step: TrainStep, *arguments: Any) -> Any:
            traces.compiled += 1
            return compile_step(step, *arguments)

        @functools.wraps(call)  # the program is named after it, and kept by its name
        def count_call(step: TrainStep, *arguments: Any) -> Any:
            traces.traced += 1
            return call(step, *arguments)

        monkeypatch.setattr(TrainStep, "compile", count_compile)
        monkeypatch.setattr(TrainStep, "__call__", count_call)
        return traces


@dataclasses.dataclass(frozen=True)
class Finished:
    """A run that nothing interrupted."""

    objective: str
    config: Config
    folder: Path
    traces: Traces

    def again(self, overrides: dict[str, Any] | None = None) -> Config:
        """The config of the run folder with overrides on top, as a mode gets it."""
        return load.load_config(str(self.folder / "config.json"), overrides)


@pytest.fixture(scope="module", params=OBJECTIVES)
def finished(
    request: pytest.FixtureRequest,
    corpus: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Finished]:
    objective = request.param
    config = _config(corpus, objective)
    checks.check(config, num_devices=DEVICES[objective])
    folder = tmp_path_factory.mktemp(objective) / "whole"
    with devices_of_runs(DEVICES[objective]):
        with pytest.MonkeyPatch.context() as monkeypatch:
            traces = Traces.count(monkeypatch)
            modes.train(config, folder)
        yield Finished(objective, config, folder, traces)


def _interrupt_in_step(monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    """Ctrl-C while the batch after step `number` is waited for."""
    batches = training_run.train_batches

    def interrupted(*arguments: Any) -> Iterator[Batch]:
        for index, batch in enumerate(batches(*arguments), start=1):
            if index == number + 1:
                signal.raise_signal(signal.SIGINT)
            yield batch

    monkeypatch.setattr(training_run, "train_batches", interrupted)


def _lines(run: Path, split: str) -> list[dict[str, Any]]:
    lines = (run / "metrics.jsonl").read_text().splitlines()
    return [line for line in map(json.loads, lines) if line["split"] == split]


def _report(run: Path) -> dict[str, Any]:
    return json.loads((run / "report.json").read_text())


def _saved(run: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """All arrays of the newest checkpoint by path, and its progress."""
    checkpoints = Checkpoints(run / "checkpoints", read_only=True)
    step = checkpoints.latest()
    tree = checkpoints.restore(step, on_first_device(checkpoints.saved_tree(step)))
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    progress = checkpoints.meta(step)["progress"]
    checkpoints.close()
    return {jax.tree_util.keystr(p): np.asarray(leaf) for p, leaf in leaves}, progress


def test_an_interrupted_run_goes_on_as_if_it_had_not_been(
    finished: Finished,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    """With microbatches, dropout and the moving average on: the very same numbers."""
    config, run = finished.config, tmp_path / "broken"
    with monkeypatch.context() as patch:
        _interrupt_in_step(patch, STOP_AFTER)
        modes.train(config, run)
    told = capfd.readouterr().err
    assert f"stopped by SIGINT after step {STOP_AFTER}" in told
    assert f"resume with: python -m lmjax.main --workdir {run}" in told
    assert not (run / "report.json").exists()
    assert _saved(run)[1]["step"] == STOP_AFTER
    modes.train(config, run)

    assert _lines(run, "train") == _lines(finished.folder, "train")
    assert [line["step"] for line in _lines(run, "train")] == [3, 6, 9, STEPS]
    expected, progress = _saved(finished.folder)
    found, resumed = _saved(run)
    assert progress["step"] == STEPS and progress["words"] > 0
    for name in ("seconds", "spent"):
        assert progress.pop(name) != resumed.pop(name)  # two runs, not one
    assert resumed == progress
    assert any("ema" in name for name in expected)
    assert any("opt_state" in name for name in expected)
    assert found.keys() == expected.keys()
    for name, leaf in expected.items():
        np.testing.assert_array_equal(found[name], leaf, err_msg=name)
    assert _report(run)["eval"] == _report(finished.folder)["eval"]


def test_the_step_is_compiled_once(finished: Finished) -> None:
    assert finished.traces == Traces(compiled=1, traced=1)


def test_a_run_leaves_what_it_promises(finished: Finished) -> None:
    folder, report = finished.folder, _report(finished.folder)
    assert report.keys() >= REPORT_FIELDS
    assert report["steps"] == STEPS
    # Windows at the end of a document are not full, and some batches are cut.
    assert 0.25 * STEPS * 16 * 16 < report["tokens_seen"] <= STEPS * 16 * 16
    assert 0 < report["words_seen"] < report["tokens_seen"]
    figures = report["eval"]
    causal = isinstance(finished.config.objective, AutoregressiveConfig)
    assert figures["kind"] == ("exact" if causal else "upper bound")
    assert figures["draws"] == (1 if causal else 2)
    assert figures["sources"].keys() == {"first.train", "second.train"}
    for values in (figures, *figures["sources"].values()):
        assert values.keys() >= EVAL_FIELDS
        assert values["perplexity"] == pytest.approx(math.exp(values["nll_per_token"]))
    # It learned something: an untrained model needs ln(297) = 5.69 nats.
    assert figures["nll_per_token"] < 5.5
    assert [line["step"] for line in _lines(folder, "valid")] == [4, 8]
    lines = (folder / "samples.jsonl").read_text().splitlines()
    samples = [json.loads(line) for line in lines]
    assert [sample["step"] for sample in samples] == [6, 6, STEPS, STEPS]
    assert all(sample["text"].startswith("the dog") for sample in samples)
    assert load.load_config(str(folder / "config.json")) == finished.config
    profiles = list(folder.rglob("profile/**/*.xplane.pb"))
    assert bool(profiles) is (finished.objective == "ar")
    spent = {"train", "data", "evaluate", "generate", "save", "compile", "prepare"}
    assert report["spent"].keys() == spent
    assert sum(report["spent"].values()) >= report["seconds"]
    log = (folder / "log.txt").read_text()
    assert re.search(r"time +train [0-9.]+%, data [0-9.]+%, evaluate", log)
    for promised in ("parameters", "attention", "loss", "bits/word", "eta", "--mode"):
        assert promised in log
    checkpoints = sorted(path.name for path in (folder / "checkpoints").iterdir())
    assert checkpoints == ["00000010", "00000011"]  # keep=2


def test_a_finished_run_started_again_is_evaluated_and_not_trained(
    finished: Finished, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = tmp_path / "run"
    shutil.copytree(finished.folder, run)
    (run / "report.json").unlink()

    def nothing(*_: Any) -> Iterator[Batch]:
        raise AssertionError("a batch was fetched")
        yield

    monkeypatch.setattr(training_run, "train_batches", nothing)
    before = _saved(run)
    modes.train(finished.again(), run)
    after = _saved(run)
    assert before[1] == after[1]
    jax.tree.map(np.testing.assert_array_equal, before[0], after[0])
    assert _report(run)["eval"] == _report(finished.folder)["eval"]
    assert _lines(run, "train") == _lines(finished.folder, "train")


def test_evaluate_and_generate_read_the_run_folder(
    finished: Finished, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its config, with overrides on top; generation needs no corpus."""
    run = tmp_path / "run"
    shutil.copytree(finished.folder, run)
    config = finished.again({"evaluate.draws": 3})
    modes.evaluate(config, run)
    figures, expected = _report(run)["eval"], _report(finished.folder)["eval"]
    if figures["kind"] == "exact":
        assert figures == expected
    else:
        assert figures.pop("draws") == 3
        assert figures["nll_per_token"] != expected["nll_per_token"]
    assert "bits/word" in capsys.readouterr().out

    overrides = {
        "generate.prompts": ("she", "they want"),
        "generate.num_samples": 1,
        "data.train": (str(tmp_path / "nowhere"),),
    }
    config = finished.again(overrides)
    texts = []
    for _ in range(2):
        modes.generate(config, run)
        texts.append(capsys.readouterr().out)
    assert texts[0] == texts[1]
    shown = [text.strip("\n") for text in texts[0].split("-" * 40)][:2]
    assert [shown[0][:3], shown[1][:9]] == ["she", "they want"]


def test_the_plan_is_shown_and_nothing_written(
    corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = _config(corpus, "ar")
    modes.prepare(config, tmp_path / "run")
    assert "second.train" in capsys.readouterr().out
    with devices_of_runs(8):
        modes.plan_only(config, tmp_path / "run")
    told = capsys.readouterr().out
    assert "8 x cpu" in told
    assert "256 per step = 16 windows of 16, in 2 pass(es)" in told
    assert f"loss near ln(297) = {math.log(297):.3f}" in told
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("variants", ["nano", "ar,nano"])
def test_babylm_text_trains(variants: str, shared_data: Path, tmp_path: Path) -> None:
    """Four steps on the first 60 kB of a real file; the loss starts at ln(ids)."""
    source = shared_data / "corpus" / "babylm" / "train" / "switchboard.train"
    if not source.exists():
        pytest.skip(f"needs {source}")
    text = source.read_bytes()[:60_000].rsplit(b"\n", 1)[0]
    (tmp_path / "slice.train").write_bytes(text)
    config = load.load_config(
        str(ROOT / f"configs/babylm.py:{variants}"),
        {
            "data.train": (str(tmp_path / "slice.train"),),
            "data.cache_dir": str(tmp_path / "cache"),
            "tokenizer.vocab_size": 512,
            "data.sequence_length": 32,
            "model.num_layers": 2,
            "train.batch_size": 8,
            "train.budget": "4 steps",
            "optim.warmup": "1 steps",
            "evaluate.every": "0",
            "evaluate.draws": 1,
            "generate.every": "0",
            "log.every": "1 steps",
            "log.tensorboard": False,
        },
    )
    checks.check(config, num_devices=1)
    with devices_of_runs(1):
        modes.train(config, tmp_path / "run")
    losses = [line["loss"] for line in _lines(tmp_path / "run", "train")]
    # 512 ids, but bos, pad and mask; a diffusion loss varies around it.
    tolerance = 1e-5 if variants == "ar,nano" else 0.5
    assert losses[0] == pytest.approx(math.log(509), rel=tolerance)
    assert _report(tmp_path / "run")["eval"]["nll_per_token"] < math.log(509)


def _start(*arguments: str) -> subprocess.Popen[str]:
    """The command line in a process of its own, in the repository's root."""
    cache = f"--compilation_cache={jax.config.jax_compilation_cache_dir}"
    return subprocess.Popen(
        [sys.executable, "-m", "lmjax.main", *arguments, cache],
        cwd=ROOT,
        env=children.environment(),
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )


def test_the_command_stops_at_a_signal_and_goes_on_when_run_again(
    tmp_path: Path,
) -> None:
    run = tmp_path / "run"
    small = [
        "--config=configs/babylm.py:ar,sample",
        f"--config.data.cache-dir={tmp_path / 'cache'}",
        "--config.data.sample_words=4000",
        "--config.tokenizer.vocab_size=300",
        "--config.data.sequence_length=16",
        "--config.model.num_layers=1",
        "--config.train.batch_size=8",
        "--config.evaluate.minimal_pairs=14",
        "--config.generate.max_new_tokens=8",
        "--config.log.every=1 steps",
    ]
    process = _start(
        f"--workdir={run}", *small, "--config.train.budget", "1000000 steps"
    )
    deadline = time.monotonic() + 120
    log = run / "log.txt"
    while not (log.exists() and "step 2/" in log.read_text()):
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline, process.kill()
        time.sleep(0.1)
    process.send_signal(signal.SIGTERM)
    _, told = process.communicate(timeout=60)
    assert process.returncode == 0, told
    assert f"resume with: python -m lmjax.main --workdir {run}" in told
    assert "Traceback" not in told
    step = max(int(path.name) for path in (run / "checkpoints").iterdir())

    budget = f"--config.train.budget={step + 5} steps"
    extend = "--config.optim.on_extend=rescale"
    process = _start(f"--workdir={run}", budget, extend)
    _, told = process.communicate(timeout=120)
    assert process.returncode == 0, told
    assert f"after step {step:,}" in told
    report = _report(run)
    assert report.keys() >= REPORT_FIELDS
    assert report["steps"] == step + 5
    assert report["sample"]["true_entropy_bits_per_word"] > 0
    assert 0 <= report["sample"]["minimal_pairs"]["accuracy"] <= 1
    steps = [line["step"] for line in _lines(run, "train")]
    assert steps == list(range(1, step + 6))
    assert list((run / "tensorboard").glob("events.out.tfevents.*"))

    process = _start(
        "--mode=generate", f"--workdir={run}", "--config.generate.prompts=Hi"
    )
    written, told = process.communicate(timeout=60)
    assert process.returncode == 0, told
    assert written.startswith("Hi")
