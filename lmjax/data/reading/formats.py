"""A file of a corpus -> the reader for its format, recognised by its content."""

import dataclasses
import itertools
import json
import pickletools
import re
import zipfile
from pathlib import Path

from lmjax.config.schema import DataFormat, DocumentUnit, TokenDtype
from lmjax.core.errors import UserError
from lmjax.data.reading.documents import Reader
from lmjax.data.reading.files import compression, open_bytes, without_compressed_suffix
from lmjax.data.reading.record_readers import (
    PARQUET_MAGIC,
    JSONLinesReader,
    ParquetReader,
)
from lmjax.data.reading.text_reader import (
    BYTE_ORDER_MARK,
    TextReader,
    choose_unit,
    end_of_characters,
)
from lmjax.data.reading.token_readers import (
    IdRules,
    TokenIdsReader,
    TokenTextReader,
    TorchReader,
)
from lmjax.data.reading.torch_archive import (
    LEGACY_MAGIC,
    ZIP_ERRORS,
    refuse_pickle,
)

TOKEN_SUFFIXES = (".bin", ".ids", ".u16", ".u32")
JSON_SUFFIXES = (".json", ".jsonl", ".ndjson")
SUFFIXES = (".txt", *JSON_SUFFIXES, ".parquet", *TOKEN_SUFFIXES)

_SAMPLE_BYTES = 1024 * 1024
_ZIP_MAGIC = b"PK\x03\x04"
_UNKNOWN = (
    (b"%PDF", "a PDF file"),
    (b"\x93NUMPY", "a NumPy array"),
    (b"\x89HDF", "an HDF5 file"),
    (b"ARROW1", "an Arrow file"),
    (b"SQLite format 3\0", "an SQLite database"),
    (b"\xfd7zXZ\0", "an xz archive"),
    (b"BZh", "a bzip2 archive"),
    (b"7z\xbc\xaf\x27\x1c", "a 7-Zip archive"),
    (b"Rar!\x1a\x07", "a RAR archive"),
    (b"\x04\x22\x4d\x18", "an LZ4 archive"),
    (b"\x89PNG", "a picture"),
    (b"\xff\xd8\xff", "a picture"),
    (b"\x7fELF", "a program"),
)
_UTF16_MARKS = (b"\xff\xfe", b"\xfe\xff")
_TAR_MAGIC, _TAR_OFFSET = b"ustar", 257
_NUMBERS = re.compile(rb"[\s0-9-]*")
# Characters that text has no use for; a few may stray into it all the same.
_CONTROLS = bytes({*range(32), 127} - set(b"\t\n\v\f\r\x1b\x1c\x1d\x1e\x1f"))
_STRAY, _STRAY_SHARE = 8, 0.03
_MIN_OPCODES = 8  # of a pickle, unless it is over before
_MIN_TEXT_BYTES = 64  # fewer bytes without a control character may still be numbers


@dataclasses.dataclass(frozen=True, kw_only=True)
class ReadOptions:
    """What decides how a file is read besides its content; see DataConfig.

    Attributes:
      ids: what ids mean to the tokenizer; None if it is not known yet, and then files
        of ids can't be read.
    """

    format: DataFormat = DataFormat.AUTO
    documents: DocumentUnit = DocumentUnit.AUTO
    text_field: str = "text"
    prompt_field: str = ""
    token_dtype: TokenDtype = TokenDtype.AUTO
    replace_invalid_utf8: bool = False
    ids: IdRules | None = None


def open_reader(path: Path, options: ReadOptions) -> Reader:
    """Recognises a file, whatever its name, unless the options name the format.

    Raises:
      UserError: the file can't be read, or its format is not known.
    """
    with open_bytes(path) as handle:
        sample = handle.read(_SAMPLE_BYTES)
    kind = options.format
    if kind is DataFormat.AUTO:
        kind = _recognise(path, sample)
    records = (DataFormat.JSON_LINES, DataFormat.PARQUET)
    if options.prompt_field and sample and kind not in records:
        raise UserError(
            f"The file is read as {kind.value}, which has no field of prompts.",
            where=str(path),
            remedy="give JSON Lines or Parquet, or leave data.prompt_field empty.",
        )
    match kind:
        case DataFormat.TEXT:
            unit = options.documents
            if unit is DocumentUnit.AUTO:
                unit = choose_unit(_decode(sample))
            return TextReader(path, unit, options.replace_invalid_utf8)
        case DataFormat.JSON_LINES:
            return JSONLinesReader(
                path,
                options.text_field,
                options.replace_invalid_utf8,
                options.prompt_field,
            )
        case DataFormat.PARQUET:
            return ParquetReader.open(
                path,
                options.text_field,
                options.replace_invalid_utf8,
                options.prompt_field,
            )
        case DataFormat.TORCH:
            _refuse_pickles(path, sample)
            return TorchReader.open(path, _rules(path, options))
        case DataFormat.TOKEN_TEXT:
            return TokenTextReader.open(path, _rules(path, options), sample)
        case DataFormat.TOKEN_IDS:
            rules = _rules(path, options)
            return TokenIdsReader.open(path, rules, options.token_dtype, sample)


