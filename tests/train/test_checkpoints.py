"""What is saved comes back bit by bit, and only what is whole comes back."""

import dataclasses
import errno
import json
import math
import pickle
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
import pytest
from jax.sharding import Mesh

from lmjax.config.schema import ParallelConfig
from lmjax.core import trees
from lmjax.core.errors import UserError
from lmjax.core.types import PyTree
from lmjax.parallel.mesh import build_mesh
from lmjax.train import integrity, storage
from lmjax.train.checkpoints import Checkpoints, on_first_device
from lmjax.train.progress import Progress
from lmjax.train.state import StateMaker, TrainState

PROGRESS = Progress(
    step=3, tokens=10**12, words=7, seconds=0.1, sums={"loss_sum": 0.1 + 0.2}
)


def _mesh(num_devices: int, fsdp: int = 1) -> Mesh:
    config = ParallelConfig(fsdp=fsdp)
    return build_mesh(config, jax.devices()[:num_devices])


def _maker(mesh: Mesh, *, use_ema: bool = True) -> StateMaker:
    def init(key: jax.Array) -> PyTree:
        kernel = jax.random.normal(key, (8, 4))
        return {"layer": {"kernel": kernel, "bias": jnp.full(4, 1e-30)}}

    return StateMaker(
        init=init,
        names={"layer": {"kernel": ("embed", "mlp"), "bias": (None,)}},
        optimizer=optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(0.1)),
        use_ema=use_ema,
        mesh=mesh,
    )


def _trained(maker: StateMaker, seed: int = 0) -> TrainState:
    """A state in which no two parts are equal."""

    @jax.jit
    def trained(state: TrainState) -> TrainState:
        gradients = jax.tree.map(jnp.cos, state.params)
        updates, opt_state = maker.optimizer.update(
            gradients, state.opt_state, state.params
        )
        params = optax.apply_updates(state.params, updates)
        return dataclasses.replace(
            state, step=jnp.int32(3), params=params, opt_state=opt_state
        )

    state = trained(maker.make(jax.random.key(seed)))
    return jax.tree.map(
        lambda leaf, like: jax.device_put(leaf, like.sharding), state, maker.abstract()
    )


def _save(
    checkpoints: Checkpoints,
    state: TrainState,
    step: int = 3,
    score: float | None = None,
) -> None:
    checkpoints.save(
        state,
        step=step,
        progress=PROGRESS.to_json(),
        config={"seed": 7},
        tokenizer_model=b"\x00\xffmodel",
        mask_id=3,
        corpus="corpus-1",
        score=score,
    )
    checkpoints.wait()


@pytest.fixture
def checkpoints(tmp_path: Path) -> Iterator[Checkpoints]:
    made = Checkpoints(tmp_path / "checkpoints", keep=2)
    yield made
    made.close()


def _assert_equal(found: PyTree, expected: PyTree) -> None:
    assert jax.tree.structure(found) == jax.tree.structure(expected)
    for one, other in zip(
        jax.tree.leaves(found), jax.tree.leaves(expected), strict=True
    ):
        assert one.dtype == other.dtype
        assert np.asarray(one).tobytes() == np.asarray(other).tobytes()


@pytest.mark.parametrize("use_ema", [True, False])
def test_a_state_comes_back_bit_by_bit(checkpoints: Checkpoints, use_ema: bool) -> None:
    maker = _maker(_mesh(8), use_ema=use_ema)
    state = _trained(maker)
    _save(checkpoints, state)
    again = Checkpoints(checkpoints.folder, read_only=True)
    _assert_equal(again.restore(3, maker.abstract()), state)
    meta = again.meta(3)
    assert Progress(**meta["progress"]) == PROGRESS
    assert meta["config"] == {"seed": 7}
    assert meta["tokenizer"] == b"\x00\xffmodel"
    assert meta["corpus"] == "corpus-1"
    again.close()


def test_a_state_comes_back_on_another_number_of_devices(
    checkpoints: Checkpoints, tmp_path: Path
) -> None:
    """From eight devices, parameters split, to one, and from there to two."""
    eight, one, two = (_maker(_mesh(n, fsdp)) for n, fsdp in ((8, 4), (1, 1), (2, 2)))
    state = _trained(eight)
    kernel = state.params["layer"]["kernel"]
    assert kernel.sharding.shard_shape(kernel.shape) == (2, 4)
    _save(checkpoints, state)
    on_one = checkpoints.restore(3, one.abstract())
    _assert_equal(on_one, state)
    other = Checkpoints(tmp_path / "other")
    _save(other, on_one)
    on_two = other.restore(3, two.abstract())
    other.close()
    _assert_equal(on_two, state)
    for found, wanted in zip(
        jax.tree.leaves(on_two), jax.tree.leaves(two.abstract()), strict=True
    ):
        assert found.sharding == wanted.sharding
    moment = on_two.opt_state[1][0].mu["layer"]["kernel"]
    assert moment.sharding.shard_shape(moment.shape) == (4, 4)


