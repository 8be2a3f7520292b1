"""Batches are a pure function of (seed, step), on any number of processes."""

import dataclasses
import itertools
from pathlib import Path

import numpy as np
import pytest

from lmjax.config.schema import DataConfig, TokenizerConfig
from lmjax.core.errors import UserError
from lmjax.data import pipeline
from lmjax.data.batch import Batch
from lmjax.data.manifest import Prepared
from lmjax.data.pipeline import Windows, eval_batches, train_batches
from lmjax.data.prepare import prepare

LENGTH = 8
FIELDS = [field.name for field in dataclasses.fields(Batch)]


@pytest.fixture(scope="module")
def prepared(tmp_path_factory) -> Prepared:
    """Some hundred windows of a large source, a few of a small one."""
    folder = tmp_path_factory.mktemp("corpus")
    for name, count in (("big.train", 150), ("small.train", 3)):
        documents = [f"{name} tells of {i * 7} cats\nand dogs" for i in range(count)]
        (folder / name).write_text("\n\n".join(documents))
    return prepare(
        DataConfig(sequence_length=LENGTH, cache_dir=str(folder / "cache")),
        TokenizerConfig(vocab_size=290),
        seed=0,
        train_files=sorted(folder.glob("*.train")),
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
    assert text.startswith("big.train tells of 0 cats\nand dogs")
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
    for each in Path(prepared.folder).iterdir():
        (copy / each.name).write_bytes(each.read_bytes())
    (copy / shard.file).write_bytes(damaged)
    moved = dataclasses.replace(prepared, folder=copy)
    with pytest.raises(UserError, match="damaged") as caught:
        windows = Windows(moved, "train")
        windows.batch(range(len(windows)))
    assert caught.value.where == str(copy)
    assert "delete" in caught.value.remedy
