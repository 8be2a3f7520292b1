"""Prepared records hold the corpus, all of it and once, and are found again."""

import dataclasses
import errno
import io
import json
import os
import random
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import sentencepiece
from absl import logging
from array_record.python import array_record_module

from lmjax.config.schema import (
    CleaningConfig,
    DataConfig,
    DocumentUnit,
    TokenDtype,
    TokenizerConfig,
    TokenizerKind,
)
from lmjax.core.errors import UserError
from lmjax.data.pipeline import Windows
from lmjax.data.preparation import corpus_tokenizer, shards
from lmjax.data.preparation import prepare as prepare_module
from lmjax.data.preparation.manifest import Prepared, check_shards, load_prepared
from lmjax.data.preparation.prepare import prepare
from lmjax.data.preparation.sharding import DOCUMENT_BYTES
from lmjax.data.reading import documents, token_readers
from lmjax.data.reading.formats import ReadOptions, open_reader
from lmjax.data.reading.sources import Source, find_sources
from lmjax.data.tokenization.training import train_tokenizer
from lmjax.data.tokenization.words import count_words

LENGTH = 16
WORDS = ("the", "a", "small", "old", "cat", "dog", "sees", "finds", "naïve", "«thé»")


def _sources(folder: Path, role: str = "train") -> list[Source]:
    return find_sources((str(folder),), role)


