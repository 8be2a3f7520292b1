"""Ages of acquisition: the files, the questions, and how ages are held together."""

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy import stats

from lmjax.config.schema import (
    AcquisitionEdition,
    EvaluateConfig,
    LongItems,
    ZeroShotBackend,
)
from lmjax.core.errors import ConfigError, UserError
from lmjax.data.tokenization.byte_tokenizer import ByteTokenizer
from lmjax.evaluate.figures import table
from lmjax.evaluate.human import acquisition_data as files
from lmjax.evaluate.human import results
from lmjax.evaluate.human.acquisition_data import (
    AcquisitionData,
    AcquisitionQuestions,
    Milestone,
)
from lmjax.evaluate.human.age_of_acquisition import (
    AcquisitionResult,
    score_acquisition,
)
from lmjax.evaluate.zero_shot.items import Task
from lmjax.evaluate.zero_shot.scoring import ZeroShot

OLD, NEW = AcquisitionEdition.BABYLM_2025, AcquisitionEdition.BABYLM_2026
NAMES = [f"chck_{i}M" for i in [*range(1, 10), *range(10, 101, 10)]]
MILESTONES = [Milestone.named(name) for name in NAMES]
VOCAB = 8192
CONTEXTS = {
    "cup": [{"context": " Ann took the"}, {"context": "A "}],
    "a": [{"context": "This is"}],
    "naïve": [{"context": "So"}],
    "moon": [],
}
NORMS = ",word,16,17,18\n0,cup,0.1,,0.9\n1,moon,0.2,0.3,0.4\n2,cup,0,0,0\n"


def _folder(tmp_path: Path, contexts: Any = CONTEXTS, norms: str = NORMS) -> Path:
    (tmp_path / files.CONTEXTS_FILE).write_text(json.dumps(contexts))
    (tmp_path / files.NORMS_FILE).write_text(norms)
    return tmp_path


def test_words_contexts_and_children_are_read(tmp_path: Path) -> None:
    data = files.read_acquisition_data(_folder(tmp_path))
    assert data.contexts == {
        "cup": (" Ann took the", "A "),
        "naïve": ("So",),
        "moon": (),
    }
    assert data.ages.tolist() == [16, 17, 18]
    np.testing.assert_array_equal(data.shares["cup"], [0.1, math.nan, 0.9])
    assert data.rows == [
        ("cup", 0, " Ann took the"),
        ("cup", 1, "A "),
        ("naïve", 0, "So"),
    ]
    few = files.read_acquisition_data(tmp_path, min_contexts=2)
    assert list(few.contexts) == ["cup"]


@pytest.mark.parametrize(
    ("contexts", "norms", "said"),
    [
        ([], NORMS, [files.CONTEXTS_FILE, "object of words"]),
        ({"cup": ["no"]}, NORMS, [files.CONTEXTS_FILE, "'cup'"]),
        ({"cup": "no"}, NORMS, ["'cup'"]),
        (CONTEXTS, NORMS.replace("word", "name"), [files.NORMS_FILE, "column word"]),
        (CONTEXTS, NORMS.replace("0.3", "many"), ["line 3, 17", "'many'"]),
    ],
)
def test_what_is_wrong_with_a_file_is_told(
    tmp_path: Path, contexts: Any, norms: str, said: list[str]
) -> None:
    with pytest.raises(UserError) as caught:
        files.read_acquisition_data(_folder(tmp_path, contexts, norms))
    for part in said:
        assert part in str(caught.value)


def test_files_that_are_missing_or_no_json_are_told(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="No such file"):
        files.read_acquisition_data(tmp_path)
    folder = _folder(tmp_path)
    (folder / files.NORMS_FILE).unlink()
    with pytest.raises(UserError, match=files.NORMS_FILE):
        files.read_acquisition_data(folder)
    (folder / files.CONTEXTS_FILE).write_text('{"cup": [')
    with pytest.raises(UserError, match="line 1 column 10"):
        files.read_acquisition_data(folder)


def test_folder_is_found_where_the_official_data_have_it(tmp_path: Path) -> None:
    folder = tmp_path / "full_eval" / "aoa"
    folder.mkdir(parents=True)
    _folder(folder)
    for top in (tmp_path, folder.parent, folder):
        assert files.find_acquisition_data(str(top)) == folder
    with pytest.raises(ConfigError, match=r"cdi_childes\.json"):
        files.find_acquisition_data(str(tmp_path / "elsewhere"))


