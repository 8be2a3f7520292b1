"""Tensors in the safetensors files of a folder: one file, or several with an index."""

import json
import re
import stat
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import ml_dtypes
import numpy as np

from lmjax.config.schema import ExportDtype
from lmjax.core import json_text
from lmjax.core.errors import UserError
from lmjax.core.extras import require

FILE = "model.safetensors"
INDEX = "model.safetensors.index.json"
SHARD_BYTES = 5_000_000_000  # of one file, but for a tensor that is larger
# A name, and no path: what an index says must not lead out of its folder.
_NAME = re.compile(r"\w[\w.-]*\.safetensors", re.ASCII)
_PICKLES = ("*.bin", "*.pt", "*.pth", "*.msgpack", "*.h5")  # of older versions

_DTYPES = {
    ExportDtype.FLOAT32: np.dtype(np.float32),
    ExportDtype.BFLOAT16: np.dtype(ml_dtypes.bfloat16),
    ExportDtype.FLOAT16: np.dtype(np.float16),
}


def convert(name: str, array: np.ndarray, dtype: ExportDtype) -> np.ndarray:
    """The array in this number type, rounded to the nearest.

    Raises:
      UserError: it holds something that is not finite, or too large for the type.
    """
    array = np.asarray(array)
    if not np.isfinite(array).all():
        raise UserError(
            f"the weights are not finite: {name} holds NaN or infinity",
            remedy="export an earlier checkpoint",
        )
    with np.errstate(over="ignore"):
        converted = array.astype(_DTYPES[dtype])
    if not np.isfinite(converted).all():
        largest = float(np.abs(array).max())
        raise UserError(
            f"{name} holds {largest:.3g}, which {dtype.value} cannot",
            where=f"export.dtype={dtype.value}",
            remedy="--config.export.dtype=bfloat16, or float32",
        )
    return converted


def write_weights(
    folder: Path,
    tensors: Iterable[tuple[str, np.ndarray]],
    shapes: Mapping[str, tuple[int, ...]],
    dtype: ExportDtype,
    *,
    shard_bytes: int = SHARD_BYTES,
) -> int:
    """Writes tensors into a folder; returns their bytes.

    Holds one file at a time in memory.

    Args:
      tensors: in the order of `shapes`, which tells the size of each beforehand.
    """
    library = _library("Writing safetensors")
    itemsize = _DTYPES[dtype].itemsize
    sizes = {name: int(np.prod(shape)) * itemsize for name, shape in shapes.items()}
    files = _plan_files(sizes, shard_bytes)
    pending: dict[str, np.ndarray] = {}
    for (name, tensor), last in zip(tensors, _is_last(files), strict=True):
        # safetensors writes the memory of an array, whatever its strides say.
        pending[name] = np.ascontiguousarray(convert(name, tensor, dtype))
        if last:
            path = folder / files[name]
            path.touch()
            mode = path.stat().st_mode  # that of new files, by the umask
            # transformers asks which framework wrote a file; this one needs none.
            library.numpy.save_file(pending, path, metadata={"format": "pt"})
            path.chmod(stat.S_IMODE(mode))  # safetensors leaves it to its owner alone
            pending = {}
    total = sum(sizes.values())
    if len(set(files.values())) > 1:
        index = {"metadata": {"total_size": total}, "weight_map": files}
        (folder / INDEX).write_text(json.dumps(index, indent=2) + "\n")
    return total


