"""Readers of zero-shot tasks: BabyLM's, and any of prefix and completions.

The definitions are those of BabyLM's pipeline of 2026; where they changed within a
season, `Task.rule` says which one this is.
"""

import dataclasses
import gzip
import io
import lzma
import tarfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO, NamedTuple

from lmjax.config.fields import nearest
from lmjax.core import json_text
from lmjax.core.errors import ConfigError, UserError
from lmjax.evaluate.zero_shot.items import Item, Task, completions, sentences

# Folders of BabyLM's evaluation data that may hold tasks, below the one of the config.
PLACES = ("", "full_eval", "fast_eval", "evaluation_data/full_eval")
PLACES += ("evaluation_data/fast_eval",)
_MOST_BYTES = 200_000_000  # of an unpacked archive; BabyLM's hold a few million
_UNPACKERS = {b"\xfd7zXZ\0": lzma.open, b"\x1f\x8b": gzip.open, b"": io.FileIO}
_UNREADABLE = (tarfile.TarError, EOFError, OSError, lzma.LZMAError, zlib.error)
_PACKED = (".tar.xz", ".tar.gz", ".tar")
_GLOBAL_PIQA = ("global_piqa_parallel", "global_piqa_nonparallel")
_COMPS = {
    "comps_base": "base",
    "comps_wugs": "wugs",
    "comps_wugs_dist-before": "wugs_dist_before",
    "comps_wugs_dist-in-between": "wugs_dist_in_between",
}


class _Row(NamedTuple):
    """One line of a file: its fields, the file without its ending, and where it is."""

    fields: dict[str, Any]
    stem: str
    where: str

    def text(self, name: str) -> str:
        """A field that must be a text."""
        return self._get(name, str, "a text")

    def number(self, name: str) -> int:
        """A field that must be a whole number."""
        return self._get(name, int, "a whole number")

    def texts(self, name: str) -> list[str]:
        """A field that must be a list of two or more texts."""
        found = self._get(name, list, "a list of texts")
        if len(found) < 2 or not all(isinstance(text, str) for text in found):
            raise self.error(f"The field {name!r} must list two or more texts.")
        return found

    def error(self, what: str) -> UserError:
        """An error that is about this line."""
        return UserError(what, where=self.where, remedy="correct or remove this line.")

    def _get(self, name: str, kind: type, said: str) -> Any:
        if name not in self.fields:
            raise self.error(
                f"A row has no field {name!r}, only {', '.join(self.fields) or 'none'}."
            )
        value = self.fields[name]
        if not isinstance(value, kind) or isinstance(value, bool):
            raise self.error(f"The field {name!r} must be {said}, not {value!r}.")
        return value


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Kind:
    """How the items of a task are found and read.

    Attributes:
      task: as the official pipeline calls it.
      datasets: folders that may hold it; the first that is there is taken.
      read: makes an item of a row, or None if the row is left out.
    """

    task: str
    datasets: tuple[str, ...]
    read: Callable[[_Row], Item | None]
    splits: tuple[str, ...] = ()
    rule: str = ""


def _blimp(row: _Row) -> Item:
    pair = [row.text("sentence_good"), row.text("sentence_bad")]
    groups = {"field": "supplement", "UID": row.stem, "linguistics_term": "supplement"}
    if "field" in row.fields:
        groups = {name: row.text(name) for name in groups}
        groups["field"] = groups["field"].replace(
            "syntax_semantics", "syntax/semantics"
        )
    return Item(completions(["", ""], pair), 0, groups, row.where)


def _ewok(row: _Row) -> Item:
    contexts = [row.text("Context1"), row.text("Context2")]
    target = " " + row.text("Target1")
    groups = {
        "UID": row.text("Domain"),
        "context_type": row.text("ContextType"),
        "context_contrast": row.text("ContextDiff"),
        "target_contrast": row.text("TargetDiff"),
    }
    return Item(sentences(contexts, [target, target]), 0, groups, row.where)


def _entity_tracking(row: _Row) -> Item | None:
    options = row.texts("options")
    if any("nothing" in option for option in options):
        return None
    prefixes = [row.text("input_prefix")] * len(options)
    groups = {"UID": f"{row.stem}_{row.number('numops')}_ops"}
    return Item(completions(prefixes, options), 0, groups, row.where)


