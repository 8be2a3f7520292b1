"""Which checkpoints stay."""

import math

import pytest

from lmjax.train.retention import to_keep

SCORES = {1: 3.0, 2: 1.0, 3: 1.0, 4: None, 5: 2.0, 6: math.nan, 10: 4.0}


@pytest.mark.parametrize(
    ("newest", "every", "best", "kept"),
    [
        (1, 0, 0, {10}),
        (2, 0, 0, {6, 10}),
        (1, 5, 0, {5, 10}),
        (1, 0, 1, {3, 10}),  # of equals the later
        (1, 0, 3, {2, 3, 5, 10}),
        (1, 2, 2, {2, 3, 4, 6, 10}),
        (1, 0, 99, {1, 2, 3, 5, 10}),  # what was not measured is never the best
        (99, 0, 0, set(SCORES)),
    ],
)
def test_the_newest_those_at_multiples_and_the_best_stay(
    newest: int, every: int, best: int, kept: set[int]
) -> None:
    assert to_keep(SCORES, newest=newest, every=every, best=best) == kept
    backwards = dict(reversed(SCORES.items()))
    assert to_keep(backwards, newest=newest, every=every, best=best) == kept


def test_order_is_that_of_numbers() -> None:
    assert to_keep({9: None, 10: None}, newest=1, every=0, best=0) == {10}


def test_where_there_is_nothing_nothing_stays() -> None:
    assert to_keep({}, newest=2, every=3, best=1) == set()
