"""A config from its file, with overrides: for notebooks, and ahead of the flags.

`config_flags` stays the face of the command line. It reports one mistake at a time,
and a misspelled field by a traceback, so `check_arguments` goes over the same
arguments first and tells all mistakes at once, with the nearest name.
"""

import contextlib
import importlib.util
import re
import typing
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from lmjax.config import fields, serialize
from lmjax.config.fields import nearest
from lmjax.config.schema import Config
from lmjax.core.errors import ConfigError

CONFIGS = "configs"  # folder of the configs that come with lmjax
_FLAG = re.compile(r"(--?)([A-Za-z][\w.-]*)(?:=(.*))?", re.DOTALL)
_OVERRIDE = re.compile(r"(no)?config\.(.+)")


def load_config(
    path_with_variants: str, overrides: Mapping[str, Any] | None = None
) -> Config:
    """Loads "configs/babylm.py", "configs/babylm.py:ar,tiny" or a run's "config.json".

    Args:
      path_with_variants: the file; what follows a colon goes to its `get_config`.
      overrides: values by dotted name, such as {"train.batch_size": 8}; strings are
        read as on the command line.

    Raises:
      ConfigError: when the file is missing, has no config, or an override is wrong.
    """
    path, colon, variants = path_with_variants.partition(":")
    if not Path(path).is_file():
        raise _no_such_file(path)
    if path.endswith(".json"):
        if colon:
            raise ConfigError("a config.json has no variants", where=path_with_variants)
        config = serialize.load(path)
    else:
        config = _import_config(path, [variants] if colon else [])
    apply_overrides(config, overrides or {})
    return config


def apply_overrides(config: Config, overrides: Mapping[str, Any]) -> None:
    """Sets fields by dotted name, hyphens as underscores: all, or none if any is wrong.

    Raises:
      ConfigError: names every unknown field, with the nearest one, and every bad value.
    """
    flat = serialize.flatten(overrides)
    fields.assign(config, {_fold(name): value for name, value in flat.items()})


def normalize_arguments(argv: Sequence[str]) -> list[str]:
    """Arguments as `config_flags` understands them; the program's name stays as it is.

    Hyphens in flag names become underscores. A field of several strings is written as
    a literal tuple, for `config_flags` takes a string with spaces for a mistake.
    """
    types = fields.schema_types()
    normal = list(argv[:1])
    for name, value, words in _flags(argv):
        override = _OVERRIDE.fullmatch(name)
        if not name or name == "--":
            normal += words
        elif override and _is_tuple(types.get(override[2])) and value is not None:
            with contextlib.suppress(ValueError):  # `check_arguments` tells
                value = repr(fields.coerce(value, types[override[2]]))
            normal.append(f"--{name}={value}")
        else:
            _, equals, _ = words[0].partition("=")
            normal += [f"--{name}{equals}{value if equals else ''}", *words[1:]]
    return normal


def config_argument(argv: Sequence[str]) -> str:
    """The value of --config: a file with variants; empty when it is not given."""
    found = ""
    for name, value, _ in _flags(argv):
        if name == "config" and value is not None:
            found = value
    return found


def check_arguments(argv: Sequence[str], config: Config) -> None:
    """Checks the names and types of all --config.* flags; changes nothing.

    Args:
      argv: the program's name, then its arguments.
      config: what the overrides would be applied to.

    Raises:
      ConfigError: tells all mistakes, with the nearest name of each misspelled field.
    """
    known = fields.types(config)
    problems: list[fields.Problem] = []
    changes: list[tuple[str, Any]] = []
    for name, value, _ in _flags(argv):
        override = _OVERRIDE.fullmatch(name)
        if not override:
            if name in known and "." in name:
                remedy = f"write --config.{name}"
                rule = "flags of the config start with --config."
                problems.append(fields.Problem(f"--{name}", None, rule, remedy))
            continue
        negated, field = override.groups()
        if field not in known:
            problems.append(fields.unknown_field(field, config))
        elif negated and (known[field] is not bool or value is not None):
            rule = "--no switches a true-or-false field off, and takes no value"
            remedy = f"write --config.{field}=value"
            problems.append(fields.Problem(f"--{name}", value, rule, remedy))
        elif value is None and known[field] is not bool:
            rule, remedy = "the value is missing", f"write --config.{field}=value"
            problems.append(fields.Problem(field, None, rule, remedy))
        else:
            changes.append((field, not negated if value is None else value))
    _, wrong = fields.read(config, changes)
    fields.raise_problems(problems + wrong)


def _fold(name: str) -> str:
    return name.replace("-", "_")


def _is_tuple(field_type: Any) -> bool:
    return typing.get_origin(field_type) is tuple


def _flags(argv: Sequence[str]) -> Iterator[tuple[str, str | None, list[str]]]:
    """(name with underscores, value if any, the arguments it took) of each flag.

    Other arguments come with the name "", and all from a bare "--" on under "--".
    """
    types = fields.schema_types()
    rest = list(argv[1:])
    while rest:
        word = rest.pop(0)
        if word == "--":
            yield "--", None, [word, *rest]
            return
        match = _FLAG.fullmatch(word)
        if not match:
            yield "", None, [word]
            continue
        name, value = _fold(match[2]), match[3]
        override = _OVERRIDE.fullmatch(name)
        takes_value = name == "config" or (
            override and types.get(override[2], bool) is not bool
        )
        if value is None and takes_value and rest:
            value = rest.pop(0)
            yield name, value, [word, value]
        else:
            yield name, value, [word]


def _import_config(path: str, arguments: Sequence[str]) -> Config:
    """Calls `get_config` of the Python file at `path`."""
    spec = importlib.util.spec_from_file_location("lmjax_config_file", path)
    if spec is None or spec.loader is None:
        raise ConfigError("a config is a Python file or a config.json", where=path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    if not hasattr(module, "get_config"):
        raise ConfigError("the file has no function get_config", where=path)
    config = module.get_config(*arguments)
    if not isinstance(config, Config):
        raise ConfigError(
            f"get_config returned a {type(config).__name__}",
            where=path,
            remedy="return a lmjax.config.schema.Config",
        )
    return config


def _no_such_file(path: str) -> ConfigError:
    folders = {Path(path).parent, Path(CONFIGS)} - {Path()}
    known = sorted(str(file) for folder in folders for file in folder.glob("*.py"))
    if not known:
        remedy = f"run in the folder that holds {CONFIGS}/, or give the path in full"
    elif guess := nearest(path, known):
        remedy = f"did you mean {guess}? There are {', '.join(known)}"
    else:
        remedy = f"there are {', '.join(known)}"
    return ConfigError("there is no such config file", where=path, remedy=remedy)
