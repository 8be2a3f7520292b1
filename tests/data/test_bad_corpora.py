"""Corpora that can't be used, as a user meets them: told, and nothing half done left.

Every case goes through `experiment.prepare_corpus`. What is wrong, where and what to do
are all said, and the cache holds nothing that a later run would take for whole.
"""

import gzip
import io
import json
import os
import pickle
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import zstandard

from lmjax import experiment
from lmjax.config.schema import (
    Config,
    DataConfig,
    DataFormat,
    TokenDtype,
    TokenizerConfig,
    TokenizerKind,
)
from lmjax.core.errors import UserError
from lmjax.data.preparation import prepare as prepare_module
from lmjax.data.preparation.manifest import Prepared
from lmjax.data.reading import hub
from lmjax.data.tokenization.tokenizers import tokenizer_from_bytes
from lmjax.data.tokenization.training import train_tokenizer

ROOT = Path(__file__).parents[2]
TWO_DOCUMENTS = Path(__file__).parent / "reading" / "fixtures" / "two_documents.bin"
TEXT = b"".join(b"This is document %d of the corpus.\n\n" % i for i in range(40))
IDS = [5 + byte for byte in b"some words, in bytes"] + [2]  # and the end


def _prepare(file: Path, **changes: Any) -> Prepared:
    """Prepares a corpus of one file, with one id per byte.

    Args:
      changes: fields by name, such as data__valid.
    """
    config = Config(
        tokenizer=TokenizerConfig(kind=TokenizerKind.BYTES),
        data=DataConfig(
            train=(str(file),),
            sequence_length=16,
            cache_dir=str(file.parent / "cache"),
        ),
    )
    for name, value in changes.items():
        section, _, field = name.partition("__")
        setattr(getattr(config, section), field, value)
    return experiment.prepare_corpus(config)


def _refused(file: Path, *told: str, status: int = 1, **changes: Any) -> UserError:
    """Checks that preparation ends with these words in its message."""
    with pytest.raises(UserError) as caught:
        _prepare(file, **changes)
    error = caught.value
    assert error.status == status
    assert error.what and error.where and error.remedy, str(error)
    for part in told:
        assert part in str(error)
    _nothing_looks_whole(file.parent / "cache")
    return error


def _nothing_looks_whole(cache: Path) -> None:
    left = [path for path in cache.rglob("*") if path.is_file()]
    assert not [path for path in left if path.name == "manifest.json"]
    assert not [path for path in left if path.suffix == ".parquet"]
    assert not [path for path in left if path.name.startswith(".")]


def _raw(ids: list[int], dtype: str) -> bytes:
    return np.array(ids, dtype).tobytes()


def _zip(**members: bytes) -> bytes:
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as archive:
        for name, data in members.items():
            archive.writestr(name, data)
    return content.getvalue()


class Bad(NamedTuple):
    name: str  # of the file
    content: bytes
    told: tuple[str, ...]
    changes: dict[str, Any] = {}  # noqa: RUF012
    status: int = 1


