"""Run folders of a model of two arrays: faults of a folder need no training."""

import dataclasses
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from lmjax.config.schema import Config
from lmjax.core.types import PyTree
from lmjax.parallel.mesh import build_mesh
from lmjax.run_folder import RunFolder
from lmjax.train.progress import Progress
from lmjax.train.state import StateMaker, TrainState

PREPARED: Any = SimpleNamespace(
    tokenizer=SimpleNamespace(
        model_bytes=b"\x00tokenizer", special=SimpleNamespace(mask=4)
    ),
    sha256="corpus",
    folder="prepared",
)


def _init(key: jax.Array) -> PyTree:
    kernel = jax.random.normal(key, (64, 32))
    return {"layer": {"kernel": kernel, "bias": jnp.arange(32.0)}}


def maker() -> StateMaker:
    return StateMaker(
        init=_init,
        names={"layer": {"kernel": ("embed", "mlp"), "bias": (None,)}},
        optimizer=optax.adamw(0.1),
        use_ema=True,
        mesh=build_mesh(Config().parallel, jax.devices()[:1]),
    )


def config(**checkpoint: Any) -> Config:
    """The default config but for fields of its section `checkpoint`."""
    changed = dataclasses.replace(Config().checkpoint, **checkpoint)
    return dataclasses.replace(Config(), checkpoint=changed)


def opened(path: Path, given: Config | None = None, **keywords: Any) -> RunFolder:
    """The folder as a training run opens it."""
    return RunFolder.open(path, given or config(), PREPARED, **keywords)


def train(path: Path, *steps: int, **checkpoint: Any) -> None:
    """A start that saves at these steps; the state of each is another."""
    with opened(path, config(**checkpoint)) as folder:
        folder.begin()
        for step in steps:
            folder.save(state(step), Progress(step=step, words=10 * step))
        folder.wait()


def state(step: int) -> TrainState:
    made = maker().make(jax.random.key(step))
    return dataclasses.replace(made, step=jnp.int32(step))


def assert_resumes(path: Path, step: int, **checkpoint: Any) -> list[str]:
    """A start goes on from this step with its very bits; returns what it tells."""
    told: list[str] = []
    with opened(path, config(**checkpoint)) as folder:
        folder.report(told.append)
        assert folder.start_step == step
        if step:
            found = folder.restore(maker().abstract())
            for one, other in zip(
                jax.tree.leaves(found), jax.tree.leaves(state(step)), strict=True
            ):
                np.testing.assert_array_equal(one, other)
            assert folder.progress().words == 10 * step
    return told


def largest_file(path: Path) -> Path:
    """Of a checkpoint: one that holds arrays."""
    files = [file for file in (path / "state").rglob("*") if file.is_file()]
    return max(files, key=lambda file: file.stat().st_size)
