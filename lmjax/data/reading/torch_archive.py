"""Reads `torch.save` of a list of 1-D integer tensors, without torch.

Such a file is a zip of numbers and one pickle. A pickle is a program that may call
whatever it names; here every name is answered by an inert object of ours or refused,
so that nothing of it runs.
"""

import contextlib
import dataclasses
import io
import os
import pickle
import struct
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import numpy as np

from lmjax.core.errors import UserError
from lmjax.data.reading.files import unreadable

# What begins a file of torch before version 1.6, which is no zip.
LEGACY_MAGIC = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."

_SAVE_AGAIN = (
    "save it again with a current torch: "
    "torch.save([torch.tensor(ids, dtype=torch.int32) for ids in documents], path)."
)
_BLOCK_IDS = 128 * 1024
_DTYPES = {  # numpy's type characters, by torch's names
    "ShortStorage": "i2",
    "IntStorage": "i4",
    "LongStorage": "i8",
    "ByteStorage": "u1",
    "CharStorage": "i1",
    "UntypedStorage": "",
    "FloatStorage": "f4",
    "DoubleStorage": "f8",
    "HalfStorage": "f2",
    "BFloat16Storage": "bfloat16",
    "BoolStorage": "bool",
    "uint8": "u1",
    "uint16": "u2",
    "uint32": "u4",
}
# int16 is all that old torch had for 16 bits: ids from 32768 on are negative in it.
_READ_AS = {"i2": "u2"}
_ID_DTYPES = ("i2", "i4", "i8", "u1", "i1", "u2", "u4")
_PICKLE_ERRORS = (
    pickle.UnpicklingError,
    ArithmeticError,
    AssertionError,
    AttributeError,
    EOFError,
    LookupError,
    MemoryError,
    RecursionError,
    TypeError,
    ValueError,
    struct.error,
)
ZIP_ERRORS = (  # what zipfile raises of a damaged archive
    zipfile.BadZipFile,
    zlib.error,
    struct.error,
    EOFError,
    NotImplementedError,
    UnicodeDecodeError,
)


class _Dtype(NamedTuple):
    """A storage class or a dtype of torch. A tuple, so a pickle can't change it."""

    name: str


class _Storage(NamedTuple):
    dtype: _Dtype
    key: str
    size: int  # numbers, or bytes if the dtype says nothing


class _Tensor(NamedTuple):
    dtype: str
    key: str
    offset: int  # in numbers
    size: int


class _Nothing(NamedTuple):
    """Stands for a function whose result is of no use: the hooks of a tensor."""

    def __call__(self, *args: object) -> tuple[()]:
        return ()


class _Rebuild(NamedTuple):
    """Stands for torch's function that makes a tensor."""

    name: str

    def __call__(
        self, storage: _Storage, offset: int, size: tuple, stride: tuple, *rest: Any
    ) -> _Tensor:
        dtype = storage.dtype
        if self.name == "_rebuild_tensor_v3":
            dtype = rest[2]
        if type(storage) is not _Storage or type(dtype) is not _Dtype:
            raise pickle.UnpicklingError("a tensor without a storage")
        if type(size) is not tuple or type(stride) is not tuple:
            raise pickle.UnpicklingError("a tensor without a shape")
        if not all(type(n) is int and n >= 0 for n in (offset, *size, *stride)):
            raise pickle.UnpicklingError("a shape that is no shape")
        kind = _DTYPES[dtype.name]
        if kind not in _ID_DTYPES:
            raise _Refused(f"holds numbers of torch's {dtype.name}, not token ids")
        if len(size) != 1 or len(stride) != 1:
            raise _Refused(f"holds a tensor of {len(size)} dimensions instead of 1")
        if stride[0] != 1 and size[0] > 1:
            raise _Refused("holds a tensor that is not contiguous")
        available = storage.size
        if not _DTYPES[storage.dtype.name]:
            available //= np.dtype(kind).itemsize
        if offset + size[0] > available:
            raise _Refused("holds a tensor that goes beyond its storage")
        return _Tensor(kind, storage.key, offset, size[0])


class _Refused(Exception):
    """What is wrong with the file, as the end of a sentence."""


_ADMITTED = {
    ("torch._utils", "_rebuild_tensor"): _Rebuild("_rebuild_tensor"),
    ("torch._utils", "_rebuild_tensor_v2"): _Rebuild("_rebuild_tensor_v2"),
    ("torch._utils", "_rebuild_tensor_v3"): _Rebuild("_rebuild_tensor_v3"),
    ("collections", "OrderedDict"): _Nothing(),
    ("torch.storage", "UntypedStorage"): _Dtype("UntypedStorage"),
    **{("torch", name): _Dtype(name) for name in _DTYPES if name != "UntypedStorage"},
}


class _Unpickler(pickle._Unpickler):
    """Admits what a list of tensors needs.

    The one that is written in Python: that in C makes room for as many memoised
    objects as the file says it has, which may be more than any memory holds.

    Every opcode that could reach code (GLOBAL, STACK_GLOBAL, INST, EXT) asks
    `find_class`. What that answers is no class, so that none is instantiated, and
    a tuple without `__dict__` or `__setstate__`, and BUILD is refused.
    """

    def load_build(self) -> None:
        raise pickle.UnpicklingError("an object with a state of its own")

    dispatch: ClassVar = pickle._Unpickler.dispatch | {pickle.BUILD[0]: load_build}

    def find_class(self, module: str, name: str) -> Any:
        try:
            return _ADMITTED[module, name]
        except KeyError:
            raise _Refused(
                f"asks for {module}.{name}, which a list of tensors does not need"
            ) from None

    def persistent_load(self, pid: Any) -> _Storage:
        if type(pid) is not tuple or len(pid) != 5 or pid[0] != "storage":
            raise _Refused("asks for something else than the numbers of a tensor")
        _, dtype, key, _, size = pid
        if type(dtype) is not _Dtype or type(key) is not str or type(size) is not int:
            raise _Refused("has a storage without type, name or size")
        return _Storage(dtype, key, size)


