"""Where a run's figures go, read back from there."""

import io
import json
import struct
import sys
from pathlib import Path
from typing import Any

import pytest
from tensorboardX.proto.event_pb2 import Event

from lmjax.config.schema import LogConfig
from lmjax.core.errors import ConfigError
from lmjax.train.loggers import RunLogger

PLAIN = LogConfig(tensorboard=False)


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def _logger(workdir: Path, config: LogConfig = PLAIN, **options: Any) -> RunLogger:
    options = {"total_steps": 10, "stream": io.StringIO()} | options
    return RunLogger(workdir, config, **options)


def _lines(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_text().split("\n") if line]


def test_figures_and_samples_are_one_object_per_line(tmp_path: Path) -> None:
    with _logger(tmp_path) as logger:
        logger.metrics(3, "train", {"loss": 2.5, "epoch": 0.5})
        logger.metrics(4, "valid", {"nll_per_token": 2.0})
        logger.sample(4, "the", "the dog\n\u2028caf\u00e9")
    assert _lines(tmp_path / "metrics.jsonl") == [
        {"step": 3, "split": "train", "loss": 2.5, "epoch": 0.5},
        {"step": 4, "split": "valid", "nll_per_token": 2.0},
    ]
    assert _lines(tmp_path / "samples.jsonl") == [
        {"step": 4, "prompt": "the", "text": "the dog\n\u2028caf\u00e9"}
    ]


def test_figures_are_on_disk_before_the_run_ends(tmp_path: Path) -> None:
    with _logger(tmp_path) as logger:
        logger.metrics(1, "train", {"loss": 2.5})
        logger.line("hello")
        assert _lines(tmp_path / "metrics.jsonl")
        assert (tmp_path / "log.txt").read_text() == "hello\n"


def test_a_resumed_run_drops_what_came_after_its_checkpoint(tmp_path: Path) -> None:
    """And half a line of a process that was killed; a text's own breaks are kept."""
    with _logger(tmp_path) as logger:
        for step in (2, 4, 6):
            logger.metrics(step, "train", {"loss": float(step)})
            logger.sample(step, "", "one\u2028two\u0085three")
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 3, "spl')
    with _logger(tmp_path, start_step=4) as logger:
        logger.metrics(6, "train", {"loss": 6.5})
    found = [
        (line["step"], line["loss"]) for line in _lines(tmp_path / "metrics.jsonl")
    ]
    assert found == [(2, 2.0), (4, 4.0), (6, 6.5)]
    samples = _lines(tmp_path / "samples.jsonl")
    assert [sample["step"] for sample in samples] == [2, 4]
    assert samples[0]["text"] == "one\u2028two\u0085three"
    files = {path.name for path in tmp_path.iterdir()}
    assert files == {"metrics.jsonl", "samples.jsonl", "log.txt"}


