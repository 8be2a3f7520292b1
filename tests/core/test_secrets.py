"""What only its owner should know is left out, and nothing else is."""

import time

import pytest

from lmjax.core.errors import UserError
from lmjax.core.secrets import redact


@pytest.mark.parametrize(
    ("text", "written"),
    [
        ("https://user:word@host/a", "https://user:***@host/a"),
        ("hf://user:word@hub/a?split=b", "hf://user:***@hub/a?split=b"),
        ("https://0123456789abcdefghij@host/a", "https://***@host/a"),
        ("s3://b/k?X-Amz-Signature=ab%2F&y=1", "s3://b/k?X-Amz-Signature=***&y=1"),
        ("hf://a/b?token=abc&split=c", "hf://a/b?token=***&split=c"),
        ("--s3_secret_access_key=abc", "--s3_secret_access_key=***"),
        ("in hf_abcdefghijklmnopqrstu, told", "in ***, told"),
    ],
)
def test_passwords_and_tokens_are_left_out(text: str, written: str) -> None:
    assert redact(text, {}) == written


@pytest.mark.parametrize(
    "text",
    [
        "--config.generate.max_new_tokens=12",
        "--config.data.token_dtype=uint16",
        "hf://owner/name?revision=main&column=text",
        "ssh://git@host/a",
        "spark://host:7077",
        "the secret = a word of the text",
    ],
)
def test_all_else_is_written_as_it_is(text: str) -> None:
    assert redact(text, {"MAX_TOKEN_COUNT": "12345678", "HOME": text}) == text


def test_values_of_the_environment_with_such_names_are_left_out(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("SOME_API_KEY", "planted-value")
    monkeypatch.setenv("OTHER_TOKEN", "short")
    assert redact("a planted-value, short") == "a ***, short"
    assert "planted" not in str(UserError("x", where="y=planted-value"))


@pytest.mark.parametrize("unit", ["x", "a.", "token ", "://", "hf_", "a" * 19 + "@"])
def test_long_texts_take_no_time(unit: str) -> None:
    """A message may quote megabytes; a second is far more than it takes."""
    text = f"--{unit * (1_000_000 // len(unit))}://"
    began = time.perf_counter()
    redact(text, {})
    assert time.perf_counter() - began < 5
