"""A user error says what, where, and what to do; its status is the process's."""

from lmjax.core.errors import ConfigError, UserError


def test_a_message_has_one_line_per_question() -> None:
    error = UserError("it is wrong", where="field x", remedy="set it to 1")
    assert str(error) == "it is wrong\n  where: field x\n  to do: set it to 1"
    assert str(UserError("it is wrong")) == "it is wrong"
    assert (error.what, error.where, error.remedy) == (
        "it is wrong",
        "field x",
        "set it to 1",
    )


def test_config_errors_have_a_status_of_their_own() -> None:
    assert isinstance(ConfigError("x"), ValueError)
    assert (UserError("x").status, ConfigError("x").status) == (1, 2)


def test_what_a_message_quotes_does_nothing_to_a_terminal() -> None:
    message = str(UserError("a\x1b[2Jb\x00c", where="x\ry\u202ez"))
    assert message == "a\\x1b[2Jb\\x00c\n  where: x\\ry\\u202ez"


def test_a_message_is_never_too_long_to_be_read() -> None:
    message = str(UserError("begin " + "x" * 10**6 + " end", remedy="set it to 1"))
    assert len(message) < 9000
    assert message.startswith("begin x") and message.endswith("to do: set it to 1")
    assert "characters" in message
