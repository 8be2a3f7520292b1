"""Reading times: the file, the questions, the scores and the files they go to."""

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lmjax.config.schema import EvaluateConfig, ZeroShotBackend
from lmjax.core.errors import ConfigError, UserError
from lmjax.data.tokenization.byte_tokenizer import ByteTokenizer
from lmjax.evaluate.figures import table
from lmjax.evaluate.human import reading, results
from lmjax.evaluate.human.next_word import build_next_word
from lmjax.evaluate.human.reading import ReadingQuestions, ReadingTimes, WordSurprisals
from lmjax.evaluate.probes import Probe

HEADER = (
    ",item,word,sentence,prev_item,prev_word,Subtlex_log10,length,context_length,"
    "prev_length,RTfirstfix,RTfirstpass,RTgopast,RTrightbound,self_paced_reading_time"
)
ROWS = (
    "0,Ann saw,the,s1,Ann,saw,14.25,3,2,3,71.5,75,102,86,296",
    '1,"Ann, you",see,s1,None,"Ann,",,3,2,4,60,61,62,63,64',
    "2,Bo,ran,s2,,,9.5,3,1,-1,80,81,82,83,84",
)


def _file(folder: Path, *rows: str, header: str = HEADER) -> Path:
    path = folder / reading.FILE_NAME
    path.write_text("\n".join([header, *rows]) + "\n", encoding="utf-8")
    return path


def test_words_contexts_and_numbers_are_read(tmp_path: Path) -> None:
    """pandas, hence the official pipeline, takes the context None for no value."""
    data = reading.read_reading_times(_file(tmp_path, *ROWS))
    assert data.words == (("Ann saw", "the"), ("Ann, you", "see"), ("Bo", "ran"))
    assert data.before == (("Ann", "saw"), None, None)
    assert data.numbers["RTgopast"].tolist() == [102, 62, 82]
    assert data.numbers["Subtlex_log10"][[0, 2]].tolist() == [14.25, 9.5]
    assert math.isnan(data.numbers["Subtlex_log10"][1])
    assert data.sentences.tolist() == [0, 0, 1]
    assert data.measures == (*reading.EYE_TRACKING, reading.SELF_PACED)


@pytest.mark.parametrize(
    ("rows", "header", "said"),
    [
        (ROWS, HEADER.replace(",length", ",letters"), ["column", "length"]),
        ((ROWS[0], ROWS[2].replace("9.5", "often")), HEADER, ["line 3, Subtlex_log10"]),
        ((ROWS[0].replace(",102,", ",inf,"),), HEADER, ["line 2, RTgopast", "'inf'"]),
        ((ROWS[0].replace(",the,", ",,"),), HEADER, ["line 2, word"]),
        ((ROWS[0].replace(",saw,", ",,"),), HEADER, ["line 2, prev_word"]),
        ((ROWS[0][:-4],), HEADER, ["line 2, self_paced_reading_time"]),
        ((), HEADER, ["no rows"]),
    ],
)
def test_what_is_wrong_with_a_file_is_told(
    tmp_path: Path, rows: Sequence[str], header: str, said: list[str]
) -> None:
    with pytest.raises(UserError) as caught:
        reading.read_reading_times(_file(tmp_path, *rows, header=header))
    for part in said:
        assert part in str(caught.value)


def test_file_that_is_missing_or_no_text_is_told(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="No such file"):
        reading.read_reading_times(tmp_path / "nothing.csv")
    (tmp_path / "bytes.csv").write_bytes(b"item,word\n\xff\xfe,\x00\n")
    with pytest.raises(UserError):
        reading.read_reading_times(tmp_path / "bytes.csv")


def test_file_is_found_where_the_official_data_have_it(tmp_path: Path) -> None:
    folder = tmp_path / "evaluation_data" / "full_eval" / "reading"
    folder.mkdir(parents=True)
    path = _file(folder, *ROWS)
    for top in (tmp_path, folder.parent, folder):
        assert reading.find_reading_times(str(top)) == path
    with pytest.raises(ConfigError, match=r"reading_data\.csv"):
        reading.find_reading_times(str(tmp_path / "elsewhere"))


class _Counting:
    """Answers -1 for each id, and keeps what was asked."""

    def __init__(self) -> None:
        self.asked: list[Probe] = []

    def __call__(self, params: Any, probes: Sequence[Probe]) -> list[np.ndarray]:
        self.asked += probes
        return [np.full(len(p.places), -1.0, np.float32) for p in probes]


def _next_word(backend: str = "auto", causal: bool = True) -> Any:
    return build_next_word(
        EvaluateConfig(backend=ZeroShotBackend(backend)),
        ByteTokenizer(),
        opening=[ByteTokenizer().special.bos],
        max_length=32,
        causal=causal,
        mask_id=ByteTokenizer().special.mask,
    )


