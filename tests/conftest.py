"""Eight fake CPU devices for every test, and tiny models to try things on."""

import getpass
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

# Before jax is imported: it reads these once. Tests wait for the compiler far longer than
# for what it makes, so it is told not to try hard.
os.environ.setdefault("JAX_PLATFORMS", "cpu")
_flags = {
    "xla_force_host_platform_device_count": "8",
    "xla_backend_optimization_level": "0",
}
for _name, _value in _flags.items():
    if _name not in os.environ.get("XLA_FLAGS", ""):
        os.environ["XLA_FLAGS"] = (
            f"{os.environ.get('XLA_FLAGS', '')} --{_name}={_value}".strip()
        )

import jax
import numpy as np
import pytest

from lmjax.config.schema import MLPKind, ModelConfig
from lmjax.core import trees
from lmjax.models.attention_kernels import library_attention
from lmjax.models.build import Model, build_model
from lmjax.models.transformer import Setting

def _cache_folder() -> Path:
    """Where compiled programs are kept; one folder per test process and user.

    jax does not write the files of its cache atomically, so two processes that share
    a folder can read half a program.
    """
    given = os.environ.get("LMJAX_TEST_CACHE")
    temporary = Path(tempfile.gettempdir()) / f"lmjax-jax-cache-{getpass.getuser()}"
    folder = Path(given) if given else temporary
    return folder / os.environ.get("PYTEST_XDIST_WORKER", "alone")


def pytest_configure(config: pytest.Config) -> None:
    jax.config.update("jax_compilation_cache_dir", str(_cache_folder()))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", 0)
    # A file that was cut off by Ctrl-C is compiled again, which is no failure.
    config.addinivalue_line(
        "filterwarnings", "ignore:Error (reading|writing) persistent compilation cache"
    )


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Corpora that are too large for the repository; skips where there are none."""
    folder = Path(__file__).parents[2] / "shared" / "data"
    if not folder.is_dir():
        pytest.skip(f"needs the folder {folder}")
    return folder


@pytest.fixture(scope="session")
def make_model() -> Callable[..., Model]:
    """Makes a two-layer model; keywords are fields of ModelConfig or of Setting."""

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