@dataclasses.dataclass(frozen=True)
class TorchArchive:
    """A list of tensors in a file.

    Attributes:
      path: the file.
      dtype: what the ids are read as: numpy's type with its byte order.
      prefix: folder in the zip.
      tensors: where the ids of each document are.
    """

    path: Path
    dtype: str
    prefix: str
    tensors: tuple[_Tensor, ...]

    @classmethod
    def open(cls, path: Path) -> "TorchArchive":
        """Reads what is in the file, but not the numbers.

        Raises:
          UserError: it can't be read, or is not a list of 1-D integer tensors.
        """
        with _explained(path), zipfile.ZipFile(path) as archive:
            names = [n for n in archive.namelist() if n.endswith("/data.pkl")]
            if len(names) != 1:
                raise _Refused("is a zip archive that torch did not write")
            prefix = names[0].removesuffix("data.pkl")
            order = _read(archive, f"{prefix}byteorder", b"little").decode(
                "ascii", "replace"
            )
            if order not in ("little", "big"):
                raise _Refused(f"has the unknown byte order {order!r}")
            pickled = _read(archive, names[0])
            try:
                content = _Unpickler(io.BytesIO(pickled)).load()
            except _PICKLE_ERRORS as error:
                raise _Refused(f"has a damaged list of tensors ({error})") from error
            tensors = _tensors(content)
            kinds = sorted({tensor.dtype for tensor in tensors if tensor.size})
            if len(kinds) > 1:
                raise _Refused(f"mixes tensors of different types ({', '.join(kinds)})")
            kind = kinds[0] if kinds else "i2"
            dtype = ("<" if order == "little" else ">") + _READ_AS.get(kind, kind)
            return cls(path, np.dtype(dtype).str, prefix, tensors)

    def read(self) -> Iterator[tuple[int, int, np.ndarray]]:
        """Yields document number, position and int64 ids [n], of long ones in parts.

        Raises:
          UserError: numbers are missing or damaged.
        """
        dtype = np.dtype(self.dtype)
        key, numbers = "", None
        with _explained(self.path), zipfile.ZipFile(self.path) as archive:
            try:
                for document, tensor in enumerate(self.tensors):
                    if tensor.size and (numbers is None or tensor.key != key):
                        if numbers is not None:
                            numbers.close()
                        key = tensor.key
                        numbers = _open(archive, f"{self.prefix}data/{key}")
                    if tensor.size:
                        start = tensor.offset * dtype.itemsize
                        if numbers.tell() != start:
                            numbers.seek(start)
                    for position in range(0, tensor.size, _BLOCK_IDS):
                        count = min(_BLOCK_IDS, tensor.size - position)
                        data = numbers.read(count * dtype.itemsize)
                        if len(data) < count * dtype.itemsize:
                            raise _Refused("lacks numbers of its tensors")
                        ids = np.frombuffer(data, dtype).astype(np.int64)
                        yield document, position, ids
            finally:
                if numbers is not None:
                    numbers.close()


@contextlib.contextmanager
def _explained(path: Path) -> Iterator[None]:
    """Turns what goes wrong with a zip file into a UserError."""
    try:
        yield
    except _Refused as error:
        raise _untrusted(path, f"The file {error}.") from error
    except OSError as error:
        raise unreadable(path, error) from error
    except ZIP_ERRORS as error:
        what = f"The file is damaged or incomplete: {error}."
        raise _untrusted(path, what) from error


def refuse_pickle(path: Path, kind: str) -> UserError:
    """Returns the error to raise for a pickle that is not what torch writes today."""
    return _untrusted(path, f"The file is {kind}: loading it could run anything.")


def _untrusted(path: Path, what: str) -> UserError:
    return UserError(
        what, where=str(path), remedy=f"if you trust the file, {_SAVE_AGAIN}"
    )


def _tensors(content: object) -> tuple[_Tensor, ...]:
    tensors = (content,) if type(content) is _Tensor else content
    if type(tensors) not in (list, tuple):
        raise _Refused(f"holds {_say(content)} instead of a list of tensors")
    for tensor in tensors:
        if type(tensor) is not _Tensor:
            raise _Refused(f"holds {_say(tensor)} in its list of tensors")
    return tuple(tensors)


def _say(content: object) -> str:
    return f"an object of type {type(content).__name__!r}"


def _open(archive: zipfile.ZipFile, name: str) -> zipfile.ZipExtFile:
    try:
        info = archive.getinfo(name)
    except KeyError:
        raise _Refused(f"lacks {name!r}, the numbers of a tensor") from None
    if info.compress_type != zipfile.ZIP_STORED or info.flag_bits & 1:
        # Nor could its size be trusted: torch never does it.
        raise _Refused(f"has {name!r} compressed or encrypted")
    whole = os.stat(archive.filename).st_size
    if max(info.file_size, info.compress_size) > whole:
        # zipfile would make room for as many bytes before it reads the first.
        raise _Refused(f"says that {name!r} is larger than all of the file")
    return archive.open(info)


def _read(archive: zipfile.ZipFile, name: str, default: bytes | None = None) -> bytes:
    if default is not None and name not in archive.namelist():
        return default
    with _open(archive, name) as entry:
        return entry.read()
