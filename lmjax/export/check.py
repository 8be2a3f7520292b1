"""An export is held against the model that it was made from, before it is called one.

With torch and transformers at hand the folder is loaded as its users will load it, and
its logits are compared with lmjax's. Without them its weights are read again, and
compared bit for bit: that finds files that are wrong, not a wrong config.json.
"""

import contextlib
import dataclasses
import importlib.util
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from lmjax.config.schema import Architecture, ExportDtype, Remat
from lmjax.core.errors import UserError
from lmjax.core.extras import require
from lmjax.core.types import PyTree
from lmjax.export.importing import read_params
from lmjax.export.names import Table
from lmjax.models.attention_kernels import library_attention
from lmjax.models.build import Model, build_model

TOLERANCE = 1e-4  # of the largest logit, or of 1 if they are smaller
PROBE_ROWS, PROBE_LENGTH = 2, 64
_MASKED = 0.3  # share of a probe that a diffusion model sees masked


@dataclasses.dataclass(frozen=True)
class Check:
    """What was compared, and how far apart it was.

    Attributes:
      what: "logits" by torch, or "weights" read again.
      difference: largest one of logits that are predicted; 0 for weights, which are
        the same bit for bit.
      tolerance: what it had to stay below.
      rounding: how far the export's dtype moved lmjax's own logits at most; 0 in
        float32, None where no logits were compared.
    """

    what: str
    difference: float
    tolerance: float
    rounding: float | None

    def describe(self) -> str:
        """One line."""
        if self.what == "weights":
            return (
                "weights read again are the same bit for bit; the logits were not "
                "compared, for torch and transformers are not installed"
            )
        line = (
            f"logits of transformers and lmjax differ by {self.difference:.1e} at most "
            f"(tolerance {self.tolerance:.1e})"
        )
        if self.rounding:
            line += f"; rounding of the weights moved them by {self.rounding:.1e}"
        return line


@dataclasses.dataclass(frozen=True, kw_only=True)
class Exported:
    """What a check must know of an export.

    Attributes:
      params: those of the run.
      rounded: the same as they stand in the files, in float32.
      num_ids: rows of the exported vocabulary.
      opening_id: what stands before a text.
      mask_id: of a diffusion model.
    """

    architecture: Architecture
    dtype: ExportDtype
    model: Model
    table: Table
    params: PyTree
    rounded: PyTree
    num_ids: int
    opening_id: int
    mask_id: int


def check_export(folder: Path, exported: Exported) -> Check:
    """Compares a folder with the model that it was made from.

    Raises:
      UserError: they differ, or the folder cannot be loaded.
    """
    _check_weights(folder, exported)
    if not (_is_here("torch") and _is_here("transformers")):
        return Check("weights", 0.0, 0.0, None)
    tokens_BL, sigma_B = _probe(exported)
    expected = _lmjax_logits(exported, exported.rounded, tokens_BL, sigma_B)
    exact = expected
    if exported.dtype is not ExportDtype.FLOAT32:
        exact = _lmjax_logits(exported, exported.params, tokens_BL, sigma_B)
    found = _torch_logits(folder, exported, tokens_BL, sigma_B)
    if found.shape != expected.shape:
        raise _differs(
            folder, f"logits of shape {found.shape} instead of {expected.shape}"
        )
    predicted = np.isfinite(expected)
    expected, found, exact = (x[predicted] for x in (expected, found, exact))
    difference = float(np.abs(found - expected).max())
    tolerance = TOLERANCE * max(1.0, float(np.abs(expected).max()))
    if not difference <= tolerance:  # NaN is no match either
        raise _differs(
            folder, f"logits that are {difference:.1e} away (tolerance {tolerance:.1e})"
        )
    rounding = float(np.abs(exact - expected).max())
    return Check("logits", difference, tolerance, rounding)


