"""Files of zero-shot results: those of BabyLM's pipeline, and our own beside them.

Under a folder:

  <model>/<revision>/zero_shot/<backend>/<task>/<dataset>/predictions.json
                                                          best_temperature_report.txt
                                                          scorer.json
  results.json   results.csv

The first two are as the official pipeline writes them, to the byte, but for the order
of UIDs, which there is that of the file system. They have no room for how figures came
about: that is in the others. results.json and results.csv hold whatever was scored
into this folder, by one command or by many.
"""

import csv
import io
import json
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from lmjax.core.errors import UserError
from lmjax.core.files import replacing
from lmjax.evaluate.zero_shot.items import Task
from lmjax.evaluate.zero_shot.results import Stamp, TaskResult

_COLUMNS = ("model", "revision", "step", "words", "backend", "task", "dataset")
_COLUMNS += ("kind", "group", "accuracy", "low", "high", "standard_error", "items")
_COLUMNS += ("ties", "nans", "tie_rule", "dtype", "draws", "scorer", "lmjax")


class Revision(NamedTuple):
    """The results of one checkpoint.

    Attributes:
      model: its name, as on the Hugging Face hub without the owner.
      revision: "main", "chck_1M", ...
      step, words: of training up to here; 0 where they are not known.
    """

    model: str
    revision: str
    results: Sequence[TaskResult]
    step: int = 0
    words: int = 0


def write_results(folder: Path, revisions: Sequence[Revision]) -> list[Path]:
    """Writes the files of these results; returns results.json and results.csv.

    Both keep what they held of other models, revisions, backends, tasks and datasets.
    May be called after every checkpoint, with this one alone. Several processes may not
    write at once.

    Raises:
      UserError: the results.json that stands there can't be read. It is left alone; the
        files of each task are written.
    """
    for revision in revisions:
        for result in revision.results:
            _write_task(_task_folder(folder, revision, result), result)
    table, rows = folder / "results.json", folder / "results.csv"
    entries = _standing(table)
    for entry in _entries(revisions):
        entries[_key(entry)] = entry
    summary = json.dumps(list(entries.values()), indent=2) + "\n"
    lines = _csv(entries.values())
    _write(table, summary)
    _write(rows, lines)
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
    for model, revision, results, *_ in revisions:
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


def _entries(revisions: Sequence[Revision]) -> Iterator[dict[str, Any]]:
    for model, revision, results, step, words in revisions:
        counts = {"step": step, "words": words}
        for result in results:
            yield {"model": model, "revision": revision, **counts, **result.to_json()}


def _key(entry: dict[str, Any]) -> tuple[str, ...]:
    """What an entry is about: there is one of each."""
    backend = entry["stamp"]["backend"]
    place = (entry["model"], entry["revision"], backend)
    return (*place, entry["task"], entry["dataset"])


def _standing(table: Path) -> dict[tuple[str, ...], dict[str, Any]]:
    """The entries of a results.json by what they are about; none if there is none."""
    if not table.exists():
        return {}
    try:
        found = {_key(entry): entry for entry in json.loads(table.read_bytes())}
        _csv(found.values())
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(
            f"Earlier results, which are to be kept, can't be read: {error!r}",
            where=str(table),
            remedy="move this file away, or remove it: another one is then begun.",
        ) from error
    return found


def _csv(entries: Iterable[dict[str, Any]]) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(_COLUMNS)
    for entry in entries:
        # Earlier versions wrote no counts.
        counts = (entry.get("step", 0), entry.get("words", 0))
        model, revision, *place = _key(entry)
        stamp = entry["stamp"]
        how = [entry["ties"], entry["nans"], stamp["tie_rule"], stamp["dtype"]]
        how += [stamp["draws"], stamp["scorer"], stamp["lmjax"]]
        for kind, name, share in _lines(entry):
            figures = (share["accuracy"], *share["interval"], share["standard_error"])
            row = [model, revision, *counts, *place, kind, name, *figures]
            writer.writerow([*row, share["items"], *how])
    return text.getvalue()


def _lines(entry: dict[str, Any]) -> Iterator[tuple[str, str, dict[str, Any]]]:
    """Kind, group and accuracy, of the whole task first."""
    yield "average", "", entry
    for name, share in entry["splits"].items():
        yield "split", name, share
    for kind, groups in entry["groups"].items():
        for name, share in groups.items():
            yield kind, name, share