def _write_corpus(folder: Path, sizes: dict[str, int]) -> None:
    """Files of so many documents of random sentences, all different."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, num_documents in sizes.items():
        rng = random.Random(name)
        documents = [
            "\n".join(
                " ".join(rng.choices(WORDS, k=6)) + f" {name} {i}."
                for _ in range(rng.randint(1, 4))
            )
            for i in range(num_documents)
        ]
        (folder / name).write_text("\n\n".join(documents) + "\n", "utf-8")


@pytest.fixture
def corpus(tmp_path) -> Path:
    _write_corpus(tmp_path / "corpus", {"one.train": 40, "two.train": 7})
    return tmp_path / "corpus"


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    file = tmp_path_factory.mktemp("model") / "x.model"
    config = TokenizerConfig(vocab_size=290)
    file.write_bytes(train_tokenizer(config, [" ".join(WORDS)] * 50))
    return file


@pytest.fixture
def run(tmp_path, corpus, model):
    """Prepares the corpus; keywords change the config."""

    def run(
        *,
        train=None,
        valid=(),
        seed=0,
        path=None,
        vocab_size=320,
        cleaning=None,
        repair=False,
        **data,
    ) -> Prepared:
        defaults = {
            "sequence_length": LENGTH,
            "cache_dir": str(tmp_path / "cache"),
            "documents": DocumentUnit.BLOCK,
        }
        return prepare(
            DataConfig(**defaults | data),
            TokenizerConfig(
                path=str(model) if path is None else path, vocab_size=vocab_size
            ),
            CleaningConfig(**cleaning or {}),
            seed=seed,
            train=train or _sources(corpus),
            valid=valid,
            repair=repair,
        )

    return run


def _documents(prepared: Prepared, split: str) -> Counter[tuple[str, str]]:
    """(source, text) of every document that the records hold."""
    special = prepared.tokenizer.special
    found = Counter()
    windows = Windows(prepared, split)
    batch = windows.batch(range(len(windows)))
    for index, source in enumerate(prepared.sources):
        tokens = batch.tokens[batch.source == index].reshape(-1).tolist()
        document = []
        for token in tokens:
            if token == special.eos:
                found[source, prepared.tokenizer.decode(document)] += 1
                document = []
            elif token != special.pad:
                document.append(token)
        assert not document
    return found


def _read(folder: Path, role: str = "train", **options) -> Counter[tuple[str, str]]:
    found = Counter()
    options = ReadOptions(**{"documents": DocumentUnit.BLOCK} | options)
    for source in _sources(folder, role):
        for file in source.files:
            text = ""
            for document in open_reader(file, options).read():
                text += document.content
                if not document.continues:
                    found[source.name, text] += 1
                    text = ""
    return found


def _shard_files(folder: Path) -> dict[str, bytes]:
    return {f.name: f.read_bytes() for f in folder.glob("*") if f.is_file()}


def _no_temporaries(cache: Path) -> bool:
    return not [file for file in cache.rglob("*") if file.name.startswith(".")]


@pytest.fixture
def told(caplog):
    caplog.set_level("INFO", logger=logging.get_absl_logger().name)
    return caplog


def test_records_hold_every_document_once(run, corpus):
    prepared = run()
    train, valid = _documents(prepared, "train"), _documents(prepared, "valid")
    assert train + valid == _read(corpus)
    assert not train & valid


def test_every_source_is_in_both_splits(run):
    prepared = run()
    assert prepared.sources == ("one.train", "two.train")
    for split in (prepared.train, prepared.valid):
        assert [r.source for r in split.records] == ["one.train", "two.train"]
    counts = [r.counts.documents for r in prepared.valid.records]
    assert counts == [2, 1]  # 5 % of 40 and of 7, rounded up


def test_counts_are_those_of_the_documents(run):
    prepared = run()
    for split in ("train", "valid"):
        documents = _documents(prepared, split)
        counts = prepared.split(split).counts
        texts = [text for (_, text), n in documents.items() for _ in range(n)]
        assert counts.documents == len(texts)
        assert counts.words == sum(len(text.split()) for text in texts)
        assert counts.bytes == sum(len(text.encode()) for text in texts)
        assert counts.tokens == sum(
            len(prepared.tokenizer.encode(text)) + 1 for text in texts
        )
        windows = Windows(prepared, split)
        batch = windows.batch(range(len(windows)))
        assert counts.windows == len(windows)
        assert counts.tokens == batch.weights.sum()
        assert counts.words == batch.words.sum()
        assert counts.bytes == batch.bytes.sum()


def test_the_manifest_says_what_is_there(run):
    prepared = run()
    manifest = json.loads((prepared.folder / "manifest.json").read_text())
    assert manifest["tokenizer"]["identity"] == prepared.tokenizer.identity
    assert manifest["tokenizer"]["vocab_size"] == 290
    assert manifest["tokenizer"]["special"]["mask"] == 4
    assert manifest["layout"]["length"] == LENGTH
    totals = manifest["totals"]["train"]
    assert totals == dataclasses.asdict(prepared.train.counts)
    named = {
        s["file"] for n in manifest["splits"].values() for r in n for s in r["shards"]
    }
    assert named == {f.name for f in prepared.folder.glob("*.array_record")}
    reading = manifest["shaped_by"]["corpus"]["train"]["one.train"][0]
    assert (reading["format"], reading["documents"]) == ("text", "block")


def test_shards_hold_so_much_text(run, corpus):
    prepared = run(shard_bytes=1000)
    one = prepared.train.records[0]
    assert len(one.shards) > 3
    largest = max(len(text.encode()) for _, text in _read(corpus))
    for shard in one.shards[:-1]:
        size = shard.counts.bytes + DOCUMENT_BYTES * shard.counts.documents
        assert abs(size - 1000) <= largest + DOCUMENT_BYTES
    assert _documents(prepared, "train") + _documents(prepared, "valid") == _read(
        corpus
    )


def test_a_document_larger_than_a_shard_goes_on_in_the_next(run, corpus, monkeypatch):
    monkeypatch.setattr(documents, "MAX_PIECE_BYTES", 200)
    (corpus / "two.train").write_text("\n".join(f"line {i} of one" for i in range(99)))
    prepared = run(shard_bytes=500)
    shards = prepared.train.records[1].shards
    assert len(shards) > 2
    assert [shard.counts.documents for shard in shards] == [0] * (len(shards) - 1) + [1]
    ends = Windows(prepared, "train").batch(range(prepared.train.counts.windows))
    tokens = ends.tokens[ends.source == 1]
    assert (tokens == prepared.tokenizer.special.eos).sum() == 1
    text = prepared.tokenizer.decode(tokens.reshape(-1))
    assert text == (corpus / "two.train").read_text()
    words = sum(shard.counts.words for shard in shards)
    assert words == len(text.split())


def test_processes_write_what_one_writes(run, tmp_path):
    alone = run(shard_bytes=1000, workers=1)
    both = run(shard_bytes=1000, workers=2, cache_dir=str(tmp_path / "other"))
    assert both.sha256 == alone.sha256
    assert _shard_files(both.folder) == _shard_files(alone.folder)


def test_the_split_ignores_the_order_of_files(run, corpus, tmp_path):
    sources = _sources(corpus)
    forward = run(train=sources)
    backward = run(train=sources[::-1], cache_dir=str(tmp_path / "other"))
    assert forward.sha256 == backward.sha256


def test_a_source_of_several_files_is_one(run, corpus):
    source = Source("both", tuple(sorted(corpus.glob("*.train"))))
    prepared = run(train=[source])
    assert prepared.sources == ("both",)
    found = _documents(prepared, "train") + _documents(prepared, "valid")
    assert sorted(text for _, text in found) == sorted(t for _, t in _read(corpus))


def test_given_validation_files_are_used(run, corpus):
    _write_corpus(corpus, {"one.dev": 5})
    valid = _sources(corpus, "valid")
    prepared = run(valid=valid)
    assert _documents(prepared, "train") == _read(corpus)
    assert _documents(prepared, "valid") == _read(corpus, "valid")
    assert prepared.sources == ("one.dev", "one.train", "two.train")
    # Nothing is drawn, so another seed or share finds the same result.
    assert run(valid=valid, seed=5, valid_fraction=0.2).folder == prepared.folder


def test_a_file_in_both_splits_is_refused(run, corpus):
    (corpus / "copy.dev").write_bytes((corpus / "one.train").read_bytes())
    with pytest.raises(UserError, match="both") as caught:
        run(valid=_sources(corpus, "valid"))
    assert "copy.dev" in caught.value.where


@pytest.mark.parametrize("content", ["", "\n \n\t\n"])
def test_a_corpus_without_words_is_refused(run, corpus, content):
    for file in corpus.iterdir():
        file.write_text(content)
    with pytest.raises(UserError, match="no text") as caught:
        run()
    assert "data.train" in caught.value.where


def test_empty_files_in_both_splits_are_no_overlap(run, corpus):
    _write_corpus(corpus, {"one.dev": 5})
    for name in ("empty.train", "empty.dev"):
        (corpus / name).touch()
    prepared = run(valid=_sources(corpus, "valid"))
    assert prepared.valid.counts.documents == 5


def test_a_source_of_text_and_ids_is_refused(run, corpus, tmp_path):
    (tmp_path / "x.ids").write_bytes(bytes([9, 0, 9, 0, 2, 0]))
    files = (corpus / "one.train", tmp_path / "x.ids")
    with pytest.raises(UserError, match="both text and token ids") as caught:
        run(train=[Source("mixed", files)])
    assert f"{files[0]} is text, {files[1]} holds ids" in caught.value.where


@pytest.mark.parametrize("joint", ["", "\u2060", "\x07", "\x85", " ", "\u2060\x1c"])
def test_words_are_whole_where_a_document_is_cut(run, corpus, monkeypatch, joint):
    monkeypatch.setattr(documents, "MAX_PIECE_BYTES", 16)
    text = "a" * 16 + joint + "foo" + joint + "b" * 40 + joint + "\nend"
    (corpus / "two.train").write_text(f"{text}\n\nsecond one", newline="\n")
    prepared = run()
    counts = [
        records.counts.words
        for split in (prepared.train, prepared.valid)
        for records in split.records
        if records.source == "two.train"
    ]
    assert sum(counts) == count_words(text) + 2


def test_words_are_whole_where_ids_are_cut(run, tmp_path, monkeypatch):
    monkeypatch.setattr(token_readers, "MAX_PIECE_IDS", 10)
    letters = [5 + ord("a")] * 25
    hello = [5 + byte for byte in b"hello world"]
    for name, stream in (("train.ids", letters), ("val.ids", hello)):
        ids = np.array([*stream, 2, *hello, 2], "<u2")
        (tmp_path / name).write_bytes(ids.tobytes())
    prepared = prepare(
        DataConfig(
            sequence_length=LENGTH,
            cache_dir=str(tmp_path / "cache"),
            token_dtype=TokenDtype.UINT16,
        ),
        TokenizerConfig(kind=TokenizerKind.BYTES),
        seed=0,
        train=[Source("ids", (tmp_path / "train.ids",))],
        valid=[Source("ids", (tmp_path / "val.ids",))],
    )
    assert prepared.train.counts.words == 3
    assert prepared.valid.counts.words == 4


def test_an_empty_file_among_others_is_left_out(run, corpus, told):
    (corpus / "empty.train").write_text("\n")
    prepared = run()
    assert [r.source for r in prepared.train.records] == ["one.train", "two.train"]
    assert "empty.train (train) is empty" in told.text


def test_a_tokenizer_is_trained_on_what_is_not_held_out(run, monkeypatch):
    seen = []

    def train(config, texts):
        seen.extend(texts)
        return train_tokenizer(config, seen)

    monkeypatch.setattr(corpus_tokenizer, "train_tokenizer", train)
    prepared = run(path="")
    assert Counter(seen) == Counter(text for _, text in _documents(prepared, "train"))
    seen.clear()
    run(path="", sequence_length=LENGTH * 2)
    assert not seen  # the tokenizer is cached by itself
    run(path="", vocab_size=330)
    assert seen


def test_cleaning_is_applied_and_reported(run, corpus):
    with (corpus / "two.train").open("a") as handle:
        handle.write("\n\nshort\n\nthe  twice  told\n\nthe twice told\n")
    cleaning = {"whitespace": True, "min_words": 2, "exact_duplicates": True}
    prepared = run(cleaning=cleaning)
    found = _documents(prepared, "train") + _documents(prepared, "valid")
    assert found["two.train", "the twice told"] == 1
    assert ("two.train", "short") not in found
    removed = {
        "min_words": {"documents": 1, "words": 1},
        "exact_duplicates": {"documents": 1, "words": 3},
    }
    assert prepared.statistics["removed"] == {"train": {"two.train": removed}}
    rewritten = {"train": {"two.train": {"whitespace": 1}}}
    assert prepared.statistics["rewritten"] == rewritten
    assert prepared.folder != run().folder


def test_a_second_run_finds_the_first(run, monkeypatch):
    first = run()
    monkeypatch.delattr(prepare_module, "write_shard")
    monkeypatch.delattr(prepare_module, "scan")
    second = run()
    assert second.folder == first.folder
    assert second.train == first.train
    assert second.tokenizer.identity == first.tokenizer.identity


@pytest.mark.parametrize(
    "change",
    [
        {"sequence_length": 32},
        {"seed": 1},
        {"valid_fraction": 0.2},
        {"valid_words": 50},
        {"path": "", "vocab_size": 320},
        {"bos": True},
        {"documents": DocumentUnit.LINE},
        {"cleaning": {"min_words": 1}},
    ],
)
def test_what_shapes_the_records_shapes_their_place(run, change):
    assert run().folder != run(**change).folder


def test_a_corpus_that_moved_is_found_again(run, corpus, tmp_path):
    prepared = run()
    moved = corpus.rename(tmp_path / "elsewhere")
    assert run(train=_sources(moved)).folder == prepared.folder


def test_other_text_or_names_have_another_place(run, corpus):
    folders = {run().folder}
    (corpus / "two.train").rename(corpus / "new.train")
    folders.add(run().folder)
    with (corpus / "new.train").open("a") as handle:
        handle.write("more\n")
    folders.add(run().folder)
    assert len(folders) == 3


def _first_shard(folder: Path) -> Path:
    return min(folder.glob("*.array_record"))


def _truncate(folder: Path) -> None:
    shard = _first_shard(folder)
    os.truncate(shard, shard.stat().st_size - 1)


def _alter(folder: Path) -> None:
    shard = _first_shard(folder)
    content = bytearray(shard.read_bytes())
    content[-1] ^= 1
    shard.write_bytes(content)


def _cut_manifest(folder: Path) -> None:
    text = (folder / "manifest.json").read_text()
    (folder / "manifest.json").write_text(text[: len(text) // 2])


def _exchange_tokenizer(folder: Path) -> None:
    model = train_tokenizer(
        TokenizerConfig(vocab_size=280), ["another corpus of words"] * 50
    )
    (folder / "tokenizer.model").write_bytes(model)


SHARD = "train-000-00000.array_record"
DAMAGES = {
    "half a manifest": (_cut_manifest, "manifest.json"),
    "truncated shard": (_truncate, SHARD),
    "missing shard": (lambda folder: _first_shard(folder).unlink(), SHARD),
    "no tokenizer": (lambda f: (f / "tokenizer.model").write_bytes(b"x"), "tokenizer"),
    "other tokenizer": (_exchange_tokenizer, "tokenizer.model"),
}


@pytest.mark.parametrize("damage, named", DAMAGES.values(), ids=DAMAGES)
def test_a_damaged_folder_stops_the_run_and_is_repaired(run, damage, named):
    prepared = run()
    before = _shard_files(prepared.folder)
    damage(prepared.folder)
    with pytest.raises(UserError) as caught:
        run()
    assert named in str(caught.value)
    assert "--mode prepare" in str(caught.value)
    repaired = run(repair=True)
    assert repaired.folder == prepared.folder
    assert _shard_files(repaired.folder) == before
    assert run().sha256 == prepared.sha256


def test_an_altered_shard_is_found_by_its_checksum(run):
    prepared = run()
    assert check_shards(prepared) == []
    before = _shard_files(prepared.folder)
    _alter(prepared.folder)
    (problem,) = check_shards(run())  # its size is right
    assert SHARD in problem and "checksum" in problem
    run(repair=True)
    assert _shard_files(prepared.folder) == before


def test_a_repair_that_was_killed_is_taken_up_again(run):
    prepared = run()
    before = _shard_files(prepared.folder)
    _alter(prepared.folder)
    (prepared.folder / "notes" / "train-000-00000.json").unlink()
    assert len(check_shards(run())) == 1
    run(repair=True)
    assert _shard_files(prepared.folder) == before


def test_repair_keeps_whole_shards(run, told):
    prepared = run(shard_bytes=1000)
    times = {f: f.stat().st_mtime_ns for f in prepared.folder.glob("*.array_record")}
    _truncate(prepared.folder)
    run(shard_bytes=1000, repair=True)
    changed = [f.name for f, time in times.items() if f.stat().st_mtime_ns != time]
    assert changed == [SHARD]


def test_an_unfinished_folder_is_gone_on_with(run, told):
    prepared = run(shard_bytes=1000)
    before = _shard_files(prepared.folder)
    (prepared.folder / "manifest.json").unlink()
    _first_shard(prepared.folder).unlink()
    assert load_prepared(prepared.folder) is None
    run(shard_bytes=1000)
    assert _shard_files(prepared.folder) == before
    total = len(list(prepared.folder.glob("*.array_record")))
    assert f"{total - 1} shards are there already" in told.text


class _Failing:
    """An ArrayRecordWriter that fails at its third record."""

    error: BaseException = RuntimeError()

    def __init__(self, *args):
        self._writer = array_record_module.ArrayRecordWriter(*args)
        self._left = 3

    def write(self, record: bytes) -> None:
        self._left -= 1
        if not self._left:
            self._writer.close()
            raise self.error
        self._writer.write(record)

    def close(self) -> None:
        self._writer.close()


@pytest.fixture
def fail_writing(monkeypatch):
    def fail(error: BaseException) -> None:
        monkeypatch.setattr(_Failing, "error", error)
        fake = type("fake", (), {"ArrayRecordWriter": _Failing})
        monkeypatch.setattr(shards, "array_record_module", fake)

    return fail


def test_a_full_disk_is_explained(run, tmp_path, fail_writing):
    message = f"write() failed: {os.strerror(errno.ENOSPC)}; writing x"
    fail_writing(RuntimeError(message))
    with pytest.raises(UserError, match=r"disk is full.* 1 MB") as caught:
        run()
    assert caught.value.where == str(tmp_path / "cache")
    assert "data.cache_dir" in caught.value.remedy
    assert _no_temporaries(tmp_path / "cache")


def test_an_interrupt_leaves_no_half_a_shard(run, tmp_path, fail_writing):
    fail_writing(KeyboardInterrupt())
    with pytest.raises(KeyboardInterrupt):
        run()
    assert _no_temporaries(tmp_path / "cache")
    assert not list((tmp_path / "cache").rglob("*.array_record"))


def test_a_place_that_can_not_be_written_is_explained(run, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="can't be written") as caught:
        run(cache_dir=str(tmp_path / "file"))
    assert "data.cache_dir" in caught.value.remedy


def test_a_tokenizer_that_rewrites_text_is_reported(run, corpus, tmp_path, told):
    written = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter([" ".join(WORDS)] * 50),
        model_writer=written,
        vocab_size=50,
        hard_vocab_limit=False,
        pad_id=3,
        control_symbols=["<mask>"],
        minloglevel=2,
    )
    (tmp_path / "foreign.model").write_bytes(written.getvalue())
    prepared = run(path=str(tmp_path / "foreign.model"))
    assert "does not keep the text" in told.text
    assert prepared.layout.count_dtype == "<u4"
    expected = sum(len(text.split()) * n for (_, text), n in _read(corpus).items())
    assert prepared.train.counts.words + prepared.valid.counts.words == expected


def test_babylm_is_conserved(shared_data, tmp_path):
    """Every word, token and document of the six files, as the tools at hand count."""
    folder = tmp_path / "babylm"
    folder.mkdir()
    for file in sorted((shared_data / "corpus" / "babylm" / "train").iterdir()):
        with file.open(encoding="utf-8", newline="\n") as handle:
            text = handle.read(100_000)
        (folder / file.name).write_bytes(text.encode())
    prepared = prepare(
        DataConfig(sequence_length=64, cache_dir=str(tmp_path / "cache")),
        TokenizerConfig(vocab_size=1000),
        seed=0,
        train=_sources(folder),
    )
    assert prepared.folder.name.startswith("babylm-")
    for file in folder.iterdir():
        words = len(file.read_text("utf-8").split())
        records = [
            r
            for split in (prepared.train, prepared.valid)
            for r in split.records
            if r.source == file.name
        ]
        assert sum(r.counts.words for r in records) == words
    found = _documents(prepared, "train") + _documents(prepared, "valid")
    assert found == _read(folder, documents=DocumentUnit.AUTO)
