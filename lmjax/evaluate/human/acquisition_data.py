"""What ages of acquisition are found from: words in contexts, children, questions."""

import csv
import dataclasses
import json
import math
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np

from lmjax.config.schema import AcquisitionEdition, EvaluateConfig
from lmjax.core.errors import ConfigError, UserError
from lmjax.core.types import PyTree
from lmjax.data.tokenization.tokenizers import Tokenizer
from lmjax.evaluate.human.places import find_file
from lmjax.evaluate.zero_shot.items import Item, Task, completions

CONTEXTS_FILE, NORMS_FILE = "cdi_childes.json", "cdi_human.csv"
AGES = range(16, 31)  # months
_NUMBER = re.compile(r"(\d+(?:\.\d+)?)\s*([KMB]?)", re.IGNORECASE)
_UNITS = {"": 1, "K": 10**3, "M": 10**6, "B": 10**9}
# (params, task) -> log p of each item's candidates, in nats; see `ZeroShot.scores`.
ScoreFunction = Callable[[PyTree, Task], list[np.ndarray]]


@dataclasses.dataclass(frozen=True)
class Milestone:
    """A checkpoint by name, and the words that the model had seen."""

    revision: str
    words: int

    @classmethod
    def named(cls, revision: str) -> "Milestone":
        """Takes the words from the name, as officially: chck_10M has seen 10,000,000.

        Raises:
          UserError: there is no number in the name.
        """
        found = _NUMBER.search(revision)
        if not found:
            raise UserError(
                f"The name of the checkpoint {revision!r} does not say how many words "
                "it has seen.",
                remedy="name it like chck_10M.",
            )
        return cls(revision, round(float(found[1]) * _UNITS[found[2].upper()]))


@dataclasses.dataclass(frozen=True, kw_only=True)
class AcquisitionData:
    """Words with their contexts, and the children who say them.

    Attributes:
      contexts: texts before each word, in the order of the file.
      ages: float64 [A], months.
      shares: float64 [A] by word: of children who say it, NaN where unknown.
    """

    contexts: Mapping[str, tuple[str, ...]]
    ages: np.ndarray
    shares: Mapping[str, np.ndarray]

    @property
    def rows(self) -> list[tuple[str, int, str]]:
        """Word, number of the context, and context: what is asked, in order."""
        return [
            (word, i, context)
            for word, contexts in self.contexts.items()
            for i, context in enumerate(contexts)
        ]


def find_acquisition_data(folder: str) -> Path:
    """The folder with the two files, below that of the evaluation data.

    Raises:
      ConfigError: there is none.
    """
    return find_file("aoa", folder, ("aoa", "cdi_childes"), CONTEXTS_FILE).parent


def read_acquisition_data(folder: Path, *, min_contexts: int = 0) -> AcquisitionData:
    """Reads the official files of a folder, cdi_childes.json and cdi_human.csv.

    Args:
      min_contexts: words with fewer are left out. Words of one letter always are, as
        officially.

    Raises:
      UserError: a file can't be read, or is not what it should be.
    """
    contexts = {
        word: texts
        for word, texts in _read_contexts(folder / CONTEXTS_FILE).items()
        if len(word) > 1 and len(texts) >= min_contexts
    }
    ages, shares = _read_norms(folder / NORMS_FILE)
    return AcquisitionData(contexts=contexts, ages=ages, shares=shares)


class AcquisitionQuestions:
    """All words in all contexts, asked as zero-shot items: of every checkpoint alike.

    The item is a context, stripped, with a space behind it, and the word: what counts
    are the ids that reach into the word, as officially. In the edition of 2025 there is
    no context, nor a space, and what is asked for a word holds for all its contexts.

    Attributes:
      edition: of `config`.
      task: the items; also tells how many of them were cut (`ZeroShot.encoded`).
    """

    def __init__(
        self, config: EvaluateConfig, data: AcquisitionData, opening: Sequence[int]
    ):
        self.edition = config.acquisition
        alone = self.edition is AcquisitionEdition.BABYLM_2025
        if alone and not opening:
            raise ConfigError(
                "a word can only be asked for alone by a model that was trained with a "
                "token before each text",
                where=f"evaluate.acquisition={self.edition.value}",
                remedy="--config.evaluate.acquisition="
                f"{AcquisitionEdition.BABYLM_2026.value} asks for it in its contexts",
            )
        items: dict[tuple[str, str], Item] = {}
        keys = []
        for word, number, context in data.rows:
            before = "" if alone else f"{context.strip()} "
            where = f"{CONTEXTS_FILE}, {word!r}, context {number}"
            candidates = completions([before], [word.strip()])
            items.setdefault((before, word), Item(candidates, 0, {"UID": word}, where))
            keys.append((before, word))
        order = {key: i for i, key in enumerate(items)}
        self._places = [order[key] for key in keys]
        self.task = Task("AoA_word", "aoa", tuple(items.values()))

    def __call__(self, score: ScoreFunction, params: PyTree) -> np.ndarray:
        """Surprisals in nats, float64 [C], one for each of `AcquisitionData.rows`."""
        values = np.array([float(each[0]) for each in score(params, self.task)])
        return -values[self._places]


def tokens_of_words(tokenizer: Tokenizer, words: Sequence[str]) -> dict[str, int]:
    """Ids of each word in a text: how many more "The word" has than "The"."""
    start = len(tokenizer.encode("The"))
    return {
        word: max(1, len(tokenizer.encode(f"The {word}")) - start) for word in words
    }


def _read_contexts(path: Path) -> dict[str, tuple[str, ...]]:
    try:
        content = json.loads(path.read_bytes())
    except OSError as error:
        raise _wrong_file(path, error.strerror or str(error)) from error
    except ValueError as error:  # of JSON, or of UTF-8
        raise _wrong_file(path, str(error)) from error
    if not isinstance(content, dict):
        raise _wrong_file(path, "it is not an object of words")
    found = {}
    for word, entries in content.items():
        texts = [
            entry.get("context") if isinstance(entry, dict) else None
            for entry in (entries if isinstance(entries, list) else [None])
        ]
        if not all(isinstance(text, str) for text in texts):
            raise _wrong_file(
                path, f'the word {word!r} has no list of {{"context": text}}'
            )
        found[word] = tuple(texts)
    return found


def _read_norms(path: Path) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file, strict=True)
            columns = [str(a) for a in AGES if str(a) in (reader.fieldnames or ())]
            if not columns or "word" not in (reader.fieldnames or ()):
                raise _wrong_file(path, "it lacks the column word, or columns of ages")
            shares: dict[str, np.ndarray] = {}
            for row in reader:
                where = f"{path}, line {reader.line_num}"
                values = [_share(row[name], f"{where}, {name}") for name in columns]
                # Of words that stand there twice the first counts, as officially.
                shares.setdefault(row["word"], np.array(values))
    except OSError as error:
        raise _wrong_file(path, error.strerror or str(error)) from error
    except (csv.Error, UnicodeDecodeError) as error:
        raise _wrong_file(path, str(error)) from error
    return np.array([float(name) for name in columns]), shares


def _share(text: str | None, where: str) -> float:
    if not text:
        return math.nan
    try:
        value = float(text)
    except ValueError:
        value = math.inf
    if math.isinf(value):
        raise UserError(f"{text!r} is not a share of children.", where=where)
    return value


def _wrong_file(path: Path, why: str) -> UserError:
    return UserError(
        f"The data for ages of acquisition can't be read: {why}.",
        where=str(path),
        remedy=f"give the folder with {CONTEXTS_FILE} and {NORMS_FILE} of BabyLM's "
        "evaluation data.",
    )