WRONG = {
    "a PDF": Bad("x.txt", b"%PDF-1.7\n" + TEXT, ("a PDF file", "convert it")),
    "an array": Bad("x.bin", b"\x93NUMPY\1\0" + bytes(99), ("a NumPy array",)),
    "an archive": Bad("x.txt", _zip(a=TEXT), ("a zip archive", "data.format")),
    "UTF-16": Bad("x.txt", TEXT.decode().encode("utf-16"), ("UTF-16", "iconv")),
    "noise": Bad("x.txt", bytes(range(256)) * 20, ("binary data", "Known are")),
    "no JSON Lines": Bad("x.json", b"[1]\n", ("not JSON Lines", "jq")),
    "another field": Bad(
        "x.jsonl", b'{"body": "a"}\n', ("'text' is missing", "data.text_field", "body")
    ),
    "a broken line": Bad("x.jsonl", b'{"text": "a"}\n{"te\n', ("line 2", "not JSON")),
    "not UTF-8": Bad(
        "x.txt",
        TEXT + b"caf\xe9 au lait\n",
        (f"line 81, byte {len(TEXT) + 3}", "0xe9", "data.replace_invalid_utf8"),
    ),
    "not UTF-8 in JSON": Bad(
        "x.jsonl", b'{"text": "a"}\n{"text": "\xe9"}\n', ("line 2, byte 24",)
    ),
    "ids beyond the vocabulary": Bad(
        "x.bin",
        _raw([*IDS, 300], "<u2"),
        (f"id {len(IDS) + 1}", "The id 300 is not one of the 261", "tokenizer.path"),
        {"data__token_dtype": TokenDtype.UINT16},
    ),
    "ids of 32 bits read as 16": Bad(
        "x.bin",
        _raw([70_000] * 9, "<u4"),
        ("not one of the 261", "data.token_dtype"),
        {"data__token_dtype": TokenDtype.UINT16},
    ),
    "tensors beyond the vocabulary": Bad(
        "x.bin", TWO_DOCUMENTS.read_bytes(), ("document 2, id 2", "The id 40000")
    ),
    "negative ids": Bad(
        "x.txt", b"5 6 7\n8 -9\n", ("line 2, id 2", "The id -9 is not one of the 261")
    ),
    "special ids": Bad(
        "x.txt", b"5 6 7\n8 4 9\n", ("line 2, id 2", "special id 4", "the mask")
    ),
    "ids of unclear width": Bad(
        "x.bin", _raw([0] * 8, "<u2"), ("can't be told", "data.token_dtype")
    ),
    "ids without their tokenizer": Bad(
        "x.bin",
        _raw(IDS, "<u2"),
        ("needs its tokenizer", "tokenizer.path"),
        {"tokenizer__kind": TokenizerKind.SENTENCEPIECE},
    ),
    "no ids of this tokenizer": Bad(
        "x.bin", _raw([5 + 0xFF] * 40, "<u2"), ("does not match", "tokenizer.path")
    ),
    "nothing": Bad("x.txt", b"", ("no text in the corpus", "data.train")),
    "blank lines": Bad("x.txt", b"\n \n\t\n", ("no text in the corpus", "x.txt")),
    "no document": Bad("x.txt", b"2 2\n2\n", ("no text in the corpus", "x.txt")),
    "blank records": Bad("x.jsonl", b'{"text": " "}\n', ("no text in the corpus",)),
    "a model of another kind": Bad(
        "x.txt",
        TEXT,
        ("not a SentencePiece model", "tokenizer.kind"),
        {
            "tokenizer__kind": TokenizerKind.SENTENCEPIECE,
            "tokenizer__path": str(TWO_DOCUMENTS),
        },
    ),
    "no name of a tokenizer": Bad(
        "x.txt",
        TEXT,
        ("gpt2 is not trained", "tokenizer.path"),
        {"tokenizer__kind": TokenizerKind.GPT2},
        2,
    ),
    "too few ids": Bad(
        "x.txt",
        TEXT,
        ("at least", "tokenizer.vocab_size"),
        {"tokenizer__kind": TokenizerKind.SENTENCEPIECE, "tokenizer__vocab_size": 9},
        2,
    ),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_file_that_is_wrong(name: str, tmp_path: Path) -> None:
    bad = WRONG[name]
    file = tmp_path / bad.name
    file.write_bytes(bad.content)
    _refused(file, *bad.told, status=bad.status, **bad.changes)


@pytest.mark.parametrize("stored", ["text", "ids", "records"])
def test_nothing_to_validate_on(stored: str, tmp_path: Path) -> None:
    name, content = {
        "text": ("v.txt", b"\n \n"),
        "ids": ("v.bin", _raw([2, 2, 2], "<u2")),
        "records": ("v.jsonl", b'{"text": ""}\n'),
    }[stored]
    (tmp_path / "x.txt").write_bytes(TEXT)
    (tmp_path / name).write_bytes(content)
    told = ("no text to validate on", "data.valid", name)
    _refused(tmp_path / "x.txt", *told, data__valid=(str(tmp_path / name),))


ASKED = {
    DataFormat.PARQUET: ("Parquet file is damaged",),
    DataFormat.JSON_LINES: ("line 1", "not JSON"),
    DataFormat.TORCH: ("torch.save",),
    DataFormat.TOKEN_TEXT: ("'This' is not a token id", "byte 0", "data.format=text"),
    DataFormat.TOKEN_IDS: ("data.token_dtype",),
}


@pytest.mark.parametrize("asked", ASKED, ids=lambda asked: asked.value)
def test_text_that_is_said_to_be_something_else(
    asked: DataFormat, tmp_path: Path
) -> None:
    if asked is DataFormat.PARQUET:
        pytest.importorskip("pyarrow")
    (tmp_path / "x.txt").write_bytes(TEXT)
    told = (str(tmp_path / "x.txt"), *ASKED[asked])
    _refused(tmp_path / "x.txt", *told, data__format=asked)


def test_tensors_that_are_said_to_be_text(tmp_path: Path) -> None:
    _refused(
        _copy(TWO_DOCUMENTS, tmp_path),
        "not UTF-8 text",
        data__format=DataFormat.TEXT,
    )


def _copy(file: Path, folder: Path) -> Path:
    (folder / file.name).write_bytes(file.read_bytes())
    return folder / file.name


def _canary(file: Path) -> Any:
    class Reduced:
        def __reduce__(self) -> tuple:
            return os.system, (f"touch {file}",)

    return Reduced()


@pytest.mark.parametrize("stored", ["pickle", "torch"])
@pytest.mark.parametrize("asked", [DataFormat.AUTO, DataFormat.TORCH])
def test_a_pickle_that_wants_more_than_tensors_runs_nothing(
    stored: str, asked: DataFormat, tmp_path: Path
) -> None:
    canary = tmp_path / "canary"
    content = pickle.dumps([_canary(canary)])
    if stored == "torch":
        members = {"a/data.pkl": content, "a/version": b"3\n"}
        content = _zip(**members)
    (tmp_path / "x.bin").write_bytes(content)
    error = _refused(tmp_path / "x.bin", "x.bin", data__format=asked)
    assert "torch.save(" in error.remedy
    if stored == "torch":
        assert f"asks for {os.name}.system" in error.what
    assert not canary.exists()


def _damage(kind: str, folder: Path) -> tuple[Path, bytes, str]:
    """A file of a kind, its content, and the word that says it is damaged."""
    match kind:
        case "gz":
            return folder / "x.txt.gz", gzip.compress(TEXT), "compressed file"
        case "zst":
            content = zstandard.ZstdCompressor().compress(TEXT)
            return folder / "x.txt.zst", content, "compressed file"
        case "parquet":
            arrow = pytest.importorskip("pyarrow")
            table = arrow.table({"text": TEXT.decode().split("\n\n")})
            sink = io.BytesIO()
            pytest.importorskip("pyarrow.parquet").write_table(table, sink)
            return folder / "x.parquet", sink.getvalue(), "Parquet file"
        case "torch":
            return folder / "x.bin", TWO_DOCUMENTS.read_bytes(), "The file"
    raise ValueError(kind)


@pytest.mark.parametrize("cut", [0.4, 0.98])
@pytest.mark.parametrize("kind", ["gz", "zst", "parquet", "torch"])
def test_a_file_that_was_cut_off(kind: str, cut: float, tmp_path: Path) -> None:
    file, content, named = _damage(kind, tmp_path)
    file.write_bytes(content[: int(cut * len(content))])
    _refused(file, named, "damaged or incomplete", str(file))


def test_raw_ids_that_were_cut_off(tmp_path: Path) -> None:
    (tmp_path / "x.bin").write_bytes(_raw(IDS, "<u2")[:-1])
    _refused(tmp_path / "x.bin", "no multiple", "complete")


def test_a_cut_off_file_is_prepared_when_it_is_whole_again(tmp_path: Path) -> None:
    content = gzip.compress(TEXT)
    (tmp_path / "x.txt.gz").write_bytes(content[:-20])
    _refused(tmp_path / "x.txt.gz", "damaged or incomplete")
    (tmp_path / "x.txt.gz").write_bytes(content)
    prepared = _prepare(tmp_path / "x.txt.gz")
    assert prepared.train.counts.documents + prepared.valid.counts.documents == 40


def test_mixed_dtypes_of_a_sidecar_and_the_config(tmp_path: Path) -> None:
    (tmp_path / "x.bin").write_bytes(_raw(IDS, "<u2"))
    (tmp_path / "x.bin.json").write_text('{"dtype": "uint16"}')
    told = ("Mixed dtypes", "uint32", "uint16", "x.bin.json", "data.token_dtype")
    _refused(tmp_path / "x.bin", *told, data__token_dtype=TokenDtype.UINT32)


def test_mixed_dtypes_of_tensors(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    tensors = [torch.tensor(IDS, dtype=dtype) for dtype in (torch.int16, torch.int32)]
    torch.save(tensors, tmp_path / "x.bin")
    _refused(tmp_path / "x.bin", "mixes", "torch.save(")


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Two tokenizers of as many ids, trained on different text."""
    folder = tmp_path_factory.mktemp("models")
    for name, text in (("one", "a cat sees a dog"), ("two", "where were those then")):
        config = TokenizerConfig(vocab_size=290)
        (folder / name).write_bytes(train_tokenizer(config, [text] * 50))
    return folder / "one", folder / "two"


@pytest.mark.parametrize("role", ["train", "valid"])
def test_ids_of_another_tokenizer(
    role: str, models: tuple[Path, Path], tmp_path: Path
) -> None:
    """As many ids, all in range: only their text tells."""
    right, wrong = (tokenizer_from_bytes(model.read_bytes()) for model in models)
    for name in ("train", "valid"):
        made = wrong if name == role else right
        ids = made.encode(f"where were those cats then? in {name}, where a dog sees")
        (tmp_path / f"{name}.txt").write_text(" ".join(map(str, ids)))
    _refused(
        tmp_path / "train.txt",
        "does not match the ids",
        f"{role}.txt",
        "tokenizer.path",
        data__valid=(str(tmp_path / "valid.txt"),),
        tokenizer__kind=TokenizerKind.SENTENCEPIECE,
        tokenizer__path=str(models[0]),
    )


def test_a_gpt2_tokenizer_without_its_merges(tmp_path: Path) -> None:
    pytest.importorskip("tokenizers")
    (tmp_path / "x.txt").write_bytes(TEXT)
    (tmp_path / "gpt2").mkdir()
    (tmp_path / "gpt2" / "vocab.json").write_text('{"a": 0}')
    _refused(
        tmp_path / "x.txt",
        "merges.txt",
        "No such file",
        "tokenizer.path",
        tokenizer__kind=TokenizerKind.GPT2,
        tokenizer__path=str(tmp_path / "gpt2"),
    )


def test_a_tokenizer_on_a_hub_that_does_not_answer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    library = pytest.importorskip("huggingface_hub")
    errors = pytest.importorskip("huggingface_hub.errors")

    def fail(*_: Any, **__: Any) -> str:
        raise errors.LocalEntryNotFoundError("no connection")

    monkeypatch.setattr(library, "hf_hub_download", fail)
    (tmp_path / "x.txt").write_bytes(TEXT)
    _refused(
        tmp_path / "x.txt",
        "can't be reached",
        "owner/name",
        "tokenizer.kind=huggingface",
        tokenizer__kind=TokenizerKind.HUB,
        tokenizer__path="owner/name",
    )


def test_a_dataset_on_a_hub_that_does_not_answer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("datasets")
    waited = []

    def fail(_: hub.DatasetSpec) -> str:
        raise ConnectionError("name resolution failed")

    monkeypatch.setattr(hub, "_resolve", fail)
    monkeypatch.setattr(hub.time, "sleep", waited.append)
    told = ("can't be fetched", "name resolution failed", "huggingface.co", "network")
    _refused(tmp_path / "x", *told, data__train=("hf://owner/name",))
    assert waited == list(hub._WAITS)


def test_a_dataset_whose_stream_breaks_off(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    datasets = pytest.importorskip("datasets")

    def rows() -> Any:
        yield from ({"text": f"row {i}"} for i in range(3000))
        raise ConnectionError("reset by peer")

    def load(_: hub.DatasetSpec) -> Any:
        return datasets.IterableDataset.from_generator(rows)

    monkeypatch.setattr(hub, "_resolve", lambda _: "c0ffee")
    monkeypatch.setattr(hub, "_load", load)
    monkeypatch.setattr(hub.time, "sleep", lambda _: None)
    told = ("can't be fetched", "reset by peer")
    _refused(tmp_path / "x", *told, data__train=("hf://owner/name",))


def test_a_file_that_may_not_be_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The system's refusal is played: root may read everything."""
    file = tmp_path / "x.txt"
    file.write_bytes(TEXT)
    open_file = Path.open

    def refuse(path: Path, *arguments: Any, **options: Any) -> Any:
        if path == file:
            raise PermissionError(13, "Permission denied", str(path))
        return open_file(path, *arguments, **options)

    monkeypatch.setattr(Path, "open", refuse)
    _refused(file, "Permission denied", str(file), "permissions")


def _after(monkeypatch: pytest.MonkeyPatch, module: Any, name: str, act: Any) -> None:
    """Acts each time a function of a module has returned."""
    function: Callable[..., Any] = getattr(module, name)

    def then(*arguments: Any, **options: Any) -> Any:
        result = function(*arguments, **options)
        act()
        return result

    monkeypatch.setattr(module, name, then)


@pytest.mark.parametrize(
    ("module", "name"),
    [
        (experiment, "find_sources"),
        (prepare_module, "open_corpus"),
        (prepare_module, "_shaped_by"),
        (prepare_module, "scan"),
        (prepare_module, "assign"),
    ],
    ids=["when found", "when opened", "when hashed", "when read", "when split"],
)
def test_a_folder_that_vanishes(
    module: Any, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "corpus"
    folder.mkdir()
    (folder / "x.txt").write_bytes(TEXT)
    _after(monkeypatch, module, name, lambda: folder.rename(tmp_path / "elsewhere"))
    told = ("The corpus can't be read: No such file", str(folder / "x.txt"))
    _refused(
        folder, *told, data__train=(str(folder),), data__cache_dir=str(tmp_path / "c")
    )
    _nothing_looks_whole(tmp_path / "c")


def test_a_corpus_that_changes_while_it_is_prepared(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "x.txt"
    file.write_bytes(TEXT)

    def add() -> None:
        with file.open("ab") as handle:
            handle.write(b"\n\none more\n")

    _after(monkeypatch, prepare_module, "assign", add)
    _refused(file, "changed while it was prepared", "start again")


@pytest.mark.parametrize("name", ["x.txt", "x.jsonl"])
def test_what_is_not_utf8_is_replaced_only_if_asked_for(
    name: str, tmp_path: Path
) -> None:
    wrong = b"caf\xe9 au lait"
    file = tmp_path / name
    if name == "x.txt":
        file.write_bytes(TEXT + wrong + b"\n")
    else:
        file.write_bytes(b'{"text": "one"}\n{"text": "' + wrong + b'"}\n')
    _refused(file, "not UTF-8", "replace_invalid_utf8=true")
    prepared = _prepare(file, data__replace_invalid_utf8=True)
    manifest = json.loads((prepared.folder / "manifest.json").read_text("utf-8"))
    (reading,) = manifest["shaped_by"]["corpus"]["train"][name]
    assert reading["invalid_utf8"] == "replaced"
    (tmp_path / "y.txt").write_bytes(TEXT)
    prepared = _prepare(tmp_path / "y.txt")
    assert "invalid_utf8" not in (prepared.folder / "manifest.json").read_text("utf-8")


_ENDLESS = r"""
import re, sys
from pathlib import Path
from lmjax.config.schema import *
from lmjax.data.preparation.prepare import prepare
from lmjax.data.reading.sources import Source

folder = Path(sys.argv[1])
(folder / "valid.txt").write_text("a few words")
for megabytes in (10, 40):
    file = folder / "endless.txt"
    with file.open("w") as handle:
        for _ in range(megabytes):
            handle.write("word after word, on and on without an end " * 25_000)
    prepared = prepare(
        DataConfig(
            cache_dir=str(folder / "cache"),
            documents=DocumentUnit.FILE,
            shard_bytes=1_000_000,
            workers=1,
        ),
        TokenizerConfig(kind=TokenizerKind.BYTES),
        seed=0,
        train=[Source("endless", (file,))],
        valid=[Source("valid", (folder / "valid.txt",))],
        progress=False,
    )
    counts = prepared.train.counts
    assert (counts.documents, counts.bytes) == (1, file.stat().st_size), counts
    status = Path("/proc/self/status").read_text()
    print(re.search(r"VmHWM:\s+(\d+) kB", status)[1])
"""


def test_a_document_longer_than_memory_is_prepared_in_what_there_is(
    tmp_path: Path,
) -> None:
    """A line of 42 MB needs no more memory than one of 10 MB; it is all there."""
    # getrusage() would tell the most that this process ever took, if that is more.
    if not Path("/proc/self/status").exists():
        pytest.skip("needs the /proc of Linux")
    done = subprocess.run(
        [sys.executable, "-c", _ENDLESS, str(tmp_path)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=200,
    )
    assert done.returncode == 0, done.stderr
    small, large = (int(line) / 1024 for line in done.stdout.split())  # MiB
    assert large - small < 10