@pytest.mark.parametrize("use_ema", [True, False])
def test_generation_gets_the_average_where_there_is_one(
    checkpoints: Checkpoints, use_ema: bool
) -> None:
    maker = _maker(_mesh(8), use_ema=use_ema)
    state = _trained(maker)
    _save(checkpoints, state)
    shapes = jax.eval_shape(maker.init, jax.random.key(0))
    found = checkpoints.at(3).params(on_first_device(shapes))
    _assert_equal(found, state.ema if use_ema else state.params)
    assert len(found["layer"]["kernel"].devices()) == 1


def test_shapes_are_told_without_reading_anything_before(
    checkpoints: Checkpoints,
) -> None:
    _save(checkpoints, _trained(_maker(_mesh(1))))
    again = Checkpoints(checkpoints.folder, read_only=True)
    again.meta(3)
    assert again.at(3).param_shapes() == {"layer/kernel": (8, 4), "layer/bias": (4,)}
    again.close()


def test_only_the_newest_stay(checkpoints: Checkpoints) -> None:
    state = _trained(_maker(_mesh(1)))
    assert checkpoints.latest() is None and checkpoints.steps() == []
    for step in (2, 10, 11, 300):
        _save(checkpoints, state, step)
    assert checkpoints.steps() == [11, 300]
    assert checkpoints.latest() == 300
    found = sorted(path.name for path in checkpoints.folder.iterdir())
    assert found == ["00000011", "00000300"]


def test_a_step_that_is_saved_already_is_left_alone(checkpoints: Checkpoints) -> None:
    maker = _maker(_mesh(1))
    first, second = _trained(maker, seed=0), _trained(maker, seed=1)
    _save(checkpoints, first)
    _save(checkpoints, second)
    _assert_equal(checkpoints.restore(3, maker.abstract()), first)


def test_what_came_after_a_step_is_dropped_and_made_again(
    checkpoints: Checkpoints,
) -> None:
    maker = _maker(_mesh(1))
    first, second = _trained(maker, seed=0), _trained(maker, seed=1)
    for step in (3, 4):
        _save(checkpoints, first, step)
    checkpoints.drop_after(3)
    assert checkpoints.steps() == [3]
    _save(checkpoints, second, 4)
    _assert_equal(checkpoints.restore(4, maker.abstract()), second)
    checkpoints.drop_after(4)
    assert checkpoints.steps() == [3, 4]


def test_half_a_checkpoint_is_never_picked_up_and_soon_gone(
    checkpoints: Checkpoints,
) -> None:
    """A process that was killed leaves a folder with its temporary name."""
    maker = _maker(_mesh(1))
    _save(checkpoints, _trained(maker))
    half = checkpoints.folder / "00000005.orbax-checkpoint-tmp"
    shutil.copytree(checkpoints.folder / "00000003", half)
    reader = Checkpoints(checkpoints.folder, read_only=True)
    assert reader.steps() == [3] and reader.latest() == 3
    reader.close()
    assert half.exists(), "who only reads deletes nothing"
    writer = Checkpoints(checkpoints.folder, keep=2)
    assert writer.steps() == [3]
    _save(writer, _trained(maker, seed=1), 5)
    writer.close()
    assert not half.exists()
    assert writer.steps() == [3, 5]


def test_there_must_be_space_before_anything_is_written(
    checkpoints: Checkpoints, monkeypatch: pytest.MonkeyPatch
) -> None:
    state = _trained(_maker(_mesh(1)))
    usage = shutil.disk_usage(checkpoints.folder)
    # Parameters, two moments, average; two counters of the optimizer and the guard's.
    arrays = 4 * (4 * (8 * 4 + 4) + 2 + trees.count(state.guard))
    needed = round(1.05 * arrays) + 10_000_000
    for free, fits in ((needed - 1, False), (needed, True)):
        monkeypatch.setattr(
            shutil, "disk_usage", lambda _, free=free: usage._replace(free=free)
        )
        if fits:
            _save(checkpoints, state)
        else:
            with pytest.raises(UserError) as error:
                _save(checkpoints, state)
            assert "the disk is full" in str(error.value)
            assert str(checkpoints.folder) in error.value.where
            assert "goes on from the last whole checkpoint" in error.value.remedy
        assert checkpoints.steps() == [3] * fits
        assert len(list(checkpoints.folder.iterdir())) == fits


