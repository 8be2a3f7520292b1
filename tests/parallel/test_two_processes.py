"""Two processes train one model: `python -m lmjax.main` on loopback, CPU.

They give what one process with as many devices gives, are stopped together by a signal
to one, and go on to the same bits. One that is killed ends the other.
"""

import dataclasses
import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from lmjax.config import serialize
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
from lmjax.data.sample import corpus as sample_corpus
from lmjax.parallel.peer_watch import PEER_LOST_STATUS
from lmjax.train.checkpoints import Checkpoints, on_first_device
from tests import children
from tests.parallel.peer_processes import free_port

ROOT = Path(__file__).resolve().parents[2]
STEPS = 40
QUIET = {"generate.every": "0 steps"}  # for runs whose texts nobody reads
LIMIT = 200.0  # seconds that a run may take on a busy machine


@dataclasses.dataclass(frozen=True)
class Place:
    """A folder with a corpus, its cache and the config of all runs."""

    folder: Path

    def run(self, name: str, count: int, **changes: str) -> "Processes":
        """Starts a training run of so many processes with four devices in all."""
        return Processes(self, name, count, changes)


class Processes:
    """The processes of one run; what they say goes to files."""

    def __init__(self, place: Place, name: str, count: int, changes: dict[str, str]):
        self.workdir = place.folder / name
        self.said = [place.folder / f"{name}-{i}.txt" for i in range(count)]
        address, self._running = f"localhost:{free_port()}", []
        cache = jax.config.jax_compilation_cache_dir
        for index in range(count):
            fields = {f"config.{field}": value for field, value in changes.items()}
            if count > 1:
                fields["config.parallel.coordinator"] = address
                fields["config.parallel.num_processes"] = str(count)
                fields["config.parallel.process_index"] = str(index)
            command = [sys.executable, "-m", "lmjax.main"]
            command += ["--config", str(place.folder / "config.json")]
            command += ["--workdir", str(self.workdir)]
            command += [f"--compilation_cache={cache}"]
            command += [f"--{field}={value}" for field, value in fields.items()]
            with self.said[index].open("w") as said:
                process = subprocess.Popen(
                    command,
                    cwd=ROOT,
                    env=children.environment(num_devices=4 // count),
                    stdout=said,
                    stderr=said,
                )
            self._running.append(process)

    def signal(self, index: int, number: int) -> None:
        self._running[index].send_signal(number)

    def await_step(self, step: int) -> None:
        """Returns when the figures of a step are written."""
        sign, file = f'"step": {step},', self.workdir / "metrics.jsonl"
        deadline = time.monotonic() + LIMIT
        while not file.exists() or sign not in file.read_text():
            assert time.monotonic() < deadline, self.said[0].read_text()
            assert self._running[0].poll() is None, self.said[0].read_text()
            time.sleep(0.01)

    def finish(self) -> list[int]:
        """The exit status of each, at the end of all."""
        return [process.wait(timeout=LIMIT) for process in self._running]

    def finish_well(self) -> Path:
        """The run folder, once all have ended well."""
        statuses = self.finish()
        for status, said in zip(statuses, self.said, strict=True):
            assert status == 0, said.read_text()
        return self.workdir

    def kill(self) -> None:
        for process in self._running:
            process.kill()
            process.wait()


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Place:
    folder = tmp_path_factory.mktemp("two_processes")
    (folder / "corpus").mkdir()
    sample_corpus.write_corpus(folder / "corpus/a.train", seed=0, num_words=900)
    config = Config(
        seed=3,
        tokenizer=TokenizerConfig(vocab_size=300),
        data=DataConfig(
            train=(str(folder / "corpus"),),
            valid_fraction=0.2,
            sequence_length=16,
            cache_dir=str(folder / "cache"),
        ),
        model=ModelConfig(
            num_layers=1,
            width=16,
            num_heads=2,
            mlp_width=32,
            max_length=32,
            dropout=0.2,
        ),
        optim=OptimConfig(learning_rate=1e-2, warmup="2 steps", ema_decay=0.9),
        train=TrainConfig(budget=f"{STEPS} steps", batch_size=16, microbatch_size=8),
        checkpoint=CheckpointConfig(every="15 steps"),
        evaluate=EvaluateConfig(every="20 steps", batches=1, draws=1),
        generate=GenerateConfig(
            every="30 steps", prompts=("the dog",), num_samples=1, max_new_tokens=4
        ),
        log=LogConfig(every="1 steps", tensorboard=False),
    )
    serialize.save(config, folder / "config.json")
    return Place(folder)


@pytest.fixture(scope="module")
def start(place: Place) -> Iterator[Callable[..., Processes]]:
    """Starts runs, and leaves none behind."""
    runs: list[Processes] = []

    def run(*arguments: Any, **changes: str) -> Processes:
        runs.append(place.run(*arguments, **changes))
        return runs[-1]

    yield run
    for processes in runs:
        processes.kill()


@pytest.fixture(scope="module")
def whole(start: Callable[..., Processes]) -> Processes:
    """A run of two processes that nothing disturbs; it prepares the corpus too."""
    processes = start("whole", 2)
    processes.finish_well()
    return processes


def _lines(workdir: Path, split: str) -> list[dict[str, Any]]:
    lines = map(json.loads, (workdir / "metrics.jsonl").read_text().splitlines())
    return [line for line in lines if line["split"] == split]


def _assert_same_state(one: Path, other: Path) -> None:
    """Whatever the newest checkpoints hold, bit for bit."""
    saved = [Checkpoints(path / "checkpoints", read_only=True) for path in (one, other)]
    steps = {checkpoints.latest() for checkpoints in saved}
    assert steps == {STEPS}
    trees = [
        checkpoints.restore(STEPS, on_first_device(checkpoints.saved_tree(STEPS)))
        for checkpoints in saved
    ]
    assert len(jax.tree.leaves(trees[0])) > 20
    jax.tree.map(np.testing.assert_array_equal, *trees)
    for checkpoints in saved:
        checkpoints.close()


def _assert_close(workdir: Path, expected: Path) -> None:
    for split, count in (("train", STEPS), ("valid", 1)):
        wanted, found = _lines(expected, split), _lines(workdir, split)
        assert [line["step"] for line in found] == [line["step"] for line in wanted]
        assert len(wanted) == count
        for name in wanted[0].keys() - {"split"}:
            np.testing.assert_allclose(
                [line[name] for line in found],
                [line[name] for line in wanted],
                rtol=1e-4,
                err_msg=f"{split} {name}",
            )


def test_two_processes_train_as_one(
    whole: Processes, start: Callable[..., Processes]
) -> None:
    _assert_close(start("one", 1, **QUIET).finish_well(), whole.workdir)


def test_only_the_first_of_two_writes_and_both_say_who_they_are(
    whole: Processes,
) -> None:
    first, second = (said.read_text() for said in whole.said)
    log = (whole.workdir / "log.txt").read_text()
    for said, index in ((first, 0), (second, 1)):
        assert f"process {index} of 2 on host " in said
        assert "2 of 4 devices are of this one" in said
    for sign in ("run folder  ", f"step {STEPS}/{STEPS} ", "nll/token"):
        assert [text.count(sign) for text in (first, second, log)] == [1, 0, 1]
    samples = (whole.workdir / "samples.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in samples] == [30, STEPS]
    steps = [line["step"] for line in _lines(whole.workdir, "train")]
    assert steps == list(range(1, STEPS + 1))
    assert (whole.workdir / "report.json").exists()


def test_a_signal_to_one_stops_both_and_they_go_on_to_the_same_bits(
    whole: Processes, start: Callable[..., Processes]
) -> None:
    stopped = start("stopped", 2, **QUIET)
    stopped.await_step(1)
    stopped.signal(1, signal.SIGTERM)
    workdir = stopped.finish_well()
    steps = [line["step"] for line in _lines(workdir, "train")]
    assert steps[-1] < STEPS
    assert f"after step {steps[-1]}, which is saved" in stopped.said[0].read_text()
    start("stopped", 2, **QUIET).finish_well()
    assert _lines(workdir, "train") == _lines(whole.workdir, "train")
    assert _lines(workdir, "valid") == _lines(whole.workdir, "valid")
    _assert_same_state(workdir, whole.workdir)


def test_a_process_that_is_killed_ends_the_other_and_one_can_go_on_alone(
    whole: Processes, start: Callable[..., Processes]
) -> None:
    killed = start("killed", 2, **QUIET)
    killed.await_step(16)  # one checkpoint stands, or is being written
    killed.signal(1, signal.SIGKILL)
    assert killed.finish() == [PEER_LOST_STATUS, -signal.SIGKILL]
    said = killed.said[0].read_text()
    assert "lmjax: process 1 (host " in said
    assert "start all processes again, this one with: python -m lmjax.main" in said
    _assert_close(start("killed", 1, **QUIET).finish_well(), whole.workdir)


def test_a_process_that_waits_alone_ends_in_time(
    start: Callable[..., Processes],
) -> None:
    processes = start("missing", 2, **{"parallel.start_timeout": "2 seconds"})
    processes.signal(1, signal.SIGKILL)
    assert processes.finish() == [1, -signal.SIGKILL]
    said = processes.said[0].read_text()
    assert "lmjax: process 1 of 2 did not come within 2 s\n" in said
    assert not processes.workdir.exists()
