"""A checkpoint that is damaged is told, set aside, and the one before goes on."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import jax
import pytest

from lmjax.core.errors import ConfigError, UserError
from lmjax.run_folder import RunFolder
from lmjax.train import integrity, storage
from lmjax.train.checkpoints import on_first_device
from lmjax.train.weights import SavedWeights
from tests.faults import toy_runs
from tests.faults.toy_runs import assert_resumes, config, largest_file, opened, train

# Arrays are read side by side: when one fails, Orbax closes its event loop, and others
# that end a little later find no one to tell.
pytestmark = pytest.mark.filterwarnings(
    "ignore:Exception ignored in. None:pytest.PytestUnraisableExceptionWarning"
)


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("runs") / "saved"
    train(path, 90, 100)
    return path


@pytest.fixture
def run(saved: Path, tmp_path: Path) -> Path:
    """A copy, with times of its own."""
    return Path(shutil.copytree(saved, tmp_path / "run", copy_function=shutil.copyfile))


def _flip(file: Path) -> None:
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 16
    file.write_bytes(data)


def _halve(file: Path) -> None:
    os.truncate(file, file.stat().st_size // 2)


DAMAGES: dict[str, tuple[Callable[[Path], object], str]] = {
    "an array truncated": (lambda path: _halve(largest_file(path)), "bytes, not"),
    "an array removed": (lambda path: largest_file(path).unlink(), "is missing"),
    "a byte flipped": (lambda path: _flip(largest_file(path)), "holds other bytes"),
    "all arrays removed": (
        lambda path: shutil.rmtree(path / "state" / "ocdbt.process_0"),
        "is missing",
    ),
    "metadata of arrays": (
        lambda path: _halve(path / "state" / "_METADATA"),
        "state/_METADATA has",
    ),
    "progress and config": (
        lambda path: (path / "meta" / "metadata").write_text("{"),
        "meta/metadata has 1 bytes",
    ),
    "Orbax's marker": (
        lambda path: (path / "_CHECKPOINT_METADATA").unlink(),
        "_CHECKPOINT_METADATA is missing",
    ),
    "the checksums": (
        lambda path: (path / integrity.FILE).write_bytes(b"\xff\x00"),
        "checksums.json cannot be read",
    ),
}


@pytest.mark.parametrize("name", DAMAGES)
def test_a_damaged_newest_one_is_set_aside_and_the_one_before_used(
    run: Path, name: str
) -> None:
    damage, wrong = DAMAGES[name]
    newest = run / "checkpoints" / "00000100"
    damage(newest)
    left = sorted(file.name for file in newest.rglob("*"))
    told = assert_resumes(run, 90)
    assert str(newest) in told[0] and wrong in told[0]
    aside = run / "checkpoints" / "damaged" / "00000100-1"
    assert str(aside) in told[1]
    assert "step 90 is used instead" in told[2] and "10 step(s) are lost" in told[2]
    assert sorted(file.name for file in aside.rglob("*")) == left, "nothing is deleted"
    assert assert_resumes(run, 90) == []


UNCHECKED: dict[str, tuple[Callable[[Path], object], str]] = {
    "an array truncated": (lambda path: _halve(largest_file(path)), "damaged"),
    "no JSON": (lambda path: (path / "meta" / "metadata").write_text("{"), "no JSON"),
    "nothing in it": (
        lambda path: (path / "meta" / "metadata").write_text("{}"),
        "tokenizer is missing",
    ),
    "no metadata": (lambda path: (path / "state" / "_METADATA").unlink(), "_METADATA"),
    "no state": (lambda path: shutil.rmtree(path / "state"), "state"),
}


@pytest.mark.parametrize("name", UNCHECKED)
def test_one_without_checksums_is_verified_by_reading_it(run: Path, name: str) -> None:
    """A run of an earlier version has none."""
    damage, wrong = UNCHECKED[name]
    newest = run / "checkpoints" / "00000100"
    (newest / integrity.FILE).unlink()
    assert assert_resumes(run, 100) == []
    damage(newest)
    assert wrong in "\n".join(assert_resumes(run, 90))


def test_the_next_run_of_the_same_step_is_set_aside_beside_the_first(
    run: Path,
) -> None:
    for number in (1, 2):
        _flip(largest_file(run / "checkpoints" / "00000100"))
        assert_resumes(run, 90)
        assert (run / "checkpoints" / "damaged" / f"00000100-{number}").is_dir()
        train(run, 100)
    assert assert_resumes(run, 100) == []


def test_where_none_is_whole_a_start_says_how_to_begin_anew(run: Path) -> None:
    for step in ("00000090", "00000100"):
        _halve(largest_file(run / "checkpoints" / step))
    for told in (("00000100", "00000090", "none of them is whole"), ("none of them",)):
        with pytest.raises(UserError) as error:
            opened(run)
        for part in told:
            assert part in error.value.what
        assert "--config.checkpoint.resume=none" in error.value.remedy
    assert_resumes(run, 0, resume="none")
    train(run, 7, resume="none")
    assert assert_resumes(run, 7) == []
    assert len(os.listdir(run / "checkpoints" / "damaged")) == 2


def test_a_damaged_step_that_is_named_is_refused_and_left_alone(run: Path) -> None:
    _flip(largest_file(run / "checkpoints" / "00000100"))
    for open_it in (opened, RunFolder.read):
        with pytest.raises(UserError, match="the checkpoint is damaged") as error:
            open_it(run, config(resume="100"))
        assert str(run / "checkpoints" / "00000100") in error.value.where
        assert "holds other bytes" in error.value.what
    assert sorted(os.listdir(run / "checkpoints")) == ["00000090", "00000100"]


def test_who_only_reads_takes_the_one_before_and_moves_nothing(
    run: Path, caplog: pytest.LogCaptureFixture
) -> None:
    _flip(largest_file(run / "checkpoints" / "00000100"))
    before = sorted(run.rglob("*"))
    with RunFolder.read(run, config()) as folder:
        assert folder.start_step == 90 and folder.label == "step_90"
        told = "\n".join(folder.notices)
    assert "holds other bytes" in told and "step 90 is used instead" in told
    assert sorted(run.rglob("*")) == before
    _flip(largest_file(run / "checkpoints" / "00000090"))
    with pytest.raises(UserError, match="none of them is whole"):
        RunFolder.read(run, config())


def test_a_missing_array_is_told_when_it_is_asked_for(run: Path) -> None:
    """Checksums hold, and yet the state is not the one of this run."""
    with opened(run) as folder:
        abstract = toy_runs.maker().abstract()
        extra = {
            "more": on_first_device(jax.eval_shape(lambda: abs(jax.numpy.ones(3))))
        }
        object.__setattr__(abstract, "opt_state", (abstract.opt_state, extra))
        with pytest.raises(UserError, match="cannot be read") as error:
            folder.restore(abstract)
        assert "00000100" in error.value.where
        assert "config" in error.value.remedy


def test_a_checkpoint_that_is_being_deleted_is_not_called_damaged(
    run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The run at work may delete what a reader has just listed."""
    damage = integrity.damage

    def vanish(path: Path, *arguments: object, **keywords: bool) -> str:
        if path.name == "00000100" and path.exists():
            storage.remove(path, storage.Storage("disk"))
        return damage(path, *arguments, **keywords)

    monkeypatch.setattr(integrity, "damage", vanish)
    with RunFolder.read(run, config()) as folder:
        assert folder.start_step == 90 and folder.notices == []


