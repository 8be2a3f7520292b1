"""Durations in the unit that comes naturally, as optimizer steps or as seconds."""

import dataclasses
import math
import re

UNITS = ("steps", "epochs", "tokens", "words", "%")
_SECONDS = {"seconds": 1, "minutes": 60, "hours": 3600, "days": 86_400}
_MULTIPLES = {"": 1, "K": 10**3, "M": 10**6, "B": 10**9}
_PATTERN = re.compile(
    r"\s*([0-9][0-9_,]*(?:\.[0-9]+)?)\s*([KMB]?)\s*([a-z]+|%)\s*", re.I
)
_RANGE = re.compile(r"\s*steps?\s+([0-9]+)\s*-\s*([0-9]+)\s*", re.I)
_CLOCK = re.compile(r"\s*([0-9]+(?:\.[0-9]+)?)\s*([a-z]+)\s*", re.I)


@dataclasses.dataclass(frozen=True)
class Duration:
    """An amount and its unit, one of `UNITS`; amount 0 means never."""

    amount: float
    unit: str

    def __str__(self) -> str:
        number = f"{self.amount:,.15g}"
        return f"{number}%" if self.unit == "%" else f"{number} {self.unit}"


@dataclasses.dataclass(frozen=True)
class RunScale:
    """What one optimizer step and one epoch are worth.

    Attributes:
      steps_per_epoch: optimizer steps in which each training window is seen once
        (a fraction: epochs need not end on a step).
      tokens_per_step: counted tokens per optimizer step, padding left out.
      words_per_step: whitespace words per optimizer step, on average.
      total_steps: length of the whole run, for "%"; 0 while it is unknown.
    """

    steps_per_epoch: float
    tokens_per_step: float
    words_per_step: float
    total_steps: int = 0


def parse(text: str) -> Duration:
    """Reads "2000 steps", "3 epochs", "100M tokens", "10M words", "5%" or "0".

    Raises:
      ValueError: when the text is none of these.
    """
    if text.strip() == "0":
        return Duration(0.0, "steps")
    match = _PATTERN.fullmatch(text)
    if match:
        number, multiple, unit = match.groups()
        unit = unit.lower()
        if unit != "%" and not unit.endswith("s"):
            unit += "s"
        if unit in UNITS:
            amount = float(re.sub("[_,]", "", number)) * _MULTIPLES[multiple.upper()]
            return Duration(amount, unit)
    raise ValueError(
        f"{text!r} is not a duration: write a number and a unit, such as "
        '"2000 steps", "3 epochs", "100M tokens", "10M words" or "5%" ("0" for never)'
    )


def to_steps(text: str, scale: RunScale) -> int:
    """Optimizer steps that `text` takes: at least 1 unless the amount is 0.

    Budgets in words and tokens are rounded down, so that they are never exceeded
    on average; all other units are rounded to the nearest step.

    Raises:
      ValueError: on malformed text, or on "%" where no run length is known.
    """
    duration = parse(text)
    if duration.amount == 0:
        return 0
    match duration.unit:
        case "steps":
            steps = round(duration.amount)
        case "epochs":
            steps = round(duration.amount * scale.steps_per_epoch)
        case "tokens":
            steps = math.floor(duration.amount / scale.tokens_per_step)
        case "words":
            steps = math.floor(duration.amount / scale.words_per_step)
        case _:
            if not scale.total_steps:
                raise ValueError(f"{text!r}: a share of the run needs the run's length")
            steps = round(duration.amount / 100 * scale.total_steps)
    return max(1, steps)


def step_range(text: str) -> tuple[int, int]:
    """First and last step of "steps 20-25", counted from 1.

    Raises:
      ValueError: when the text is no such range, or an empty one.
    """
    match = _RANGE.fullmatch(text)
    first, last = map(int, match.groups()) if match else (0, 0)
    if not 1 <= first <= last:
        raise ValueError(f'{text!r} is no range of steps, such as "steps 20-25"')
    return first, last


def to_seconds(text: str) -> float:
    """Seconds of the clock in "90 seconds", "170 minutes", "2.5 hours", "3 days", "0".

    Raises:
      ValueError: when the text is none of these.
    """
    if text.strip() == "0":
        return 0.0
    if match := _CLOCK.fullmatch(text):
        unit = match[2].lower().removesuffix("s") + "s"
        if unit in _SECONDS:
            return float(match[1]) * _SECONDS[unit]
    raise ValueError(
        f"{text!r} is not a time of the clock: write a number and seconds, minutes, "
        'hours or days, such as "170 minutes" ("0" for never)'
    )
