"""Where a run's figures go: terminal, log.txt, metrics.jsonl, TensorBoard, W&B."""

import contextlib
import json
import logging
import pathlib
import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, TextIO

from tqdm import tqdm

from lmjax.config.schema import LogConfig
from lmjax.core.errors import ConfigError
from lmjax.core.files import replacing


class RunLogger:
    """Writes a run's lines, figures and samples; only the first process does.

    Args:
      workdir: the run folder.
      config: the log section.
      total_steps: length of the run, for the progress bar.
      start_step: first step of this start; figures of later steps, left by a start
        that went on beyond its last checkpoint, are dropped from metrics.jsonl.
      done: of "evaluate" and "generate", what was done after that step: figures and
        samples of what is done again are dropped too.
      writes: False on all processes but the first.
      stream: where lines go; a progress bar is shown when it is a terminal.
    """

    def __init__(
        self,
        workdir: pathlib.Path,
        config: LogConfig,
        *,
        total_steps: int,
        start_step: int = 0,
        done: Sequence[str] = ("evaluate", "generate"),
        writes: bool = True,
        stream: TextIO | None = None,
    ):
        self._stream = stream or sys.stderr
        self._writes = writes
        self._bar = self._tensorboard = self._wandb = self._metrics = self._log = None
        if not writes:
            return
        workdir.mkdir(parents=True, exist_ok=True)
        if config.wandb:  # first, for it may be missing
            self._wandb = _wandb(config, workdir)
        step = start_step
        _keep_lines(workdir / "metrics.jsonl", step, {"valid": "evaluate" in done})
        _keep_lines(workdir / "samples.jsonl", step, {"": "generate" in done})
        self._metrics = _append(workdir / "metrics.jsonl")
        self._samples = _append(workdir / "samples.jsonl")
        self._log = _append(workdir / "log.txt")
        if config.tensorboard:
            self._tensorboard = _tensorboard(workdir / "tensorboard", start_step)
        if self._stream.isatty():
            self._bar = tqdm(
                total=total_steps,
                initial=start_step,
                unit="step",
                file=self._stream,
                dynamic_ncols=True,
                bar_format="{desc} {percentage:3.0f}%|{bar}|{postfix}",
            )

    def __enter__(self) -> "RunLogger":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def line(self, text: str) -> None:
        """One line for the person watching, and for log.txt."""
        if not self._writes:
            return
        print(text, file=self._log, flush=True)
        if self._bar is not None:
            self._bar.clear()
        print(text, file=self._stream, flush=True)

    def progress(self, step: int, text: str) -> None:
        """The state of training: the bar on a terminal, a line elsewhere."""
        if not self._writes:
            return
        if self._bar is None:
            self.line(text)
            return
        print(text, file=self._log, flush=True)
        self._bar.n = step
        self._bar.set_description_str(text, refresh=True)

    def metrics(self, step: int, split: str, values: dict[str, float]) -> None:
        """Figures of one step, such as split "train" or "valid"."""
        if not self._writes:
            return
        record = {"step": step, "split": split, **values}
        print(json.dumps(record), file=self._metrics, flush=True)
        named = {f"{split}/{name}": value for name, value in values.items()}
        if self._tensorboard is not None:
            for name, value in named.items():
                self._tensorboard.add_scalar(name, value, step)
        if self._wandb is not None:
            self._wandb.log(named | {"step": step})

    def sample(self, step: int, prompt: str, text: str) -> None:
        """A text the model wrote."""
        if not self._writes:
            return
        record = {"step": step, "prompt": prompt, "text": text}
        print(json.dumps(record, ensure_ascii=False), file=self._samples, flush=True)
        indented = text.replace("\n", "\n  | ")
        self.line(f"  | {indented}")

    def text(self, step: int, name: str, text: str) -> None:
        """A text for TensorBoard, shown verbatim."""
        if self._tensorboard is not None:
            verbatim = "\n".join("    " + line for line in text.splitlines())
            self._tensorboard.add_text(name, verbatim, step)

    def flush(self) -> None:
        """Hands everything to the system, so that it outlives this process."""
        if self._tensorboard is not None:
            self._tensorboard.flush()

    def close(self) -> None:
        """Flushes and closes everything."""
        if self._bar is not None:
            self._bar.close()
        if self._tensorboard is not None:
            self._tensorboard.close()
        if self._wandb is not None:
            self._wandb.finish()
        if self._writes:
            for file in (self._metrics, self._samples, self._log):
                file.close()


def _append(path: pathlib.Path) -> TextIO:
    return path.open("a", encoding="utf-8")


def _keep_lines(path: pathlib.Path, step: int, at_step: Mapping[str, bool]) -> None:
    """Keeps what a run that goes on from `step` does not write again.

    Args:
      at_step: whether lines of that very step stay, by their split ("" where they have
        none); those of training do, and the final figures never.
    """
    if not path.exists():
        return
    stay = {"train": True, "speed": True, "final": False, **at_step}
    kept = []
    # Not splitlines, for a text in a line may hold a separator of Unicode. Bytes that a
    # damaged disk left behind are no reason to end.
    for line in path.read_text(encoding="utf-8", errors="replace").split("\n"):
        try:
            record = json.loads(line)
            written, split = record["step"], record.get("split", "")
            keep = written < step or (written == step and stay.get(split, True))
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
            keep = False  # half a line, from a process that was killed
        if keep:
            kept.append(line + "\n")
    # In one go: on a full disk the old lines stay.
    with replacing(path) as temporary:
        temporary.write_text("".join(kept), encoding="utf-8")


def _tensorboard(folder: pathlib.Path, start_step: int) -> Any:
    with _without("torch"):  # only to name a type, and it takes seconds to import
        import tensorboardX

    logging.getLogger("tensorboardX").setLevel(logging.ERROR)
    return tensorboardX.SummaryWriter(
        str(folder), purge_step=start_step + 1 if start_step else None
    )


@contextlib.contextmanager
def _without(module: str) -> Iterator[None]:
    """Has an optional module seem absent, unless it is imported already."""
    if module in sys.modules:
        yield
        return
    sys.modules[module] = None  # what makes an import of it fail
    try:
        yield
    finally:
        del sys.modules[module]


def _wandb(config: LogConfig, workdir: pathlib.Path) -> Any:
    try:
        import wandb
    except ImportError as error:
        raise ConfigError(
            "log.wandb=True needs the package wandb, which is not installed",
            where="log.wandb",
            remedy='pip install "lmjax[wandb]", or --config.log.wandb=False',
        ) from error
    run = wandb.init(
        project=config.wandb_project,
        name=workdir.name,
        id=workdir.name,
        resume="allow",
        dir=str(workdir),
    )
    run.define_metric("*", step_metric="step")
    return run
