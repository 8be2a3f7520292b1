"""Files of records, one field of which is text -> documents."""

import contextlib
import dataclasses
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from absl import logging

from lmjax.core.errors import UserError
from lmjax.core.extras import require
from lmjax.data.reading.documents import Document, Prompt
from lmjax.data.reading.files import compression, open_bytes, unreadable
from lmjax.data.reading.text_reader import (
    BYTE_ORDER_MARK,
    in_pieces,
    not_utf8,
    trim_blank_lines,
)

PARQUET_MAGIC = b"PAR1"
# In the metadata of a Parquet file: the dataset that it was fetched from. Its text is
# in the column DATASET_COLUMN, whatever it was called there, and prompts in the other.
DATASET_KEY = b"lmjax.dataset"
DATASET_COLUMN = "text"
DATASET_PROMPT_COLUMN = "prompt"

_MAX_LINE_BYTES = 256_000_000
_BATCH_ROWS = 1024
_SURROGATE = re.compile("[\ud800-\udfff]")


@dataclasses.dataclass(frozen=True)
class JSONLinesReader:
    """A JSON object per line, perhaps compressed.

    Attributes:
      path: the file.
      field: name of the text in each object.
      replace_invalid_utf8: whether U+FFFD stands for what is not UTF-8.
      prompt_field: name of the prompt in each object; empty if there is none.
    """

    path: Path
    field: str
    replace_invalid_utf8: bool = False
    prompt_field: str = ""

    holds_ids = False

    def describe(self) -> dict[str, str]:
        return _describe(
            "json_lines", self.field, self.replace_invalid_utf8, self.prompt_field
        )

    def read(self) -> Iterator[Document]:
        """Yields the texts, those that are blank left out if there are no prompts.

        Raises:
          UserError: the file can't be read, or a line is no object with such a text
            and such a prompt.
        """
        number, offset = 0, 0
        with open_bytes(self.path) as handle:
            while data := handle.readline(_MAX_LINE_BYTES + 1):
                number += 1
                if len(data) > _MAX_LINE_BYTES:
                    raise self._error(
                        f"A line of more than {_MAX_LINE_BYTES:,} bytes is too long.",
                        number,
                        "split the text, or check that this is a JSON Lines file.",
                    )
                start = offset
                offset += len(data)
                if number == 1 and data.startswith(BYTE_ORDER_MARK):
                    start += len(BYTE_ORDER_MARK)
                    data = data[len(BYTE_ORDER_MARK) :]
                if not data.isspace():
                    record = self._parse(data, number, start)
                    text = self._text(record, self.field, data, number)
                    prompt = None
                    if self.prompt_field:
                        prompt = self._text(record, self.prompt_field, data, number)
                    yield from _documents(text, prompt, f"{self.path}, line {number}")

    def _parse(self, data: bytes, number: int, offset: int) -> dict[str, Any]:
        errors = "replace" if self.replace_invalid_utf8 else "strict"
        try:
            record = json.loads(data.decode("utf-8", errors))
        except UnicodeDecodeError as error:
            place = f"{self.path}, line {number}, byte {offset + error.start}"
            raise not_utf8(self.path, error, place) from None
        except (ValueError, RecursionError) as error:
            raise self._error(
                f"A line is not JSON: {error}.",
                number,
                "write one object per line, e.g. jq -c . file.json > file.jsonl.",
            ) from error
        if not isinstance(record, dict):
            raise self._error(
                f"A line is a JSON {_json_type(record)} instead of an object.",
                number,
                f'write one object per line, e.g. {{"{self.field}": "..."}}.',
            )
        return record

    def _text(
        self, record: dict[str, Any], field: str, data: bytes, number: int
    ) -> str:
        """A field of the record on a line."""
        text = record.get(field)
        if not isinstance(text, str):
            problem = "is missing"
            if field in record:
                problem = f"is a JSON {_json_type(text)} instead of a string"
            what = "text" if field == self.field else "prompt"
            raise self._error(
                f"The field {field!r} {problem}.",
                number,
                f"set data.{what}_field to the field with the {what}; this line has "
                f"{', '.join(map(repr, record)) or 'none'}.",
            )
        if b"\\u" in data and _SURROGATE.search(text):
            if not self.replace_invalid_utf8:
                raise self._error(
                    "A text holds half a surrogate pair, such as \\ud800, which is no "
                    "character.",
                    number,
                    "correct it, or set data.replace_invalid_utf8=true, which reads "
                    "U+FFFD instead.",
                )
            text = _SURROGATE.sub("\ufffd", text)
        return text

    def _error(self, what: str, number: int, remedy: str) -> UserError:
        return UserError(what, where=f"{self.path}, line {number}", remedy=remedy)


