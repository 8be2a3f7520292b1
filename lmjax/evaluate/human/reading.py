"""Reading times: does surprisal say how long people look at a word?

The formulas are those of BabyLM's evaluation, which did not change from 2025 to 2026,
on the data of de Varda, Marelli and Amenta (2023): ordinary least squares of a measure
on log frequency, length and place of the word and their products; what surprisal adds
is reported as a share of the variance that they leave over. Self-paced reading times
are held against the word before as well (its length and surprisal, and all products),
because they spill over.
"""

import csv
import dataclasses
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from lmjax.core.errors import UserError
from lmjax.core.types import PyTree
from lmjax.evaluate.figures import Figure, finite
from lmjax.evaluate.human import regression
from lmjax.evaluate.human.next_word import NextWord, ProbeFunction, surprisals
from lmjax.evaluate.human.places import find_file
from lmjax.evaluate.human.regression import Explained

FORMULA = "babylm_2025, babylm_2026"
FILE_NAME = "reading_data.csv"
EYE_TRACKING = ("RTfirstfix", "RTfirstpass", "RTgopast", "RTrightbound")
SELF_PACED = "self_paced_reading_time"
BRAIN = ("ELAN", "LAN", "N400", "P600", "EPNP", "PNP")  # used where a file has them
CONTROLS = ("Subtlex_log10", "length", "context_length")
LENGTH_BEFORE = "prev_length"
RESAMPLES, COVERAGE = 1_000, 0.95
# What pandas, with which the official pipeline reads the file, takes for no value.
_MISSING = {"", "#N/A", "#N/A N/A", "#NA", "-1.#IND", "-1.#QNAN", "-NaN", "-nan"}
_MISSING |= {"1.#IND", "1.#QNAN", "<NA>", "N/A", "NA", "NULL", "NaN", "None", "n/a"}
_MISSING |= {"nan", "null"}
_TEXTS = ("item", "word", "prev_item", "prev_word")
_NUMBERS = (*CONTROLS, LENGTH_BEFORE, *EYE_TRACKING, SELF_PACED)

Question = tuple[str, str]  # a context, and the word that follows


@dataclasses.dataclass(frozen=True, kw_only=True)
class ReadingTimes:
    """Words in their contexts, and what people did there.

    Attributes:
      words: context and word of each row.
      before: those of the word before; None where there is none.
      numbers: float64 [N] by column; NaN where a value is missing.
      sentences: int [N], which sentence each row is of, from 0.
    """

    words: tuple[Question, ...]
    before: tuple[Question | None, ...]
    numbers: Mapping[str, np.ndarray]
    sentences: np.ndarray

    @property
    def measures(self) -> tuple[str, ...]:
        """The measures that the file has, in the order of the official reports."""
        known = (*EYE_TRACKING, SELF_PACED, *BRAIN)
        return tuple(name for name in known if name in self.numbers)


@dataclasses.dataclass(frozen=True, kw_only=True)
class WordSurprisals:
    """Surprisals in nats, float64 [N]: of each word, and of the one before it.

    NaN where there is no word before.
    """

    word: np.ndarray
    before: np.ndarray


@dataclasses.dataclass(frozen=True, kw_only=True)
class Score:
    """A gain in percent, with its bootstrap over sentences.

    Attributes:
      value: mean of `Explained.gain` over the measures.
      standard_error: standard deviation of the resamples.
      low, high: the interval of the percentiles that hold `COVERAGE` of them.
    """

    value: float
    standard_error: float
    low: float
    high: float


