"""What a user can get wrong: told at once, with what, where and what to do.

The command line turns `UserError` into its message and status 1, `ConfigError` into
status 2; that it does is shown once, in processes of its own. The rest is in process.
"""

import errno
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jax
import orbax.checkpoint as ocp
import pytest

from lmjax import modes, training_run
from lmjax.config import checks
from lmjax.config.schema import (
    AutoregressiveConfig,
    CheckpointConfig,
    Config,
    DataConfig,
    EvaluateConfig,
    GenerateConfig,
    LogConfig,
    ModelConfig,
    TokenizerConfig,
    TrainConfig,
)
from lmjax.core.errors import ConfigError, UserError
from lmjax.data.preparation import shards
from lmjax.data.sample import corpus as sample_corpus

ROOT = Path(__file__).resolve().parents[1]
Mode = Callable[[Config, Path], None]


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("corpus") / "text.train"
    sample_corpus.write_corpus(path, seed=0, num_words=900)
    return path


def _config(corpus: Path) -> Config:
    return Config(
        tokenizer=TokenizerConfig(vocab_size=300),
        data=DataConfig(
            train=(str(corpus),),
            sequence_length=16,
            cache_dir=str(corpus.parent / "cache"),
        ),
        model=ModelConfig(
            num_layers=1, width=16, num_heads=2, mlp_width=16, max_length=32
        ),
        objective=AutoregressiveConfig(),
        train=TrainConfig(budget="4 steps", batch_size=8),
        checkpoint=CheckpointConfig(every="2 steps"),
        evaluate=EvaluateConfig(every="0"),
        generate=GenerateConfig(every="0", max_new_tokens=4),
        log=LogConfig(every="1 steps", tensorboard=False),
    )


def _run(mode: Mode, corpus: Path, workdir: Path, **changes: Any) -> None:
    """Checks the config and runs a mode, as the command line does.

    Args:
      changes: fields by name, such as train__batch_size.
    """
    config = _config(corpus)
    for name, value in changes.items():
        section, _, field = name.partition("__")
        setattr(getattr(config, section), field, value)
    checks.check(config, num_devices=jax.device_count())
    mode(config, workdir)


