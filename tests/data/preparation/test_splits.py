"""Every document has one place, and equal texts have the same."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lmjax.config.schema import CleaningConfig
from lmjax.core.errors import UserError
from lmjax.data.preparation.cleaning import NUM_HASHES, Cleaner, signature
from lmjax.data.preparation.scanning import Scan
from lmjax.data.preparation.splits import (
    TRAIN,
    VALID,
    HoldOut,
    assign,
    check_not_empty,
    mix,
    repeats,
    rule_place,
)

FIVE_PERCENT = HoldOut(fraction=0.05, words=0, seed=0)


def _scan(hashes, words=None, texts=None) -> Scan:
    count = len(hashes)
    signatures = np.zeros((0, NUM_HASHES), np.uint32)
    if texts is not None:
        signatures = np.stack([signature(text) for text in texts])
    return Scan(
        hashes=np.array(hashes, np.uint64),
        words=np.array([3] * count if words is None else words, np.int64),
        sizes=np.full(count, 10, np.int64),
        pieces=np.ones(count, np.int32),
        rewritten={},
        signatures=signatures,
    )


def _assign(train, valid=None, hold_out=FIVE_PERCENT, **cleaning):
    scans = {
        "train": {source: [scan] for source, scan in train.items()},
        "valid": {source: [scan] for source, scan in (valid or {}).items()},
    }
    return assign(scans, Cleaner(CleaningConfig(**cleaning)), hold_out)


def _places(assignment, source: str, split: str = "train") -> list[int]:
    return np.concatenate(assignment.places[split][source]).tolist()


@pytest.mark.parametrize(
    "documents, fraction, held",
    [(40, 0.05, 2), (7, 0.05, 1), (4, 0.99, 3), (2, 1e-9, 1)],
)
def test_the_share_is_that_of_each_source(documents, fraction, held):
    hold_out = HoldOut(fraction=fraction, words=0, seed=0)
    assignment = _assign({"a": _scan(range(documents))}, hold_out=hold_out)
    assert _places(assignment, "a").count(VALID) == held


def test_words_are_held_out_by_whole_documents():
    scan = _scan(range(100), words=[10] * 100)
    hold_out = HoldOut(fraction=0.05, words=95, seed=0)
    assert _places(_assign({"a": scan}, hold_out=hold_out), "a").count(VALID) == 10


def test_no_more_than_half_of_a_source_is_held_out_by_words(caplog):
    scan = _scan(range(100), words=[10] * 100)
    hold_out = HoldOut(fraction=0.05, words=5000, seed=0)
    assert _places(_assign({"a": scan}, hold_out=hold_out), "a").count(VALID) == 50
    assert "a has 1000 words: half of them" in caplog.text


def test_held_out_documents_are_not_the_tail():
    places = np.array(_places(_assign({"a": _scan(range(1000))}), "a"))
    held = np.flatnonzero(places == VALID)
    assert 350 < held.mean() < 650
    assert held.min() < 150 and held.max() > 850


def test_another_seed_holds_out_others():
    scan = _scan(range(100))
    one, other = (
        _places(
            _assign({"a": scan}, hold_out=HoldOut(fraction=0.1, words=0, seed=s)), "a"
        )
        for s in (0, 1)
    )
    assert one != other and one.count(VALID) == other.count(VALID)


def test_the_choice_ignores_other_sources():
    alone = _places(_assign({"a": _scan(range(100))}), "a")
    together = _assign({"a": _scan(range(100)), "b": _scan(range(200, 230))})
    assert _places(together, "a") == alone


@settings(derandomize=True, deadline=None)
@given(
    st.lists(st.integers(0, 6), min_size=1, max_size=30),
    st.lists(st.integers(0, 6), min_size=1, max_size=30),
    st.integers(0, 5),
)
def test_equal_texts_are_never_in_both_splits(one, other, seed):
    hold_out = HoldOut(fraction=0.3, words=0, seed=seed)
    assignment = _assign({"a": _scan(one), "b": _scan(other)}, hold_out=hold_out)
    pairs = [*zip(one, _places(assignment, "a"), strict=True)]
    pairs += zip(other, _places(assignment, "b"), strict=True)
    train = {text for text, place in pairs if place == TRAIN}
    valid = {text for text, place in pairs if place == VALID}
    assert not train & valid
    assert assignment.shared == assignment.shared_words == 0


def test_given_files_stay_where_they_are_and_what_they_share_is_reported():
    assignment = _assign(
        {"a": _scan([1, 2, 3])}, {"v": _scan([3, 4, 5, 5], words=[6, 2, 1, 1])}
    )
    assert _places(assignment, "a") == [TRAIN] * 3
    assert _places(assignment, "v", "valid") == [VALID] * 4
    assert assignment.shared == 1 / 4
    assert assignment.shared_words == 6 / 10


def test_short_documents_are_dropped():
    assignment = _assign({"a": _scan(range(20), words=[1, 5] * 10)}, min_words=2)
    places = _places(assignment, "a")
    assert places[::2] == [rule_place("min_words")] * 10
    assert set(places[1::2]) == {TRAIN, VALID}


def test_the_first_of_equal_documents_stays_validation_first():
    dropped = rule_place("exact_duplicates")
    assignment = _assign(
        {"a": _scan([1, 2, 1, 3]), "b": _scan([2, 4])},
        {"v": _scan([3, 9, 9])},
        exact_duplicates=True,
    )
    assert _places(assignment, "v", "valid") == [VALID, VALID, dropped]
    assert _places(assignment, "a") == [TRAIN, TRAIN, dropped, dropped]
    assert _places(assignment, "b") == [dropped, TRAIN]
    assert assignment.shared == 0


TEXT = "the old dog sleeps near the warm fire while the small cat looks at the rain"


def test_near_duplicates_are_dropped():
    pytest.importorskip("datasketch")
    long = f"{TEXT} and thinks of the long summer days by the lake when nobody hurried"
    texts = [long, "something else altogether happens in this one", long + " home"]
    scan = _scan([1, 2, 3], texts=texts)
    assignment = _assign(
        {"a": scan}, {"v": _scan([9], texts=["x"])}, near_duplicates=0.8
    )
    assert _places(assignment, "a") == [TRAIN, TRAIN, rule_place("near_duplicates")]
    assignment = _assign(
        {"a": scan}, {"v": _scan([9], texts=["x"])}, near_duplicates=1.0
    )
    assert _places(assignment, "a") == [TRAIN] * 3


def test_a_source_of_one_text_is_trained_on(caplog):
    assignment = _assign({"a": _scan([7, 7, 7]), "b": _scan(range(10))})
    assert _places(assignment, "a") == [TRAIN] * 3
    assert "a: nothing can be held out" in caplog.text
    check_not_empty(assignment, {"train": ["a"], "valid": ["a"]})


def test_nothing_to_train_or_validate_on_is_refused():
    files = {"train": ["x.txt"], "valid": ["y.txt"]}
    with pytest.raises(UserError, match="no text in the corpus") as caught:
        check_not_empty(_assign({"a": _scan([])}), files)
    assert caught.value.where == "data.train: x.txt"
    with pytest.raises(UserError, match="no text to validate") as caught:
        check_not_empty(_assign({"a": _scan([1])}), files)
    assert caught.value.where == "data.valid: y.txt"
    assert "data.documents" in caught.value.remedy


def test_repeats_are_all_but_the_first():
    found = repeats(np.array([5, 3, 5, 5, 3, 1], np.uint64))
    assert found.tolist() == [False, False, True, True, True, False]


def test_mixing_is_that_of_splitmix64():
    # The generator's first outputs from the state 0 and 1234567, as published.
    assert mix(np.zeros(1, np.uint64), 0)[0] == 0xE220A8397B1DCDAF
    assert mix(np.array([1234567], np.uint64), 0)[0] == 6457827717110365317
