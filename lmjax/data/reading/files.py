"""Corpus files as streams of bytes, unpacked on the way; hashes of files."""

import gzip
import hashlib
import io
import re
import zlib
from pathlib import Path
from typing import BinaryIO, Literal

import zstandard

from lmjax.core.errors import UserError

COMPRESSED_SUFFIXES = (".gz", ".zst")

_BUFFER_BYTES = 256 * 1024
# A byte of zstd may stand for 32 KiB: little is unpacked at a time.
_ZSTD_INPUT_BYTES = 512
# Text is packed to a tenth, or a thirtieth. What unpacks to so much, and to so many
# times its size, was made to fill memory or a disk.
_BOMB_BYTES, _BOMB_TIMES = 256_000_000, 250
_GZIP = b"\x1f\x8b\x08"
# A frame, or a skippable one, with which parallel compressors begin.
_ZSTD = re.compile(rb"\x28\xb5\x2f\xfd|[\x50-\x5f]\x2a\x4d\x18")


def open_bytes(path: Path) -> BinaryIO:
    """Opens a file for reading, unpacked if it is compressed, whatever its name.

    Memory stays bounded. Several gzip members or zstd frames are one stream.

    Raises:
      UserError: the file can't be read; also while reading, when it turns out to be
        damaged.
    """
    kind = compression(path)
    try:
        plain = path.open("rb")
    except OSError as error:
        raise unreadable(path, error) from error
    if kind == "gzip":
        source = _GzipSource(plain)
        limit = max(_BOMB_BYTES, _BOMB_TIMES * file_size(path))
    elif kind == "zstd":
        source = _ZstdSource(plain)
        limit = max(_BOMB_BYTES, _BOMB_TIMES * file_size(path))
    else:
        source, limit = plain, 0
    return io.BufferedReader(_Stream(path, source, limit), _BUFFER_BYTES)


def compression(path: Path) -> Literal["", "gzip", "zstd"]:
    """Returns how a file is compressed, by its first bytes.

    Raises:
      UserError: the file can't be read.
    """
    try:
        with path.open("rb") as handle:
            start = handle.read(4)
    except OSError as error:
        raise unreadable(path, error) from error
    if start.startswith(_GZIP):
        return "gzip"
    return "zstd" if _ZSTD.match(start) else ""


def without_compressed_suffix(name: str) -> str:
    """Returns a file name without the `.gz` or `.zst` behind."""
    for suffix in COMPRESSED_SUFFIXES:
        name = name.removesuffix(suffix)
    return name


def hash_file(path: Path) -> str:
    """Returns the SHA-256 of the contents as they are on disk, in hex.

    Raises:
      UserError: the file can't be read.
    """
    try:
        with path.open("rb") as handle:
            return hashlib.file_digest(handle, "sha256").hexdigest()
    except OSError as error:
        raise unreadable(path, error) from error


def file_size(path: Path) -> int:
    """Returns the number of bytes on disk.

    Raises:
      UserError: the file can't be read.
    """
    try:
        return path.stat().st_size
    except OSError as error:
        raise unreadable(path, error) from error


def unreadable(path: Path, error: OSError) -> UserError:
    """Returns the error to raise when the system does not let a file be read."""
    return UserError(
        f"The corpus can't be read: {error.strerror or error}.",
        where=str(path),
        remedy="check the file and its permissions.",
    )


class _Stream(io.RawIOBase):
    """Reads from a source, whose errors it explains, and closes it.

    Args:
      limit: bytes that are read at most; 0 is no limit.
    """

    def __init__(
        self,
        path: Path,
        source: "BinaryIO | _GzipSource | _ZstdSource",
        limit: int = 0,
    ):
        self._path, self._source = path, source
        self._limit, self._read = limit, 0

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: memoryview) -> int:
        try:
            data = self._source.read(len(buffer))
        except (gzip.BadGzipFile, EOFError, zlib.error, zstandard.ZstdError) as error:
            raise UserError(
                f"The compressed file is damaged or incomplete: {error}.",
                where=str(self._path),
                remedy="download or compress it again; gzip -t or zstd -t checks it.",
            ) from error
        except OSError as error:
            raise unreadable(self._path, error) from error
        self._read += len(data)
        if self._limit and self._read > self._limit:
            raise UserError(
                f"The compressed file unpacks to more than {self._limit:,} bytes, "
                f"{_BOMB_TIMES} times its size, as no text does.",
                where=str(self._path),
                remedy="look at it; if you trust it, unpack it and name what comes "
                "out.",
            )
        buffer[: len(data)] = data
        return len(data)

    def close(self) -> None:
        if not self.closed:
            self._source.close()
        super().close()


class _GzipSource:
    """Unpacks gzip; unlike GzipFile it closes the file that it was given."""

    def __init__(self, packed: BinaryIO):
        self._packed = packed
        self._unpacked = gzip.GzipFile(fileobj=packed, mode="rb")

    def read(self, size: int) -> bytes:
        return self._unpacked.read(size)

    def close(self) -> None:
        self._unpacked.close()
        self._packed.close()


class _ZstdSource:
    """Unpacks zstd; zstandard's own reader takes an incomplete file for a whole one."""

    def __init__(self, packed: BinaryIO):
        self._packed = packed
        self._frame: zstandard.ZstdDecompressionObj | None = None
        self._waiting = memoryview(b"")  # unpacked and not read yet

    def read(self, size: int) -> memoryview:
        while not self._waiting:
            data = self._packed.read(_ZSTD_INPUT_BYTES)
            if not data:
                if self._frame is not None:
                    raise EOFError("it ends too early")
                break
            self._waiting = memoryview(self._unpack(data))
        part, self._waiting = self._waiting[:size], self._waiting[size:]
        return part

    def close(self) -> None:
        self._packed.close()

    def _unpack(self, data: bytes) -> bytes:
        parts = []
        while data:
            if self._frame is None:
                self._frame = zstandard.ZstdDecompressor().decompressobj()
            parts.append(self._frame.decompress(data))
            if not self._frame.eof:
                break
            data, self._frame = self._frame.unused_data, None
        return b"".join(parts)
