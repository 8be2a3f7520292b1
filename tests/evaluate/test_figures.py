"""Rows of a report: values, propagated errors, kinds."""

import json
import math

import numpy as np
import pytest

from lmjax.evaluate import figures
from lmjax.evaluate.figures import Figure
from lmjax.evaluate.likelihood import Likelihood
from lmjax.evaluate.minimal_pairs import PairAccuracy


def _likelihood(**changes) -> Likelihood:
    fields = dict(
        kind="upper bound",
        estimator="counts",
        draws=4,
        windows=10,
        tokens=100,
        words=50,
        bytes=300,
        nll_per_token=3 * math.log(2),
        standard_error=0.2 * math.log(2),
        monte_carlo_error=0.01,
    )
    return Likelihood(**fields | changes)


def test_a_likelihood_gives_four_figures_with_errors() -> None:
    """3 bits a token, give or take 0.2; a word has 2 tokens, a byte a third of one."""
    found = {figure.name: figure for figure in _likelihood().figures("held-out")}
    expected = {
        "held-out/nll_per_token": (3 * math.log(2), 0.2 * math.log(2)),
        "held-out/perplexity": (8.0, 1.6 * math.log(2)),
        "held-out/bits_per_byte": (1.0, 0.2 / 3),
        "held-out/bits_per_word": (6.0, 0.4),
    }
    assert list(found) == list(expected)
    for name, pair in expected.items():
        figure = found[name]
        assert (figure.value, figure.standard_error) == pytest.approx(pair)
        assert (figure.kind, figure.draws) == ("upper bound (counts)", 4)


def test_units_that_were_not_counted_give_no_figure() -> None:
    found = _likelihood(words=0).figures()
    names = [figure.name for figure in found]
    assert names == ["nll_per_token", "perplexity", "bits_per_byte"]


def test_accuracies_have_the_error_of_their_pairs() -> None:
    accuracy = PairAccuracy(
        score="log-likelihood",
        accuracy=0.75,
        standard_error=math.sqrt(0.75 * 0.25 / 12),
        pairs=12,
        phenomena={"agreement": 1.0, "order": 0.5},
        phenomenon_pairs={"agreement": 6, "order": 6},
    )
    whole, agreement, order = accuracy.figures("pairs")
    assert whole.name == "pairs/accuracy"
    assert whole.kind == "accuracy (log-likelihood)"
    assert whole.standard_error == pytest.approx(accuracy.standard_error)
    assert (agreement.name, agreement.value) == ("pairs/accuracy/agreement", 1.0)
    assert agreement.standard_error == 0.0
    assert order.standard_error == pytest.approx(0.5 / math.sqrt(6))


def test_json_has_null_for_what_is_not_known() -> None:
    unknown = Figure("a", "statistic", 1.5).to_json()
    assert json.loads(json.dumps(unknown, allow_nan=False)) == {
        "name": "a",
        "kind": "statistic",
        "value": 1.5,
        "standard_error": None,
        "draws": 1,
    }
    assert Figure("a", "exact", math.inf, math.inf).to_json()["value"] is None
    assert Figure("a", "exact", 1.0, 0.0).to_json()["standard_error"] == 0.0


def test_a_table_lines_up() -> None:
    lines = figures.table(
        [
            Figure("nll_per_token", "exact (chain rule)", 3.25, 0.125),
            Figure("perplexity", "exact (chain rule)", 123456.0, math.nan, 8),
        ]
    ).splitlines()
    assert lines[0].split() == ["figure", "value", "±", "s.e.", "draws", "kind"]
    assert lines[1].split()[:4] == ["nll_per_token", "3.2500", "0.1250", "1"]
    assert lines[2].split()[:4] == ["perplexity", "1.235e+05", "-", "8"]
    assert {line.index("exact") for line in lines[1:]} == {lines[0].index("kind")}


def test_errors_of_ratios_and_means() -> None:
    totals, counts = np.array([2.0, 3.0]), np.array([4, 4])
    assert figures.ratio_error(totals, counts) == pytest.approx(1 / 8)
    assert figures.ratio_error(totals[:1], counts[:1]) == math.inf
    assert figures.mean_error([2.0, 4.0]) == pytest.approx(1.0)
    assert math.isnan(figures.mean_error([2.0]))