@dataclasses.dataclass(frozen=True, kw_only=True)
class ReadingResult:
    """What surprisal adds.

    Attributes:
      eye_tracking: over the four eye-tracking measures.
      self_paced: for self-paced reading, beyond the word before.
      plain, spillover: by measure, without and with the word before.
      correlations: of surprisal with each measure.
      unusable: words whose surprisal is not finite, and which are left out.
    """

    eye_tracking: Score
    self_paced: Score
    plain: dict[str, Explained]
    spillover: dict[str, Explained]
    correlations: dict[str, float]
    unusable: int

    def figures(self, prefix: str = "reading") -> list[Figure]:
        """Both scores, in percent."""
        kind = "statistic (gain of R2 over what the controls leave, percent)"
        scores = {"eye tracking": self.eye_tracking, "self-paced": self.self_paced}
        return [
            Figure(f"{prefix}/{name}", kind, score.value, score.standard_error)
            for name, score in scores.items()
        ]

    def to_json(self) -> dict[str, Any]:
        """All figures; null for what is not finite."""
        return _plain_json(dataclasses.asdict(self))


def find_reading_times(folder: str) -> Path:
    """The file below the folder of the evaluation data.

    Raises:
      ConfigError: there is none.
    """
    return find_file("reading", folder, ("reading",), FILE_NAME)


def read_reading_times(path: Path) -> ReadingTimes:
    """Reads the official file, reading_data.csv.

    Raises:
      UserError: it can't be read, lacks a column, or a value is not what it should be;
        names the line and the column.
    """
    rows: list[tuple[int, dict[str, str]]] = []
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file, strict=True)
            missing = [
                name
                for name in (*_TEXTS, *_NUMBERS)
                if name not in (reader.fieldnames or ())
            ]
            if missing:
                raise UserError(
                    f"The reading times lack the column(s) {', '.join(missing)}.",
                    where=str(path),
                    remedy=f"give the {FILE_NAME} of BabyLM's evaluation data.",
                )
            rows = [(reader.line_num, row) for row in reader]
    except OSError as error:
        raise _unreadable(path, error.strerror or str(error)) from error
    except (csv.Error, UnicodeDecodeError) as error:
        raise _unreadable(path, str(error)) from error
    if not rows:
        raise _unreadable(path, "it has no rows")
    columns = [*_NUMBERS, *(name for name in BRAIN if name in rows[0][1])]
    numbers = {
        name: np.array([_number(path, line, name, row[name]) for line, row in rows])
        for name in columns
    }
    questions = [_questions(path, line, row) for line, row in rows]
    return ReadingTimes(
        words=tuple(word for word, _ in questions),
        before=tuple(before for _, before in questions),
        numbers=numbers,
        sentences=_sentences([row for _, row in rows]),
    )


class ReadingQuestions:
    """The probes of all words, made once: many checkpoints are asked the same.

    Args:
      read: makes the probes of a word.

    Raises:
      UserError: as `NextWord`.
    """

    def __init__(self, data: ReadingTimes, read: NextWord):
        self._data = data
        asked = dict.fromkeys([*data.words, *filter(None, data.before)])
        self._words = [read(*question) for question in asked]
        self._place = {question: i for i, question in enumerate(asked)}

    def __call__(self, ask: ProbeFunction, params: PyTree) -> WordSurprisals:
        """Surprisals of all words; each pair of context and word is asked once."""
        found = surprisals(ask, params, self._words)
        data, place = self._data, self._place
        return WordSurprisals(
            word=np.array([found[place[question]] for question in data.words]),
            before=np.array(
                [
                    math.nan if question is None else found[place[question]]
                    for question in data.before
                ]
            ),
        )


