"""Files of zero-shot results: those of BabyLM's pipeline, and our own beside them.

Under a folder:

  <model>/<revision>/zero_shot/<backend>/<task>/<dataset>/predictions.json
                                                          best_temperature_report.txt
                                                          scorer.json
  results.json   results.csv

The first two are as the official pipeline writes them, to the byte, but for the order
of UIDs, which there is that of the file system. They have no room for how figures came
about: that is in the others.
"""

import csv
import io
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from lmjax.core.errors import UserError
from lmjax.core.files import replacing
from lmjax.evaluate.zero_shot.items import Task
from lmjax.evaluate.zero_shot.results import Accuracy, Stamp, TaskResult, percent

_COLUMNS = ("model", "revision", "backend", "task", "dataset", "kind", "group")
_COLUMNS += ("accuracy", "low", "high", "standard_error", "items", "ties", "nans")
_COLUMNS += ("tie_rule", "dtype", "draws", "scorer", "lmjax")


class Revision(NamedTuple):
    """The results of one checkpoint.

    Attributes:
      model: its name, as on the Hugging Face hub without the owner.
      revision: "main", "chck_1M", ...
    """

    model: str
    revision: str
    results: Sequence[TaskResult]


def write_results(folder: Path, revisions: Sequence[Revision]) -> list[Path]:
    """Writes all files; returns results.json and results.csv.

    Files that stand there are replaced. Several processes may not write at once.
    """
    for revision in revisions:
        for result in revision.results:
            _write_task(_task_folder(folder, revision, result), result)
    table, rows = folder / "results.json", folder / "results.csv"
    _write(table, json.dumps(_summary(revisions), indent=2) + "\n")
    _write(rows, _csv(revisions))
    return [table, rows]


def read_predictions(
    file: Path, task: Task, *, stamp: Stamp, resamples: int = 1000, seed: int = 0
) -> TaskResult:
    """What a predictions.json chose, the official pipeline's or ours.

    Of candidates that are called alike the first is taken.

    Raises:
      UserError: it is not there, is no such file, or is about other items.
    """
    remedy = "name the predictions of this task, on the same items."
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
        stored = {
            entry["id"]: entry["pred"]
            for group in content.values()
            for entry in group["predictions"]
        }
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(
            f"Predictions can't be read: {error!r}", where=str(file), remedy=remedy
        ) from error
    chosen = []
    for name, item in zip(task.ids(), task.items, strict=True):
        called = [candidate.stored for candidate in item.candidates]
        if stored.get(name) not in called:
            raise UserError(
                f"The prediction of {name} is {stored.get(name)!r}, which is none of "
                f"its {len(called)} candidates.",
                where=f"{file}; the item is in {item.where}",
                remedy=remedy,
            )
        chosen.append(called.index(stored[name]))
    if len(stored) != len(chosen):
        raise UserError(
            f"There are {len(stored)} predictions for {len(chosen)} items.",
            where=str(file),
            remedy=remedy,
        )
    return TaskResult(
        task=task,
        chosen=np.array(chosen),
        stamp=stamp,
        resamples=resamples,
        seed=seed,
    )


def predictions_json(result: TaskResult) -> str:
    """The official predictions.json."""
    groups: dict[str, dict[str, list[dict[str, str]]]] = {}
    names = result.task.ids()
    for name, item, index in zip(names, result.task.items, result.chosen, strict=True):
        entry = {"id": name, "pred": item.candidates[index].stored}
        groups.setdefault(item.uid, {"predictions": []})["predictions"].append(entry)
    return json.dumps(groups)


def report_text(result: TaskResult) -> str:
    """The official best_temperature_report.txt, at the one temperature of 1."""
    lines = ["TEMPERATURE: 1.00", ""]
    for kind, groups in result.groups().items():
        shares = groups | (result.splits() if kind == "UID" else {})
        lines.append(f"### {kind.upper()} ACCURACY")
        lines += [f"{name}: {100 * share.value:.2f}" for name, share in shares.items()]
        lines.append("")
    lines += ["### AVERAGE ACCURACY", f"{100 * result.average().value:.2f}", ""]
    return "\n".join(lines) + "\n"


def results_table(revisions: Sequence[Revision]) -> str:
    """Accuracies in percent, a line for each task of each checkpoint, for a person."""
    header = ("model", "revision", "dataset", "backend", "accuracy", "95 % interval")
    header += ("chance", "items", "ties", "NaN")
    cells = [header]
    for model, revision, results in revisions:
        for result in results:
            average = result.average()
            cells.append(
                (
                    model,
                    revision,
                    result.task.dataset,
                    result.stamp.backend,
                    f"{100 * average.value:.2f}",
                    f"{100 * average.low:.2f} to {100 * average.high:.2f}",
                    f"{100 * result.task.chance():.1f}",
                    f"{average.count:,}",
                    f"{result.ties:,}",
                    f"{result.nans:,}",
                )
            )
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    lines = []
    for row in cells:
        padded = [cell.ljust(w) for cell, w in zip(row[:4], widths[:4], strict=True)]
        padded += [cell.rjust(w) for cell, w in zip(row[4:], widths[4:], strict=True)]
        lines.append("  ".join(padded).rstrip())
    return "\n".join(lines)


def _task_folder(folder: Path, revision: Revision, result: TaskResult) -> Path:
    path = folder / revision.model / revision.revision / "zero_shot"
    return path / result.stamp.backend / result.task.name / result.task.dataset


def _write_task(folder: Path, result: TaskResult) -> None:
    _write(folder / "predictions.json", predictions_json(result))
    _write(folder / "best_temperature_report.txt", report_text(result))
    counts = {"ties": result.ties, "nans": result.nans, "truncated": result.truncated}
    stamp = json.dumps(result.stamp.to_json() | counts, indent=2)
    _write(folder / "scorer.json", stamp + "\n")


def _write(file: Path, text: str) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    with replacing(file) as temporary:
        temporary.write_text(text, encoding="utf-8", newline="")


def _summary(revisions: Sequence[Revision]) -> list[dict[str, Any]]:
    return [
        {"model": model, "revision": revision, **result.to_json()}
        for model, revision, results in revisions
        for result in results
    ]


def _csv(revisions: Sequence[Revision]) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(_COLUMNS)
    for model, revision, results in revisions:
        for result in results:
            stamp, task = result.stamp, result.task
            place = (model, revision, stamp.backend, task.name, task.dataset)
            how = (result.ties, result.nans, stamp.tie_rule, stamp.dtype, stamp.draws)
            for kind, name, share in _lines(result):
                figures = (share.value, share.low, share.high, share.standard_error)
                row = [*place, kind, name, *map(percent, figures), share.count]
                writer.writerow([*row, *how, stamp.scorer, stamp.lmjax])
    return text.getvalue()


def _lines(result: TaskResult) -> Iterator[tuple[str, str, Accuracy]]:
    """Kind, group and accuracy, of the whole task first."""
    yield "average", "", result.average()
    for name, share in result.splits().items():
        yield "split", name, share
    for kind, groups in result.groups().items():
        for name, share in groups.items():
            yield kind, name, share