@pytest.mark.parametrize(
    ("name", "words"),
    [("chck_1M", 10**6), ("chck_1000M", 10**9), ("chck_250K", 250_000), ("7", 7)],
)
def test_name_of_a_checkpoint_says_its_words(name: str, words: int) -> None:
    assert Milestone.named(name) == Milestone(name, words)


def test_name_without_a_number_is_refused() -> None:
    with pytest.raises(UserError, match="'main'"):
        Milestone.named("main")


def _questions(
    data: AcquisitionData, edition: AcquisitionEdition, opening: Sequence[int] = (1,)
) -> AcquisitionQuestions:
    return AcquisitionQuestions(EvaluateConfig(acquisition=edition), data, opening)


def test_words_are_asked_for_behind_their_contexts_or_alone(tmp_path: Path) -> None:
    data = files.read_acquisition_data(_folder(tmp_path))
    new, old = _questions(data, NEW), _questions(data, OLD)
    asked = [(c.prefix, c.completion) for i in new.task.items for c in i.candidates]
    assert asked == [("Ann took the ", "cup"), ("A ", "cup"), ("So ", "naïve")]
    alone = [(c.prefix, c.completion) for i in old.task.items for c in i.candidates]
    assert alone == [("", "cup"), ("", "naïve")]

    def score(params: Any, task: Task) -> list[np.ndarray]:
        return [np.array([-params * (i + 1.0)]) for i in range(len(task.items))]

    assert new(score, 2.0).tolist() == [2, 4, 6]
    assert old(score, 2.0).tolist() == [2, 2, 4]
    with pytest.raises(ConfigError, match="acquisition=babylm_2026"):
        _questions(data, OLD, opening=())


def test_tokens_of_a_word_are_those_behind_a_space() -> None:
    found = files.tokens_of_words(ByteTokenizer(), ["cup", "naïve"])
    assert found == {"cup": 4, "naïve": 7}


def _data(num: int = 30, contexts: int = 3, seed: int = 0) -> AcquisitionData:
    """Words that children acquire at ages spread over 18 to 28 months."""
    generator = np.random.default_rng(seed)
    ages = np.arange(16.0, 31.0)
    names = [f"word{i}" for i in range(num)]
    acquired = generator.permutation(np.linspace(18, 28, num))
    return AcquisitionData(
        contexts={name: ("text",) * contexts for name in names},
        ages=ages,
        shares={
            name: 1 / (1 + np.exp(-0.8 * (ages - age)))
            for name, age in zip(names, acquired, strict=True)
        },
    )


def _child_ages(data: AcquisitionData) -> np.ndarray:
    """Where each curve of shares is 0.5, by interpolation."""
    return np.array(
        [np.interp(0.5, share, data.ages) for share in data.shares.values()]
    )


def _learn(
    data: AcquisitionData, middles: np.ndarray, edition: AcquisitionEdition = NEW
) -> np.ndarray:
    """Nats of words that fall from chance to 3 half-way at 10^middles words."""
    chance = math.log(VOCAB) if edition is NEW else math.log2(300_000)
    x = np.log10([each.words + 1 for each in MILESTONES])[:, None]
    nats = 3 + (chance - 3) / (1 + np.exp(6 * (x - middles)))
    return np.repeat(nats, [len(v) for v in data.contexts.values()], axis=1)


def _score(
    data: AcquisitionData,
    nats: np.ndarray,
    edition: AcquisitionEdition = NEW,
    milestones: Sequence[Milestone] = MILESTONES,
    **changes: Any,
) -> AcquisitionResult:
    fixed = dict(
        vocab_size=VOCAB,
        num_tokens=dict.fromkeys(data.contexts, 1),
        resamples=50,
    )
    return score_acquisition(data, milestones, nats, edition=edition, **fixed | changes)


