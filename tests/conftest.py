"""Eight fake CPU devices for every test, and tiny models to try things on."""

import contextlib
import dataclasses
import functools
import gc
import getpass
import importlib.metadata
import os
import re
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

# jax reads these once, when it is imported. Tests wait for the compiler far longer than
# for what it makes, so it is told not to try hard.
os.environ.setdefault("JAX_PLATFORMS", "cpu")
_flags = {
    "xla_force_host_platform_device_count": "8",
    "xla_backend_optimization_level": "0",
    "xla_cpu_parallel_codegen_split_count": "1",  # both cores have work as it is
    # Eight devices on two busy cores may wait long for each other: never give up.
    "xla_cpu_collective_call_warn_stuck_timeout_seconds": "600",
    "xla_cpu_collective_call_terminate_timeout_seconds": "1200",
}
if importlib.metadata.version("jaxlib").startswith("0.10."):
    # Halves the time of all tests; later versions do not know the flag, and abort.
    _flags["xla_cpu_use_fusion_emitters"] = "false"
for _name, _value in _flags.items():
    if _name not in os.environ.get("XLA_FLAGS", ""):
        _given = os.environ.get("XLA_FLAGS", "")
        os.environ["XLA_FLAGS"] = f"{_given} --{_name}={_value}".strip()

# ruff: noqa: E402
import jax
import numpy as np
import optax
import pytest

from lmjax import experiment
from lmjax.config.schema import MLPKind, ModelConfig, OptimConfig, ParallelConfig
from lmjax.core import rng, trees
from lmjax.data.batch import Batch
from lmjax.diffusion.process import MaskProcess
from lmjax.diffusion.schedules import LightCosineSchedule
from lmjax.models.attention_kernels import library_attention
from lmjax.models.build import Model, build_model
from lmjax.models.transformer import Setting
from lmjax.objectives.autoregressive import Autoregressive
from lmjax.objectives.masked_diffusion import MaskedDiffusion
from lmjax.optim.optimizers import build_optimizer
from lmjax.parallel import hosts, rules
from lmjax.parallel.mesh import build_mesh
from lmjax.parallel.rules import Layout
from lmjax.train.guard import Guard
from lmjax.train.state import StateMaker, TrainState
from lmjax.train.step import TrainStep
from tests import durations


def _cache_folder() -> Path:
    """Where compiled programs are kept from one run to the next."""
    given = os.environ.get("LMJAX_TEST_CACHE")
    temporary = Path(tempfile.gettempdir()) / f"lmjax-jax-cache-{getpass.getuser()}"
    return Path(given) if given else temporary


def pytest_configure(config: pytest.Config) -> None:
    jax.config.update("jax_compilation_cache_dir", str(_cache_folder()))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", 0)
    # jax does not write these files atomically: one that another process is still
    # writing, or that Ctrl-C cut off, is noticed and compiled again. No failure.
    config.addinivalue_line(
        "filterwarnings", "ignore:Error (reading|writing) persistent compilation cache"
    )


def pytest_collection_finish() -> None:
    """What is imported and collected stays: the garbage collector need not look."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(20_000, 20, 20)


def pytest_collection_modifyitems(
    config: pytest.Config, items: list[pytest.Item]
) -> None:
    """Marks what is slow, and puts the longest files first."""
    folder = Path(__file__).parent
    unused = set(durations.SLOW)

    def rank(item: pytest.Item) -> int:
        file, longest = item.path.relative_to(folder).as_posix(), durations.LONGEST
        for pattern in durations.SLOW:
            if re.search(pattern, f"{file}::{item.name}"):
                item.add_marker("slow")
                unused.discard(pattern)
        return longest.index(file) if file in longest else len(longest)

    items.sort(key=rank)
    everything = config.args == config.getini("testpaths")
    if everything and unused:
        raise pytest.UsageError(f"no test is what durations.SLOW names: {unused}")


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Corpora that are too large for the repository; skips where there are none."""
    folder = Path(__file__).parents[2] / "shared" / "data"
    if not folder.is_dir():
        pytest.skip(f"needs the folder {folder}")
    return folder


@contextlib.contextmanager
def devices_of_runs(count: int) -> Iterator[None]:
    """Runs that begin meanwhile take so many devices, instead of all."""
    with pytest.MonkeyPatch.context() as patch:
        build = experiment.build_mesh
        patch.setattr(
            experiment,
            "build_mesh",
            lambda parallel, devices=None: build(
                parallel, devices or jax.devices()[:count]
            ),
        )
        yield


@pytest.fixture(scope="module")
def one_device() -> Iterator[None]:
    """Runs take one device alone, which is quicker, where devices are no matter."""
    with devices_of_runs(1):
        yield


@pytest.fixture(scope="session")
def make_model() -> Callable[..., Model]:
    """Makes a two-layer model; keywords are fields of ModelConfig or of Setting.

    The same one for the same keywords, as to make one is traced.
    """

    @functools.cache
    def make(**changes: Any) -> Model:
        config = dict(
            num_layers=2,
            width=16,
            num_heads=4,
            num_kv_heads=2,
            mlp=MLPKind.SWIGLU,
            mlp_width=24,
            max_length=16,
            condition_width=8,
            dropout=0.0,
        )
        setting = dict(
            vocab_size=32,
            unpredictable=(0, 1, 2, 31),
            causal=True,
            attend=library_attention,
        )
        known = set(Setting.__dataclass_fields__)
        setting |= {name: changes[name] for name in changes if name in known}
        config |= {name: changes[name] for name in changes if name not in known}
        return build_model(ModelConfig(**config), Setting(**setting))

    return make


