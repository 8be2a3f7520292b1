"""A trace holds the steps that were asked for, by their numbers."""

from pathlib import Path

import jax
import jax.numpy as jnp
import pytest

from lmjax import training_run
from lmjax.core.errors import ConfigError
from lmjax.train.profile import STEP, ProfiledStep

# JAX's reader of traces warns of its own types; as an error that ends the process.
pytestmark = pytest.mark.filterwarnings("ignore:builtin type:DeprecationWarning")


def _steps(folder: Path) -> list[int]:
    """Numbers of the steps in a trace, which is one file."""
    (file,) = folder.rglob("*.xplane.pb")
    data = jax.profiler.ProfileData.from_file(str(file))
    return sorted(
        dict(event.stats)["step_num"]
        for plane in data.planes
        for line in plane.lines
        for event in line.events
        if event.name == STEP
    )


def _run(
    folder: Path, *, start: int, end: int, first: int, last: int
) -> tuple[int, list[str]]:
    """Steps start + 1 to end; returns what they made of 0, and what was told."""
    lines: list[str] = []
    with ProfiledStep(
        jax.jit(lambda state, batch: state + batch),
        first=first,
        last=last,
        start_step=start,
        folder=folder,
        tell=lines.append,
    ) as step:
        state = jnp.int32(0)
        for _ in range(start, end):
            state = step(state, 1)
    return int(state), lines


@pytest.mark.parametrize(
    ("start", "end", "traced"),
    [
        (0, 7, [4, 5]),
        (4, 7, [5]),  # a run that goes on from within
        (0, 4, [4]),  # one that is stopped within
    ],
)
def test_a_trace_holds_the_steps_asked_for(
    start: int, end: int, traced: list[int], tmp_path: Path
) -> None:
    made, lines = _run(tmp_path / "profile", start=start, end=end, first=4, last=5)
    assert made == end - start
    assert _steps(tmp_path / "profile") == traced
    assert len(lines) == 1
    assert f"steps {traced[0]} to {traced[-1]}" in lines[0]


@pytest.mark.parametrize(("start", "end"), [(0, 3), (5, 7)])
def test_a_start_that_has_none_of_them_traces_nothing(
    start: int, end: int, tmp_path: Path
) -> None:
    made, lines = _run(tmp_path / "profile", start=start, end=end, first=4, last=5)
    assert (made, lines) == (end - start, [])
    assert not (tmp_path / "profile").exists()


def test_steps_beyond_the_end_of_the_run_are_an_error() -> None:
    assert training_run._profiled("", 10) == (0, 0)
    assert training_run._profiled("steps 9-10", 10) == (9, 10)
    with pytest.raises(ConfigError, match="ends after step 10"):
        training_run._profiled("steps 9-11", 10)