@pytest.mark.parametrize("edition", [OLD, NEW])
@pytest.mark.parametrize("sign", [1, -1])
def test_order_of_learning_is_held_against_that_of_children(
    edition: AcquisitionEdition, sign: int
) -> None:
    data = _data()
    ages = _child_ages(data)
    middles = 7 + sign * (ages - 23) / 10 + np.random.default_rng(1).normal(0, 0.05, 30)
    found = _score(data, _learn(data, middles, edition), edition)
    assert found.num_valid == 30
    model = [word.model.age for word in found.words.values()]
    np.testing.assert_allclose(model, middles, atol=0.08)
    children = [word.children.age for word in found.words.values()]
    np.testing.assert_allclose(children, ages, atol=0.02)
    expected = stats.pearsonr(model, children)
    assert found.correlation == pytest.approx(expected.statistic, rel=1e-9)
    assert found.p == pytest.approx(expected.pvalue, rel=1e-6)
    assert found.score == found.correlation
    assert sign * found.score > 0.9
    assert found.low < found.correlation < found.high
    assert 0 < found.standard_error < 0.2
    assert not found.notes


def test_correlation_that_may_be_chance_scores_0_in_2026_alone() -> None:
    data = _data()
    middles = np.random.default_rng(5).uniform(6.5, 7.5, 30)
    new = _score(data, _learn(data, middles))
    ages = [(word.model.age, word.children.age) for word in new.words.values()]
    assert new.p == pytest.approx(stats.pearsonr(*zip(*ages, strict=True)).pvalue)
    assert new.p > 0.1
    assert new.score == 0
    assert new.correlation != 0
    assert "p > 0.1" in new.notes[0]
    old = _score(data, _learn(data, middles, OLD), OLD)
    assert old.score == old.correlation != 0


def test_order_of_checkpoints_does_not_matter() -> None:
    data = _data(6)
    nats = _learn(data, 7 + (_child_ages(data) - 23) / 10)
    order = np.random.default_rng(2).permutation(len(MILESTONES))
    shuffled = [MILESTONES[i] for i in order]
    assert _score(data, nats[order], milestones=shuffled) == _score(data, nats)


def test_two_checkpoints_with_as_many_words_are_refused() -> None:
    data = _data(3)
    twice = [*MILESTONES[:3], Milestone("main", 3_000_000)]
    with pytest.raises(UserError, match="same number of words"):
        _score(data, np.zeros((4, 9)), milestones=twice)


@pytest.mark.parametrize(
    ("number", "note"),
    [
        (0, "0 checkpoint(s) make no curve"),
        (2, "2 checkpoint(s) make no curve"),
        (4, "do not determine a curve"),
    ],
)
def test_too_few_checkpoints_are_told(number: int, note: str) -> None:
    data = _data(5)
    nats = _learn(data, np.full(5, 6.5))[:number]
    found = _score(data, nats, milestones=MILESTONES[:number])
    assert any(note in each for each in found.notes)
    assert note in results.words_table(found)
    if number < 3:
        assert found.score == 0
        assert found.outcomes() == {"too few points": 5}


def test_fewer_than_three_words_score_0_and_say_so() -> None:
    data = _data(5)
    middles = np.array([6.5, 7.0, 6.0, 6.0, 6.0])
    nats = _learn(data, middles)
    nats[:, 6:] = 20.0  # of the last three words: worse than chance, for ever
    found = _score(data, nats)
    assert (found.score, found.num_valid) == (0, 2)
    assert math.isnan(found.correlation)
    assert "2 word(s) have both ages" in found.notes[-1]
    assert found.outcomes()["acquired"] == 2


def test_words_without_contexts_or_children_are_not_correlated() -> None:
    data = _data(8)
    contexts = dict(data.contexts) | {"word0": ()}
    shares = {name: share for name, share in data.shares.items() if name != "word1"}
    less = AcquisitionData(contexts=contexts, ages=data.ages, shares=shares)
    nats = _learn(data, 7 + (_child_ages(data) - 23) / 10)[:, 3:]
    found = _score(less, nats)
    assert "word0" not in found.words
    assert found.num_valid == 6