def _rules(path: Path, options: ReadOptions) -> IdRules:
    if options.ids is None:
        raise UserError(
            "Pre-tokenised input needs its tokenizer.",
            where=str(path),
            remedy="set tokenizer.kind and tokenizer.path to the one that made these "
            "ids; or data.format=text if the file is text.",
        )
    return options.ids


def _recognise(path: Path, sample: bytes) -> DataFormat:
    if not sample:
        return DataFormat.TEXT  # without a document
    if sample.startswith(PARQUET_MAGIC):
        return DataFormat.PARQUET
    if sample.startswith(_ZIP_MAGIC) and _is_torch(path):
        return DataFormat.TORCH
    _refuse_pickles(path, sample)
    _refuse_known(path, sample)
    name = without_compressed_suffix(path.name)
    text = sample.removeprefix(BYTE_ORDER_MARK)
    if _NUMBERS.fullmatch(text) and not text.isspace() and re.search(rb"[0-9]", text):
        return DataFormat.TOKEN_TEXT
    if name.endswith(TOKEN_SUFFIXES) and not _is_clean_text(text):
        return DataFormat.TOKEN_IDS
    controls = len(text) - len(text.translate(None, _CONTROLS))
    if controls > max(_STRAY, _STRAY_SHARE * len(text)):
        raise _unknown(path, "binary data")
    if _begins_with_object(text, name):
        return DataFormat.JSON_LINES
    if name.endswith(JSON_SUFFIXES) and text.strip():
        raise UserError(
            "The file is not JSON Lines: its first line is no JSON object.",
            where=str(path),
            remedy="write one object per line, e.g. jq -c '.[]' file.json > "
            "file.jsonl; or set data.format=text if it is text.",
        )
    return DataFormat.TEXT


def _is_torch(path: Path) -> bool:
    """Tells whether a zip archive is torch's; explains what it is, if it is not."""
    if compression(path):
        raise _unknown(path, "a compressed zip archive: unpack it first")
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
    except ZIP_ERRORS:
        return True  # whose reader says what is wrong
    if any(name.endswith("/data.pkl") for name in names):
        return True
    if names and all(name.endswith(".npy") for name in names):
        raise _unknown(path, "an archive of NumPy arrays")
    raise _unknown(path, "a zip archive")


def _refuse_pickles(path: Path, sample: bytes) -> None:
    if sample.startswith(LEGACY_MAGIC):
        raise refuse_pickle(path, "a pickle in torch's old format")
    if sample[:1] == b"\x80" and sample[1:2] in b"\x02\x03\x04\x05" and len(sample) > 2:
        # Ids may begin like that by chance, but not go on as one.
        try:
            for _ in itertools.islice(pickletools.genops(sample), _MIN_OPCODES):
                pass
        except ValueError:
            return
        raise refuse_pickle(path, "a pickle")


def _refuse_known(path: Path, sample: bytes) -> None:
    """Names files that are not for us, so that nobody takes them for text or ids."""
    for magic, kind in _UNKNOWN:
        if sample.startswith(magic):
            raise _unknown(path, kind)
    if sample[_TAR_OFFSET:].startswith(_TAR_MAGIC):
        raise _unknown(path, "a tar archive")
    if sample.startswith(_UTF16_MARKS) and len(sample) % 2 == 0:
        name = without_compressed_suffix(path.name)
        if not name.endswith(TOKEN_SUFFIXES):
            raise UserError(
                "The file is UTF-16 text.",
                where=str(path),
                remedy=f"convert it: iconv -f UTF-16 -t UTF-8 {path} > fixed.txt.",
            )


def _is_clean_text(text: bytes) -> bool:
    if len(text) < _MIN_TEXT_BYTES or text.translate(None, _CONTROLS) != text:
        return False
    try:
        text[: end_of_characters(text)].decode()
    except UnicodeDecodeError:
        return False
    return True


def _begins_with_object(text: bytes, name: str) -> bool:
    line, line_end, _ = text.lstrip().partition(b"\n")
    if not line.startswith(b"{"):
        return False
    try:
        return isinstance(json.loads(line.decode("utf-8", "replace")), dict)
    except (ValueError, RecursionError):
        # A first line that goes on behind the sample, or a broken one: its reader says.
        return name.endswith((".jsonl", ".ndjson")) or (
            name.endswith(JSON_SUFFIXES) and not line_end
        )


def _decode(sample: bytes) -> str:
    return sample.removeprefix(BYTE_ORDER_MARK).decode("utf-8", "replace")


def _unknown(path: Path, kind: str) -> UserError:
    known = "text, JSON Lines, Parquet, torch.save of a list of tensors, token ids"
    return UserError(
        f"The file seems to be {kind}, which is not read.",
        where=str(path),
        remedy=f"convert it, or take it out of the corpus. Known are {known} (in "
        "decimal or raw, as .bin or .ids), also as .gz and .zst. data.format says what "
        "the file is if this is wrong.",
    )
