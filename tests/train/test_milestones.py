"""Milestones of words: names, which there are, and what a folder of them holds."""

import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lmjax.core.errors import ConfigError
from lmjax.train import milestones
from lmjax.train.checkpoints import on_first_device
from lmjax.train.milestones import Milestones, name_of, parse, read_ledger, words_of
from lmjax.train.progress import Progress
from lmjax.train.weights import SavedWeights

ABOUT = {"config": {"seed": 3}, "tokenizer": b"\x00model", "mask_id": 4, "corpus": "c"}


def _params(value: float) -> dict[str, jax.Array]:
    return {"kernel": jnp.full((3, 2), value), "scale": jnp.full((2,), -value)}


def _progress(step: int, words: int) -> Progress:
    return Progress(step=step, tokens=2 * words, words=words, seconds=1.5)


@pytest.mark.parametrize(
    ("words", "name"),
    [
        (1_000_000, "chck_1M"),
        (1_000_000_000, "chck_1000M"),
        (250_000, "chck_250K"),
        (1_500_000, "chck_1500K"),
        (123, "chck_123"),
    ],
)
def test_names_are_the_official_ones(words: int, name: str) -> None:
    assert name_of(words) == name
    assert words_of(name) == words


def test_other_names_have_no_words() -> None:
    assert words_of("imported") == words_of("chck_M") == words_of("chck_1G") == 0


def test_every_repeats_up_to_the_end() -> None:
    found = parse(("every 100K words", "250K words", "1M words", "2M words"), 1_000_000)
    assert found == (*range(100_000, 300_000, 100_000), 250_000) + tuple(
        range(300_000, 1_000_001, 100_000)
    )


@pytest.mark.parametrize("text", ["10 steps", "words", "0 words", "1.5 words", "every"])
def test_what_is_no_number_of_words_is_refused(text: str) -> None:
    with pytest.raises(ConfigError) as error:
        parse((text,), 100)
    assert text in str(error.value) and "10M words" in error.value.remedy


def test_a_milestone_holds_its_weights_and_what_explains_them(tmp_path: Path) -> None:
    kept = Milestones((100, 200), tmp_path, ABOUT)
    params = _params(2.0)
    kept.write(params, (100,), _progress(step=4, words=130))
    kept.close()
    (saved,) = SavedWeights.all_in(tmp_path)
    assert saved.path.name == "chck_100"
    meta = saved.meta()
    assert meta["tokenizer"] == ABOUT["tokenizer"] and meta["mask_id"] == 4
    assert (meta["step"], meta["words"], meta["tokens"]) == (4, 130, 260)
    assert saved.param_shapes() == {"kernel": (3, 2), "scale": (2,)}
    found = saved.params(on_first_device(jax.eval_shape(lambda: params)))
    jax.tree.map(np.testing.assert_array_equal, found, params)


def test_the_ledger_tells_words_and_overshoot_in_order(tmp_path: Path) -> None:
    kept = Milestones((9_000, 10_000), tmp_path, ABOUT)
    kept.write(_params(1.0), (9_000,), _progress(step=4, words=9_001))
    kept.write(_params(2.0), (10_000,), _progress(step=5, words=10_500))
    kept.close()
    assert read_ledger(tmp_path) == [
        {
            "name": name_of(words),
            "milestone": words,
            "words": seen,
            "tokens": 2 * seen,
            "step": step,
            "overshoot": seen - words,
        }
        for words, seen, step in ((9_000, 9_001, 4), (10_000, 10_500, 5))
    ]


def test_a_resume_drops_what_comes_after_it(tmp_path: Path) -> None:
    kept = Milestones((10, 20, 30), tmp_path, ABOUT)
    for step, words in ((1, 10), (2, 20), (3, 30)):
        kept.write(_params(step), (words,), _progress(step, words))
    kept.close()
    again = Milestones((10, 20, 30), tmp_path, ABOUT)
    again.drop_after(2)
    again.close()
    assert [entry["name"] for entry in read_ledger(tmp_path)] == ["chck_10", "chck_20"]


def test_a_run_without_milestones_writes_nothing(tmp_path: Path) -> None:
    kept = Milestones((), tmp_path / "none", ABOUT)
    kept.drop_after(0)
    kept.finish(_params(1.0), _progress(1, 5), max_words=10)
    kept.close()
    assert not (tmp_path / "none").exists()


@pytest.mark.parametrize(
    ("seen", "max_words", "given"),
    [
        (95, 100, True),  # only the last is missing
        (100, 100, False),  # it was reached
        (89, 100, False),  # 90 is missing too: this is another run's end
        (95, 120, False),  # 100 is not what the run was to see
        (95, 0, False),
    ],
)
def test_the_last_milestone_is_the_end_of_a_run_that_may_see_no_more(
    tmp_path: Path, seen: int, max_words: int, given: bool
) -> None:
    kept = Milestones((80, 90, 100), tmp_path, ABOUT)
    kept.finish(_params(1.0), _progress(9, seen), max_words)
    kept.close()
    ledger = [(entry["name"], entry["overshoot"]) for entry in read_ledger(tmp_path)]
    assert ledger == ([("chck_100", seen - 100)] if given else [])


def test_what_is_half_written_is_not_there(tmp_path: Path) -> None:
    (tmp_path / "chck_10.orbax-checkpoint-tmp" / "params").mkdir(parents=True)
    (tmp_path / "chck_20" / "params").mkdir(parents=True)
    assert list(SavedWeights.all_in(tmp_path)) == []
    milestones.write_ledger(tmp_path)
    assert json.loads((tmp_path / milestones.LEDGER).read_text()) == []