def test_a_damaged_milestone_is_refused_by_name_and_set_aside_by_a_start(
    run: Path,
) -> None:
    with opened(run) as folder:
        kept = folder.open_milestones((10, 20, 30))
        for words in (10, 20, 30):
            progress = folder.progress()
            progress.step = 50
            kept.write(toy_runs.state(words).params, (words,), progress)
        kept.close()
    milestones = run / "milestones"
    weights = SavedWeights(milestones / "chck_10")
    target = on_first_device(jax.eval_shape(lambda: toy_runs.state(10).params))
    weights.params(target)
    _flip(_array(milestones / "chck_10"))
    with pytest.raises(UserError, match="the weights are damaged"):
        RunFolder.read(run, config(resume="chck_10"))
    with pytest.raises(UserError, match="the weights are damaged"):
        weights.params(target)
    (milestones / "chck_20" / "meta" / "metadata").write_text("{")
    _halve(_array(milestones / "chck_30"))
    told: list[str] = []
    with opened(run) as folder:
        folder.report(told.append)
        folder.open_milestones((10, 20, 30)).close()
    assert len(told) == 2
    for name, line in zip(("chck_20", "chck_30"), told, strict=True):
        assert f"the milestone {name} is damaged" in line
        assert f"damaged/{name}-1" in line
    ledger = json.loads((milestones / "ledger.json").read_text())
    assert [entry["name"] for entry in ledger] == ["chck_10"]


def _array(milestone: Path) -> Path:
    """The file with the arrays, of which there is one."""
    (file,) = [
        file
        for file in (milestone / "params").rglob("*")
        if file.is_file() and file.stat().st_size > 4096
    ]
    return file


def test_an_unknown_step_still_lists_those_there_are(run: Path) -> None:
    with pytest.raises(ConfigError, match="no checkpoint of step 95") as error:
        opened(run, config(resume="95"))
    assert "90, 100" in error.value.remedy
