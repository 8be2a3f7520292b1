"""What each mode of the command line does, given a checked Config and a run folder."""

from lmjax.modes.corpus import check, prepare
from lmjax.modes.evaluation import evaluate
from lmjax.modes.exporting import export
from lmjax.modes.generation import generate
from lmjax.modes.importing import import_model
from lmjax.modes.training import plan_only, train

# By the name that the command line knows it by.
MODES = {
    "train": train,
    "prepare": prepare,
    "evaluate": evaluate,
    "generate": generate,
    "export": export,
    "import": import_model,
    "plan": plan_only,
    "check": check,
}

__all__ = [
    "MODES",
    "check",
    "evaluate",
    "export",
    "generate",
    "import_model",
    "plan_only",
    "prepare",
    "train",
]
