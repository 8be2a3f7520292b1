"""Preparation that is killed and restarted, or started twice, ends as undisturbed."""

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[3]
# What `python -m lmjax.main --mode prepare` does, without the start of JAX.
SCRIPT = """
import sys
from lmjax.config.schema import DataConfig, TokenizerConfig
from lmjax.data.preparation.prepare import prepare
from lmjax.data.reading.sources import find_sources

if __name__ == "__main__":
    corpus, cache, workers = sys.argv[1:]
    sources = find_sources((corpus,), "train")
    data = DataConfig(
        sequence_length=32, cache_dir=cache, shard_bytes=40_000, workers=int(workers)
    )
    print("started", flush=True)
    prepared = prepare(data, TokenizerConfig(vocab_size=400), seed=0, train=sources)
    print(prepared.sha256, flush=True)
"""
KILLS = 20


@pytest.fixture(scope="module")
def corpus(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("corpus")
    rng = random.Random(0)
    words = ["".join(rng.choices("abcdefgh", k=rng.randint(2, 7))) for _ in range(500)]
    for name, count in (("one.train", 6000), ("two.train", 1500)):
        lines = [" ".join(rng.choices(words, k=40)) for _ in range(count)]
        (folder / name).write_text("\n\n".join(lines))
    return folder


def _start(corpus: Path, cache: Path, workers: int) -> subprocess.Popen:
    script = cache.parent / "prepare_once.py"
    script.write_text(SCRIPT)
    process = subprocess.Popen(
        [sys.executable, str(script), str(corpus), str(cache), str(workers)],
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout.readline() == "started\n", process.stderr.read()
    return process


def _finish(process: subprocess.Popen) -> str:
    output, errors = process.communicate(timeout=120)
    assert process.returncode == 0, errors
    return output.strip()


def _files(cache: Path) -> dict[str, bytes]:
    """Everything in the cache but the locks, by path."""
    return {
        str(file.relative_to(cache)): file.read_bytes()
        for file in cache.rglob("*")
        if file.is_file() and "locks" not in file.parts
    }


@pytest.fixture(scope="module")
def undisturbed(corpus, tmp_path_factory) -> tuple[str, dict[str, bytes], float]:
    """Hash and files of one preparation, and how long it takes."""
    cache = tmp_path_factory.mktemp("undisturbed") / "cache"
    process = _start(corpus, cache, 1)
    begin = time.monotonic()
    sha256 = _finish(process)
    seconds = time.monotonic() - begin
    files = _files(cache)
    assert sum(name.endswith(".array_record") for name in files) > 30
    return sha256, files, seconds


def test_killed_twenty_times_it_ends_as_undisturbed(corpus, tmp_path, undisturbed):
    sha256, files, seconds = undisturbed
    cache = tmp_path / "cache"
    rng = random.Random(1)
    total = sum(name.endswith(".array_record") for name in files)
    in_the_midst = 0
    for _ in range(KILLS):
        process = _start(corpus, cache, 1)
        time.sleep(rng.uniform(0.1, 1) * seconds)
        process.send_signal(signal.SIGKILL)
        process.communicate()
        assert process.returncode in (-signal.SIGKILL, 0)
        notes = list(cache.rglob("notes/*.json"))
        in_the_midst += 0 < len(notes) < total
        if len(notes) > total / 2:  # leave work for those that follow
            for file in (*notes, *cache.rglob("manifest.json")):
                if file.name == "manifest.json" or rng.random() < 0.9:
                    file.unlink()
    assert in_the_midst > KILLS / 4, "most kills came too early or too late"
    assert _finish(_start(corpus, cache, 1)) == sha256
    assert _files(cache) == files


def test_two_at_once_end_as_one(corpus, tmp_path, undisturbed):
    sha256, files, _ = undisturbed
    cache = tmp_path / "cache"
    pair = [_start(corpus, cache, 1) for _ in range(2)]
    assert [_finish(process) for process in pair] == [sha256, sha256]
    assert _files(cache) == files


def test_processes_end_with_a_parent_that_was_killed(corpus, tmp_path, undisturbed):
    sha256, files, _ = undisturbed
    cache = tmp_path / "cache"
    process = _start(corpus, cache, 2)
    deadline = time.monotonic() + 60
    while not list(cache.rglob("*.array_record")) and time.monotonic() < deadline:
        time.sleep(0.02)
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
    if not children.exists():
        pytest.skip("needs Linux, to see what processes there are")
    workers = [int(pid) for pid in children.read_text().split()]
    assert len(workers) >= 2
    process.send_signal(signal.SIGKILL)
    process.communicate()
    while any(map(_runs, workers)) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert not any(map(_runs, workers))
    assert _finish(_start(corpus, cache, 2)) == sha256
    assert _files(cache) == files


def _runs(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False
