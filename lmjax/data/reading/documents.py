"""What every corpus format is read as."""

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Protocol

import numpy as np

# A document of more text than this comes in pieces, which bounds memory.
MAX_PIECE_BYTES = 1024 * 1024


@dataclasses.dataclass(frozen=True, slots=True)
class Prompt:
    """Text that stands before a document: it is read as context, and never learned.

    Attributes:
      text: verbatim; may be empty.
      where: file and line or row of the record, for errors.
    """

    text: str
    where: str


@dataclasses.dataclass(frozen=True, slots=True)
class Document:
    """A document, or a piece of a very long one.

    Attributes:
      content: its text without the final line break, or int64 token ids [n] of input
        that comes as ids: without BOS and EOS at its ends.
      continues: whether the next one is a further piece of the same document. The
        pieces joined are the document.
      prompt: of a record that has one, with its first piece.
    """

    content: str | np.ndarray
    continues: bool = False
    prompt: Prompt | None = None


class Reader(Protocol):
    """One file of a corpus in a format that was recognised; picklable.

    Attributes:
      path: the file.
      holds_ids: whether its documents are token ids rather than text.
    """

    path: Path
    holds_ids: bool

    def describe(self) -> dict[str, str]:
        """What was decided, by name: "format", "documents", ... Shapes the result."""
        ...

    def read(self) -> Iterator[Document]:
        """Yields the documents in order, in bounded memory; the same each time.

        Raises:
          UserError: the file is not what it should be; says what, where, what to do.
        """
        ...
