"""Draws hold every source in its share and within its limit."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lmjax.core.errors import ConfigError
from lmjax.data.mixing import DrawOrder, Mixture

SOURCES = ("a.train", "b.train", "c.train")
WINDOWS = np.array([1000, 100, 50])


def _counts(drawn: np.ndarray, windows: np.ndarray = WINDOWS) -> np.ndarray:
    source = np.searchsorted(np.cumsum(windows), drawn, side="right")
    return np.bincount(source, minlength=len(windows))


def _draw(mixture: Mixture, count: int, windows: np.ndarray = WINDOWS, seed: int = 0):
    return DrawOrder(windows, mixture, seed)(np.arange(count))


def test_an_epoch_draws_every_window_once():
    mixture = Mixture.plain(3)
    drawn = _draw(mixture, 3 * WINDOWS.sum())
    for epoch in drawn.reshape(3, -1):
        assert sorted(epoch) == list(range(WINDOWS.sum()))
    first, second, third = drawn.reshape(3, -1).tolist()
    assert first != second != third != first


def test_weights_change_how_often_a_source_is_drawn():
    mixture = Mixture.parse(["b=3", "c.train=0"], [], SOURCES)
    counts = _counts(_draw(mixture, 1300))
    assert counts.tolist() == [1000, 300, 0]


def test_any_number_of_draws_holds_the_shares():
    mixture = Mixture.parse(["a=0.37", "b=2.5"], [], SOURCES)
    drawn = _draw(mixture, 2000)
    shares = mixture.shares(WINDOWS)
    for n in (1, 7, 100, 999, 2000):
        assert np.abs(_counts(drawn[:n]) - n * shares).max() < len(SOURCES)


def test_a_used_up_source_leaves_the_others_going():
    mixture = Mixture.parse(["b=3"], ["a=1", "b=4", "c=2.5"], SOURCES)
    total = int(mixture.num_windows(WINDOWS))
    assert total == 1000 + 400 + 125
    drawn = _draw(mixture, total)
    assert _counts(drawn).tolist() == [1000, 400, 125]
    # Within the limit every pass is whole: each window of b is drawn four times.
    times = np.bincount(drawn, minlength=WINDOWS.sum())
    assert (times[:1000] == 1).all() and (times[1000:1100] == 4).all()
    assert set(times[1100:]) == {2, 3}


@pytest.mark.parametrize("total", [0, 10, 1300, 1525])
def test_draws_are_foretold(total):
    mixture = Mixture.parse(["b=3"], ["a=1", "b=4", "c=2.5"], SOURCES)
    foretold = mixture.draws(WINDOWS, total)
    assert np.abs(_counts(_draw(mixture, total)) - foretold).max() < len(SOURCES)
    endless = Mixture.parse(["b=3"], ["c=2"], SOURCES)
    foretold = endless.draws(WINDOWS, total)
    assert np.abs(_counts(_draw(endless, total)) - foretold).max() < len(SOURCES)


def test_one_limit_is_for_all_and_a_name_overrides_it():
    mixture = Mixture.parse([], ["b=7", "2"], SOURCES)
    assert mixture.max_epochs.tolist() == [2, 7, 2]


def test_without_limits_there_is_no_end():
    mixture = Mixture.parse(["b=3"], ["c=2"], SOURCES)
    assert math.isinf(mixture.num_windows(WINDOWS))
    late = DrawOrder(WINDOWS, mixture, 0)(10**9 + np.arange(1000))
    assert _counts(late)[2] == 0  # c was used up long ago


@settings(derandomize=True, deadline=None, max_examples=50)
@given(
    st.lists(st.integers(1, 40), min_size=1, max_size=4),
    st.data(),
)
def test_limits_are_used_to_the_last_window(windows, data):
    count = len(windows)
    windows = np.array(windows)
    mixture = Mixture(
        weights=np.array(
            data.draw(
                st.lists(st.sampled_from([1, 0.3, 2]), min_size=count, max_size=count)
            ),
            float,
        ),
        max_epochs=np.array(
            data.draw(
                st.lists(st.sampled_from([1, 1.5, 3]), min_size=count, max_size=count)
            ),
            float,
        ),
    )
    total = int(mixture.num_windows(windows))
    drawn = _draw(mixture, total, windows)
    expected = np.floor(mixture.max_epochs * windows)
    assert _counts(drawn, windows).tolist() == expected.tolist()
    times = np.bincount(drawn, minlength=windows.sum())
    owner = np.repeat(np.arange(count), windows)
    for source in range(count):
        mine = times[owner == source]
        assert mine.max() - mine.min() <= 1


def test_a_draw_depends_on_its_position_alone():
    mixture = Mixture.parse(["b=3"], ["a=2"], SOURCES)
    together = _draw(mixture, 3000)
    order = DrawOrder(WINDOWS, mixture, 0)
    for start in (2990, 17, 1500):
        assert (
            order(np.arange(start, start + 10)) == together[start : start + 10]
        ).all()


def test_the_order_is_pinned():
    # A resumed run must find the order it began with, in later versions too.
    drawn = _draw(Mixture.plain(2), 8, np.array([5, 3]), seed=7)
    assert drawn.tolist() == [4, 1, 6, 3, 2, 5, 0, 7]


def test_seeds_sources_and_passes_have_orders_of_their_own():
    windows = np.array([50, 50])
    one, other = (_draw(Mixture.plain(2), 200, windows, seed) for seed in (0, 1))
    assert one.tolist() != other.tolist()
    first, second = (one[(one >= 50) == late] % 50 for late in (False, True))
    assert first[:50].tolist() != second[:50].tolist()
    assert first[:50].tolist() != first[50:].tolist()


@pytest.mark.parametrize(
    "weights, max_epochs, what",
    [
        (["d=2"], [], "no source 'd'"),
        (["b=x"], [], "'x' is not a number"),
        (["b=-1"], [], "'-1' is not a number of 0"),
        (["b=nan"], [], "not a number"),
        (["b=inf"], [], "not a number"),
        (["0"], [], "No source has a weight"),
        ([], ["b=0"], "less than once"),
    ],
)
def test_wrong_values_are_refused(weights, max_epochs, what):
    with pytest.raises(ConfigError, match=what) as caught:
        Mixture.parse(weights, max_epochs, SOURCES)
    assert caught.value.where.startswith(("data.weights", "data.max_epochs"))
    assert caught.value.remedy


def test_a_misspelt_source_is_told_its_neighbour():
    with pytest.raises(ConfigError) as caught:
        Mixture.parse(["a.trian=2"], [], SOURCES)
    assert "did you mean 'a.train'?" in caught.value.remedy
    assert "b.train" in caught.value.remedy