def _comps(row: _Row) -> Item:
    names = ("prefix_acceptable", "prefix_unacceptable")
    prefixes = [row.text(name) + " " for name in names]
    phrase = row.text("property_phrase")
    groups = {"UID": _COMPS.get(row.stem, row.stem)}
    return Item(sentences(prefixes, [phrase, phrase]), 0, groups, row.where)


def _global_piqa(row: _Row) -> Item:
    ends = []
    while f"solution{len(ends)}" in row.fields:
        ends.append(" " + row.text(f"solution{len(ends)}"))
    if len(ends) < 2:
        raise row.error("A row must have the fields 'solution0' and 'solution1'.")
    label = _label(row, len(ends))
    groups = {"UID": str(row.fields.get("example_id", row.where))}
    prefixes = [row.text("prompt")] * len(ends)
    return Item(completions(prefixes, ends), label, groups, row.where, per_token=True)


def _generic(row: _Row) -> Item:
    ends = row.texts("completions")
    prefix = row.text("prefix") if "prefix" in row.fields else ""
    groups = {"UID": str(row.fields.get("group", row.stem))}
    return Item(
        completions([prefix] * len(ends), ends),
        _label(row, len(ends)),
        groups,
        row.where,
        per_token=bool(row.fields.get("per_token", False)),
    )


def _label(row: _Row, count: int) -> int:
    label = row.number("label")
    if not 0 <= label < count:
        raise row.error(
            f"The label is {label}, but the {count} completions count from 0."
        )
    return label


_KINDS = {
    "blimp": _Kind(
        task="blimp", datasets=("blimp_filtered", "blimp_fast", "blimp"), read=_blimp
    ),
    "supplement": _Kind(
        task="blimp",
        datasets=("supplement_filtered", "supplement_fast", "supplement"),
        read=_blimp,
    ),
    "ewok": _Kind(
        task="ewok",
        datasets=("ewok_filtered", "ewok_fast", "ewok"),
        read=_ewok,
        rule="P(T1|C1) against P(T1|C2), one item per row (since 2026-06-15)",
    ),
    "entity_tracking": _Kind(
        task="entity_tracking",
        datasets=("entity_tracking", "entity_tracking_fast"),
        read=_entity_tracking,
        splits=("regular", "ambiref", "move_contents"),
        rule='rows with an option that says "nothing" are left out (since 2026)',
    ),
    "comps": _Kind(task="comps", datasets=("comps",), read=_comps),
} | {
    name: _Kind(
        task=name,
        datasets=(name,),
        read=_global_piqa,
        rule="log-probability per token of the completion",
    )
    for name in _GLOBAL_PIQA
}
_ALIASES = {"global_piqa": _GLOBAL_PIQA}


def load_tasks(names: Sequence[str], folder: str) -> list[Task]:
    """Reads tasks by name; several may stand in one string, separated by commas.

    Args:
      names: of a task; of one of its folders, such as "blimp_fast"; or a JSON Lines
        file, or folder of such, of {prefix, completions, label, group}. `prefix` may
        be missing; `label` counts from 0; `group` is what accuracy is averaged over,
        without it the file's name; `per_token` says that scores are means.
      folder: holds a folder for each task, or its archive (.tar.xz, .tar.gz, .tar), as
        BabyLM's evaluation data do; or is such a folder itself.

    Raises:
      ConfigError: a name is not known, or there is no such data.
      UserError: a row is not as it should be; names file and line.
    """
    single = [name.strip() for part in names for name in part.split(",")]
    return [
        _load_task(each, Path(folder).expanduser())
        for name in single
        for each in _ALIASES.get(name, (name,))
    ]


def _load_task(name: str, folder: Path) -> Task:
    for kind in _KINDS.values():
        if name in kind.datasets and name not in _KINDS:
            kind = dataclasses.replace(kind, datasets=(name,))
            return _read_task(kind, _find(name, kind.datasets, folder))
    if name in _KINDS:
        return _read_task(_KINDS[name], _find(name, _KINDS[name].datasets, folder))
    for path in (folder / name, Path(name).expanduser()):
        if name and path.exists():
            return _read_task(_Kind(task=path.stem, datasets=(), read=_generic), path)
    known = [*_KINDS, *_ALIASES]
    guess = nearest(name, known)
    raise ConfigError(
        f"There is no zero-shot task {name!r}, nor a file or folder of this name.",
        where=f"evaluate.tasks; files were looked for in {folder} and here",
        remedy=(f"did you mean {guess}? " if guess else "")
        + f"known: {', '.join(known)}; or a JSON Lines file.",
    )


