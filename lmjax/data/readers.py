"""Corpus files on disk -> documents.

A file is UTF-8 text. Its documents are separated by blank lines and by BabyLM
headings (`= = = title = = =`), which stay as the first line of what they open.
"""

import dataclasses
import glob
import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import BinaryIO, Literal

from lmjax.core.errors import UserError

# Dialogue files have no blank line at all: without this limit each of them would
# be one document, and nothing of it could be held out.
MAX_DOCUMENT_BYTES = 32 * 1024
# A run of this many bytes without a space is cut too, which bounds memory.
MAX_WORD_BYTES = 1024 * 1024

_HEADING = re.compile(r"= = = .* = = =\s*")
_SUFFIXES = {
    "train": (".train", ".train.txt"),
    "valid": (".dev", ".valid", ".dev.txt", ".valid.txt"),
}
# Never taken by the fallback to *.txt, where they would mix the splits.
_OTHER_ROLES = {
    "train": (".dev.txt", ".valid.txt", ".test.txt"),
    "valid": (".train.txt", ".test.txt"),
}


@dataclasses.dataclass(frozen=True)
class Document:
    """A text without its final line break, and the name of the file it is from."""

    text: str
    source: str


def find_files(
    paths: Sequence[str], role: Literal["train", "valid"], field: str = ""
) -> list[Path]:
    """Returns the files that `paths` stand for, sorted and each once.

    A file is taken whatever its name. A folder is searched recursively for files
    named after the role (`*.train`, `*.dev`, ...), else for `*.txt`; hidden files
    are ignored. Anything else is read as a glob, whose matches follow these rules.

    Raises:
      UserError: a path is missing or stands for no file.
    """
    field = field or f"data.{role}"
    if not paths:
        raise UserError(
            "No corpus is given.", where=field, remedy=f"set {field} to a folder."
        )
    found = {}
    for path in paths:
        for file in _find(os.path.expanduser(path), role, field):
            found.setdefault(file.resolve(), file)
    return sorted(found.values())


def _find(path: str, role: str, field: str) -> list[Path]:
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
        wanted = ", ".join(f"*{suffix}" for suffix in (*_SUFFIXES[role], ".txt"))
        raise UserError(
            f"{path!r} holds no text for the role {role!r}.",
            where=field,
            remedy=f"name the files themselves, or name them {wanted}.",
        )
    return files


def _find_in_folder(folder: Path, role: str) -> list[Path]:
    files = [
        file
        for file in folder.rglob("*")
        if file.is_file()
        and not any(part.startswith(".") for part in file.relative_to(folder).parts)
    ]
    named = [file for file in files if file.name.endswith(_SUFFIXES[role])]
    return named or [
        file
        for file in files
        if file.name.endswith(".txt") and not file.name.endswith(_OTHER_ROLES[role])
    ]


def source_names(files: Sequence[Path]) -> list[str]:
    """Names the files: by base name, or by path where two base names are equal."""
    names = [file.name for file in files]
    if len(set(names)) == len(names):
        return names
    resolved = [file.resolve() for file in files]
    parent = os.path.commonpath([file.parent for file in resolved])
    return [file.relative_to(parent).as_posix() for file in resolved]


def read_documents(file: Path, source: str = "") -> Iterator[Document]:
    """Yields the documents of a file, in order, in bounded memory.

    Nothing is normalised: lines keep their text (also a carriage return), so that
    the words of the documents are those of the file. A document of more than
    `MAX_DOCUMENT_BYTES` is cut at a line end into several; a line longer than that
    is cut in front of a space.

    Raises:
      UserError: the file can't be read or is not UTF-8.
    """
    source = source or file.name
    lines: list[str] = []
    size = 0
    for line, num_bytes in _read_lines(file):
        blank = not line or line.isspace()
        heading = line.startswith("= = = ") and _HEADING.fullmatch(line)
        full = size + num_bytes > MAX_DOCUMENT_BYTES
        if lines and (blank or heading or full):
            yield Document("\n".join(lines), source)
            lines, size = [], 0
        if not blank:
            lines.append(line)
            size += num_bytes
    if lines:
        yield Document("\n".join(lines), source)


def _read_lines(file: Path) -> Iterator[tuple[str, int]]:
    """Yields each line, or part of a very long one, and its length in bytes."""
    offset, number = 0, 1
    try:
        with file.open("rb") as handle:
            for raw in _split(handle):
                line = raw.removesuffix(b"\n")
                try:
                    yield line.decode("utf-8"), len(raw)
                except UnicodeDecodeError as error:
                    raise _not_utf8(file, offset + error.start, number, error) from None
                offset += len(raw)
                number += raw.endswith(b"\n")
    except OSError as error:
        raise unreadable(file, error) from error


def _split(handle: BinaryIO) -> Iterator[bytes]:
    """Yields lines with their ends, those of more than a document cut at a space."""
    rest = b""
    while True:
        # One byte more than a document: so two parts of a line never share one.
        left = MAX_DOCUMENT_BYTES + 1 - len(rest)
        asked = left if left > 0 else MAX_DOCUMENT_BYTES
        piece = handle.readline(asked)
        rest += piece
        if piece.endswith(b"\n") or len(piece) < asked:
            if not rest:
                return
            yield rest
            rest = b""
            continue
        cut = max(rest.rfind(b" ", 1), rest.rfind(b"\t", 1))
        if cut < 0 and len(rest) >= MAX_WORD_BYTES:
            cut = len(rest) - 1
            while cut > len(rest) - 4 and rest[cut] & 0xC0 == 0x80:
                cut -= 1  # a continuation byte: not between two characters
        if cut > 0:
            yield rest[:cut]
            rest = rest[cut:]


def unreadable(file: Path, error: OSError) -> UserError:
    return UserError(
        f"The corpus can't be read: {error.strerror or error}.",
        where=str(file),
        remedy="check the file and its permissions.",
    )


def _not_utf8(
    file: Path, position: int, line: int, error: UnicodeDecodeError
) -> UserError:
    return UserError(
        f"The corpus is not UTF-8 text: byte 0x{error.object[error.start]:02x} "
        f"({error.reason}).",
        where=f"{file}, line {line}, byte {position}",
        remedy="convert the file, e.g. iconv -f WINDOWS-1252 -t UTF-8 "
        f"{file} > fixed.txt (and unpack it first if it is compressed).",
    )
