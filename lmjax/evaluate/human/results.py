"""Files of reading times and ages of acquisition, as the official pipeline names them.

Beside them stands one of ours with everything that was found, and how: `reading.json`
and `acquisition.json`.
"""

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from lmjax.config.choices import AcquisitionEdition
from lmjax.core import files
from lmjax.core.errors import UserError
from lmjax.evaluate.human.acquisition_data import AcquisitionData, Milestone
from lmjax.evaluate.human.age_of_acquisition import AcquisitionResult
from lmjax.evaluate.human.reading import (
    FORMULA,
    ReadingResult,
    ReadingTimes,
    WordSurprisals,
)
from lmjax.evaluate.human.regression import Explained

READING_FOLDER, ACQUISITION_FOLDER = "reading", "AoA_word"
SURPRISALS_FILE, SCORE_FILE = "surprisal.json", "aoa_score.json"
_ALONE = "BOS_ONLY"  # stands for the context of a word that was asked for alone


def write_reading(
    folder: Path,
    data: ReadingTimes,
    found: WordSurprisals,
    result: ReadingResult,
    stamp: Mapping[str, str],
) -> Path:
    """Writes the files of one checkpoint, and returns the folder that holds them.

    Args:
      folder: results/<model>/<revision>/zero_shot/<backend>.
      stamp: how the surprisals were found, such as backend and dtype.
    """
    folder = folder / READING_FOLDER
    folder.mkdir(parents=True, exist_ok=True)
    rows = list(
        zip(data.words, found.word.tolist(), found.before.tolist(), strict=True)
    )
    predictions = [
        {"id": i, "pred": nats, "prev_pred": before}
        for i, (_, nats, before) in enumerate(rows)
    ]
    # As officially, NaN stands for words that nothing comes before.
    content = json.dumps({"reading": {"predictions": predictions}})
    _write(folder / "predictions.json", content)
    lines = [
        {
            "Index": i,
            "Sentence": context,
            "Word": word,
            "Logprob": nats,
            "Prev_Logprob": before,
        }
        for i, ((context, word), nats, before) in enumerate(rows)
    ]
    _write_lines(folder / "prediction.jsonl", lines)
    _write(
        folder / "correlations.txt",
        "".join(f"{name}\t{r:.4f}\n" for name, r in result.correlations.items()),
    )
    powers = {"": result.plain, "_spillover": result.spillover}
    for ending, explained in powers.items():
        _write_lines(
            folder / f"predictive_power{ending}.jsonl",
            [_power(name, each) for name, each in explained.items()],
        )
    _write(
        folder / "report.txt",
        f"EYE TRACKING SCORE: {result.eye_tracking.value:.2f}\n"
        f"SELF-PACED READING SCORE: {result.self_paced.value:.2f}\n",
    )
    ours = {"formula": FORMULA, **stamp, "unit": "nats", **result.to_json()}
    words = [
        {"context": context, "word": word, "nats": nats, "bits": nats / math.log(2)}
        for (context, word), nats, _ in rows
    ]
    _write(folder / "reading.json", json.dumps(ours | {"words": words}, indent=1))
    return folder


def write_acquisition(
    folder: Path,
    data: AcquisitionData,
    milestones: Sequence[Milestone],
    nats_PC: np.ndarray,
    result: AcquisitionResult,
    *,
    model_name: str,
    stamp: Mapping[str, str],
) -> Path:
    """Writes the files of all checkpoints, and returns the folder that holds them.

    Args:
      folder: results/<model>/main/zero_shot/<backend>, whatever the checkpoints.
      nats_PC: as of `score_acquisition`.
      stamp: as of `write_reading`.
    """
    folder = folder / ACQUISITION_FOLDER
    folder.mkdir(parents=True, exist_ok=True)
    alone = result.edition is AcquisitionEdition.BABYLM_2025
    number = len(milestones)
    content = {
        "metadata": {
            "model_name": model_name,
            "use_bos_only": alone,
            "total_steps": number,
            "completed_steps": number,
        },
        "results": list(_entries(data, milestones, nats_PC, alone)),
    }
    _write(folder / SURPRISALS_FILE, json.dumps(content, indent=2))
    _write(folder / SCORE_FILE, json.dumps({"aoa": result.score}, indent=2))
    ours = {"formula": result.edition.value, **stamp, **result.to_json()}
    _write(folder / "acquisition.json", json.dumps(ours, indent=1))
    return folder


def read_surprisals(
    file: Path, data: AcquisitionData
) -> tuple[list[Milestone], np.ndarray]:
    """Reads a surprisal.json: milestones, and nats [P, C] of `AcquisitionData.rows`.

    Raises:
      UserError: it can't be read, or lacks a context of a checkpoint.
    """
    try:
        entries = json.loads(file.read_bytes())["results"]
        found = {
            (str(entry["step"]), str(entry["target_word"]), int(entry["context_id"])): (
                float(entry["surprisal"])
            )
            for entry in entries
        }
    except OSError as error:
        raise _not_surprisals(file, error.strerror or str(error)) from error
    except (ValueError, TypeError, KeyError) as error:
        raise _not_surprisals(file, f"{type(error).__name__}: {error}") from error
    milestones = [Milestone.named(name) for name in dict.fromkeys(k[0] for k in found)]
    rows = data.rows
    nats_PC = np.zeros((len(milestones), len(rows)))
    for p, milestone in enumerate(milestones):
        for c, (word, number, _) in enumerate(rows):
            key = (milestone.revision, word, number)
            if key not in found:
                raise _not_surprisals(
                    file, f"{milestone.revision} lacks context {number} of {word!r}"
                )
            nats_PC[p, c] = found[key]
    return milestones, nats_PC


def words_table(result: AcquisitionResult) -> str:
    """What became of the words, and the notes, for a person."""
    lines = [f"{count:6d}  {outcome}" for outcome, count in result.outcomes().items()]
    lines.append(f"{result.num_valid:6d}  with both ages")
    return "\n".join([*lines, *(f"note: {note}" for note in result.notes)])


def _entries(
    data: AcquisitionData,
    milestones: Sequence[Milestone],
    nats_PC: np.ndarray,
    alone: bool,
) -> Iterator[dict[str, Any]]:
    for milestone, row in zip(milestones, np.asarray(nats_PC).tolist(), strict=True):
        for (word, number, context), nats in zip(data.rows, row, strict=True):
            yield {
                "step": milestone.revision,
                "word_count": milestone.words,
                "target_word": word,
                "context_id": number,
                "context": _ALONE if alone else context,
                "surprisal": nats,
            }


def _power(name: str, explained: Explained) -> dict[str, Any]:
    return {
        "Predicted variable": name,
        "Coefficient": explained.coefficient,
        "Number of standard deviations": explained.t,
        "P-value": explained.p,
        "R2": explained.r2,
        "Change in R2 from baseline": explained.r2 - explained.r2_controls,
        "AIC": explained.aic,
        "Change in AIC from baseline": explained.aic - explained.aic_controls,
    }


def _write_lines(path: Path, lines: Sequence[Mapping[str, Any]]) -> None:
    _write(path, "".join(f"{json.dumps(line)}\n" for line in lines))


def _write(path: Path, content: str) -> None:
    with files.replacing(path) as temporary:
        temporary.write_text(content, encoding="utf-8")


def _not_surprisals(file: Path, why: str) -> UserError:
    return UserError(
        f"The surprisals can't be read: {why}.",
        where=str(file),
        remedy="give a surprisal.json of all words and contexts, or score the "
        "checkpoints again.",
    )
