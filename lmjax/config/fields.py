"""Fields of a config by dotted name ("train.batch_size"), and problems with them."""

import ast
import dataclasses
import difflib
import enum
import numbers
import operator
import re
import typing
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from lmjax.config.schema import Config
from lmjax.core.errors import ConfigError

_TOO_LARGE = 2**63  # for any count, here and in JAX
# All that `ast.literal_eval` may raise.
_NO_LITERAL = (ValueError, TypeError, SyntaxError, MemoryError, RecursionError)


@dataclasses.dataclass(frozen=True)
class Problem:
    """One thing that is wrong: the field, its value, the rule, and what to do."""

    field: str
    value: Any
    rule: str
    remedy: str

    def __str__(self) -> str:
        setting = self.field
        if self.value is not None:
            setting += f"={spell(self.value)}"
        return f"{setting}: {self.rule}; {self.remedy}"


def raise_problems(problems: Iterable[Problem]) -> None:
    """Raises one ConfigError that tells all problems, if there are any."""
    lines = [str(problem) for problem in problems]
    if lines:
        count = f"{len(lines)} settings are" if len(lines) > 1 else "A setting is"
        raise ConfigError("\n  ".join([f"{count} wrong:", *lines]))


def nearest(name: str, known: Iterable[str]) -> str:
    """The known name that is spelled most like `name`; empty when none is close."""
    by_lower = {candidate.lower(): candidate for candidate in known}
    matches = difflib.get_close_matches(name.lower(), by_lower, n=1)
    return by_lower[matches[0]] if matches else ""


def values(config: Config) -> dict[str, Any]:
    """Every field by its dotted name, in the order of the schema."""
    return {name: value for name, value, _ in _walk(config)}


def types(config: Config) -> dict[str, type]:
    """The type of every field of this config."""
    return {name: field.type for name, _, field in _walk(config)}


def schema_types(section: type = Config, prefix: str = "") -> dict[str, type]:
    """The type of every field that any config can have, whatever its objective."""
    found: dict[str, type] = {}
    for field in dataclasses.fields(section):
        name = prefix + field.name
        sections = section_classes(field.type)
        for member in sections:
            found |= schema_types(member, f"{name}.")
        if not sections:
            found[name] = field.type
    return found


def section_classes(field_type: Any) -> tuple[type, ...]:
    """The dataclasses that a section may be; () for a field that holds a value."""
    if dataclasses.is_dataclass(field_type):
        return (field_type,)
    return tuple(
        member
        for member in typing.get_args(field_type)
        if dataclasses.is_dataclass(member)
    )


def kind_name(section: type) -> str:
    """What a member of a union section is called: "masked_diffusion", for one."""
    return re.sub(
        r"(?<!^)(?=[A-Z])", "_", section.__name__.removesuffix("Config")
    ).lower()


def coerce(value: Any, field_type: Any) -> Any:
    """`value` as `field_type`; strings are read as on the command line.

    Raises:
      ValueError: it does not fit; the message is the rule that it breaks.
    """
    if isinstance(field_type, enum.EnumMeta):
        return _to_member(value, field_type)
    if typing.get_origin(field_type) is tuple:
        return _to_strings(value)
    return _READERS[field_type](value)


def assign(config: Config, changes: Mapping[str, Any]) -> None:
    """Sets fields by dotted name: all of them, or none when anything is wrong.

    Raises:
      ConfigError: names every unknown field and every value of a wrong type.
    """
    coerced, problems = read(config, changes.items())
    raise_problems(problems)
    for name, value in coerced.items():
        section, _, field = name.rpartition(".")
        setattr(
            operator.attrgetter(section)(config) if section else config, field, value
        )


def read(
    config: Config, changes: Iterable[tuple[str, Any]]
) -> tuple[dict[str, Any], list[Problem]]:
    """The changes in the types of their fields, and what is wrong with the others."""
    now, known = values(config), types(config)
    coerced: dict[str, Any] = {}
    problems = []
    for name, value in changes:
        if name not in known:
            problems.append(unknown_field(name, config))
            continue
        try:
            coerced[name] = coerce(value, known[name])
        except ValueError as error:
            remedy = f"without this it is {spell(now[name])}"
            problems.append(Problem(name, value, str(error), remedy))
    return coerced, problems


