"""JSON of any origin is a value of bounded depth, or a ValueError."""

import pytest

from lmjax.core import json_text


def test_json_is_read_as_text_or_as_utf8() -> None:
    assert json_text.parse('{"a": [1, 2.5, null, "é"]}') == {"a": [1, 2.5, None, "é"]}
    assert json_text.parse("\ufeff[1]".encode()) == [1]
    assert json_text.parse('"\\ud83d\\ude00"') == "\U0001f600"


@pytest.mark.parametrize(
    "data",
    [
        "",
        "{",
        b"\xff",
        b'"\xed\xa0\x80"',
        '"half a pair: \\ud800"',
        "[" * 101 + "]" * 101,
        '{"a":' * 3000 + "1" + "}" * 3000,
        "[" * 100_000,
        "9" * 5000,
    ],
)
def test_what_is_none_is_a_value_error(data: bytes | str) -> None:
    with pytest.raises(ValueError):
        json_text.parse(data)


def test_depth_counts_and_not_the_number_of_brackets() -> None:
    deep = json_text.parse("[" * 100 + "]" * 100)
    wide = json_text.parse("[" + "[1], " * 500 + '"[[[["]')
    assert len(wide) == 501 and isinstance(deep, list)
