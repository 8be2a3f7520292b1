"""What config flags need of the schema."""

import dataclasses
import enum
import typing

from lmjax.config import fields
from lmjax.config.schema import Config


def test_sections_are_mutable_and_fields_of_types_that_flags_can_set() -> None:
    for name, kind in fields.schema_types().items():
        settable = kind in (bool, int, float, str) or kind == tuple[str, ...]
        assert settable or issubclass(kind, enum.Enum), name
    sections = [Config]
    for section in sections:
        assert not section.__dataclass_params__.frozen
        for field in dataclasses.fields(section):
            sections += fields.section_classes(field.type)


def test_choices_are_named_as_they_are_written() -> None:
    # Flags read an enum by name and JSON by value: they must be the same word.
    for kind in fields.schema_types().values():
        if isinstance(kind, enum.EnumMeta):
            for member in kind:
                assert member.value == member.name.lower()


def test_no_field_is_called_as_the_key_that_names_a_kind() -> None:
    for section in dataclasses.fields(Config):
        classes = fields.section_classes(section.type)
        if len(classes) > 1:
            for kind in classes:
                assert "kind" not in {field.name for field in dataclasses.fields(kind)}


def test_kinds_of_the_objective_are_named_after_their_classes() -> None:
    kinds = typing.get_type_hints(Config)["objective"]
    names = [fields.kind_name(kind) for kind in fields.section_classes(kinds)]
    assert names == ["masked_diffusion", "uniform_diffusion", "autoregressive"]
