"""A run of the real command that is killed and resumed ends in the bits of a quiet one.

What is long, fifty random moments in all phases, is `benchmarks/faults.py`, whose parts
these are.
"""

import json
import shutil
from pathlib import Path

import jax
import numpy as np
import pytest

from benchmarks import faults
from benchmarks.faults import Aim
from tests import children

STEPS, SAVE = 24, 4


@pytest.fixture
def job(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> faults.Job:
    monkeypatch.setenv("XLA_FLAGS", children.environment()["XLA_FLAGS"])
    compiled = Path(jax.config.jax_compilation_cache_dir)
    lengths = dict(steps=STEPS, save=SAVE, evaluate=8, generate=12, log=1, words=1000)
    flags = ("--config.model.num_layers=1", "--config.log.tensorboard=false")
    return faults.prepare(tmp_path, "ar", compiled=compiled, flags=flags, **lengths)


def test_a_run_killed_in_a_save_and_again_ends_as_one_left_alone(
    job: faults.Job, tmp_path: Path
) -> None:
    quiet = faults.Start(job, tmp_path / "quiet", tmp_path / "quiet-cache")
    aims = [Aim("save", step=2 * SAVE), Aim("steps", step=4 * SAVE, seconds=0.01)]
    folder = tmp_path / "killed"
    kills, failure = faults.kill_and_resume(job, folder, job.cache, aims)
    assert not failure
    assert not quiet.status(), quiet.output.read_text()
    assert len(kills) == 2
    # The first may have met the save before, which was the only one.
    assert max(kill.resumed_from for kill in kills) >= SAVE
    reference = faults.content(tmp_path / "quiet")
    assert faults.differences(reference, faults.content(folder)) == []
    _check_content(reference)


def _check_content(found: faults.Content) -> None:
    """What was compared is all there is to a run."""
    last = f"{STEPS:08}"
    assert found["last checkpoint"] == last
    assert found[f"{last}/meta"]["progress"]["step"] == STEPS
    parts = {name.split("'")[1] for name in found if name.startswith(f"{last}/state[")}
    assert {"step", "params", "opt_state", "ema"} <= parts
    arrays = [name for name in found if isinstance(found[name], np.ndarray)]
    assert any(name.startswith("chck_2K/params") for name in arrays)
    assert [entry["name"] for entry in found["ledger"]][:2] == ["chck_1K", "chck_2K"]
    records = [v for k, v in found.items() if k.startswith("metrics.jsonl")]
    splits = [record["split"] for record in records]
    assert splits.count("train") == STEPS and splits.count("valid") == 2
    assert sum(name.startswith("samples.jsonl") for name in found) > 2
    assert "eval" in found["report"] and "seconds" not in found["report"]


def test_a_bit_or_a_line_that_differs_is_seen() -> None:
    zeros = np.zeros(3, np.float32)
    reference = {"array": zeros, "line 1": {"loss": 1.0}, "line 2": {"loss": 0.5}}
    assert faults.differences(reference, dict(reference)) == []
    found = {"array": -zeros, "line 1": {"loss": 1.1}, "line 3": {"loss": 0.5}}
    assert faults.differences(reference, found) == [
        "array differs in 3 bytes",  # the signs of zeros
        "line 1 differs",
        "line 2 is missing",
        "line 3 is too much",
    ]
    found = reference | {"array": zeros.astype(np.float64)}
    assert faults.differences(reference, found) == ["array has another shape or dtype"]
    nan = {"array": np.full(2, np.nan)}
    assert faults.differences(nan, {"array": np.full(2, np.nan)}) == []


def test_timings_are_no_difference(tmp_path: Path) -> None:
    for name, seconds in (("one", 1.0), ("two", 2.0)):
        folder = tmp_path / name
        (folder / "checkpoints/00000004/meta").mkdir(parents=True)
        meta = {"progress": {"step": 4, "seconds": seconds}}
        file = folder / "checkpoints/00000004/meta/metadata"
        file.write_text(json.dumps(meta))
        shutil.copytree(folder / "checkpoints/00000004", folder / "milestones/chck_1K")
        (folder / "milestones/ledger.json").write_text("[]")
        report = {"seconds": seconds, "tokens_per_second": seconds, "steps": 4}
        (folder / "report.json").write_text(json.dumps(report))
        lines = [
            {"step": 4, "split": "train", "loss": 0.5},
            {"step": 4, "split": "speed", "tokens_per_second": seconds},
        ]
        text = "".join(json.dumps(line) + "\n" for line in lines)
        (folder / "metrics.jsonl").write_text(text)
    one, two = (faults.content(tmp_path / name) for name in ("one", "two"))
    assert faults.differences(one, two) == []
    assert len(one) == 6 and one["report"] == {"steps": 4}
