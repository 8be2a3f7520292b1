"""Of real text nothing is lost, added or changed on its way into the shards."""

import json
import os
import shutil
import subprocess
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import sentencepiece

from lmjax import experiment
from lmjax.config.schema import Config, DataConfig, TokenizerConfig
from lmjax.data.batch import Batch
from lmjax.data.pipeline import Windows
from lmjax.data.preparation.manifest import Prepared
from lmjax.data.tokenization.training import train_tokenizer

_SLICE_BYTES = 200_000  # of each file, to train the tokenizer on
_MANY = 4000  # windows at a time
SPLITS = ("train", "valid")


@pytest.fixture(scope="module")
def corpus(shared_data: Path) -> Path:
    folder = shared_data / "corpus" / "babylm" / "train"
    if not folder.is_dir():
        pytest.skip(f"needs the folder {folder}")
    return folder


@pytest.fixture(scope="module")
def prepared(corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Prepared:
    folder = tmp_path_factory.mktemp("conservation")
    model = TokenizerConfig(path=str(folder / "x.model"), vocab_size=2000)
    slices = [file.read_bytes()[:_SLICE_BYTES] for file in sorted(corpus.iterdir())]
    text = b"\n".join(slices).decode("utf-8", "ignore")
    Path(model.path).write_bytes(train_tokenizer(model, [text]))
    cache = str(folder / "cache")
    data = DataConfig(train=(str(corpus),), sequence_length=256, cache_dir=cache)
    return experiment.prepare_corpus(Config(tokenizer=model, data=data))


@pytest.fixture(scope="module")
def manifest(prepared: Prepared) -> dict[str, Any]:
    return json.loads((prepared.folder / "manifest.json").read_text("utf-8"))


def _counted(manifest: dict[str, Any], name: str) -> dict[str, int]:
    """What the manifest counts in both splits together, by file."""
    counted: Counter[str] = Counter()
    for split in SPLITS:
        for entry in manifest["splits"][split]:
            counted[entry["source"]] += entry["counts"][name]
    return dict(counted)


def _batches(prepared: Prepared, split: str) -> Iterator[Batch]:
    windows = Windows(prepared, split)
    for start in range(0, len(windows), _MANY):
        yield windows.batch(range(start, min(start + _MANY, len(windows))))


@pytest.fixture(scope="module")
def documents(prepared: Prepared) -> dict[tuple[str, str], list[np.ndarray]]:
    """Ids of every document in the windows, in order, by split and file."""
    special = prepared.tokenizer.special
    found = {}
    for split in SPLITS:
        tokens: dict[str, list[np.ndarray]] = {name: [] for name in prepared.sources}
        for batch in _batches(prepared, split):
            assert np.array_equal(batch.weights == 0, batch.tokens == special.pad)
            for index in np.unique(batch.source):
                rows = batch.tokens[batch.source == index]
                tokens[prepared.sources[index]].append(rows[rows != special.pad])
        for name, parts in tokens.items():
            stream = np.concatenate(parts)
            assert stream[-1] == special.eos
            ends = np.flatnonzero(stream == special.eos)
            parts = np.split(stream, ends + 1)[:-1]
            found[split, name] = [part[:-1] for part in parts]
    return found


def test_words_are_those_that_wc_counts(corpus: Path, manifest: dict[str, Any]) -> None:
    wc = shutil.which("wc")
    version = wc and subprocess.run([wc, "--version"], capture_output=True, text=True)
    if not version or "GNU coreutils" not in version.stdout:
        pytest.skip("needs GNU wc")
    files = sorted(file.name for file in corpus.iterdir())
    assert len(files) == 6
    done = subprocess.run(
        [wc, "-w", *files],
        cwd=corpus,
        env=os.environ | {"LC_ALL": "C.UTF-8"},
        capture_output=True,
        text=True,
        check=True,
    )
    rows = (line.split() for line in done.stdout.splitlines())
    expected = {name: int(number) for number, name in rows if name != "total"}
    assert _counted(manifest, "words") == expected


def test_decoding_gives_back_every_document(
    corpus: Path,
    prepared: Prepared,
    documents: dict[tuple[str, str], list[np.ndarray]],
) -> None:
    """Each is in its file byte for byte, behind the one before it in its split, and
    together they hold every line that is not blank, as often as the file does."""
    pieces = prepared.tokenizer.piece_bytes
    lines: dict[str, Counter[bytes]] = {name: Counter() for name in prepared.sources}
    for (_, name), found in documents.items():
        content, position = (corpus / name).read_bytes(), 0
        for ids in found:
            text = b"".join(map(pieces.__getitem__, ids.tolist()))
            place = content.find(text, position)
            assert place >= 0, (name, position, text[:80])
            position = place + len(text)
            lines[name].update(_lines(text))
    for name, found in lines.items():
        assert found == Counter(_lines((corpus / name).read_bytes())), name


def _lines(text: bytes) -> list[bytes]:
    return [line for line in text.split(b"\n") if line.decode().strip()]


def test_tokens_in_are_tokens_out(
    prepared: Prepared,
    manifest: dict[str, Any],
    documents: dict[tuple[str, str], list[np.ndarray]],
) -> None:
    """By SentencePiece itself, a document at a time; and one end for each."""
    processor = sentencepiece.SentencePieceProcessor(
        model_proto=prepared.tokenizer.model_bytes
    )
    tokens, numbers = Counter(), Counter()
    for (_, name), found in documents.items():
        texts = [prepared.tokenizer.decode(ids) for ids in found]
        tokens[name] += sum(map(len, processor.encode(texts))) + len(texts)
        numbers[name] += len(texts)
    assert _counted(manifest, "tokens") == tokens
    assert _counted(manifest, "documents") == numbers
    weights = sum(
        batch.weights.sum(dtype=np.int64)
        for split in SPLITS
        for batch in _batches(prepared, split)
    )
    assert weights == sum(tokens.values())


def test_bytes_and_words_of_the_windows_are_those_of_the_text(
    prepared: Prepared,
    manifest: dict[str, Any],
    documents: dict[tuple[str, str], list[np.ndarray]],
) -> None:
    words, sizes, expected = Counter(), Counter(), Counter()
    for split in SPLITS:
        for batch in _batches(prepared, split):
            for index in np.unique(batch.source):
                rows = batch.source == index
                words[prepared.sources[index]] += int(batch.words[rows].sum())
                sizes[prepared.sources[index]] += int(batch.bytes[rows].sum())
    pieces = np.array(list(map(len, prepared.tokenizer.piece_bytes)))
    for (_, name), found in documents.items():
        expected[name] += sum(int(pieces[ids].sum()) for ids in found)
    assert sizes == expected == _counted(manifest, "bytes")
    assert words == _counted(manifest, "words")