@pytest.fixture(scope="module")
def trained(corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run") / "trained"
    _run(modes.train, corpus, folder)
    return folder


def _files(folder: Path) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


def _told(error: pytest.ExceptionInfo[UserError], *parts: str) -> None:
    """What, where and what to do are all there, and these parts among them."""
    message = str(error.value)
    if not message.startswith(("A setting is wrong", "2 settings are wrong")):
        assert error.value.what and error.value.where and error.value.remedy, message
    for part in parts:
        assert part in message


class Bad(NamedTuple):
    changes: dict[str, Any]
    status: int
    told: tuple[str, ...]


BAD_CONFIGS = {
    "heads that do not divide the width": Bad(
        {"model__num_heads": 3}, 2, ("model.width=16", "model.num_heads=3")
    ),
    "a batch that the devices do not divide": Bad(
        {"train__batch_size": 12}, 2, ("train.batch_size=12", "multiple of 8", "16")
    ),
    "a vocabulary larger than the corpus allows": Bad(
        {"tokenizer__vocab_size": 60_000}, 2, ("tokenizer.vocab_size", "at most")
    ),
    "a missing corpus": Bad(
        {"data__train": ("/nowhere/at/all",)}, 1, ("/nowhere/at/all", "data.train")
    ),
    "a missing validation corpus": Bad(
        {"data__valid": ("/nowhere/at/all",)}, 1, ("/nowhere/at/all", "data.valid")
    ),
    "a missing tokenizer": Bad(
        {"tokenizer__path": "/nowhere/x.model"}, 1, ("x.model", "tokenizer.path")
    ),
    "a prompt longer than the context": Bad(
        {"generate__prompts": ("the dog " * 40,)}, 2, ("generate.prompts", "32 tokens")
    ),
    "new tokens that leave no room for a prompt": Bad(
        {"generate__max_new_tokens": 32}, 2, ("generate.max_new_tokens", "32 tokens")
    ),
    "more steps than the limits of the sources leave text for": Bad(
        {"data__max_epochs": ("2",), "train__budget": "3 epochs"},
        2,
        ("data.max_epochs", "train.budget", "steps"),
    ),
    "a weight for a source that is not there": Bad(
        {"data__weights": ("nowhere=2",)}, 2, ("nowhere", "data.weights", "text.train")
    ),
    "a stride without windows of one document": Bad(
        {"data__stride": 8}, 2, ("data.stride=8", "data.packing=documents")
    ),
    "the package of a logger that is not there": Bad(
        {"log__wandb": True}, 2, ("log.wandb", 'pip install "lmjax[wandb]"')
    ),
}


@pytest.mark.parametrize("name", BAD_CONFIGS)
def test_a_bad_config_is_refused_before_anything_is_trained(
    name: str, corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    changes, status, told = BAD_CONFIGS[name]
    if "generate" in next(iter(changes)):
        changes = changes | {"generate__every": "2 steps"}
    monkeypatch.setitem(sys.modules, "wandb", None)

    def never(*_: object) -> None:
        raise AssertionError("training began")

    monkeypatch.setattr(training_run, "train_batches", never)
    with pytest.raises(UserError) as error:
        _run(modes.train, corpus, tmp_path / "run", **changes)
    assert error.value.status == status
    _told(error, *told)
    assert not list(tmp_path.rglob("report.json"))


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (b"", "no text"),
        (b" \n\n \t\n", "no text"),
        (b"one two\nthr\xffee\n", "line 2, byte 11"),
        ("caf\u00e9\n".encode("utf-16"), "UTF-16"),
    ],
    ids=["empty", "blank", "not UTF-8", "UTF-16"],
)
def test_a_corpus_that_is_no_text_is_refused(
    content: bytes, told: str, tmp_path: Path
) -> None:
    corpus = tmp_path / "text.train"
    corpus.write_bytes(content)
    with pytest.raises(UserError) as error:
        _run(modes.train, corpus, tmp_path / "run")
    assert error.value.status == 1
    _told(error, told, "text.train")
    assert not (tmp_path / "run").exists()
    assert not list((tmp_path / "cache").rglob("*.array_record"))
    assert not list((tmp_path / "cache").rglob("manifest.json"))


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"model__width": 32}, "model.width was 16, now 32"),
        ({"model__num_layers": 2}, "model.num_layers was 1, now 2"),
        ({"data__sequence_length": 8}, "data.sequence_length was 16, now 8"),
        ({"tokenizer__vocab_size": 310}, "tokenizer.vocab_size was 300, now 310"),
        ({"checkpoint__resume": "none"}, "checkpoints up to step 4"),
        ({"checkpoint__resume": "3"}, "choose one of 2, 4"),
    ],
)
def test_the_run_folder_of_another_run_is_refused_and_left_alone(
    changes: dict[str, Any], told: str, corpus: Path, trained: Path
) -> None:
    before = _files(trained)
    with pytest.raises(ConfigError) as error:
        _run(modes.train, corpus, trained, **changes)
    _told(error, told, str(trained))
    assert _files(trained) == before


@pytest.mark.parametrize("mode", [modes.train, modes.evaluate, modes.generate])
def test_a_checkpoint_of_another_model_is_refused(
    mode: Mode, corpus: Path, trained: Path, tmp_path: Path
) -> None:
    """Even where no config.json tells: the shapes do."""
    run = tmp_path / "run"
    shutil.copytree(trained, run)
    (run / "config.json").unlink()
    with pytest.raises(ConfigError) as error:
        _run(mode, corpus, run, model__width=32)
    _told(error, "another model", "16", "32", str(run))


