"""Applies the rules about values and across fields, all reported at once.

`rules` and `method_rules` hold what must be so of numbers and among fields. A field of
the wrong type is told as such and left alone, and so are rules across fields while one
of them is wrong.
"""

import enum
import functools
import math
import typing
from collections.abc import Iterator, Sequence
from typing import Any

from lmjax.config import fields
from lmjax.config.fields import Problem
from lmjax.config.method_rules import METHOD_RULES
from lmjax.config.rules import RANGES, RULES
from lmjax.config.schema import Config
from lmjax.core import durations


class _Amount(enum.Flag):
    """What a duration may be besides a positive amount with a unit."""

    POSITIVE = 0
    ZERO = enum.auto()
    SHARE = enum.auto()
    ANY = ZERO | SHARE


_DURATIONS = {
    "optim.warmup": _Amount.ANY,
    "optim.decay": _Amount.ANY,
    "train.budget": _Amount.POSITIVE,
    "checkpoint.every": _Amount.ANY,
    "checkpoint.keep_every": _Amount.ANY,
    "evaluate.every": _Amount.ANY,
    "generate.every": _Amount.ANY,
    "log.every": _Amount.ANY,
}

_CLOCK = {  # times of the clock, and whether "0" is one
    "train.stop_after": True,
    "train.watchdog": True,
    "checkpoint.save_after": True,
    "parallel.start_timeout": False,
    "parallel.peer_timeout": False,
}
_NOT_EMPTY = (
    "data.default_folder",
    "data.text_field",
    "data.cache_dir",
    "evaluate.checkpoints",
    "export.checkpoints",
    "log.wandb_project",
)
_NO_BLANKS = (
    "data.train",
    "data.valid",
    "data.weights",
    "data.max_epochs",
    "data.beam",
    "checkpoint.milestones",
    "evaluate.tasks",
)


def check(config: Config, *, num_devices: int = 1) -> None:
    """Raises when any rule is broken.

    Args:
      config: the whole config; it isn't changed.
      num_devices: devices of all hosts that the run will use.

    Raises:
      ConfigError: one line per broken rule, with field, value, rule and remedy.
    """
    problems = list(_check_types(config))
    wrong = {problem.field for problem in problems}
    values = fields.values(config)
    right = {name: value for name, value in values.items() if name not in wrong}
    for check_each in (
        _check_ranges,
        _check_durations,
        _check_clock,
        _check_profile,
        _check_text,
    ):
        problems += check_each(right)
    wrong = {problem.field for problem in problems}
    values["objective"] = config.objective
    problems += _check_rules(values, wrong)
    problems += _check_devices(values, wrong, num_devices)
    fields.raise_problems(problems)


def problems_within(config: Config, sections: Sequence[str]) -> list[Problem]:
    """What is wrong with these sections by themselves, such as a model from elsewhere.

    Fields of others take no part, nor do the rules that name one of them.
    """
    values = {"objective": config.objective, **fields.values(config)}
    others = {name for name in values if name.split(".")[0] not in sections}
    problems = [each for each in _check_types(config) if each.field not in others]
    wrong = others | {problem.field for problem in problems}
    right = {name: value for name, value in values.items() if name not in wrong}
    problems += _check_ranges(right)
    wrong |= {problem.field for problem in problems}
    return problems + list(_check_rules(values, wrong))


def _check_types(config: Config) -> Iterator[Problem]:
    """For values that a config file or a notebook set."""
    types = fields.types(config)
    for name, value in fields.values(config).items():
        remedy = f"the default is {_defaults()[name]}"
        try:
            fitting = type(fields.coerce(value, types[name]))
        except ValueError as error:
            yield Problem(name, value, str(error), remedy)
            continue
        if type(value) not in (fitting, int if fitting is float else fitting):
            rule = f"is of type {type(value).__name__}, must be {fitting.__name__}"
            yield Problem(name, value, rule, remedy)


def _check_ranges(values: dict[str, Any]) -> Iterator[Problem]:
    for name, interval in RANGES.items():
        if name not in values:
            continue
        value = values[name]
        low, high = map(float, interval[1:-1].split(","))
        above = low < value if interval[0] == "(" else low <= value
        below = value < high if interval[-1] == ")" else value <= high
        if above and below:
            continue
        if high < math.inf:
            rule = f"must lie in {interval}"
        elif interval[0] == "(":
            rule = f"must be above {low:g}"
        else:
            rule = f"must be at least {low:g}"
        yield Problem(name, value, rule, f"the default is {_defaults()[name]}")