def test_the_same_question_is_asked_once(tmp_path: Path) -> None:
    """`Ann` + `saw` stands before the first row, and is the second."""
    rows = (ROWS[0], "1,Ann,saw,s1,,,1,3,1,-1,1,1,1,1,1", *ROWS[2:])
    data = reading.read_reading_times(_file(tmp_path, *rows))
    ask = _Counting()
    found = ReadingQuestions(data, _next_word())(ask, None)
    assert found.word.tolist() == [3, 3, 3]
    np.testing.assert_array_equal(found.before, [3, math.nan, math.nan])
    assert len(ask.asked) == 9  # a probe for each byte of the, saw and ran


def _data(num: int = 120, seed: int = 0) -> ReadingTimes:
    """Words of four in a sentence, with random numbers and NaN here and there."""
    generator = np.random.default_rng(seed)
    names = (*reading.CONTROLS, reading.LENGTH_BEFORE, *reading.EYE_TRACKING)
    names += (reading.SELF_PACED, "N400")
    numbers = {name: generator.normal(size=num) for name in names}
    numbers["Subtlex_log10"][7] = math.nan
    first = np.arange(num) % 4 == 0
    return ReadingTimes(
        words=tuple((f"context {i}", f"word{i}") for i in range(num)),
        before=tuple(None if f else ("x", "y") for f in first),
        numbers=numbers,
        sentences=np.arange(num) // 4,
    )


def _found(data: ReadingTimes, seed: int = 1) -> WordSurprisals:
    generator = np.random.default_rng(seed)
    n = len(data.words)
    before = np.where([b is None for b in data.before], math.nan, generator.random(n))
    return WordSurprisals(word=generator.random(n), before=before)


def _gain(y: np.ndarray, controls: Sequence[np.ndarray], x: np.ndarray) -> float:
    """From two fits with all products of two controls, rows with NaN left out."""
    whole = np.isfinite(np.stack([y, x, *controls])).all(axis=0)
    columns = [np.ones(whole.sum())]
    columns += [c[whole] for c in controls]
    for i, a in enumerate(controls):
        columns += [a[whole] * b[whole] for b in controls[i + 1 :]]
    rests = []
    for extra in ([], [x[whole]]):
        design = np.stack([*columns, *extra], axis=1)
        fitted = design @ np.linalg.solve(design.T @ design, design.T @ y[whole])
        rests.append(float(np.sum((y[whole] - fitted) ** 2)))
    r0, r1 = (1 - rest / np.sum((y[whole] - y[whole].mean()) ** 2) for rest in rests)
    return 100 * (r1 - r0) / (1 - r0)


def test_scores_are_those_of_the_official_formulas() -> None:
    data = _data()
    found = _found(data)
    score = reading.score_reading(data, found, resamples=20)
    three = [data.numbers[name] for name in reading.CONTROLS]
    five = [*three, data.numbers["prev_length"], found.before]
    eye = [_gain(data.numbers[n], three, found.word) for n in reading.EYE_TRACKING]
    assert score.eye_tracking.value == pytest.approx(np.mean(eye), rel=1e-9)
    paced = _gain(data.numbers[reading.SELF_PACED], five, found.word)
    assert score.self_paced.value == pytest.approx(paced, rel=1e-9)
    assert score.plain["RTgopast"].observations == 119
    assert score.spillover["RTgopast"].observations == 120 - 30 - 1
    assert score.plain["N400"].gain == pytest.approx(
        _gain(data.numbers["N400"], three, found.word), rel=1e-9
    )


def test_people_who_wait_for_surprising_words_are_found_out() -> None:
    data = _data()
    found = _found(data)
    slow = dict(data.numbers)
    for name in (*reading.EYE_TRACKING, reading.SELF_PACED):
        slow[name] = slow[name] + 20 * found.word
    told = ReadingTimes(
        words=data.words, before=data.before, numbers=slow, sentences=data.sentences
    )
    score = reading.score_reading(told, found, resamples=50)
    assert score.eye_tracking.low > 90
    assert score.self_paced.low > 90
    assert score.correlations["RTfirstfix"] > 0.9
    chance = reading.score_reading(data, found, resamples=50)
    assert chance.eye_tracking.value < 5


def test_surprisal_in_bits_scores_as_in_nats() -> None:
    data = _data()
    found = _found(data)
    bits = WordSurprisals(word=found.word / math.log(2), before=found.before)
    nats = reading.score_reading(data, found, resamples=5).self_paced.value
    again = reading.score_reading(data, bits, resamples=5).self_paced.value
    assert again == pytest.approx(nats, rel=1e-9)


def test_words_without_a_finite_surprisal_are_counted_and_left_out() -> None:
    data = _data()
    found = _found(data)
    found.word[[3, 50]] = math.inf, math.nan
    score = reading.score_reading(data, found, resamples=5)
    assert score.unusable == 2
    assert score.plain["RTgopast"].observations == 117
    assert math.isfinite(score.eye_tracking.value)


