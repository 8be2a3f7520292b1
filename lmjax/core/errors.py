"""Errors that a user can act on: what went wrong, where, and what to do."""


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
        super().__init__("\n".join(lines))


class ConfigError(UserError):
    """The config, or a flag, is wrong: nothing was started."""

    status = 2