class WeightFiles:
    """The tensors of a folder: `names.Weights`.

    Raises:
      UserError: there are none, or not all files are there and whole.
    """

    def __init__(self, folder: Path):
        self._library = _library("Reading safetensors")
        self._folder = folder
        self._paths: dict[str, Path] = {}
        self.shapes: dict[str, tuple[int, ...]] = {}
        listed = self._listed()
        for path in sorted({folder / file for file in listed.values()}):
            with self._open(path) as file:
                names = file.keys()
                for name in names:
                    self._paths[name] = path
                    self.shapes[name] = tuple(file.get_slice(name).get_shape())
        if missing := sorted(listed.keys() - self.shapes.keys() - {""}):
            raise UserError(
                f"{listed[missing[0]]} has no tensor {missing[0]}, which {INDEX} names",
                where=str(folder),
                remedy=_FETCH,
            )

    def read(self, name: str) -> np.ndarray:
        """One tensor, as it is stored."""
        with self._open(self._paths[name]) as file:
            return file.get_tensor(name)

    def _listed(self) -> dict[str, str]:
        """File of each tensor by the index; of "" where all are in one file."""
        folder = self._folder
        index = folder / INDEX
        if index.is_file():
            content = read_json(index)
            weight_map = content.get("weight_map")
            if not isinstance(weight_map, dict) or not weight_map:
                raise UserError(
                    "the index of the weights names no tensors",
                    where=str(index),
                    remedy=_FETCH,
                )
            for file in weight_map.values():
                if not isinstance(file, str) or not _NAME.fullmatch(file):
                    raise UserError(
                        f"the index of the weights names {file!r}, which is no file of "
                        "its folder",
                        where=str(index),
                        remedy=_FETCH,
                    )
            return weight_map
        if (folder / FILE).is_file():
            return {"": FILE}
        pickles = [path.name for kind in _PICKLES for path in folder.glob(kind)]
        if pickles:
            raise UserError(
                f"the weights are in {sorted(pickles)[0]} alone, a format that can run "
                "code when it is read",
                where=str(folder),
                remedy="save the model as safetensors: AutoModelForCausalLM"
                ".from_pretrained(...).save_pretrained(..., safe_serialization=True)",
            )
        raise UserError(
            f"there is no {FILE}, nor an index of several",
            where=str(folder),
            remedy="name the folder of a model that transformers saved",
        )

    def _open(self, path: Path) -> Any:
        try:
            return self._library.safe_open(path, framework="np")
        except FileNotFoundError as error:
            raise UserError(
                f"a file of the weights is missing: {path.name}",
                where=str(self._folder),
                remedy=_FETCH,
            ) from error
        except (self._library.SafetensorError, OSError) as error:
            raise UserError(
                f"{path.name} is damaged: {error}",
                where=str(self._folder),
                remedy=_FETCH,
            ) from error


_FETCH = "fetch the folder again: it is not whole"


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from a file.

    Raises:
      UserError: it is none.
    """
    try:
        content = json_text.parse(path.read_bytes())
    except OSError as error:
        raise UserError(
            f"{path.name} can't be read: {error.strerror or error}",
            where=str(path),
            remedy="check the file and its permissions",
        ) from error
    except ValueError as error:
        raise UserError(
            f"{path.name} is not JSON: {error}", where=str(path), remedy=_FETCH
        ) from error
    if not isinstance(content, dict):
        raise UserError(
            f"{path.name} holds a {type(content).__name__}, not an object",
            where=str(path),
            remedy=_FETCH,
        )
    return content


def _library(what: str) -> ModuleType:
    library = require("safetensors", extra="hf", what=what)
    require("safetensors.numpy", extra="hf", what=what)
    return library


def _plan_files(sizes: Mapping[str, int], shard_bytes: int) -> dict[str, str]:
    """File of each tensor, in order, none above `shard_bytes` if that can be."""
    numbers, number, filled = {}, 0, 0
    for name, size in sizes.items():
        if filled and filled + size > shard_bytes:
            number, filled = number + 1, 0
        filled += size
        numbers[name] = number
    if number == 0:
        return dict.fromkeys(sizes, FILE)
    return {
        name: f"model-{index + 1:05d}-of-{number + 1:05d}.safetensors"
        for name, index in numbers.items()
    }


def _is_last(files: Mapping[str, str]) -> list[bool]:
    """Whether each tensor is the last one of its file."""
    order = list(files.values())
    return [a != b for a, b in zip(order, [*order[1:], ""], strict=True)]
