"""What a start of training does not wait for."""

import subprocess
import sys
from pathlib import Path

import pytest

from lmjax import modes

HEAVY = ("torch", "transformers", "scipy.stats", "scipy.optimize", "tensorflow")


def test_training_imports_nothing_heavy_that_it_does_not_use(tmp_path: Path) -> None:
    script = f"""
import sys
from lmjax import main, modes
modes.train
from lmjax.train import loggers
loggers._tensorboard({str(tmp_path)!r}, 0).close()
print(*(name for name in {HEAVY!r} if name in sys.modules))
"""
    found = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    assert found.stdout.split() == []
    assert list(tmp_path.iterdir())


def test_every_mode_of_the_command_line_is_there() -> None:
    found = {name: getattr(modes, of) for name, of in modes.MODES.items()}
    assert all(callable(mode) for mode in found.values())
    with pytest.raises(AttributeError, match="nothing"):
        _ = modes.nothing