def test_files_are_the_official_ones_and_are_read_again(tmp_path: Path) -> None:
    data = _data(4, contexts=2)
    nats = _learn(data, 7 + (_child_ages(data) - 23) / 10)
    for edition in (OLD, NEW):
        found = _score(data, nats, edition)
        folder = results.write_acquisition(
            tmp_path,
            data,
            MILESTONES,
            nats,
            found,
            model_name="tiny",
            stamp={"backend": "mlm", "dtype": "float32"},
        )
        assert folder == tmp_path / "AoA_word"
        text = (folder / "surprisal.json").read_text()
        context = "BOS_ONLY" if edition is OLD else "text"
        content = json.loads(text)
        assert text == json.dumps(content, indent=2)
        assert content["metadata"] == {
            "model_name": "tiny",
            "use_bos_only": edition is OLD,
            "total_steps": 19,
            "completed_steps": 19,
        }
        assert len(content["results"]) == 19 * 8
        assert content["results"][9] == {
            "step": "chck_2M",
            "word_count": 2_000_000,
            "target_word": "word0",
            "context_id": 1,
            "context": context,
            "surprisal": nats[1, 1],
        }
        score = (folder / "aoa_score.json").read_text()
        assert score == json.dumps({"aoa": found.score}, indent=2)
        ours = json.loads((folder / "acquisition.json").read_text())
        assert ours["formula"] == edition.value
        assert (ours["backend"], ours["dtype"]) == ("mlm", "float32")
        word = ours["words"]["word3"]
        assert word["children_months"] == pytest.approx(_child_ages(data)[3], abs=0.02)
        assert word["mean_nats"] == nats[:, 6].tolist()
        assert edition.value in table(found.figures())
    milestones, again = results.read_surprisals(folder / "surprisal.json", data)
    assert milestones == MILESTONES
    np.testing.assert_array_equal(again, nats)


def test_surprisals_that_lack_a_context_are_refused(tmp_path: Path) -> None:
    data = _data(2, contexts=2)
    path = tmp_path / "surprisal.json"
    entry = {"step": "chck_1M", "target_word": "word0", "context_id": 0}
    for content, said in (
        ({"results": [entry | {"surprisal": 3.0}]}, "lacks context 1 of 'word0'"),
        ({"results": [entry]}, "KeyError: 'surprisal'"),
        ([], "TypeError"),
    ):
        path.write_text(json.dumps(content))
        with pytest.raises(UserError, match=said):
            results.read_surprisals(path, data)
    with pytest.raises(UserError, match="No such file"):
        results.read_surprisals(tmp_path / "nothing", data)


@pytest.mark.parametrize("edition", [OLD, NEW])
@pytest.mark.parametrize("backend", ["causal", "mlm", "mntp"])
def test_surprisals_are_those_of_the_model_row_by_row(
    backend: str,
    edition: AcquisitionEdition,
    make_byte_model: Any,
    tmp_path: Path,
) -> None:
    """Bytes: an id for each of the word, the space before it not among them."""
    tokenizer, causal = ByteTokenizer(), backend == "causal"
    special, model = tokenizer.special, make_byte_model(causal)
    config = EvaluateConfig(
        acquisition=edition,
        backend=ZeroShotBackend(backend),
        long_items=LongItems.TRUNCATE,
    )
    scorer = ZeroShot(
        config,
        model.prober,
        tokenizer,
        max_length=32,
        opening=[special.bos],
        causal=causal,
        mask_id=special.mask,
        dtype="float32",
    )
    data = files.read_acquisition_data(_folder(tmp_path))
    questions = AcquisitionQuestions(config, data, [special.bos])
    found = questions(scorer.scores, model.params)

    for (word, _, context), nats in zip(data.rows, found, strict=True):
        before = f"{context.strip()} " if edition is NEW else ""
        row = [special.bos, *tokenizer.encode(before + word)]
        total = 0.0
        for i in range(len(row) - len(word.encode()), len(row)):
            seen = row[:i] if causal else [*row[:i], special.mask, *row[i + 1 :]]
            total -= model.log_p(seen, i - (backend != "mlm"))[row[i]]
        assert nats == pytest.approx(total, rel=1e-4)


def test_official_files_have_504_words(shared_data: Path) -> None:
    folder = files.find_acquisition_data(str(shared_data / "eval"))
    data = files.read_acquisition_data(folder)
    assert len(data.contexts) == len(data.shares) == 504
    assert len(data.rows) == 8005
    assert len(files.read_acquisition_data(folder, min_contexts=20).contexts) == 328
    assert data.ages.tolist() == list(range(16, 31))
    assert data.shares["airplane"][:4].tolist() == [0.2, 0.2, 0.28, 0.41]
