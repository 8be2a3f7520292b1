"""Tokenizers of Hugging Face: a tokenizer.json, from wherever it comes."""

import hashlib
import importlib
import json
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import ModuleType, TracebackType
from typing import Any

import numpy as np

from lmjax.core import json_text
from lmjax.core.errors import UserError
from lmjax.core.extras import require
from lmjax.data.tokenization.vocabulary import (
    Vocabulary,
    complete_special,
    find_special,
    keeps_text,
    not_unicode,
)

_FILE = "tokenizer.json"
_GPT2_FILES = ("vocab.json", "merges.txt")
# Ids without a name are taken for reserved, up to a number that is no mistake.
_MOST_HOLES = 100_000
# What a tokenizer.json that is made otherwise than it must be leads to.
_MALFORMED = (AttributeError, LookupError, OverflowError, TypeError, ValueError)
_BYTE_PIECE = re.compile(r"<0x([0-9A-F]{2})>")


class HuggingFaceTokenizer:
    """A `Tokenizer` over the text of a tokenizer.json."""

    def __init__(self, model: bytes, *, where: str = "tokenizer.path"):
        """Raises UserError if the bytes are no such file."""
        self._where = where
        self.model_bytes = model
        self.identity = hashlib.sha256(model).hexdigest()
        with _Explained(where):
            content = _parse(model, where)
            library = tokenizers_library()
            _check_ids(content["model"].get("vocab"))
            self._tokenizer = library.Tokenizer.from_str(json.dumps(content))
            # With names of special ids in it, text is still text.
            self._tokenizer.encode_special_tokens = True
            self._is_byte_level = "ByteLevel" in _steps(content.get("decoder"))
            self._vocabulary = self._read_vocabulary(content)
            self.lossless = keeps_text(self._encode_one, self._vocabulary)
        self.vocab_size = self._vocabulary.size
        self.special = self._vocabulary.special
        self.piece_bytes = self._vocabulary.pieces
        self.unpredictable = self._vocabulary.unpredictable(self.lossless)

    def __reduce__(self) -> tuple:
        return type(self), (self.model_bytes,)  # what was set above is not pickled

    def encode(self, text: str) -> list[int]:
        return self.encode_ids([text])[0].tolist()

    def encode_ids(self, texts: Sequence[str]) -> list[np.ndarray]:
        name = self._tokenizer.id_to_token if self.lossless else None
        spell = self._vocabulary.spell_names
        return [spell(ids, name) for ids in self._encode_batch(texts)]

    def encode_aligned(self, text: str) -> tuple[np.ndarray, np.ndarray]:
        if self.lossless:
            ids = self.encode_ids([text])[0]
            sizes = [len(self.piece_bytes[i]) for i in ids.tolist()]
            if sum(sizes) == len(text.encode()):
                return ids, np.array(sizes, np.int64)
        with _Explained(self._where):
            try:
                encoding = self._tokenizer.encode(text, add_special_tokens=False)
            except (TypeError, UnicodeEncodeError):
                raise not_unicode([text]) from None
        ids = self._vocabulary.spell_names(np.array(encoding.ids, np.int32), None)
        ends = np.array([end for _, end in encoding.offsets], np.int64)
        return self._vocabulary.align(text, ids, ends)

    def decode(self, ids: Sequence[int] | np.ndarray) -> str:
        if self._is_byte_level:
            return self._vocabulary.bytes_of(ids).decode("utf-8", "replace")
        with _Explained(self._where):
            return self._tokenizer.decode(self._vocabulary.without_special(ids))

    def _encode_one(self, text: str) -> np.ndarray:
        return self._encode_batch([text])[0]

    def _encode_batch(self, texts: Sequence[str]) -> list[np.ndarray]:
        with _Explained(self._where):  # a file may lack what a rare text needs
            try:
                encodings = self._tokenizer.encode_batch_fast(
                    list(texts), add_special_tokens=False
                )
            except (TypeError, UnicodeEncodeError):
                raise not_unicode(texts) from None
        return [np.array(encoding.ids, np.int32) for encoding in encodings]

    def _read_vocabulary(self, content: dict[str, Any]) -> Vocabulary:
        names = {i: name for name, i in self._tokenizer.get_vocab().items()}
        size = max(names, default=-1) + 1
        found = _find_roles(self._tokenizer.token_to_id, content["model"])
        special = complete_special(found, size)
        added = {entry["id"]: entry for entry in content.get("added_tokens") or ()}
        reserved = [i for i, entry in added.items() if entry.get("special")]
        reserved += set(range(size)) - set(names)
        if self._is_byte_level:
            characters = _byte_characters()
            pieces = [
                _piece_bytes(names.get(i, ""), characters if i not in added else {})
                for i in range(size)
            ]
        else:
            pieces = self._decoded_pieces([names.get(i, "") for i in range(size)])
        return Vocabulary(pieces, special, reserved)

    def _decoded_pieces(self, names: Sequence[str]) -> list[bytes]:
        """What each id adds to a text: a decoder may treat the first one in its way."""
        library = self._tokenizer
        ids = range(len(names))
        alone = library.decode_batch([[i] for i in ids], skip_special_tokens=False)
        first = next((i for i in ids if re.fullmatch("[A-Za-z]+", alone[i])), None)
        pairs = [[first, i] if first is not None else [i] for i in ids]
        both = library.decode_batch(pairs, skip_special_tokens=False)
        start = alone[first] if first is not None else ""
        pieces = []
        for i in ids:
            if byte := _BYTE_PIECE.fullmatch(names[i]):
                pieces.append(bytes([int(byte[1], 16)]))
            else:
                text = both[i] if both[i].startswith(start) else start + alone[i]
                pieces.append(text.removeprefix(start).encode())
        return pieces


