"""Optional dependencies, imported where they are used."""

import importlib
from types import ModuleType

from lmjax.core.errors import UserError


def require(module: str, *, extra: str, what: str, remedy: str = "") -> ModuleType:
    """Imports an optional module.

    Args:
      module: its name, as in an import statement.
      extra: the optional dependency in pyproject.toml that installs it.
      what: what needs it, as the beginning of a sentence.
      remedy: how to install it, if not as most extras.

    Raises:
      UserError: it is not installed; names the extra.
    """
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name is None or error.name.split(".")[0] != module.split(".")[0]:
            raise
        raise UserError(
            f"{what} needs the package {module.split('.')[0]!r}, which is not here.",
            remedy=remedy
            or f"bash scripts/setup.sh {extra}, or pip install 'lmjax[{extra}]'.",
        ) from error