@pytest.mark.parametrize("mode", [modes.train, modes.evaluate])
def test_another_tokenizer_than_the_checkpoints_is_refused(
    mode: Mode, corpus: Path, trained: Path, tmp_path: Path
) -> None:
    other = tmp_path / "text.train"
    sample_corpus.write_corpus(other, seed=1, num_words=900)
    before = _files(trained)
    with pytest.raises(ConfigError) as error:
        _run(mode, other, trained)
    _told(error, "the tokenizer is not the checkpoint's", str(trained))
    assert _files(trained) == before


def test_another_corpus_under_the_same_tokenizer_is_refused(
    corpus: Path, trained: Path, tmp_path: Path
) -> None:
    model = next((corpus.parent / "cache").glob("tokenizers/*.model"))
    other = tmp_path / "text.train"
    sample_corpus.write_corpus(other, seed=1, num_words=900)
    with pytest.raises(ConfigError) as error:
        _run(modes.train, other, trained, tokenizer__path=str(model))
    _told(error, "the corpus", "not what this run began with", str(trained))


@pytest.mark.parametrize("mode", [modes.evaluate, modes.generate])
@pytest.mark.parametrize("made", [False, True], ids=["no folder", "no checkpoint"])
def test_a_mode_that_reads_a_run_needs_one(
    mode: Mode, made: bool, corpus: Path, tmp_path: Path
) -> None:
    if made:
        (tmp_path / "run" / "checkpoints").mkdir(parents=True)
    with pytest.raises(ConfigError) as error:
        _run(mode, corpus, tmp_path / "run")
    _told(error, "checkpoint to read", str(tmp_path / "run"))
    assert (tmp_path / "run").exists() == made


def test_a_prompt_longer_than_the_context_is_refused_by_generate(
    corpus: Path, trained: Path
) -> None:
    with pytest.raises(ConfigError) as error:
        _run(modes.generate, corpus, trained, generate__prompts=("the dog " * 40,))
    _told(error, "context of 32 tokens", "the dog the dog")