def read_tokenizer_json(path: str | Path) -> bytes:
    """Reads a tokenizer.json, or that of a folder. Raises OSError."""
    path = Path(path).expanduser()
    return (path / _FILE if path.is_dir() else path).read_bytes()


def build_gpt2(folder: str | Path, where: str) -> bytes:
    """Makes a tokenizer.json of GPT-2's two files, vocab.json and merges.txt.

    Raises:
      OSError: a file can't be read.
      UserError: the files are not what their names say.
    """
    paths = [Path(folder).expanduser() / name for name in _GPT2_FILES]
    vocabulary, _ = (path.read_bytes() for path in paths)  # OSError names the file
    library = tokenizers_library()
    with _Explained(where):
        _check_ids(json_text.parse(vocabulary))
        model = library.models.BPE.from_file(*map(str, paths))
        tokenizer = library.Tokenizer(model)
    tokenizer.pre_tokenizer = library.pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = library.decoders.ByteLevel()
    names = find_special(tokenizer.token_to_id)
    tokenizer.add_special_tokens([tokenizer.id_to_token(i) for i in names.values()])
    return tokenizer.to_str().encode()


def download(name: str, where: str) -> bytes:
    """Fetches the tokenizer.json of "owner/name" or "owner/name@revision".

    Raises:
      UserError: there is none, or the hub can't be reached.
    """
    hub = require("huggingface_hub", extra="hf", what="tokenizer.kind=hub")
    errors = importlib.import_module("huggingface_hub.errors")
    repository, _, revision = name.partition("@")
    try:
        path = hub.hf_hub_download(repository, _FILE, revision=revision or None)
        return Path(path).read_bytes()
    except errors.LocalEntryNotFoundError as error:
        what = "The Hugging Face hub can't be reached, and nothing is in its cache."
        remedy = (
            f"check the network, or download {_FILE} elsewhere and set "
            "tokenizer.kind=huggingface and tokenizer.path to the file."
        )
        raise UserError(what, where=where, remedy=remedy) from error
    except errors.EntryNotFoundError as error:
        raise UserError(
            f"This repository of the Hugging Face hub has no {_FILE}.",
            where=where,
            remedy="take one that has it; other formats of tokenizers are read from "
            "files, see tokenizer.kind.",
        ) from error
    except (OSError, ValueError) as error:
        first_line = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise UserError(
            f"The tokenizer can't be downloaded: {first_line}",
            where=where,
            remedy="write owner/name or owner/name@revision as on huggingface.co, and "
            "log in (hf auth login) if the repository is not public.",
        ) from error


def tokenizers_library() -> ModuleType:
    """The package `tokenizers`."""
    return require("tokenizers", extra="hf", what="A Hugging Face tokenizer")


class _Explained:
    """Explains what a file that is no good tokenizer leads to.

    The library raises plain `Exception`, and where it panics, what is no Exception.
    """

    def __init__(self, where: str):
        self._where = where

    def __enter__(self) -> None: ...

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if kind is None or issubclass(kind, UserError):
            return
        panics = kind.__name__ == "PanicException"
        if kind is Exception or panics or issubclass(kind, _MALFORMED):
            raise _not_a_tokenizer(self._where, f": {error}") from error


def _not_a_tokenizer(where: str, reason: str = "") -> UserError:
    return UserError(
        f"The tokenizer is not one of Hugging Face, or can not work{reason}.",
        where=where,
        remedy=f"give a {_FILE} written by the package tokenizers, or set "
        "tokenizer.kind to what the file is.",
    )


def _parse(model: bytes, where: str) -> dict[str, Any]:
    """The content of a tokenizer.json, less what would add to the ids of a text."""
    try:
        content = json_text.parse(model)
    except ValueError:
        raise _not_a_tokenizer(where) from None
    if not isinstance(content, dict) or not isinstance(content.get("model"), dict):
        raise _not_a_tokenizer(where)
    return content | {"truncation": None, "padding": None, "post_processor": None}


def _check_ids(vocabulary: Any) -> None:
    """Raises ValueError for ids that the library would make far too much room for.

    Args:
      vocabulary: ids by name; another kind of it numbers its pieces by their places.
    """
    ids = vocabulary.values() if isinstance(vocabulary, dict) else ()
    for i in ids:
        if type(i) is not int or not 0 <= i < _MOST_HOLES + 2 * len(ids):
            raise ValueError(f"a vocabulary of {len(ids):,} names has the id {i!r}")


def _find_roles(find: Any, model: dict[str, Any]) -> dict[str, int]:
    """Special ids by role; the model knows best what is unknown."""
    found = find_special(find)
    unk = model.get("unk_id")
    if model.get("unk_token") is not None:
        unk = find(model["unk_token"])
    return found | ({} if unk is None else {"unk": unk})


def _steps(part: dict[str, Any] | None) -> Iterator[str]:
    """Names of a decoder and of those in it."""
    if part:
        yield part["type"]
        for inner in part.get("decoders", ()):
            yield from _steps(inner)


def _byte_characters() -> dict[str, int]:
    """The character that byte-level vocabularies write for each byte.

    Printable Latin-1 stands for itself; the others follow from U+0100 on.
    """
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    characters = {chr(byte): byte for byte in printable}
    return characters | {chr(0x100 + i): byte for i, byte in enumerate(others)}


def _piece_bytes(name: str, characters: dict[str, int]) -> bytes:
    if all(c in characters for c in name):
        return bytes(characters[c] for c in name)
    return name.encode()  # an added token, as it is in the text
