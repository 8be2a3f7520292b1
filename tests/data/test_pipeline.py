"""Batches are a pure function of (seed, step), on any number of processes."""

import dataclasses
import itertools
import re
from pathlib import Path

import numpy as np
import pytest

from lmjax.config.schema import DataConfig, DocumentUnit, Packing, TokenizerConfig
from lmjax.core.errors import UserError
from lmjax.data import pipeline
from lmjax.data.batch import Batch
from lmjax.data.mixing import Mixture
from lmjax.data.pipeline import Windows, eval_batches, segment, train_batches
from lmjax.data.preparation.manifest import Prepared
from lmjax.data.preparation.prepare import prepare
from lmjax.data.reading.sources import find_sources

LENGTH = 8
# Those that are there without a document mask.
FIELDS = ["tokens", "weights", "words", "bytes", "source"]


@pytest.fixture(scope="module")
def prepared(tmp_path_factory) -> Prepared:
    """Some hundred windows of a large source, a few of a small one."""
    folder = tmp_path_factory.mktemp("corpus")
    for name, count in (("big.train", 150), ("small.train", 3)):
        documents = [f"{name} tells of {i * 7} cats\nand dogs" for i in range(count)]
        (folder / name).write_text("\n\n".join(documents))
    return prepare(
        DataConfig(
            sequence_length=LENGTH,
            cache_dir=str(folder / "cache"),
            documents=DocumentUnit.BLOCK,
        ),
        TokenizerConfig(vocab_size=290),
        seed=0,
        train=find_sources((str(folder),), "train"),
    )


@pytest.fixture(params=[True, False], ids=["in memory", "from disk"])
def place(request, monkeypatch) -> None:
    if not request.param:
        monkeypatch.setattr(pipeline, "MAX_BYTES_IN_MEMORY", 0)


def _take(iterator, count: int) -> list[Batch]:
    batches = list(itertools.islice(iterator, count))
    assert len(batches) == count
    return batches


def _same(a: Batch, b: Batch) -> bool:
    return all(np.array_equal(getattr(a, f), getattr(b, f)) for f in FIELDS)


def _joined(batches: list[Batch]) -> Batch:
    return Batch(
        **{f: np.concatenate([getattr(b, f) for b in batches]) for f in FIELDS}
    )


def _rows(batches: list[Batch]) -> list[bytes]:
    return sorted(row.tobytes() for batch in batches for row in batch.tokens)


def _all_rows(prepared: Prepared, split: str) -> list[bytes]:
    windows = Windows(prepared, split)
    return _rows([windows.batch(range(len(windows)))])


def test_fields_have_their_types_and_shapes(prepared, place):
    for batch in (
        next(train_batches(prepared, batch_size=4, seed=0)),
        next(eval_batches(prepared, batch_size=4)),
    ):
        assert {f: getattr(batch, f).dtype.name for f in FIELDS} == {
            "tokens": "int32",
            "weights": "float32",
            "words": "int32",
            "bytes": "int32",
            "source": "int32",
        }
        assert {getattr(batch, f).shape for f in FIELDS} == {(4, LENGTH), (4,)}


def test_tokens_decode_to_their_words_and_bytes(prepared, place):
    batch = Windows(prepared, "train").batch([0, 1, 2, 3])
    text = "".join(prepared.tokenizer.decode(row) for row in batch.tokens)
    assert re.match(r"big\.train tells of \d+ cats\nand dogs", text)
    assert batch.bytes.sum() == len(text.encode())
    assert batch.words[0, 0] == 1


def test_the_source_of_a_row_is_its_file(prepared, place):
    windows = Windows(prepared, "train")
    batch = windows.batch(range(len(windows)))
    for index, name in enumerate(prepared.sources):
        rows = batch.tokens[batch.source == index]
        text = prepared.tokenizer.decode(rows.reshape(-1))
        assert text.count(name) == prepared.train.records[index].counts.documents


def test_weights_leave_out_padding_alone(prepared):
    windows = Windows(prepared, "train")
    batch = windows.batch(range(len(windows)))
    assert np.array_equal(batch.weights == 0, batch.tokens == 3)
    assert 0 < (batch.weights == 0).sum() < 2 * LENGTH
    assert batch.weights.sum() == prepared.train.counts.tokens


def test_a_batch_depends_on_the_step_alone(prepared, place):
    batches = _take(train_batches(prepared, batch_size=5, seed=3), 40)
    for start in (0, 1, 17, 39):
        resumed = train_batches(prepared, batch_size=5, seed=3, start_step=start)
        for step, batch in enumerate(_take(resumed, 40 - start), start):
            assert _same(batch, batches[step])


def test_memory_and_disk_give_the_same(prepared, monkeypatch):
    in_memory = _take(train_batches(prepared, batch_size=5, seed=3), 10)
    monkeypatch.setattr(pipeline, "MAX_BYTES_IN_MEMORY", 0)
    from_disk = _take(train_batches(prepared, batch_size=5, seed=3), 10)
    assert all(map(_same, in_memory, from_disk))


