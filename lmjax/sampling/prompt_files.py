"""Prompts from a file or from standard input."""

import pathlib
import sys
from collections.abc import Iterator

from lmjax.core import json_text
from lmjax.core.errors import UserError

STANDARD_INPUT = "-"
FIELD = "prompt"


def read_prompts(file: str) -> list[str]:
    """Prompts of a file of lines, or of JSON Lines with a field "prompt".

    Which it is shows in the name (.jsonl) or in the first line, an object with that
    field. Empty lines are skipped. Of plain text a line is a prompt as it is, but for
    its end; one with line ends in it needs JSON Lines.

    Args:
      file: its path; "-" is standard input.

    Raises:
      UserError: it can't be read, is not UTF-8 (file and line), or holds no prompt.
    """
    where = "standard input"
    if file != STANDARD_INPUT:
        where = str(pathlib.Path(file).expanduser())
    lines = [line for line in _lines(_read(file, where), where) if line[1].strip()]
    if not lines:
        raise UserError(
            "there is no prompt in it",
            where=where,
            remedy="write one on each line; without a file, texts begin from nothing",
        )
    if where.endswith((".jsonl", ".ndjson")) or _is_record(lines[0][1]):
        return [_field(line, f"{where}, line {number}") for number, line in lines]
    return [line for _, line in lines]


def _read(file: str, where: str) -> bytes:
    try:
        if file == STANDARD_INPUT:
            return sys.stdin.buffer.read()
        return pathlib.Path(where).read_bytes()
    except OSError as error:
        raise UserError(
            f"the prompts can't be read: {error.strerror or error}",
            where=f"generate.prompt_file={file!r}",
            remedy="name a file of prompts, or - for standard input",
        ) from error


def _lines(data: bytes, where: str) -> Iterator[tuple[int, str]]:
    data = data.removeprefix(b"\xef\xbb\xbf")
    for number, line in enumerate(data.split(b"\n"), 1):
        try:
            yield number, line.removesuffix(b"\r").decode()
        except UnicodeDecodeError as error:
            raise UserError(
                f"the line is not UTF-8: byte {error.start + 1} is "
                f"0x{line[error.start]:02x}",
                where=f"{where}, line {number}",
                remedy="save the file as UTF-8",
            ) from error


def _is_record(line: str) -> bool:
    try:
        record = json_text.parse(line)
    except ValueError:
        return False
    return isinstance(record, dict) and FIELD in record


def _field(line: str, where: str) -> str:
    try:
        record = json_text.parse(line)
    except ValueError as error:
        raise UserError(
            f"the line is no JSON: {error}",
            where=where,
            remedy=f'write {{"{FIELD}": "..."}} on every line, or plain text on all',
        ) from error
    prompt = record.get(FIELD) if isinstance(record, dict) else None
    if not isinstance(prompt, str):
        raise UserError(
            f'the record has no text in its field "{FIELD}"',
            where=where,
            remedy=f'write {{"{FIELD}": "..."}} on every line',
        )
    return prompt