def score_reading(
    data: ReadingTimes,
    found: WordSurprisals,
    *,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> ReadingResult:
    """Regresses every measure on the controls and on surprisal.

    Rows that lack a value of a regression are left out of it, as officially.

    Raises:
      UserError: too few rows are left.
    """
    generator = np.random.default_rng(seed)
    number = int(data.sentences.max()) + 1
    shares = np.full(number, 1 / number)
    times = generator.multinomial(number, shares, size=resamples)
    plain = {n: _Regression(data, found, n, spill=False) for n in data.measures}
    spillover = {n: _Regression(data, found, n, spill=True) for n in data.measures}
    explained = {name: each.explain() for name, each in plain.items()}
    spilled = {name: each.explain() for name, each in spillover.items()}
    gains = [plain[name].resampled(times) for name in EYE_TRACKING]
    eye = float(np.mean([explained[name].gain for name in EYE_TRACKING]))
    return ReadingResult(
        eye_tracking=_score(eye, np.mean(gains, axis=0)),
        self_paced=_score(
            spilled[SELF_PACED].gain, spillover[SELF_PACED].resampled(times)
        ),
        plain=explained,
        spillover=spilled,
        correlations={
            name: _correlation(data.numbers[name], found.word) for name in data.measures
        },
        unusable=int(np.sum(~np.isfinite(found.word))),
    )


class _Regression:
    """The rows that have all values of one regression."""

    def __init__(
        self, data: ReadingTimes, found: WordSurprisals, measure: str, *, spill: bool
    ):
        columns = [data.numbers[name] for name in CONTROLS]
        if spill:
            columns += [data.numbers[LENGTH_BEFORE], found.before]
        y, x = data.numbers[measure], found.word
        whole = np.all(np.isfinite([y, x, *columns]), axis=0)
        self._values = y[whole], [column[whole] for column in columns], x[whole]
        self._sentences = data.sentences[whole]

    def explain(self) -> Explained:
        return regression.explain(*self._values)

    def resampled(self, times: np.ndarray) -> np.ndarray:
        return regression.resampled_gains(
            *self._values, clusters=self._sentences, times_RC=times
        )


def _score(value: float, gains: np.ndarray) -> Score:
    tail = (1 - COVERAGE) / 2
    low, high = np.quantile(gains, [tail, 1 - tail])
    return Score(
        value=value,
        standard_error=float(gains.std(ddof=1)) if len(gains) > 1 else math.nan,
        low=float(low),
        high=float(high),
    )


def _correlation(a: np.ndarray, b: np.ndarray) -> float:
    """Pearson's, over what is finite in both; NaN where one is constant."""
    both = np.isfinite(a) & np.isfinite(b)
    a, b = a[both] - a[both].mean(), b[both] - b[both].mean()
    norm = math.sqrt(float(a @ a) * float(b @ b))
    return float(a @ b) / norm if norm > 0 else math.nan


def _questions(
    path: Path, line: int, row: dict[str, str]
) -> tuple[Question, Question | None]:
    """The word in its context, and the word before in its own.

    As in the official pipeline: a context that reads like a missing value is taken for
    the word None, but one of the word before is not there at all.
    """
    texts = {name: row[name] or "" for name in _TEXTS}
    if not texts["word"]:
        raise UserError("A row has no word.", where=f"{path}, line {line}, word")
    context = "None" if texts["item"] in _MISSING else texts["item"]
    word = (context, texts["word"])
    if texts["prev_item"] in _MISSING:
        return word, None
    if not texts["prev_word"]:
        raise UserError(
            "A row has a context of the word before, but no such word.",
            where=f"{path}, line {line}, prev_word",
        )
    return word, (texts["prev_item"], texts["prev_word"])


def _number(path: Path, line: int, column: str, text: str | None) -> float:
    if text in _MISSING:
        return math.nan
    try:
        value = float(text or "")
    except ValueError:
        value = math.inf
    if math.isinf(value):
        raise UserError(
            f"{text!r} is not a number.", where=f"{path}, line {line}, {column}"
        )
    return value


def _sentences(rows: list[dict[str, str]]) -> np.ndarray:
    """Numbers the sentences; without a column that tells, each row is one."""
    name = next((n for n in ("sent_id", "sentence") if n in rows[0]), None)
    if name is None:
        return np.arange(len(rows))
    return np.unique([row[name] or "" for row in rows], return_inverse=True)[1]


def _unreadable(path: Path, why: str) -> UserError:
    return UserError(
        f"The reading times can't be read: {why}.",
        where=str(path),
        remedy=f"give the {FILE_NAME} of BabyLM's evaluation data.",
    )


def _plain_json(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _plain_json(each) for name, each in value.items()}
    return finite(value) if isinstance(value, float) else value