def _find(name: str, datasets: Sequence[str], folder: Path) -> Path:
    """The folder or archive of one of these datasets."""
    if folder.name in datasets and folder.is_dir():
        return folder
    for dataset in datasets:
        for place in PLACES:
            for ending in ("", *_PACKED):
                path = folder / place / f"{dataset}{ending}"
                if path.is_dir() if not ending else path.is_file():
                    return path
    tried = [f"{dataset}{{,{','.join(_PACKED)}}}" for dataset in datasets]
    raise ConfigError(
        f"The data of the task {name!r} are not there.",
        where=f"evaluate.data={str(folder)!r}, of which {', '.join(tried)} were tried, "
        f"in it and in {', '.join(filter(None, PLACES))}",
        remedy="set --config.evaluate.data to the folder that holds one of these: they "
        "come with BabyLM's evaluation data.",
    )


def _read_task(kind: _Kind, path: Path) -> Task:
    items = []
    for file, lines in _files(path):
        for number, line in enumerate(lines, 1):
            where = f"{file}, line {number}"
            if line.strip():
                item = kind.read(_parse(line, PurePosixPath(file).stem, where))
                items += [item] if item is not None else []
    if not items:
        raise UserError(
            "There are no items.",
            where=str(path),
            remedy="name a folder with JSON Lines files (.jsonl), or one of them.",
        )
    dataset = path.name.split(".")[0]
    return Task(kind.task, dataset, tuple(items), kind.splits, kind.rule)


def _files(path: Path) -> Iterator[tuple[str, list[bytes]]]:
    """Name and lines of every JSON Lines file, in order of their names."""
    try:
        if path.is_dir():
            for file in sorted(path.glob("*.jsonl")):
                yield str(file), file.read_bytes().splitlines()
        elif path.name.endswith(_PACKED):
            contents = _unpack(path)
            for name in sorted(contents):
                yield f"{path}/{name}", contents[name].splitlines()
        else:
            yield str(path), path.read_bytes().splitlines()
    except _UNREADABLE as error:
        kind = "An archive" if path.name.endswith(_PACKED) else "A file"
        raise UserError(
            f"{kind} can't be read: {error}",
            where=str(path),
            remedy="get it again, or unpack it.",
        ) from error


def _unpack(path: Path) -> dict[str, bytes]:
    """The JSON Lines files of an archive by their names; nothing is written anywhere.

    Raises:
      UserError: it holds more than items are, packed or with holes.
      One of _UNREADABLE: it is damaged.
    """
    with path.open("rb") as file:
        start = file.read(6)
    unpack = next((f for magic, f in _UNPACKERS.items() if start.startswith(magic)))
    found, size = {}, 0
    with (
        unpack(path) as file,
        tarfile.open(fileobj=_Bounded(file, path), mode="r|") as archive,
    ):
        for member in archive:
            size += member.size
            if not 0 <= member.size <= size <= _MOST_BYTES:
                raise _too_large(path)
            content = archive.extractfile(member) if member.isfile() else None
            if content is not None and member.name.endswith(".jsonl"):
                found[member.name] = content.read()
    return found


class _Bounded:
    """Reads from a file, and not for ever."""

    def __init__(self, file: BinaryIO, path: Path):
        self._file, self._path, self._left = file, path, 2 * _MOST_BYTES

    def read(self, size: int) -> bytes:
        data = self._file.read(size)
        self._left -= len(data)
        if self._left < 0:
            raise _too_large(self._path)
        return data


def _too_large(path: Path) -> UserError:
    return UserError(
        f"An archive holds more than {_MOST_BYTES:,} bytes.",
        where=str(path),
        remedy="look at it; if you trust it, unpack it and name the folder.",
    )


def _parse(line: bytes, stem: str, where: str) -> _Row:
    try:
        fields = json_text.parse(line)
    except ValueError as error:  # of JSON, or of UTF-8
        raise UserError(
            f"A line is not JSON: {error}",
            where=where,
            remedy="each line must be one JSON object in UTF-8.",
        ) from error
    if not isinstance(fields, dict):
        raise _Row({}, stem, where).error("A line is JSON, but not an object.")
    return _Row(fields, stem, where)
