"""What each mode of the command line does, given a checked Config and a run folder.

A mode is imported when it is asked for, so that none waits for what another needs:
`modes.train`, or `getattr(modes, MODES["train"])`.
"""

import importlib
from typing import Any

_HOMES = {
    "train": "training",
    "prepare": "corpus",
    "evaluate": "evaluation",
    "export": "exporting",
    "generate": "generation",
    "import_model": "importing",
    "plan_only": "planning",
    "check": "corpus",
}

# By the name that the command line knows it by: the function's name.
MODES = {
    "train": "train",
    "prepare": "prepare",
    "evaluate": "evaluate",
    "generate": "generate",
    "export": "export",
    "import": "import_model",
    "plan": "plan_only",
    "check": "check",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