def test_a_workdir_that_can_not_be_written_is_told(
    corpus: Path, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("not a folder")
    with pytest.raises(UserError) as error:
        _run(modes.train, corpus, tmp_path / "file" / "run")
    assert error.value.status == 1
    _told(error, "Not a directory", str(tmp_path / "file" / "run"), "--workdir")


class _FullDisk:
    """No space for checkpoints, from the moment `full` is set."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch):
        self.full = False
        usage = shutil.disk_usage

        def disk_usage(path: Any) -> Any:
            return usage(path)._replace(free=10) if self.full else usage(path)

        monkeypatch.setattr(shutil, "disk_usage", disk_usage)


def test_a_full_disk_ends_the_run_and_its_last_checkpoint_stands(
    corpus: Path, trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, batches = tmp_path / "run", training_run.train_batches
    with monkeypatch.context() as patch:
        disk = _FullDisk(patch)

        def fill_up_in_step_four(*arguments: Any) -> Iterator[Any]:
            for number, batch in enumerate(batches(*arguments), start=1):
                disk.full = number == 4
                yield batch

        patch.setattr(training_run, "train_batches", fill_up_in_step_four)
        with pytest.raises(UserError) as error:
            _run(modes.train, corpus, run)
    assert error.value.status == 1
    _told(error, "the disk is full", str(run), "the same command again")
    assert [path.name for path in (run / "checkpoints").iterdir()] == ["00000002"]
    assert len((run / "metrics.jsonl").read_text().splitlines()) >= 6

    _run(modes.train, corpus, run)  # there is space again
    same = [
        [
            line
            for line in (folder / "metrics.jsonl").read_text().splitlines()
            if '"train"' in line
        ]
        for folder in (run, trained)
    ]
    assert same[0] == same[1]


def test_a_write_that_fails_half_way_is_told_and_never_picked_up(
    corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = tmp_path / "run"
    half = run / "checkpoints" / "00000002.orbax-checkpoint-tmp"

    def fail(*_: object, **__: object) -> None:
        half.mkdir()
        (half / "state").write_bytes(b"half")
        # As the writer's thread tells it.
        raise ValueError("RESOURCE_EXHAUSTED: ... No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(ocp.AsyncCheckpointer, "save", fail)
        with pytest.raises(UserError) as error:
            _run(modes.train, corpus, run)
    _told(error, "the disk is full", str(run))
    assert half.exists()
    with pytest.raises(ConfigError) as error:
        _run(modes.generate, corpus, run)
    _told(error, "no whole checkpoint", str(run))
    _run(modes.train, corpus, run)
    names = sorted(path.name for path in (run / "checkpoints").iterdir())
    assert names == ["00000002", "00000004"]


def test_a_full_disk_during_preparation_leaves_whole_shards_behind(
    corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = tmp_path / "cache"
    write, written = shards._write_records, []

    def fail_at_the_second(file: Path, records: Any) -> int:
        if written:
            file.write_bytes(b"half a shard")
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        written.append(file)
        return write(file, records)

    with monkeypatch.context() as patch:
        patch.setattr(shards, "_write_records", fail_at_the_second)
        with pytest.raises(UserError) as error:
            _run(modes.prepare, corpus, tmp_path, data__cache_dir=str(cache))
    assert error.value.status == 1
    _told(error, "disk is full", str(cache), "data.cache_dir")
    assert written and not list(cache.rglob("manifest.json"))
    (whole,) = cache.rglob("*.array_record")
    made = whole.stat().st_mtime_ns
    _run(modes.prepare, corpus, tmp_path, data__cache_dir=str(cache))
    assert len(list(cache.rglob("*.array_record"))) == 2
    assert whole.stat().st_mtime_ns == made


# Arguments, exit status, what is told.
COMMANDS = {
    "an unknown field": (
        ["--config.train.batchsize=8", "--config.optim.lerning_rate=1"],
        2,
        ("train.batch_size", "optim.learning_rate"),
    ),
    "an unknown flag": (["--wrkdir=x"], 2, ("wrkdir", "workdir")),
    "an unknown variant": (["--config=configs/babylm.py:ar,tony"], 2, ("tiny",)),
    "a value of a wrong type": (["--config.train.batch_size=many"], 2, ("many",)),
    "a run without a name": (["--mode=generate"], 2, ("--workdir",)),
    "a missing corpus": (["--config.data.train=/nowhere"], 1, ("/nowhere",)),
}


def _command(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "lmjax.main", *arguments],
        cwd=ROOT,
        text=True,
        capture_output=True,
        timeout=200,
    )


@pytest.mark.parametrize("name", COMMANDS)
def test_the_command_line_ends_with_a_status_and_no_traceback(
    name: str, tmp_path: Path
) -> None:
    arguments, status, told = COMMANDS[name]
    if "--mode=generate" not in arguments:
        arguments = [f"--workdir={tmp_path / 'run'}", *arguments]
    process = _command(*arguments)
    assert process.returncode == status, process.stderr
    assert "Traceback" not in process.stderr
    for part in ("lmjax: ", *told):
        assert part in process.stderr
    assert not (tmp_path / "run").exists()


def test_a_disk_that_is_full_for_the_log_ends_the_command(
    corpus: Path, tmp_path: Path
) -> None:
    """In /dev/full every write fails as on a full disk."""
    full = tmp_path / "full"
    full.mkdir()
    (full / "log.txt").symlink_to("/dev/full")
    process = _command(
        "--config=configs/babylm.py:ar,nano",
        f"--config.data.train={corpus}",
        f"--config.data.cache_dir={corpus.parent / 'cache'}",
        "--config.data.sequence_length=16",
        "--config.tokenizer.vocab_size=300",
        "--config.model.num_layers=1",
        "--config.log.tensorboard=false",
        f"--workdir={full}",
    )
    assert process.returncode == 1, process.stderr
    assert "No space left on device" in process.stderr
    assert "to do: free space" in process.stderr
    assert "Traceback" not in process.stderr
