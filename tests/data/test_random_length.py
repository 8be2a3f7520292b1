"""Some batches are cut to a random length, a pure function of (seed, step)."""

import dataclasses
import itertools
from pathlib import Path

import numpy as np
import pytest

from lmjax.config import checks
from lmjax.config.schema import (
    Config,
    DataConfig,
    DocumentUnit,
    TokenizerConfig,
    TokenizerKind,
)
from lmjax.core.errors import ConfigError
from lmjax.data.batch import Batch
from lmjax.data.pipeline import cut, draw_length, kept_share, train_batches
from lmjax.data.preparation.manifest import Prepared
from lmjax.data.preparation.prepare import prepare
from lmjax.data.reading.sources import Source

LENGTH, PAD = 8, 3
FIELDS = [field.name for field in dataclasses.fields(Batch)]


@pytest.fixture(scope="module")
def prepared(tmp_path_factory) -> Prepared:
    folder = tmp_path_factory.mktemp("corpus")
    (folder / "x.txt").write_text("\n".join(f"line {i} of it" for i in range(80)))
    return prepare(
        DataConfig(
            sequence_length=LENGTH,
            cache_dir=str(folder / "cache"),
            documents=DocumentUnit.LINE,
        ),
        TokenizerConfig(kind=TokenizerKind.BYTES),
        seed=0,
        train=[Source("x", (Path(folder / "x.txt"),))],
        progress=False,
    )


def _batches(prepared: Prepared, count: int, **options) -> list[Batch]:
    defaults = {"batch_size": 4, "seed": 5, "document_mask": True}
    return list(itertools.islice(train_batches(prepared, **defaults | options), count))


def _same(a: Batch, b: Batch) -> bool:
    pairs = [(getattr(a, name), getattr(b, name)) for name in FIELDS]
    return all(x is y or (x.dtype == y.dtype and (x == y).all()) for x, y in pairs)


def _lengths(batches: list[Batch], whole: list[Batch]) -> list[int]:
    """What is left of each batch; it must be one length for all rows and fields."""
    found = []
    for batch, full in zip(batches, whole, strict=True):
        kept = next(
            length
            for length in range(LENGTH, -1, -1)
            if length == 0 or (batch.tokens[:, length - 1] != PAD).any()
        )
        assert _same(batch, cut(full, kept, pad=PAD))
        found.append(kept)
    return found


def test_what_is_behind_the_cut_is_padding():
    tokens = np.arange(10, 20, dtype=np.int32).reshape(2, 5)
    ones = np.ones((2, 5), np.int32)
    batch = Batch(
        tokens=tokens,
        weights=ones.astype(np.float32),
        words=ones,
        bytes=4 * ones,
        source=np.array([1, 2], np.int32),
        segments=2 * ones,
        positions=3 * ones,
    )
    short = cut(batch, 3, pad=PAD)
    assert short.tokens.tolist() == [[10, 11, 12, PAD, PAD], [15, 16, 17, PAD, PAD]]
    for name, value in (
        ("weights", 1),
        ("words", 1),
        ("bytes", 4),
        ("segments", 2),
        ("positions", 3),
    ):
        assert getattr(short, name).tolist() == [[value] * 3 + [0, 0]] * 2, name
    assert short.source.tolist() == [1, 2]
    for name in FIELDS:
        assert getattr(short, name).dtype == getattr(batch, name).dtype, name
    assert tokens[0, 4] == 14  # what was cut is not changed
    assert _same(cut(batch, 5, pad=PAD), batch)
    plain = dataclasses.replace(batch, segments=None, positions=None)
    assert cut(plain, 3, pad=PAD).segments is None


def test_without_random_lengths_nothing_changes(prepared):
    plain = _batches(prepared, 60)
    off = _batches(prepared, 60, random_length=0.0)
    assert all(map(_same, plain, off))
    assert _lengths(plain, plain).count(LENGTH) >= 58  # but for the end of a shard


