"""Config <-> JSON, for run folder, checkpoint and export; differences of two configs.

Enums are written by value and tuples as lists. The section `objective` says which kind
it is: {"kind": "masked_diffusion", "schedule": "linear"}. Passwords and tokens are not
written, see `secrets.redact`: who goes on with a config that held one gives it again.
"""

import dataclasses
import enum
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lmjax.config import fields
from lmjax.config.schema import Config
from lmjax.core import json_text
from lmjax.core.errors import ConfigError
from lmjax.core.files import replacing
from lmjax.core.secrets import redact

KIND = "kind"  # key that names the class of a section with several
# More are not told one by one, each with the nearest name.
_MOST_FIELDS = 2 * len(fields.schema_types())


@dataclasses.dataclass(frozen=True)
class Difference:
    """A field by its dotted name and both values; None where there is no such field."""

    field: str
    old: Any
    new: Any

    def describe(self) -> str:
        """One line, such as "train.batch_size: 256 -> 128"."""
        old, new = (
            "(none)" if value is None else json.dumps(value, ensure_ascii=False)
            for value in (self.old, self.new)
        )
        return f"{self.field}: {old} -> {new}"


def to_dict(config: Config) -> dict[str, Any]:
    """Nested dictionaries of what JSON can hold."""
    return _section_to_dict(config)


def to_json(config: Config) -> str:
    """`to_dict` as indented JSON."""
    text = json.dumps(to_dict(config), indent=2, ensure_ascii=False, allow_nan=False)
    return text + "\n"


def from_dict(data: Mapping[str, Any]) -> Config:
    """The config that `to_dict` was given; fields left out keep their defaults.

    Raises:
      ConfigError: names every unknown field, section kind and value of a wrong type.
    """
    config = Config()
    flat = flatten(data)
    if len(flat) > _MOST_FIELDS:
        raise ConfigError(
            f"a config has no {len(flat):,} fields, of which many are unknown",
            remedy="give the config.json of a run folder",
        )
    problems = []
    for section in dataclasses.fields(Config):
        classes = fields.section_classes(section.type)
        if len(classes) < 2 or section.name not in data:
            continue
        kinds = {fields.kind_name(member): member for member in classes}
        name = f"{section.name}.{KIND}"
        kind = flat.pop(name, None)
        if isinstance(kind, str) and kind in kinds:
            setattr(config, section.name, kinds[kind]())
        else:
            rule = f"must be one of {', '.join(kinds)}"
            guess = fields.nearest(str(kind), kinds)
            remedy = f"did you mean {guess}?" if guess else "name one of them"
            problems.append(fields.Problem(name, kind, rule, remedy))
    fields.raise_problems(problems)
    fields.assign(config, flat)
    return config


def from_json(text: str | bytes) -> Config:
    """The config that `to_json` was given.

    Raises:
      ConfigError: when the text is not JSON, or as `from_dict` does.
    """
    try:
        data = json_text.parse(text)
    except ValueError as error:
        raise ConfigError(f"this config is not JSON: {error}") from error
    if not isinstance(data, dict):
        raise ConfigError(f"a config is a JSON object, not a {type(data).__name__}")
    return from_dict(data)


def save(config: Config, path: str | os.PathLike[str]) -> None:
    """Writes a config as JSON; a reader sees the old file or the new one, whole."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as unfinished:
        unfinished.write_text(to_json(config), encoding="utf-8")


def load(path: str | os.PathLike[str]) -> Config:
    """Reads what `save` wrote.

    Raises:
      ConfigError: when there is no such file, or it doesn't hold a config.
    """
    try:
        text = Path(path).read_bytes()
    except FileNotFoundError as error:
        raise ConfigError(
            "there is no such config",
            where=str(path),
            remedy="give the config.json of a run folder",
        ) from error
    except OSError as error:
        raise ConfigError(
            f"the config can't be read: {error.strerror or error}",
            where=str(path),
            remedy="check the file and its permissions",
        ) from error
    try:
        return from_json(text)
    except ConfigError as error:
        raise ConfigError(error.what, where=str(path), remedy=error.remedy) from error


def differences(old: Config, new: Config) -> list[Difference]:
    """Fields that differ; of a section that is of another kind, the kind alone."""
    before, after = flatten(to_dict(old)), flatten(to_dict(new))
    found = [
        Difference(name, before.get(name), after.get(name))
        for name in before | after
        if before.get(name) != after.get(name)
    ]
    others = {each.field.removesuffix(KIND) for each in found if _is_kind(each.field)}
    return [
        each
        for each in found
        if _is_kind(each.field) or not each.field.startswith(tuple(others))
    ]


def _is_kind(name: str) -> bool:
    return name in {f"{section.name}.{KIND}" for section in dataclasses.fields(Config)}


def flatten(data: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested dictionaries as one, by dotted name."""
    flat: dict[str, Any] = {}
    for key, value in data.items():
        name = f"{prefix}{key}"
        if isinstance(value, Mapping):
            flat |= flatten(value, f"{name}.")
        else:
            flat[name] = value
    return flat


def _section_to_dict(section: Any) -> dict[str, Any]:
    data: dict[str, Any] = {}
    for field in dataclasses.fields(section):
        value = getattr(section, field.name)
        if dataclasses.is_dataclass(value):
            several = len(fields.section_classes(field.type)) > 1
            kind = {KIND: fields.kind_name(type(value))} if several else {}
            data[field.name] = kind | _section_to_dict(value)
        elif isinstance(value, enum.Enum):
            data[field.name] = value.value
        elif isinstance(value, tuple):
            data[field.name] = [redact(text) for text in value]
        else:
            data[field.name] = redact(value) if isinstance(value, str) else value
    return data