FULL = "the disk is full"
FAILURES = {
    "no space": (OSError(errno.ENOSPC, "No space left on device"), FULL),
    "quota": (OSError(errno.EDQUOT, "Disk quota exceeded"), FULL),
    "Orbax's words": (ValueError("RESOURCE_EXHAUSTED: ... No space left on"), FULL),
    "permission": (PermissionError(errno.EACCES, "Permission denied"), "Permission"),
    "a dead peer": (RuntimeError("barrier timed out"), "barrier timed out"),
}


@pytest.mark.parametrize("name", FAILURES)
@pytest.mark.parametrize("when", ["save", "wait_until_finished"])
def test_what_fails_in_front_or_behind_the_loop_is_told_by_the_next_call(
    checkpoints: Checkpoints, name: str, when: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever it is; the checkpoint before stands, and the writer can go on."""
    state, (failure, told) = _trained(_maker(_mesh(1))), FAILURES[name]

    def fail(*_: Any, **__: Any) -> None:
        try:
            raise failure
        except type(failure) as error:
            raise RuntimeError(str(failure)) from error

    _save(checkpoints, state, 2)
    with monkeypatch.context() as patch:
        patch.setattr(ocp.AsyncCheckpointer, when, fail)
        with pytest.raises(UserError, match=told) as error:
            _save(checkpoints, state, 3)
            _save(checkpoints, state, 4)
    assert "the same command again" in error.value.remedy
    assert checkpoints.steps() == [2]
    _save(checkpoints, state, 5)
    assert checkpoints.steps() == [2, 5]


def test_an_older_one_goes_only_after_the_newer_is_verified(
    checkpoints: Checkpoints, monkeypatch: pytest.MonkeyPatch
) -> None:
    state = _trained(_maker(_mesh(1)))
    for step in (1, 2):
        _save(checkpoints, state, step)

    def fail(*_: Any, **__: Any) -> None:
        assert checkpoints.steps() == [1, 2]
        raise OSError(errno.EIO, "Input/output error")

    with monkeypatch.context() as patch:
        patch.setattr(integrity, "write", fail)
        with pytest.raises(UserError, match="Input/output error"):
            _save(checkpoints, state, 3)
    assert checkpoints.steps() == [1, 2]
    _save(checkpoints, state, 4)
    assert checkpoints.steps() == [2, 4]


def test_those_at_multiples_and_the_best_stay_too(tmp_path: Path) -> None:
    """Also over a restart: their scores stand beside them."""
    state, scores = _trained(_maker(_mesh(1))), {1: 2.0, 2: 1.0, 3: 3.0, 4: None}
    folder = tmp_path / "checkpoints"
    made = Checkpoints(folder, keep=1, keep_every=3, keep_best=1)
    for step, score in scores.items():
        _save(made, state, step, score)
    assert made.steps() == [2, 3, 4]
    made.close()
    again = Checkpoints(folder, keep=1, keep_every=3, keep_best=1)
    for step, score in {5: math.nan, 6: 1.5, 7: 0.5, 8: None}.items():
        _save(again, state, step, score)
    again.close()
    assert again.steps() == [3, 6, 7, 8]


def test_an_old_one_that_cannot_be_deleted_ends_nothing(
    checkpoints: Checkpoints, monkeypatch: pytest.MonkeyPatch
) -> None:
    state = _trained(_maker(_mesh(1)))
    _save(checkpoints, state, 1)
    _save(checkpoints, state, 2)

    def fail(*_: Any) -> None:
        raise PermissionError(errno.EACCES, "Permission denied")

    with monkeypatch.context() as patch:
        patch.setattr(storage, "remove", fail)
        _save(checkpoints, state, 3)
    (line,) = checkpoints.notices
    assert "00000001 could not be deleted: Permission denied" in line
    _save(checkpoints, state, 4)
    assert checkpoints.steps() == [3, 4]


def test_nothing_in_a_checkpoint_is_run(checkpoints: Checkpoints) -> None:
    """Pickles beside it and names of other handlers are bytes like any other."""
    maker = _maker(_mesh(1))
    state = _trained(maker)
    _save(checkpoints, state)
    path, trap = checkpoints.path(3), checkpoints.folder / "ran"
    for name in ("state/checkpoint.pkl", "state/_METADATA.pickle", "meta/metadata.pkl"):
        (path / name).write_bytes(pickle.dumps(_Trap(trap)))
    file = path / "_CHECKPOINT_METADATA"
    metadata = json.loads(file.read_text())
    metadata["item_handlers"] = dict.fromkeys(("state", "meta"), "os.system")
    file.write_text(json.dumps(metadata))
    _assert_equal(checkpoints.restore(3, maker.abstract()), state)
    assert checkpoints.meta(3)["config"] == {"seed": 7}
    assert not trap.exists()
    pickle.loads(pickle.dumps(_Trap(trap)))
    assert trap.exists(), "the trap would have been seen"


class _Trap:
    """Makes a file when it is unpickled."""

    def __init__(self, file: Path):
        self.file = file

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.file,)
