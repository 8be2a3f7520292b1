"""Checksums of a folder of weights: every file, read back once it is written."""

import functools
import hashlib
import json
import os
import pathlib
from typing import Any

from lmjax.core.errors import UserError
from lmjax.core.files import replacing

FILE = "checksums.json"
_KIND = "sha256"


def write(folder: pathlib.Path, **about: Any) -> None:
    """Reads every file of a folder back and writes size and checksum of each.

    Each is forced to the disk before it is read: what is deleted next may be the only
    other copy.

    Args:
      about: JSON values to keep with the checksums.
    """
    files = {}
    for file in sorted(folder.rglob("*")):
        if not file.is_file() or file.name == FILE:
            continue
        with open(file, "rb") as opened:
            os.fsync(opened.fileno())
            digest = hashlib.file_digest(opened, _KIND).hexdigest()
            size = opened.tell()
        files[file.relative_to(folder).as_posix()] = {"bytes": size, _KIND: digest}
    with (
        replacing(folder / FILE) as temporary,
        open(temporary, "w", encoding="utf-8") as opened,
    ):
        json.dump(about | {"files": files}, opened, indent=1)
        opened.flush()
        os.fsync(opened.fileno())


def about(folder: pathlib.Path) -> dict[str, Any]:
    """What was kept with the checksums; empty where there are none to read."""
    try:
        found = json.loads((folder / FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def has_checksums(folder: pathlib.Path) -> bool:
    """Whether a folder can be checked: those of earlier versions have none."""
    return (folder / FILE).is_file()


def damage(
    folder: pathlib.Path, source: pathlib.Path | None = None, *, contents: bool = True
) -> str:
    """What is wrong with a folder: a file and its fault; empty where nothing is.

    Args:
      source: where the checksums are, if not in the folder itself.
      contents: whether files are read, rather than measured alone.
    """
    source = source or folder
    if not has_checksums(source):
        return f"{FILE} is missing"
    files = about(source).get("files")
    if not isinstance(files, dict):
        return f"{FILE} cannot be read"
    for name, expected in files.items():
        if wrong := _wrong(folder, name, expected, contents):
            return f"{name} {wrong}"
    return ""


def require_whole(folder: pathlib.Path) -> None:
    """Raises UserError for a folder that is damaged, as far as it can be checked."""
    if has_checksums(folder) and (wrong := damage(folder)):
        raise UserError(
            f"the weights are damaged: {wrong}",
            where=str(folder),
            remedy="copy the folder again from where it came, or choose other weights",
        )


def _wrong(folder: pathlib.Path, name: str, expected: Any, contents: bool) -> str:
    file = folder / name
    if pathlib.PurePosixPath(name).is_absolute() or ".." in name.split("/"):
        return f"lies outside the folder, says {FILE}"
    if not isinstance(expected, dict) or not isinstance(expected.get("bytes"), int):
        return f"has no checksum in {FILE}"
    try:
        status = file.stat()
        if status.st_size != expected["bytes"]:
            return f"has {status.st_size:,} bytes, not {expected['bytes']:,}"
        if contents and _digest(file, status.st_size, status.st_mtime_ns) != (
            expected.get(_KIND)
        ):
            return "holds other bytes than were written"
    except FileNotFoundError:
        return "is missing"
    except OSError as error:
        return f"cannot be read: {error.strerror or error}"
    return ""


@functools.lru_cache(maxsize=100_000)
def _digest(file: pathlib.Path, size: int, modified: int) -> str:
    """Checksum of a file; size and time tell whether one that is known still holds.

    A mode that works on many weights opens each of them more than once.
    """
    del size, modified
    with open(file, "rb") as opened:
        return hashlib.file_digest(opened, _KIND).hexdigest()
