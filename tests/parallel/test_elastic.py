"""A run goes on wherever it is restored: on the same devices to the same bits.

On others, whatever the mesh and however the layers run, to the same figures.
"""

import dataclasses
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from lmjax.train.checkpoints import Checkpoints
from lmjax.train.progress import Progress
from lmjax.train.state import TrainState

BEFORE, AFTER = 3, 3  # steps, before the save and after it
ONE, EIGHT = (1, 1, 1), (2, 2, 2)  # devices of the axes data, fsdp and tensor
TWO, FOUR = (1, 2, 1), (2, 1, 2)

Figures = dict[str, np.ndarray]


@dataclasses.dataclass(frozen=True)
class Runs:
    """Goes on from any state; see `Training` of conftest."""

    training: Any

    def go_on(self, state: TrainState, first: int, count: int) -> tuple[Any, Figures]:
        """The state after so many more steps, and each figure of every step."""
        figures = []
        for number in range(first, first + count):
            state, metrics = self.training.compiled(state, self.training.batch(number))
            figures.append(jax.device_get(metrics))
        return state, {
            name: np.stack([each[name] for each in figures]) for name in figures[0]
        }

    def restore(self, checkpoints: Checkpoints) -> TrainState:
        return checkpoints.restore_state(BEFORE, self.training.maker.abstract())


@pytest.fixture(scope="module", params=["autoregressive", "masked_diffusion"])
def runs(
    request: pytest.FixtureRequest, make_training: Callable[..., Any]
) -> Callable[..., Runs]:
    """Makes the run of an objective on a mesh, compiled once; everything is on."""
    made: dict[tuple[Any, ...], Runs] = {}

    def make(mesh: tuple[int, int, int], scan: bool = False) -> Runs:
        if (mesh, scan) not in made:
            training = make_training(
                request.param,
                mesh=mesh,
                scan=scan,
                num_layers=2,
                num_microbatches=2,
                dropout=0.2,
            )
            made[mesh, scan] = Runs(training)
        return made[mesh, scan]

    return make


@pytest.fixture
def checkpoints(tmp_path: Path) -> Iterator[Checkpoints]:
    made = Checkpoints(tmp_path / "checkpoints")
    yield made
    made.close()


def _save(checkpoints: Checkpoints, state: TrainState) -> None:
    progress = Progress(step=BEFORE)
    checkpoints.save(
        state,
        step=BEFORE,
        progress=progress.to_json(),
        config={},
        tokenizer_model=b"",
        mask_id=2,
        corpus="",
    )
    checkpoints.wait()


def _assert_equal(found: Any, expected: Any) -> None:
    """Bit for bit, and there is something to compare."""
    assert len(jax.tree.leaves(expected)) > 5
    assert jax.tree.structure(found) == jax.tree.structure(expected)
    jax.tree.map(
        lambda a, b: np.testing.assert_array_equal(np.asarray(a), np.asarray(b)),
        jax.device_get(found),
        jax.device_get(expected),
    )


@pytest.mark.parametrize("mesh", [ONE, EIGHT])
def test_what_is_restored_goes_on_to_the_same_bits(
    mesh: tuple[int, int, int],
    runs: Callable[..., Runs],
    checkpoints: Checkpoints,
) -> None:
    """Parameters, average, optimizer state and figures; accumulation and dropout."""
    run = runs(mesh)
    state, _ = run.go_on(run.training.start(), 0, BEFORE)
    _save(checkpoints, state)
    restored, saved = run.restore(checkpoints), jax.device_get(state)
    _assert_equal(restored, saved)
    state, expected = run.go_on(state, BEFORE, AFTER)
    restored, figures = run.go_on(restored, BEFORE, AFTER)
    _assert_equal(restored, state)
    _assert_equal(figures, expected)
    # The comparison would see it if steps did not draw, or nothing was learnt.
    assert len(set(expected["loss_sum"].tolist())) == AFTER
    assert int(state.step) == BEFORE + AFTER
    moved = [
        np.any(np.asarray(new) != old)
        for new, old in zip(
            jax.tree.leaves(state.ema), jax.tree.leaves(saved.ema), strict=True
        )
    ]
    assert all(moved)


@pytest.mark.parametrize(
    ("mesh", "scan"),
    [(ONE, False), (TWO, True), (FOUR, False)],
    ids=["one device", "two devices, scanned layers", "four devices"],
)
@pytest.mark.parametrize("forth", [True, False], ids=["from eight", "to eight"])
def test_other_devices_go_on_to_the_same_losses(
    mesh: tuple[int, int, int],
    scan: bool,
    forth: bool,
    runs: Callable[..., Runs],
    checkpoints: Checkpoints,
) -> None:
    one, other = runs(EIGHT), runs(mesh, scan)
    if not forth:
        one, other = other, one
    state, _ = one.go_on(one.training.start(), 0, BEFORE)
    _save(checkpoints, state)
    restored, saved = other.restore(checkpoints), jax.device_get(state)
    _assert_equal(restored, saved)
    for leaf, wanted in zip(
        jax.tree.leaves(restored),
        jax.tree.leaves(other.training.maker.abstract()),
        strict=True,
    ):
        assert leaf.sharding.is_equivalent_to(wanted.sharding, leaf.ndim)
    _, expected = one.go_on(state, BEFORE, AFTER)
    _, figures = other.go_on(restored, BEFORE, AFTER)
    for name, values in expected.items():
        np.testing.assert_allclose(figures[name], values, rtol=1e-5, err_msg=name)