def test_all_rows_of_a_batch_are_cut_alike(prepared):
    whole = _batches(prepared, 300)
    lengths = _lengths(_batches(prepared, 300, random_length=1.0), whole)
    assert set(lengths) == set(range(1, LENGTH + 1))
    some = _lengths(_batches(prepared, 300, random_length=0.3), whole)
    assert 0.15 < np.mean(np.array(some) < LENGTH) < 0.4
    # A batch that is cut with a low share is cut to the same with a higher one.
    assert all(a in (b, LENGTH) for a, b in zip(some, lengths, strict=True))


def test_words_and_tokens_that_are_cut_are_not_counted(prepared):
    whole = _batches(prepared, 100)
    for batch, full in zip(
        _batches(prepared, 100, random_length=1.0), whole, strict=True
    ):
        kept = batch.weights > 0
        assert not batch.words[~kept].any() and not batch.bytes[~kept].any()
        assert batch.words.sum() == full.words[kept].sum()
        assert batch.bytes.sum() == full.bytes[kept].sum()


def test_the_share_of_cut_steps_and_their_lengths_are_as_asked_for():
    steps, share, length = 40_000, 0.25, 16
    drawn = [
        draw_length(length, share=share, seed=7, step=step) for step in range(steps)
    ]
    counts = np.bincount(drawn, minlength=length + 1)
    assert counts[0] == 0 and len(counts) == length + 1
    expected = np.full(length, steps * share / length)
    expected[-1] += steps * (1 - share)
    # 15 degrees of freedom: the 99.9 % point of chi-square is 37.7.
    assert (((counts[1:] - expected) ** 2) / expected).sum() < 37.7
    assert abs(np.mean(drawn) / length - kept_share(length, share)) < 0.005


@pytest.mark.parametrize(
    ("length", "share", "kept"), [(8, 0.0, 1.0), (1, 1.0, 1.0), (3, 1.0, 2 / 3)]
)
def test_the_kept_share_is_the_mean_length(length, share, kept):
    assert kept_share(length, share) == pytest.approx(kept)


@pytest.mark.parametrize("seed", [0, 1, -1, 2**32 - 1])
def test_the_ends_of_the_share_are_never_and_always(seed):
    for step in range(500):
        assert draw_length(9, share=0.0, seed=seed, step=step) == 9
        assert 1 <= draw_length(9, share=1.0, seed=seed, step=step) <= 9
        assert draw_length(1, share=1.0, seed=seed, step=step) == 1


def test_steps_and_seeds_draw_independently():
    def draw(seed, first):
        steps = range(first, first + 2000)
        return [draw_length(999, share=1.0, seed=seed, step=s) for s in steps]

    draws = [draw(0, 0), draw(1, 0), draw(0, 1)]
    assert draws[0] == draw(0, 0)
    correlations = np.corrcoef(draws) - np.eye(3)
    assert np.abs(correlations).max() < 0.1


@pytest.mark.parametrize("processes", [2, 4])
def test_processes_cut_the_global_batch(prepared, processes):
    options = {"random_length": 0.5, "batch_size": 8}
    alone = _batches(prepared, 40, **options)
    parts = [
        _batches(prepared, 40, **options, process_index=i, process_count=processes)
        for i in range(processes)
    ]
    for batch, *shares in zip(alone, *parts, strict=True):
        joined = {
            name: np.concatenate([getattr(share, name) for share in shares])
            for name in FIELDS
        }
        assert _same(batch, Batch(**joined))


@pytest.mark.parametrize("start", [1, 17, 39])
def test_a_run_that_is_taken_up_is_cut_as_if_it_had_gone_on(prepared, start):
    through = _batches(prepared, 60, random_length=0.5)
    again = _batches(prepared, 60 - start, random_length=0.5, start_step=start)
    assert all(map(_same, again, through[start:]))


@pytest.mark.parametrize("share", [-0.01, 1.01])
def test_a_share_is_between_none_and_all(share):
    with pytest.raises(ConfigError, match=r"data.random_length=.*\[0, 1\]"):
        checks.check(Config(data=DataConfig(random_length=share)))
    for share in (0.0, 0.01, 1.0, 1):
        checks.check(Config(data=DataConfig(random_length=share)))
