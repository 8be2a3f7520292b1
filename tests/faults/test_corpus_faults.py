"""Faults of a prepared corpus, and of those who prepare it, are told; nothing is lost.

A full disk, damaged manifests and killed preparations have their tests beside the code
that prepares (tests/data/preparation); here is what a training run makes of the rest.
"""

import multiprocessing
import os
import signal
import threading
import time
from pathlib import Path

import pytest

from lmjax import experiment, modes
from lmjax.config.schema import Config
from lmjax.core.errors import UserError
from lmjax.data import pipeline
from lmjax.data.sample import corpus as sample_corpus
from tests.faults.small_runs import small_config


@pytest.fixture
def config(tmp_path: Path) -> Config:
    text = tmp_path / "text.train"
    sample_corpus.write_corpus(text, seed=0, num_words=3000)
    config = small_config(text, budget="2 epochs")
    config.data.shard_bytes = 4000
    return config


def _shards(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in folder.glob("*.array_record")}


@pytest.mark.parametrize(
    ("damage", "in_memory"),
    [("altered", True), ("altered", False), ("truncated", True), ("removed", True)],
)
def test_a_damaged_shard_ends_a_run_with_what_repairs_it(
    damage: str,
    in_memory: bool,
    config: Config,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Altered in its middle, the size of a shard is right, and yet it is not read."""
    if not in_memory:
        monkeypatch.setattr(pipeline, "MAX_BYTES_IN_MEMORY", 0)
    prepared = experiment.prepare_corpus(config)
    before = _shards(prepared.folder)
    shard = prepared.folder / sorted(before)[0]
    content = bytearray(before[shard.name])
    match damage:
        case "altered":
            content[len(content) // 2] ^= 0xFF
            shard.write_bytes(content)
        case "truncated":
            shard.write_bytes(content[: len(content) // 2])
        case "removed":
            shard.unlink()
    with pytest.raises(UserError, match=r"damaged|missing|bytes") as error:
        modes.train(config, tmp_path / "run")
    assert "--mode prepare" in str(error.value)
    assert not list((tmp_path / "run").glob("checkpoints/0*")), "nothing was trained on"
    modes.prepare(config, tmp_path / "run")
    assert _shards(prepared.folder) == before


def test_a_process_of_the_preparation_that_is_killed_is_told(
    config: Config, tmp_path: Path
) -> None:
    """What the others finished stays, and the next start ends as an undisturbed one."""
    undisturbed = _shards(experiment.prepare_corpus(config).folder)
    config.data.cache_dir = str(tmp_path / "other")
    config.data.workers = 2

    def kill() -> None:
        end = time.monotonic() + 60
        while time.monotonic() < end:
            for child in multiprocessing.active_children():
                os.kill(child.pid, signal.SIGKILL)
                return
            time.sleep(0.01)

    killer = threading.Thread(target=kill)
    killer.start()
    with pytest.raises(UserError, match="ended abruptly") as error:
        modes.train(config, tmp_path / "run")
    killer.join()
    assert "data.workers" in error.value.where and "start again" in error.value.remedy
    config.data.workers = 1
    assert _shards(experiment.prepare_corpus(config).folder) == undisturbed