@dataclasses.dataclass(frozen=True)
class ParquetReader:
    """A column of a Parquet file.

    Attributes:
      path: the file.
      column: name of the column with the text.
      replace_invalid_utf8: whether U+FFFD stands for what is not UTF-8.
      prompt_column: name of the column with the prompts; empty if there are none.
    """

    path: Path
    column: str
    replace_invalid_utf8: bool = False
    prompt_column: str = ""

    @classmethod
    def open(
        cls,
        path: Path,
        column: str,
        replace_invalid_utf8: bool,
        prompt_column: str = "",
    ):
        """Looks for the columns.

        Raises:
          UserError: the file can't be read, or has no such columns of text.
        """
        if compression(path):
            raise UserError(
                "A compressed Parquet file can't be read in parts.",
                where=str(path),
                remedy="unpack it; Parquet compresses by itself.",
            )
        types = _pyarrow("types", path)
        with _opened(path) as file:
            schema = file.schema_arrow
            if DATASET_KEY in (schema.metadata or {}):
                column = DATASET_COLUMN
                prompt_column = prompt_column and DATASET_PROMPT_COLUMN
            fields = {field.name: field.type for field in schema}
        text_types = (types.is_string, types.is_large_string, types.is_string_view)
        for name, what in ((column, "text"), (prompt_column, "prompt")):
            kind = fields.get(name)
            if kind is not None and types.is_dictionary(kind):
                kind = kind.value_type
            if not name or (kind and any(is_text(kind) for is_text in text_types)):
                continue
            problem = "is missing" if kind is None else f"holds {kind}, not strings"
            known = ", ".join(f"{name!r} ({kind})" for name, kind in fields.items())
            raise UserError(
                f"The column {name!r} {problem}.",
                where=str(path),
                remedy=f"set data.{what}_field to the column with the {what}; there "
                f"are {known or 'none'}.",
            )
        return cls(path, column, replace_invalid_utf8, prompt_column)

    holds_ids = False

    def describe(self) -> dict[str, str]:
        return _describe(
            "parquet", self.column, self.replace_invalid_utf8, self.prompt_column
        )

    def read(self) -> Iterator[Document]:
        """Yields the texts; null and blank ones are left out if there are no prompts.

        Raises:
          UserError: the file can't be read, a text is not UTF-8, or a row lacks its
            prompt or its answer.
        """
        row, nulls = 0, 0
        with _opened(self.path) as file:
            for values in self._rows(file):
                row += 1
                text, *prompts = (self._text(value, row) for value in values)
                where = f"{self.path}, row {row}"
                if prompts and None in (text, *prompts):
                    column = self.column if text is None else self.prompt_column
                    raise UserError(
                        f"The column {column!r} is null.",
                        where=where,
                        remedy="take the row out: each needs a prompt and an answer.",
                    )
                if text is None:
                    nulls += 1
                else:
                    yield from _documents(text, *prompts or (None,), where)
        if nulls:
            logging.info("%s: %d rows without a text are left out.", self.path, nulls)

    def _rows(self, file: Any) -> Iterator[tuple[Any, ...]]:
        """Text and, if there are any, prompt of each row, as pyarrow's scalars."""
        columns = [self.column] + [self.prompt_column] * bool(self.prompt_column)
        for batch in file.iter_batches(batch_size=_BATCH_ROWS, columns=columns):
            yield from zip(*(batch.column(name) for name in columns), strict=True)

    def _text(self, value: Any, row: int) -> str | None:
        try:
            return value.as_py()
        except UnicodeDecodeError as error:
            if self.replace_invalid_utf8:
                return error.object.decode("utf-8", "replace")
            place = f"{self.path}, row {row}, byte {error.start} of the text"
            raise not_utf8(self.path, error, place) from None


def _documents(text: str, prompt: str | None, where: str) -> Iterator[Document]:
    """A text in its pieces; nothing if it is blank.

    With a prompt both are as they are in the record, up to the blanks where they meet.

    Raises:
      UserError: there is a prompt, and nothing but blanks behind it.
    """
    if prompt is None:
        if text := trim_blank_lines(text):
            yield from in_pieces(text)
        return
    if not text or text.isspace():
        raise UserError(
            "The answer to a prompt is empty.",
            where=where,
            remedy="take the record out, or set data.text_field to the field with the "
            "answer.",
        )
    yield from in_pieces(text, Prompt(prompt, where))


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[Any]:
    """A pyarrow.parquet.ParquetFile; what goes wrong with it is explained."""
    damage = _pyarrow("lib", path).ArrowException  # the base of all that it raises
    try:
        # Read ahead it would hold whole row groups in memory.
        with _pyarrow("parquet", path).ParquetFile(path, pre_buffer=False) as file:
            yield file
    except OSError as error:
        if error.errno is not None:
            raise unreadable(path, error) from error
        raise _damaged(path, error) from error
    except (damage, UnicodeDecodeError) as error:  # the latter of a column's name
        raise _damaged(path, error) from error


def _damaged(path: Path, error: Exception) -> UserError:
    return UserError(
        f"The Parquet file is damaged or incomplete: {error}.",
        where=str(path),
        remedy="download or write it again.",
    )


def _pyarrow(module: str, path: Path) -> Any:
    return require(f"pyarrow.{module}", extra="hf", what=f"The Parquet file {path}")


def _describe(kind: str, field: str, replaced: bool, prompts: str) -> dict[str, str]:
    decided = {"format": kind, "text_field": field}
    if prompts:
        decided["prompt_field"] = prompts
    if replaced:
        decided["invalid_utf8"] = "replaced"
    return decided


def _json_type(value: object) -> str:
    names = {str: "string", bool: "boolean", list: "array", dict: "object"}
    return "null" if value is None else names.get(type(value), "number")