def _check_weights(folder: Path, exported: Exported) -> None:
    shapes = exported.model.shapes
    again = read_params(folder, exported.table, shapes, num_ids=exported.num_ids)
    same = jax.tree.map(np.array_equal, again, exported.rounded)
    if not all(jax.tree.leaves(same)):
        raise _differs(folder, "weights that are others than those written")


def _probe(exported: Exported) -> tuple[np.ndarray, np.ndarray | None]:
    """Rows of any ids, int32 [B, L], and the noise of a model that asks for it."""
    generator = np.random.default_rng(0)
    model = exported.model
    length = min(PROBE_LENGTH, model.config.max_length)
    ids = np.setdiff1d(np.arange(exported.num_ids), model.setting.unpredictable)
    tokens_BL = generator.choice(ids, (PROBE_ROWS, length)).astype(np.int32)
    if not model.setting.causal:
        masked_BL = generator.random(tokens_BL.shape) < _MASKED
        tokens_BL[masked_BL] = exported.mask_id
    tokens_BL[:, 0] = exported.opening_id
    timed = model.config.time_conditioning
    return tokens_BL, np.full(PROBE_ROWS, 0.5, np.float32) if timed else None


def _lmjax_logits(
    exported: Exported,
    params: PyTree,
    tokens_BL: np.ndarray,
    sigma_B: np.ndarray | None,
) -> np.ndarray:
    """float32 [B, L, num_ids]."""
    setting = dataclasses.replace(
        exported.model.setting,
        attend=library_attention,
        scan=True,
        remat=Remat.NONE,
        dtype=jnp.dtype("float32"),
    )
    model = build_model(exported.model.config, setting)
    module = model.bind(jax.tree.map(jnp.asarray, params))

    def row_logits(row: tuple[jax.Array, jax.Array | None]) -> jax.Array:
        tokens_BL, sigma_B = jax.tree.map(lambda x: x[None], row)
        return module.logits(module(tokens_BL, sigma_B=sigma_B))[0]

    # In full precision also where the hardware would rather not.
    with jax.default_matmul_precision("highest"):
        logits = jax.lax.map(row_logits, (tokens_BL, sigma_B))
    return np.asarray(logits)[..., : exported.num_ids]


def _torch_logits(
    folder: Path,
    exported: Exported,
    tokens_BL: np.ndarray,
    sigma_B: np.ndarray | None,
) -> np.ndarray:
    """The same from the class that the folder names, loaded as from a hub."""
    torch = require("torch", extra="judge", what="Checking an export")
    transformers = require("transformers", extra="judge", what="Checking an export")
    auto = (
        transformers.AutoModelForCausalLM
        if exported.model.setting.causal
        else transformers.AutoModelForMaskedLM
    )
    remote = exported.architecture is Architecture.REMOTE
    with _few_words(transformers):
        try:
            loaded = auto.from_pretrained(
                str(folder), local_files_only=True, trust_remote_code=remote
            )
        except (OSError, ValueError, RuntimeError, ImportError, KeyError) as error:
            raise _differs(folder, f"a folder that does not load: {error}") from error
    loaded = loaded.float().eval()
    inputs = {"input_ids": torch.tensor(tokens_BL, dtype=torch.long)}
    if sigma_B is not None:
        inputs["sigma"] = torch.tensor(sigma_B)
    with torch.no_grad():
        return loaded(**inputs).logits.float().numpy()


@contextlib.contextmanager
def _few_words(transformers: Any) -> Iterator[None]:
    """Loading shows a progress bar otherwise, for each export."""
    logging = transformers.utils.logging
    before = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if before:
            logging.enable_progress_bar()


def _is_here(module: str) -> bool:
    return importlib.util.find_spec(module) is not None


def _differs(folder: Path, what: str) -> UserError:
    return UserError(
        f"the export is not the model: transformers gives {what}",
        where=str(folder),
        remedy="nothing was exported; please report this, with the run's config.json "
        "and the versions of torch and transformers",
    )
