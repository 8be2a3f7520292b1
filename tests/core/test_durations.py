"""Durations: what is read, what is refused, and how many steps they take."""

import pytest

from lmjax.core import durations
from lmjax.core.durations import Duration, RunScale, parse, to_steps

SCALE = RunScale(
    steps_per_epoch=12.5, tokens_per_step=1000, words_per_step=750, total_steps=200
)


@pytest.mark.parametrize(
    ("text", "amount", "unit"),
    [
        ("2000 steps", 2000, "steps"),
        ("1 step", 1, "steps"),
        ("3 epochs", 3, "epochs"),
        ("1 epoch", 1, "epochs"),
        ("0.5 epochs", 0.5, "epochs"),
        ("100M tokens", 100_000_000, "tokens"),
        ("1.5B tokens", 1_500_000_000, "tokens"),
        ("20k words", 20_000, "words"),
        ("10 M words", 10_000_000, "words"),
        ("1_000 steps", 1000, "steps"),
        ("1,000 steps", 1000, "steps"),
        ("5%", 5, "%"),
        ("2.5 %", 2.5, "%"),
        (" 10STEPS ", 10, "steps"),
        ("0", 0, "steps"),
        ("0 epochs", 0, "epochs"),
    ],
)
def test_an_amount_and_its_unit_are_read(text: str, amount: float, unit: str) -> None:
    assert parse(text) == Duration(amount, unit)


@pytest.mark.parametrize(
    "text",
    ["", "steps", "10", "-1 steps", "1e3 steps", "ten steps", "10 minutes", "5% steps"],
)
def test_anything_else_is_refused_with_examples(text: str) -> None:
    with pytest.raises(ValueError, match=r"not a duration.*2000 steps.*5%"):
        parse(text)


@pytest.mark.parametrize("text", ["5%", "2,000 steps", "0.1 epochs", "13.1B tokens"])
def test_a_duration_reads_back_what_it_prints(text: str) -> None:
    assert parse(str(parse(text))) == parse(text)


def test_thousands_are_set_off_in_print() -> None:
    assert str(parse("1.5M words")) == "1,500,000 words"


@pytest.mark.parametrize(
    ("text", "steps"),
    [
        ("7 steps", 7),
        ("2 epochs", 25),
        ("10%", 20),
        ("5000 tokens", 5),
        ("5999 tokens", 5),  # budgets are never exceeded
        ("2999 words", 3),
        ("0", 0),
        ("0%", 0),
        ("1 token", 1),  # never none at all
        ("0.01%", 1),
    ],
)
def test_each_unit_is_worth_its_steps(text: str, steps: int) -> None:
    assert to_steps(text, SCALE) == steps


def test_epochs_are_rounded_to_the_nearest_step() -> None:
    scale = RunScale(steps_per_epoch=3.4, tokens_per_step=1, words_per_step=1)
    assert to_steps("1 epoch", scale) == 3
    assert to_steps("2 epochs", scale) == 7


def test_a_share_needs_the_length_of_the_run() -> None:
    scale = RunScale(steps_per_epoch=1, tokens_per_step=1, words_per_step=1)
    with pytest.raises(ValueError, match="needs the run's length"):
        to_steps("5%", scale)
    assert to_steps("5 steps", scale) == 5


def test_units_are_those_that_parse_reads() -> None:
    for unit in durations.UNITS:
        assert parse(f"3 {unit}").unit == unit


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("90 seconds", 90),
        ("1 minute", 60),
        ("170 minutes", 10_200),
        ("2.5 Hours", 9000),
        ("3days", 259_200),
        ("0", 0),
    ],
)
def test_times_of_the_clock_become_seconds(text: str, seconds: float) -> None:
    assert durations.to_seconds(text) == seconds


@pytest.mark.parametrize("text", ["", "5", "5 m", "1 steps", "x minutes", "-1 hours"])
def test_what_is_no_time_of_the_clock_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="170 minutes"):
        durations.to_seconds(text)


def test_ranges_of_steps() -> None:
    assert durations.step_range("steps 20-25") == (20, 25)
    assert durations.step_range(" Step 3 - 3") == (3, 3)
    for text in ("20-25", "steps 20", "steps 5-4", "steps 0-4", "steps -1-4"):
        with pytest.raises(ValueError, match="steps 20-25"):
            durations.step_range(text)