@pytest.fixture(scope="session")
def random_params() -> Callable[..., Any]:
    """Parameters with nothing at zero, unlike fresh ones: every part takes effect."""

    def make(model: Model, seed: int = 0) -> Any:
        generator = np.random.default_rng(seed)

        def draw(name: str, shape: jax.ShapeDtypeStruct) -> np.ndarray:
            values = 0.3 * generator.normal(size=shape.shape)
            return (values + name.endswith("scale")).astype(shape.dtype)

        return trees.map_named(draw, model.shapes)

    return make


@dataclasses.dataclass(frozen=True, kw_only=True)
class Training:
    """A step of a tiny model, with what surrounds it.

    Attributes:
      fresh: makes the first state on one device.
    """

    model: Model
    maker: StateMaker
    step: TrainStep
    fresh: Callable[[], TrainState]

    def start(self) -> TrainState:
        """The first state, on this mesh: moved there, as to make it is compiled."""
        return jax.tree.map(
            lambda leaf, wanted: jax.device_put(leaf, wanted.sharding),
            self.fresh(),
            self.maker.abstract(),
        )

    @functools.cached_property
    def compiled(self) -> jax.stages.Compiled:
        return self.step.compile(self.maker.abstract(), self.batch(0), self.maker.mesh)

    def batch(self, number: int) -> Batch:
        """16 windows of 12 tokens on the mesh; the last four end in padding."""
        generator = np.random.default_rng(number)
        tokens = 3 + np.minimum(generator.geometric(0.15, size=(16, 12)), 27)
        lengths = np.array([12] * 12 + [11, 7, 4, 1])
        real = np.arange(12) < lengths[:, None]
        batch = Batch(
            tokens=np.where(real, tokens, 0).astype(np.int32),
            weights=real.astype(np.float32),
            words=real.astype(np.int32),
            bytes=(2 * real).astype(np.int32),
            source=np.zeros(16, np.int32),
        )
        return hosts.to_global(batch, rules.batch_sharding(self.maker.mesh))

    def run(self, num_steps: int) -> tuple[TrainState, dict[str, np.ndarray]]:
        """The state after so many steps, and each figure of every step."""
        state = self.start()
        figures = []
        for number in range(num_steps):
            state, metrics = self.compiled(state, self.batch(number))
            figures.append(jax.device_get(metrics))
        return state, {
            name: np.stack([f[name] for f in figures]) for name in figures[0]
        }


@pytest.fixture(scope="session")
def make_training(make_model: Callable[..., Model]) -> Callable[..., Training]:
    """Makes a Training of an objective on a mesh; other keywords go to the model.

    The same one for the same keywords, so that its step is compiled once.
    """
    beginnings: dict[Any, TrainState] = {}

    @functools.cache
    def make(
        objective: str,
        *,
        mesh: tuple[int, int, int] = (1, 1, 1),
        num_microbatches: int = 1,
        ema_decay: float = 0.9,
        dropout: float = 0.0,
        seed: int = 0,
        guard: Guard | None = None,
        schedule: optax.Schedule | None = None,
        **model_fields: Any,
    ) -> Training:
        causal = objective == "autoregressive"
        defaults = {"num_kv_heads": 4 if causal else 2, "num_layers": 1}
        model_fields = defaults | model_fields
        model = make_model(causal=causal, dropout=dropout, **model_fields)
        process = MaskProcess(
            mask_id=2, schedule=LightCosineSchedule(), predictable=np.arange(3, 31)
        )
        schedule = schedule or optax.constant_schedule(0.01)
        guard = guard or Guard()
        optimizer = build_optimizer(OptimConfig(), schedule, model.names)
        data, fsdp, tensor = mesh
        devices = build_mesh(
            ParallelConfig(data=data, fsdp=fsdp, tensor=tensor),
            jax.devices()[: data * fsdp * tensor],
        )
        layout = Layout(devices, replica_axis="" if dropout else "data")
        maker = StateMaker(
            init=model.init,
            names=model.names,
            optimizer=optimizer,
            use_ema=ema_decay > 0,
            mesh=devices,
            guard=guard,
        )

        def fresh() -> TrainState:
            """Once for all that differ in where and how their layers run."""
            same = {n: v for n, v in model_fields.items() if n not in ("scan", "remat")}
            key = (causal, seed, ema_decay > 0, guard, *sorted(same.items()))
            if key not in beginnings:
                one = build_mesh(ParallelConfig(), jax.devices()[:1])
                alone = dataclasses.replace(maker, mesh=one)
                beginnings[key] = jax.device_get(alone.make(rng.stream(seed, "init")))
            return beginnings[key]

        return Training(
            model=model,
            maker=maker,
            fresh=fresh,
            step=TrainStep(
                bind=model.on(layout).bind,
                objective=Autoregressive(bos_id=1, chunk_tokens=64)
                if causal
                else MaskedDiffusion(process=process, chunk_tokens=64),
                optimizer=optimizer,
                schedule=schedule,
                ema_decay=ema_decay,
                num_microbatches=num_microbatches,
                use_dropout=dropout > 0,
                seed=seed,
                total_steps=100,
                names=model.names,
                guard=guard,
                layout=layout,
            ),
        )

    return make
