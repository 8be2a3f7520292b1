"""Paths in the config -> the sources of a corpus and their files."""

import dataclasses
import glob
import os
import re
import urllib.parse
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Literal, NamedTuple

from lmjax.core.errors import UserError
from lmjax.data.reading.files import COMPRESSED_SUFFIXES, without_compressed_suffix
from lmjax.data.reading.formats import SUFFIXES

Role = Literal["train", "valid"]

DATASET_SCHEME = "hf://"

_SUFFIXES = {
    "train": (".train", ".train.txt"),
    "valid": (".dev", ".valid", ".dev.txt", ".valid.txt"),
}
_ROLES = {
    "train": "train",
    "valid": "valid",
    "val": "valid",
    "dev": "valid",
    "validation": "valid",
    "test": "test",
}
# Also as the hub names files: validation-00000-of-00001.parquet.
_ROLE = re.compile(rf"({'|'.join(_ROLES)})(-\d+-of-\d+)?")
_NAMED = re.compile(r"([A-Za-z0-9_.-]+)=(.+)", re.DOTALL)
# What stands beside a corpus and is none, though it has the suffix of one.
_NO_CORPUS = (
    "config.json",
    "dataset_info.json",
    "dataset_infos.json",
    "merges.txt",
    "meta.json",
    "special_tokens_map.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "vocab.json",
    "vocab.txt",
)


@dataclasses.dataclass(frozen=True)
class Source:
    """Text of one origin: it is weighted, held out and reported by itself."""

    name: str
    files: tuple[Path, ...]


class _Found(NamedTuple):
    file: Path
    name: str  # of the source; "" if the file is to name it


def find_sources(
    paths: Sequence[str],
    role: Role,
    field: str = "",
    fetch: Callable[[str], Path] | None = None,
) -> list[Source]:
    """Returns the sources that `paths` stand for, by name, with each file once.

    A file is taken whatever its name. A folder is searched recursively for files
    named after the role: `*.train`, `*.dev`, ..., else `train.bin`, `val.bin`, ...,
    else any of a known suffix that is not named after another role; all of them also
    with `.gz` or `.zst` behind. Hidden files are ignored. Anything else is read as a
    glob, whose matches follow these rules. Each file is a source of its own, named
    after it, but those of "name=path" are one source.

    Args:
      field: where the paths are from, for errors.
      fetch: returns the file that a path which begins with "hf://" is fetched to.

    Raises:
      UserError: a path is missing or stands for no file, or two sources have the same
        name.
    """
    field = field or f"data.{role}"
    if not paths:
        raise UserError(
            "No corpus is given.", where=field, remedy=f"set {field} to a folder."
        )
    found: dict[Path, _Found] = {}
    for path in paths:
        name, path = _split_name(path)
        if path.startswith(DATASET_SCHEME):
            if fetch is None:
                raise UserError(
                    f"{path!r} can't be fetched here.",
                    where=field,
                    remedy="give files.",
                )
            name = name or _dataset_name(path)
            files = [fetch(path)]
        else:
            files = _find(os.path.expanduser(path), role, field)
        for file in files:
            new = _Found(file, name)
            old = found.setdefault(file.resolve(), new)
            if name and old.name not in ("", name):
                raise UserError(
                    f"A file is in two sources, {old.name!r} and {name!r}.",
                    where=f"{field}: {file}",
                    remedy="take it out of one of them.",
                )
            if name:
                found[file.resolve()] = new
    return _group(found.values(), field)


def source_names(files: Sequence[Path]) -> list[str]:
    """Names the files: by base name, or by path where two base names are equal."""
    names = [file.name for file in files]
    if len(set(names)) == len(names):
        return names
    resolved = [file.resolve() for file in files]
    parent = os.path.commonpath([file.parent for file in resolved])
    return [file.relative_to(parent).as_posix() for file in resolved]


def _group(found: Iterable[_Found], field: str) -> list[Source]:
    found = sorted(found)
    named: dict[str, list[Path]] = {}
    for file, name in found:
        if name:
            named.setdefault(name, []).append(file)
    single = [file for file, name in found if not name]
    sources = [Source(name, tuple(files)) for name, files in named.items()]
    names = source_names(single)
    sources += [Source(name, (file,)) for name, file in zip(names, single, strict=True)]
    for name, count in Counter(source.name for source in sources).items():
        if count > 1:
            files = [str(f) for s in sources if s.name == name for f in s.files]
            raise UserError(
                f"Two sources have the name {name!r}.",
                where=f"{field}: {', '.join(files)}",
                remedy='write "other_name=path" to give one of them another name.',
            )
    return sorted(sources, key=lambda source: source.name)


def _split_name(path: str) -> tuple[str, str]:
    """Splits "name=path", unless this is a path."""
    match = _NAMED.fullmatch(path)
    if match is None or os.path.exists(os.path.expanduser(path)):
        return "", path
    return match[1], match[2]


def _dataset_name(spec: str) -> str:
    """owner/name, with the config of a dataset that has several."""
    name, _, query = spec.removeprefix(DATASET_SCHEME).partition("?")
    config = urllib.parse.parse_qs(query).get("config", [""])[0]
    return f"{name}:{config}" if config else name


def _find(path: str, role: Role, field: str) -> list[Path]:
    if os.path.exists(path):
        matches = [Path(path)]
    elif glob.has_magic(path):
        matches = [Path(match) for match in glob.glob(path, recursive=True)]
    else:
        raise UserError(
            f"There is no file or folder {path!r}.",
            where=f"{field}, seen from {os.getcwd()}",
            remedy=f"correct {field}, or put the corpus there.",
        )
    files = [match for match in matches if match.is_file()]
    for folder in matches:
        if folder.is_dir():
            files += _find_in_folder(folder, role)
    if not files:
        wanted = ", ".join(f"*{suffix}" for suffix in (*_SUFFIXES[role], *SUFFIXES))
        raise UserError(
            f"{path!r} holds no text for the role {role!r}.",
            where=field,
            remedy=f"name the files themselves, or name them {wanted} (.gz, .zst).",
        )
    return files


def _find_in_folder(folder: Path, role: Role) -> list[Path]:
    files = [
        file
        for file in folder.rglob("*")
        if file.is_file()
        and not any(part.startswith(".") for part in file.relative_to(folder).parts)
    ]
    unpacked = {file: without_compressed_suffix(file.name) for file in files}
    named = [file for file in files if unpacked[file].endswith(_SUFFIXES[role])]
    if named:
        return named
    known = [
        file
        for file in files
        if unpacked[file].endswith(SUFFIXES)
        and file.name not in _NO_CORPUS
        and not _is_sidecar(file)
    ]
    roles = {file: _role_of(unpacked[file]) for file in known}
    own = [file for file in known if roles[file] == role]
    return own or [file for file in known if not roles[file]]


def _role_of(name: str) -> str:
    """Returns the role that the first or last part of a file name says, or ""."""
    parts = name.split(".")[:-1]
    for part in (parts[-1], parts[0]):
        if match := _ROLE.fullmatch(part):
            return _ROLES[match[1]]
    return ""


def _is_sidecar(file: Path) -> bool:
    """Whether a file describes another, as train.bin.json does train.bin."""
    described = file.with_name(file.name.removesuffix(".json"))
    packed = [described.with_name(f"{described.name}{s}") for s in COMPRESSED_SUFFIXES]
    return described != file and any(path.is_file() for path in (described, *packed))