def spell(value: Any) -> str:
    """A field's value as one types it."""
    return str(value.value) if isinstance(value, enum.Enum) else repr(value)


def unknown_field(name: str, config: Config) -> Problem:
    """Says that there is no such field, and which one was meant."""
    known = types(config)
    section = name.partition(".")[0]
    members = [field for field in known if field.startswith(f"{section}.")]
    if name in schema_types():
        kind = kind_name(type(getattr(config, section)))
        rule = f"there is no such field while {section} is {kind}"
        remedy = f"leave it out, or choose another {section} (a variant of the config)"
    elif hasattr(config, name):
        rule = "this is a section, not a field"
        remedy = f"set its fields: {', '.join(members) or 'it has none'}"
    else:
        rule = "there is no such field"
        if guess := _nearest_field(name, schema_types()):
            remedy = f"did you mean {guess}?"
        elif members:
            remedy = f"known: {', '.join(members)}"
        else:
            sections = [field.name for field in dataclasses.fields(config)]
            guess = nearest(section, sections)
            remedy = f"did you mean the section {guess}? " if guess else ""
            remedy += f"known: {', '.join(sections)}"
    return Problem(name, None, rule, remedy)


def _walk(section: Any, prefix: str = "") -> Iterator[tuple[str, Any, Any]]:
    for field in dataclasses.fields(section):
        value = getattr(section, field.name)
        if dataclasses.is_dataclass(value):
            yield from _walk(value, f"{prefix}{field.name}.")
        else:
            yield prefix + field.name, value, field


def _nearest_field(name: str, known: Iterable[str]) -> str:
    """First the same field in another section, then the most alike as a whole."""
    field = name.rpartition(".")[2]
    by_field: dict[str, list[str]] = {}
    for candidate in known:
        by_field.setdefault(candidate.rpartition(".")[2], []).append(candidate)
    if field in by_field:
        same = by_field[field]
        return nearest(name, same) or same[0]
    if guess := nearest(name, known):
        return guess
    guess = nearest(field, by_field)
    return by_field[guess][0] if guess else ""


def _to_member(value: Any, kind: enum.EnumMeta) -> enum.Enum:
    if isinstance(value, kind):
        return value
    members = {member.value: member for member in kind}
    if isinstance(value, str) and value.lower() in members:
        return members[value.lower()]
    raise ValueError(f"must be one of {', '.join(member.value for member in kind)}")


def _to_strings(value: Any) -> tuple[str, ...]:
    """A literal tuple or list of strings, one bare string, or "" for none."""
    if isinstance(value, str):
        try:
            literal = ast.literal_eval(value)
        except _NO_LITERAL:
            literal = None
        if isinstance(literal, tuple | list | str):
            value = literal
    if isinstance(value, str):
        return (value,) if value else ()
    if isinstance(value, tuple | list) and all(isinstance(part, str) for part in value):
        return tuple(value)
    raise ValueError("must be a tuple of strings, such as ('a', 'b'), or one string")


def _to_bool(value: Any) -> bool:
    words = {"true": True, "t": True, "1": True, "false": False, "f": False, "0": False}
    if isinstance(value, bool):
        return value
    if isinstance(value, str) and value.lower() in words:
        return words[value.lower()]
    raise ValueError("must be true or false")


def _to_int(value: Any) -> int:
    try:
        if not isinstance(value, bool):
            number = int(value) if isinstance(value, str) else operator.index(value)
            if abs(number) < _TOO_LARGE:
                return number
    except (ValueError, TypeError):
        pass
    raise ValueError("must be a whole number")


def _to_float(value: Any) -> float:
    try:
        if isinstance(value, str | numbers.Real) and not isinstance(value, bool):
            return float(value)
    except (ValueError, OverflowError):
        pass
    raise ValueError("must be a number")


def _to_text(value: Any) -> str:
    if isinstance(value, str):
        return value
    raise ValueError("must be a string")


_READERS = {bool: _to_bool, int: _to_int, float: _to_float, str: _to_text}