def test_the_interval_is_of_whole_sentences_and_of_the_seed() -> None:
    data = _data()
    found = _found(data)
    first = reading.score_reading(data, found, seed=3, resamples=40)
    assert first == reading.score_reading(data, found, seed=3, resamples=40)
    other = reading.score_reading(data, found, seed=4, resamples=40)
    assert first.eye_tracking.value == other.eye_tracking.value
    assert first.eye_tracking.low != other.eye_tracking.low
    words = ReadingTimes(
        words=data.words,
        before=data.before,
        numbers=data.numbers,
        sentences=np.arange(len(data.words)),
    )
    alone = reading.score_reading(words, found, seed=3, resamples=40)
    assert alone.eye_tracking.standard_error != first.eye_tracking.standard_error


def _lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_files_are_the_official_ones(tmp_path: Path) -> None:
    data = _data()
    found = _found(data)
    score = reading.score_reading(data, found, resamples=5)
    stamp = {"backend": "mlm", "dtype": "float32"}
    folder = results.write_reading(tmp_path, data, found, score, stamp)
    assert folder == tmp_path / "reading"
    text = (folder / "predictions.json").read_text()
    nats = float(found.word[0])
    assert text.startswith(
        '{"reading": {"predictions": [{"id": 0, '
        f'"pred": {nats}, "prev_pred": NaN}}, '
    )
    entries = json.loads(text)["reading"]["predictions"]
    assert [entry["id"] for entry in entries] == list(range(120))
    lines = _lines(folder / "prediction.jsonl")
    assert list(lines[1]) == ["Index", "Sentence", "Word", "Logprob", "Prev_Logprob"]
    assert lines[1]["Logprob"] == found.word[1]
    assert (folder / "report.txt").read_text() == (
        f"EYE TRACKING SCORE: {score.eye_tracking.value:.2f}\n"
        f"SELF-PACED READING SCORE: {score.self_paced.value:.2f}\n"
    )
    rows = (folder / "correlations.txt").read_text().splitlines()
    r = np.corrcoef(found.word, data.numbers["RTfirstfix"])[0, 1]
    assert rows[0] == f"RTfirstfix\t{r:.4f}"
    powers = _lines(folder / "predictive_power.jsonl")
    assert [p["Predicted variable"] for p in powers] == list(data.measures)
    assert powers[0]["Change in R2 from baseline"] == pytest.approx(
        score.plain["RTfirstfix"].r2 - score.plain["RTfirstfix"].r2_controls
    )
    ours = json.loads((folder / "reading.json").read_text())
    assert ours["formula"] == reading.FORMULA
    assert (ours["backend"], ours["dtype"]) == ("mlm", "float32")
    assert ours["words"][5]["nats"] == found.word[5]
    assert ours["words"][5]["bits"] == found.word[5] / math.log(2)
    assert ours["eye_tracking"]["value"] == score.eye_tracking.value
    assert "reading/self-paced" in table(score.figures())


@pytest.mark.parametrize("backend", ["causal", "mlm", "mntp"])
def test_batches_of_a_model_do_not_matter_and_probabilities_are_its_own(
    backend: str, make_byte_model: Any, tmp_path: Path
) -> None:
    """Against one row at a time, of bytes: an id for each."""
    tokenizer, causal = ByteTokenizer(), backend == "causal"
    special, model = tokenizer.special, make_byte_model(causal)
    data = reading.read_reading_times(_file(tmp_path, *ROWS))
    questions = ReadingQuestions(data, _next_word(backend, causal))
    found = questions(model.prober, model.params)
    for (context, word), nats in zip(data.words, found.word, strict=True):
        total = 0.0
        for end, target in enumerate(tokenizer.encode(word)):
            row = [special.bos, *tokenizer.encode(context + word[:end])]
            place = len(row) - (backend != "mlm")
            row += [] if causal else [special.mask] * 3
            total -= model.log_p(row, place)[target]
        assert nats == pytest.approx(total, rel=1e-4)


def test_official_file_has_205_sentences(shared_data: Path) -> None:
    data = reading.read_reading_times(
        reading.find_reading_times(str(shared_data / "eval"))
    )
    assert len(data.words) == 1726
    assert data.sentences.max() == 204
    # 205 first words, and one whose context pandas takes for a missing value.
    assert sum(before is None for before in data.before) == 206
    assert len(data.measures) == 11
    generator = np.random.default_rng(0)
    letters = np.array([len(word) for _, word in data.words], np.float64)
    found = WordSurprisals(
        word=letters + generator.random(1726),
        before=np.where([b is None for b in data.before], math.nan, 1 + letters),
    )
    score = reading.score_reading(data, found, resamples=5)
    assert score.plain["RTfirstfix"].observations == 1726 - 30
    # What frequency, length and place explain alone: figures of statsmodels 0.15.
    expected = {
        "RTfirstpass": 0.644324766105,
        "self_paced_reading_time": 0.068125775274,
    }
    for name, r2 in expected.items():
        assert score.plain[name].r2_controls == pytest.approx(r2, rel=1e-9)
