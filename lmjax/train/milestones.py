"""Word milestones: weights kept for good once a run has seen so many words.

BabyLM compares models at 1M, 2M, ... words seen, repeats included. A milestone holds
the weights after the first optimizer step that reaches its words, and a ledger tells
how many that step made it.
"""

import dataclasses
import json
import pathlib
import re
from collections.abc import Sequence
from typing import Any

import jax

from lmjax.core import durations, json_text
from lmjax.core.errors import ConfigError, UserError
from lmjax.core.files import replacing
from lmjax.core.types import PyTree
from lmjax.train import integrity, storage
from lmjax.train.checkpoints import COUNTS, set_aside
from lmjax.train.progress import Progress
from lmjax.train.weights import SavedWeights, WeightsWriter

MILESTONES = "milestones"  # folder of a run that holds them
PREFIX = "chck_"
LEDGER = "ledger.json"
_UNITS = {"M": 10**6, "K": 10**3, "": 1}
_NAME = re.compile(rf"{PREFIX}(\d+)([MK]?)")
_EVERY = re.compile(r"\s*every\s+(.*)", re.I | re.S)


def name_of(words: int) -> str:
    """The official name of a milestone, such as "chck_1M", "chck_1000M", "chck_250K".

    Whole millions are counted in M, whole thousands in K.
    """
    unit, size = next((u, s) for u, s in _UNITS.items() if words % s == 0)
    return f"{PREFIX}{words // size}{unit}"


def words_of(name: str) -> int:
    """The words in a milestone's name; 0 for any other name."""
    match = _NAME.fullmatch(name)
    return int(match[1]) * _UNITS[match[2]] if match else 0


def parse(texts: Sequence[str], most: int) -> tuple[int, ...]:
    """Milestones in words, in order, each once.

    Args:
      texts: as "10M words", or "every 1M words".
      most: words that the run sees at most; milestones beyond are left out, and `every`
        ends there.

    Raises:
      ConfigError: a text is none of these.
    """
    found: set[int] = set()
    for text in texts:
        repeated = _EVERY.fullmatch(text)
        words = _words(repeated[1] if repeated else text, text)
        found.update(range(words, most + 1, words) if repeated else (words,))
    return tuple(sorted(words for words in found if words <= most))


def _words(text: str, whole: str) -> int:
    try:
        duration = durations.parse(text)
    except ValueError:
        duration = durations.Duration(0.0, "")
    if duration.unit != "words" or duration.amount < 1 or duration.amount % 1:
        raise ConfigError(
            f"{whole!r} is no milestone",
            where="checkpoint.milestones",
            remedy='write words seen, such as "10M words", or "every 1M words"',
        )
    return int(duration.amount)


@dataclasses.dataclass
class Milestones:
    """The milestones of a run, `<folder>/chck_<words>/` and `<folder>/ledger.json`.

    They are independent of the checkpoints a run resumes from: nothing deletes them
    but a resume from before them, after which they are written again.

    Attributes:
      words: in order; may be empty, and then nothing is ever written.
      folder: where they stand.
      about: what is saved with the weights besides the counts.
    """

    words: tuple[int, ...]
    folder: pathlib.Path
    about: dict[str, Any]

    def __post_init__(self) -> None:
        self._writer = WeightsWriter()

    def write(self, params: PyTree, words: Sequence[int], progress: Progress) -> None:
        """Starts writing these weights for each of the milestones."""
        for due in words:
            counts = {name: getattr(progress, name) for name in COUNTS}
            counts["milestone"] = due
            path = self.folder / name_of(due)
            self._writer.write(path, params, self.about | counts)

    def finish(self, params: PyTree, progress: Progress, max_words: int) -> None:
        """Gives the last milestone the weights of a finished run, if it alone is left.

        A run that stops rather than exceed `max_words` ends just before a milestone of
        as many, and one whose text is a little short a little earlier: these are the
        weights that were meant. The ledger tells by how many words.
        """
        if self.words[-1:] != (max_words,) or progress.words >= max_words:
            return
        reached = [words for words in self.words if words <= progress.words]
        done = SavedWeights.is_at(self.folder / name_of(max_words))
        if len(reached) == len(self.words) - 1 and not done:
            self.write(params, (max_words,), progress)

    def wait(self) -> None:
        """Returns once all milestones are on disk, and in the ledger."""
        self._writer.wait()
        if self.words and jax.process_index() == 0:
            write_ledger(self.folder)

    def drop_after(self, step: int) -> list[str]:
        """Deletes what was written after `step`, when a run goes on from there.

        Returns:
          A line for each one that turned out to be damaged, and was set aside.
        """
        told: list[str] = []
        if jax.process_index() > 0:
            return told
        storage.sweep(self.folder)
        stands_on = storage.storage_of(self.folder)
        for saved in SavedWeights.all_in(self.folder):
            try:
                checked = integrity.has_checksums(saved.path)
                wrong = checked and integrity.damage(saved.path, contents=False)
                after = 0 if wrong else saved.meta()["step"]
            except UserError as error:
                wrong, after = error.what, 0
            if wrong:
                told.append(
                    f"the milestone {saved.path.name} is damaged: {wrong}; it was set "
                    f"aside as {set_aside(saved.path)}"
                )
            elif after > step:
                storage.remove(saved.path, stands_on)
        return told

    def close(self) -> None:
        """Waits, then lets go of the folder; a second time does nothing new."""
        try:
            self.wait()
        finally:
            self._writer.close()


def write_ledger(folder: pathlib.Path) -> None:
    """Writes what the milestones of a folder hold: the same for equal runs."""
    entries = []
    for saved in SavedWeights.all_in(folder):
        meta = saved.meta()
        if "milestone" in meta:
            counts = {name: meta[name] for name in ("words", "tokens", "step")}
            overshoot = meta["words"] - meta["milestone"]
            entries.append(
                {"name": saved.path.name, "milestone": meta["milestone"]}
                | counts
                | {"overshoot": overshoot}
            )
    entries.sort(key=lambda entry: entry["milestone"])
    folder.mkdir(parents=True, exist_ok=True)
    with replacing(folder / LEDGER) as temporary:
        text = json.dumps(entries, indent=1)
        temporary.write_text(text + "\n", encoding="utf-8")


def read_ledger(folder: pathlib.Path) -> list[dict[str, Any]]:
    """Its entries, in order of words; none where there is no ledger.

    Raises:
      UserError: the file is no ledger.
    """
    file = folder / LEDGER
    if not file.exists():
        return []
    try:
        entries = json_text.parse(file.read_bytes())
        names = [entry["name"] for entry in entries]
        counts = [entry["words"] for entry in entries]
        if not all(words_of(name) for name in names):
            raise ValueError("a name is none of a milestone")
        if not all(type(count) is int and count >= 0 for count in counts):
            raise ValueError("words are no number")
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise UserError(
            f"the ledger of the milestones can't be read: {error!r}",
            where=str(file),
            remedy="delete it: a run that goes on writes it again",
        ) from error
    return entries