def _check_durations(values: dict[str, Any]) -> Iterator[Problem]:
    for name, allowed in _DURATIONS.items():
        if name not in values:
            continue
        text = values[name]
        remedy = f"the default is {_defaults()[name]}"
        try:
            duration = durations.parse(text)
        except ValueError:
            units = 'such as "500 steps", "2 epochs", "10M tokens", "10M words"'
            if _Amount.SHARE in allowed:
                units += ', "5%"'
            if _Amount.ZERO in allowed:
                units += ' or "0" for never'
            yield Problem(name, text, "must be a number and a unit", f"write {units}")
            continue
        if duration.amount == 0 and _Amount.ZERO not in allowed:
            yield Problem(name, text, "must be above 0", remedy)
        if duration.unit == "%" and _Amount.SHARE not in allowed:
            yield Problem(name, text, "must not be a share: it is the whole", remedy)
        elif duration.unit == "%" and duration.amount > 100:
            yield Problem(name, text, "must be at most 100%", remedy)


def _check_clock(values: dict[str, Any]) -> Iterator[Problem]:
    for name, may_be_zero in _CLOCK.items():
        if name not in values:
            continue
        text, remedy = values[name], f"the default is {_defaults()[name]}"
        try:
            seconds = durations.to_seconds(text)
        except ValueError:
            rule = "must be a number and seconds, minutes, hours or days"
            yield Problem(name, text, rule, 'write "170 minutes", for example')
            continue
        if seconds == 0 and not may_be_zero:
            yield Problem(name, text, "must be above 0", remedy)


def _check_profile(values: dict[str, Any]) -> Iterator[Problem]:
    text = values.get("log.profile", "")
    try:
        _ = text and durations.step_range(text)
    except ValueError:
        rule = "must be the first and the last of the steps that are traced, from 1"
        yield Problem("log.profile", text, rule, 'write "steps 20-25", for example')


def _check_text(values: dict[str, Any]) -> Iterator[Problem]:
    for name in _NOT_EMPTY:
        if name in values and not values[name].strip():
            remedy = f"the default is {_defaults()[name]}"
            yield Problem(name, values[name], "must not be empty", remedy)
    for name in _NO_BLANKS:
        if not all(path.strip() for path in values.get(name, ())):
            rule, remedy = "holds an empty entry", "leave it out; () is the default"
            yield Problem(name, values[name], rule, remedy)


def _check_rules(values: dict[str, Any], wrong: set[str]) -> Iterator[Problem]:
    for rule in (*RULES, *METHOD_RULES):
        absent = not values.keys() >= set(rule.names)
        if absent or wrong.intersection(rule.names):
            continue
        arguments = [values[name] for name in rule.names]
        if not rule.holds(*arguments):
            yield Problem(
                rule.names[0],
                arguments[0],
                rule.rule.format(*arguments),
                rule.remedy.format(*arguments),
            )


def _check_devices(
    values: dict[str, Any], wrong: set[str], num_devices: int
) -> Iterator[Problem]:
    """The mesh takes all devices, and its axes data and fsdp split every batch."""
    names = ("parallel.data", "parallel.fsdp", "parallel.tensor")
    if wrong.intersection(names):
        return
    data, fsdp, tensor = (values[name] for name in names)
    data = data or max(1, num_devices // (fsdp * tensor))
    if data * fsdp * tensor != num_devices:
        yield Problem(
            names[0],
            values[names[0]],
            f"data={data}, fsdp={fsdp} and tensor={tensor} must multiply to the number "
            f"of devices, {num_devices}",
            "change one of parallel.data, parallel.fsdp and parallel.tensor; "
            "parallel.data=0 takes what is left over",
        )
        return
    shards = data * fsdp
    for name in ("train.batch_size", "train.microbatch_size", "evaluate.batch_size"):
        size = values[name]
        if name not in wrong and size % shards:
            yield Problem(
                name,
                size,
                f"must be a multiple of {shards}, the devices that split a batch "
                f"(data={data} times fsdp={fsdp})",
                f"take {math.ceil(size / shards) * shards}, or use fewer devices",
            )


@functools.cache
def _defaults() -> dict[str, str]:
    """The default of every field, of whichever kind of a section has it first."""
    kinds = typing.get_type_hints(Config)["objective"]
    found: dict[str, str] = {}
    for objective in fields.section_classes(kinds):
        for name, value in fields.values(Config(objective=objective())).items():
            found.setdefault(name, fields.spell(value))
    return found