@pytest.mark.parametrize("processes", [2, 4])
def test_processes_share_the_global_batch(prepared, processes):
    alone = _take(train_batches(prepared, batch_size=8, seed=1, start_step=30), 15)
    shares = [
        _take(
            train_batches(
                prepared,
                batch_size=8,
                seed=1,
                start_step=30,
                process_index=index,
                process_count=processes,
            ),
            15,
        )
        for index in range(processes)
    ]
    for batch, *parts in zip(alone, *shares, strict=True):
        assert {len(part.tokens) for part in parts} == {8 // processes}
        assert _same(batch, _joined(parts))


def test_processes_share_evaluation(prepared):
    alone = list(eval_batches(prepared, batch_size=8, split="train"))
    shares = [
        eval_batches(
            prepared, batch_size=8, split="train", process_index=i, process_count=2
        )
        for i in range(2)
    ]
    for batch, *parts in zip(alone, *shares, strict=True):
        assert _same(batch, _joined(parts))


def test_an_uneven_share_is_refused(prepared):
    with pytest.raises(ValueError, match="multiple"):
        train_batches(prepared, batch_size=5, seed=0, process_count=2)


def test_an_epoch_has_every_window_once(prepared, place):
    count = prepared.train.counts.windows
    iterator = train_batches(prepared, batch_size=1, seed=0)
    epochs = [_take(iterator, count) for _ in range(3)]
    expected = _all_rows(prepared, "train")
    for epoch in epochs:
        assert _rows(epoch) == expected
    orders = [[batch.tokens.tobytes() for batch in epoch] for epoch in epochs]
    assert orders[0] != orders[1] != orders[2] != orders[0]


def test_epochs_meet_within_a_batch(prepared):
    count = prepared.train.counts.windows
    batches = _take(train_batches(prepared, batch_size=7, seed=0), count)
    assert _rows(batches) == sorted(_all_rows(prepared, "train") * 7)


def test_seeds_give_different_orders(prepared):
    first, second = (
        next(train_batches(prepared, batch_size=16, seed=seed)) for seed in (0, 1)
    )
    assert not _same(first, second)
    next(train_batches(prepared, batch_size=2, seed=-1))  # any integer is a seed


def test_a_corpus_smaller_than_a_batch_works(prepared):
    count = prepared.train.counts.windows
    batch = next(train_batches(prepared, batch_size=count + 5, seed=0))
    assert set(_all_rows(prepared, "train")) == set(_rows([batch]))


@pytest.mark.parametrize("batch_size", [1, 3, 8, 1000])
def test_evaluation_reads_every_window_once(prepared, place, batch_size):
    batches = list(eval_batches(prepared, batch_size=batch_size))
    counts = prepared.valid.counts
    assert len(batches) == -(-counts.windows // batch_size)
    assert {batch.tokens.shape for batch in batches} == {(batch_size, LENGTH)}
    joined = _joined(batches)
    assert joined.weights.sum() == counts.tokens
    assert joined.words.sum() == counts.words
    assert joined.bytes.sum() == counts.bytes
    present = joined.weights.any(axis=1)
    assert present[: counts.windows].all() and not present[counts.windows :].any()
    windows = Windows(prepared, "valid")
    expected = windows.batch(range(counts.windows))
    assert np.array_equal(joined.tokens[present], expected.tokens)
    assert np.array_equal(joined.source[present], expected.source)


def test_evaluation_of_a_part_stands_for_all_sources(prepared):
    batches = list(eval_batches(prepared, batch_size=8, split="train", num_batches=3))
    assert len(batches) == 3
    joined = _joined(batches)
    windows = Windows(prepared, "train").per_source
    chosen = np.bincount(joined.source)
    assert chosen.sum() == 24
    assert (chosen >= 1).all()
    assert abs(chosen[0] / 24 - windows[0] / windows.sum()) < 1 / 12
    everything = list(eval_batches(prepared, batch_size=8, num_batches=10_000))
    assert len(everything) == len(list(eval_batches(prepared, batch_size=8)))


@pytest.mark.parametrize(
    "sizes, total, expected",
    [
        ([100, 100], 10, [5, 5]),
        ([1000, 1, 2], 10, [8, 1, 1]),
        ([5, 5, 5], 14, [5, 5, 4]),
        ([10, 10, 10], 2, [1, 1, 0]),
        ([90, 10], 10, [9, 1]),
    ],
)
def test_windows_are_spread_in_proportion(sizes, total, expected):
    chosen = pipeline._spread(np.array(sizes), total)
    edges = np.cumsum([0, *sizes])
    counts = np.histogram(chosen, edges)[0]
    assert len(set(chosen.tolist())) == total
    assert sorted(counts, reverse=True) == expected
    assert (np.diff(chosen) > 0).all()


def test_damaged_shards_are_reported(prepared, place, tmp_path):
    shard = prepared.train.records[0].shards[0]
    file = prepared.folder / shard.file
    content = file.read_bytes()
    damaged = bytearray(content)
    damaged[200:400] = bytes(200)
    copy = tmp_path / "copy"
    copy.mkdir()
    for each in prepared.folder.glob("*.*"):
        (copy / each.name).write_bytes(each.read_bytes())
    (copy / shard.file).write_bytes(damaged)
    moved = dataclasses.replace(prepared, folder=copy)
    with pytest.raises(UserError, match="damaged") as caught:
        windows = Windows(moved, "train")
        windows.batch(range(len(windows)))
    assert caught.value.where == str(copy)
    assert "--mode prepare" in caught.value.remedy


def test_segments_are_documents_and_positions_restart():
    tokens = np.array([[7, 2, 8, 9, 2, 2], [7, 8, 2, 3, 3, 3], [7, 7, 7, 7, 7, 7]])
    segments, positions = segment(tokens, eos=2, pad=3)
    assert segments.tolist() == [
        [1, 1, 2, 2, 2, 3],
        [1, 1, 1, 0, 0, 0],
        [1, 1, 1, 1, 1, 1],
    ]
    assert positions[0].tolist() == [0, 1, 0, 1, 2, 0]
    assert positions[1, :3].tolist() == [0, 1, 2]
    assert positions[2].tolist() == [0, 1, 2, 3, 4, 5]
    assert segments.dtype == positions.dtype == np.int32


def test_a_document_mask_adds_segments_to_the_same_windows(prepared, place):
    plain = next(train_batches(prepared, batch_size=4, seed=0))
    masked = next(train_batches(prepared, batch_size=4, seed=0, document_mask=True))
    assert plain.segments is None and plain.positions is None
    assert _same(plain, masked)
    expected = segment(masked.tokens, eos=2, pad=3)
    assert np.array_equal([masked.segments, masked.positions], expected)
    evaluated = next(eval_batches(prepared, batch_size=4, document_mask=True))
    assert evaluated.segments.shape == evaluated.tokens.shape
    assert not evaluated.segments[evaluated.weights == 0].any()


def _prepare_again(prepared: Prepared, tmp_path: Path, **data) -> Prepared:
    """The same text in other windows."""
    return prepare(
        DataConfig(
            sequence_length=LENGTH,
            cache_dir=str(tmp_path),
            documents=DocumentUnit.BLOCK,
            **data,
        ),
        TokenizerConfig(vocab_size=290),
        seed=0,
        train=find_sources((str(prepared.folder.parents[1]),), "train"),
    )


def test_context_and_bos_have_no_weight_and_words_are_counted_once(prepared, tmp_path):
    again = _prepare_again(
        prepared, tmp_path, packing=Packing.DOCUMENTS, stride=5, bos=True
    )
    windows = Windows(again, "train")
    batch = windows.batch(range(len(windows)))
    counts = again.train.counts
    assert counts.words == prepared.train.counts.words == batch.words.sum()
    assert counts.bytes == prepared.train.counts.bytes == batch.bytes.sum()
    # An end per document is counted, a beginning is not.
    assert batch.weights.sum() == prepared.train.counts.tokens
    assert counts.tokens == prepared.train.counts.tokens
    assert not batch.weights[batch.tokens == 1].any()
    later = batch.tokens[:, 0] != 1
    assert later.any() and not batch.weights[later, : LENGTH - 5].any()


def test_weights_draw_a_source_more_often(prepared, place):
    names = [records.source for records in prepared.train.records]
    mixture = Mixture.parse(["small=20"], [], names)
    batches = _take(train_batches(prepared, batch_size=8, seed=0, mixture=mixture), 30)
    source = _joined(batches).source
    share = mixture.shares(np.array([r.counts.windows for r in prepared.train.records]))
    assert abs((source == 1).mean() - share[1]) < 0.01
    # One integer resumes it, and hosts share it.
    resumed = train_batches(
        prepared, batch_size=8, seed=0, mixture=mixture, start_step=25
    )
    assert all(map(_same, _take(resumed, 5), batches[25:]))
    parts = [
        train_batches(
            prepared,
            batch_size=8,
            seed=0,
            mixture=mixture,
            process_index=index,
            process_count=2,
        )
        for index in range(2)
    ]
    shares = zip(*(_take(part, 30) for part in parts), strict=True)
    assert all(_same(_joined(pair), b) for pair, b in zip(shares, batches, strict=True))


def test_limited_sources_end_the_stream(prepared):
    names = [records.source for records in prepared.train.records]
    mixture = Mixture.parse([], ["2"], names)
    batches = list(train_batches(prepared, batch_size=4, seed=0, mixture=mixture))
    assert len(batches) == 2 * prepared.train.counts.windows // 4