def test_a_disk_that_is_full_when_a_run_resumes_costs_no_figures(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with _logger(tmp_path) as logger:
        logger.metrics(2, "train", {"loss": 2.0})

    def full(path: Path, *_: Any, **__: Any) -> None:
        open(path, "w").close()
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(Path, "write_text", full)
        with pytest.raises(OSError, match="No space"):
            _logger(tmp_path, start_step=2)
    assert _lines(tmp_path / "metrics.jsonl")[0]["loss"] == 2.0


def _events(folder: Path) -> list[Event]:
    """Reads event files: length, its checksum, the event, its checksum."""
    events = []
    for file in sorted(folder.iterdir()):
        data = file.read_bytes()
        while data:
            (length,) = struct.unpack("<Q", data[:8])
            events.append(Event.FromString(data[12 : 12 + length]))
            data = data[16 + length :]
    return events


def test_tensorboard_gets_scalars_and_texts(tmp_path: Path) -> None:
    with _logger(tmp_path, LogConfig(tensorboard=True)) as logger:
        logger.metrics(7, "train", {"loss": 2.5})
        logger.text(7, "samples", "the dog\n  barks")
    values = {
        value.tag: (event.step, value)
        for event in _events(tmp_path / "tensorboard")
        for value in event.summary.value
    }
    step, loss = values["train/loss"]
    assert (step, loss.simple_value) == (7, 2.5)
    step, text = next(v for name, v in values.items() if name.startswith("samples"))
    assert step == 7
    assert text.tensor.string_val[0].decode() == "    the dog\n      barks"


def test_a_resumed_run_tells_tensorboard_what_to_forget(tmp_path: Path) -> None:
    for start, value in ((0, 1.0), (4, 2.0)):
        config = LogConfig(tensorboard=True)
        with _logger(tmp_path, config, start_step=start) as logger:
            logger.metrics(5, "train", {"loss": value})
    starts = [
        event.step
        for event in _events(tmp_path / "tensorboard")
        if event.session_log.status == 1
    ]
    assert starts == [5], "what came after step 4"


def test_away_from_a_terminal_there_are_plain_lines(tmp_path: Path) -> None:
    stream = io.StringIO()
    with _logger(tmp_path, stream=stream) as logger:
        logger.line("plan")
        logger.progress(1, "step 1/10 | loss 2.0")
        logger.sample(1, "", "one\ntwo")
    text = "plan\nstep 1/10 | loss 2.0\n  | one\n  | two\n"
    assert stream.getvalue() == text == (tmp_path / "log.txt").read_text()


def test_on_a_terminal_there_is_a_bar_and_the_log_has_plain_lines(
    tmp_path: Path,
) -> None:
    stream = Terminal()
    with _logger(tmp_path, stream=stream, start_step=2) as logger:
        logger.progress(5, "step 5/10 | loss 2.0")
        logger.line("evaluated")
        logger.progress(10, "step 10/10 | loss 1.0")
    shown = stream.getvalue()
    assert "step 5/10 | loss 2.0  50%|" in shown
    assert "100%|" in shown
    assert "evaluated\n" in shown
    log = (tmp_path / "log.txt").read_text()
    assert log == "step 5/10 | loss 2.0\nevaluated\nstep 10/10 | loss 1.0\n"


def test_only_one_process_writes(tmp_path: Path) -> None:
    stream = io.StringIO()
    config = LogConfig(tensorboard=True, wandb=True)
    workdir = tmp_path / "run"
    with _logger(workdir, config, stream=stream, writes=False) as logger:
        logger.line("plan")
        logger.progress(1, "step")
        logger.metrics(1, "train", {"loss": 1.0})
        logger.sample(1, "", "text")
        logger.text(1, "config", "text")
    assert stream.getvalue() == ""
    assert not workdir.exists()


def test_a_logger_that_is_not_installed_is_told_with_its_extra(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(ConfigError) as error:
        _logger(tmp_path, LogConfig(tensorboard=False, wandb=True))
    assert 'pip install "lmjax[wandb]"' in error.value.remedy
    assert error.value.where == "log.wandb"


def test_wandb_gets_what_metrics_gets(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Wandb:
        """Stands for the module and for its run."""

        calls: list[tuple[str, Any]]

        def __init__(self) -> None:
            self.calls = []

        def init(self, **options: Any) -> "Wandb":
            self.calls.append(("init", options))
            return self

        def define_metric(self, name: str, step_metric: str) -> None:
            self.calls.append(("define", (name, step_metric)))

        def log(self, values: dict[str, float]) -> None:
            self.calls.append(("log", values))

        def finish(self) -> None:
            self.calls.append(("finish", None))

    wandb = Wandb()
    monkeypatch.setitem(sys.modules, "wandb", wandb)
    config = LogConfig(tensorboard=False, wandb=True, wandb_project="mine")
    with _logger(tmp_path / "run-1", config) as logger:
        logger.metrics(3, "train", {"loss": 2.5})
    assert [name for name, _ in wandb.calls] == ["init", "define", "log", "finish"]
    options = wandb.calls[0][1]
    assert (options["project"], options["id"]) == ("mine", "run-1")
    assert wandb.calls[2][1] == {"train/loss": 2.5, "step": 3}


def test_what_is_done_again_after_a_resume_is_not_there_twice(tmp_path: Path) -> None:
    """Figures of the step it goes on from stay as far as they are not made again."""
    for done, splits in (
        (("evaluate",), ["train", "valid"]),
        ((), ["train"]),
    ):
        with _logger(tmp_path / str(len(done))) as logger:
            for split in ("train", "valid", "final"):
                logger.metrics(4, split, {"loss": 1.0})
            logger.sample(4, "", "text")
        with _logger(tmp_path / str(len(done)), start_step=4, done=done):
            pass
        lines = _lines(tmp_path / str(len(done)) / "metrics.jsonl")
        assert [line["split"] for line in lines] == splits
        assert not _lines(tmp_path / str(len(done)) / "samples.jsonl")


def test_lines_that_are_no_records_are_dropped(tmp_path: Path) -> None:
    lines = [b"[]", b"7", b'{"step": "x"}', b'{"step": null}', b"\xff\xfe", b"[" * 5000]
    good = b'{"step": 1, "split": "train"}'
    (tmp_path / "metrics.jsonl").write_bytes(b"\n".join([*lines, good, b""]))
    with _logger(tmp_path, start_step=2):
        pass
    assert (tmp_path / "metrics.jsonl").read_bytes() == good + b"\n"
