"""Errors that a user can act on: what went wrong, where, and what to do."""

from lmjax.core.secrets import redact

_LONGEST = 8000  # characters of a message; beyond, its middle is left out


class UserError(ValueError):
    """A problem with the user's input or machine, told without a traceback.

    Args:
      what: one sentence that says what is wrong.
      where: the file, field or folder it was found in.
      remedy: what to do about it, ideally as a command or a setting.
    """

    status = 1  # exit status of the process

    def __init__(self, what: str, *, where: str = "", remedy: str = ""):
        self.what, self.where, self.remedy = what, where, remedy
        lines = [what]
        if where:
            lines.append(f"  where: {where}")
        if remedy:
            lines.append(f"  to do: {remedy}")
        super().__init__(_printable(redact("\n".join(lines))))


class ConfigError(UserError):
    """The config, or a flag, is wrong: nothing was started."""

    status = 2


def _printable(text: str) -> str:
    """A message that may quote anything, for a terminal: no control characters."""
    if len(text) > _LONGEST:
        half = _LONGEST // 2
        omitted = len(text) - 2 * half
        text = f"{text[:half]} [... {omitted:,} characters ...] {text[-half:]}"
    if text.replace("\n", "").isprintable():
        return text
    # Line ends are ours; what is quoted has them escaped by its repr().
    return "".join(c if c.isprintable() or c == "\n" else repr(c)[1:-1] for c in text)
