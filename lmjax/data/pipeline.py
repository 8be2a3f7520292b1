"""Prepared windows -> batches, as a pure function of (seed, step)."""

import dataclasses
import math
import zlib
from collections.abc import Iterable, Iterator, Sequence

import grain
import numpy as np
from array_record.python import array_record_module

from lmjax.core.errors import UserError
from lmjax.data.batch import Batch
from lmjax.data.mixing import DrawOrder, Mixture
from lmjax.data.preparation.manifest import Prepared

# Up to this size the windows of a split are held in memory, which is many times as
# fast as reading each from its shard.
MAX_BYTES_IN_MEMORY = 512 * 1024 * 1024
_ENDLESS = 2**40  # steps
# Key of random lengths: no other draw of this room has it, whatever the seed.
_LENGTHS = zlib.crc32(b"random_length") << 32


class Windows:
    """The windows of one split, by source and then as in the text; random access.

    Attributes:
      per_source: int64 [sources with windows], how many each has.
      in_memory: whether they are held in memory rather than read when asked for.
    """

    def __init__(self, prepared: Prepared, split: str, *, document_mask: bool = False):
        """Raises UserError if the shards do not hold what the manifest says."""
        records = [r for r in prepared.split(split).records if r.shards]
        self.per_source = np.array([r.counts.windows for r in records], np.int64)
        self._ends = np.cumsum(self.per_source)
        ids = [prepared.sources.index(r.source) for r in records]
        self._source_ids = np.array(ids, np.int32)
        self._layout = prepared.layout
        self._special = prepared.tokenizer.special
        self._document_mask = document_mask
        self._folder = prepared.folder
        files = [str(self._folder / s.file) for r in records for s in r.shards]
        self.in_memory = len(self) * self._layout.size <= MAX_BYTES_IN_MEMORY
        read = self._read_all if self.in_memory else grain.sources.ArrayRecordDataSource
        try:
            self._records = read(files)
            if len(self._records) != len(self):
                raise RuntimeError(f"{len(self._records)} windows, not {len(self)}")
        except (OSError, RuntimeError, ValueError) as error:
            raise self._damaged(error) from error

    def __len__(self) -> int:
        return int(self.per_source.sum())

    def batch(self, indices: Sequence[int] | np.ndarray) -> Batch:
        """Reads windows; the index -1 stands for a row of padding, of weight 0."""
        indices = np.asarray(indices, np.int64)
        absent = indices < 0
        present = np.where(absent, 0, indices)
        if self.in_memory:
            raw = self._records[present]
        else:
            try:
                raw = self._to_array(self._records.__getitems__(present.tolist()))
            except (RuntimeError, ValueError) as error:
                raise self._damaged(error) from error
        tokens, words, num_bytes, context = self._layout.from_bytes(raw)
        source = self._source_ids[np.searchsorted(self._ends, present, side="right")]
        special = self._special
        if absent.any():
            tokens[absent] = special.pad
            words[absent] = num_bytes[absent] = source[absent] = 0
        counted = (tokens != special.pad) & (tokens != special.bos)
        if context.any():
            counted &= np.arange(tokens.shape[1]) >= context[:, None]
        batch = Batch(
            tokens=tokens,
            weights=counted.astype(np.float32),
            words=words,
            bytes=num_bytes,
            source=source,
        )
        if not self._document_mask:
            return batch
        segments, positions = segment(tokens, eos=special.eos, pad=special.pad)
        return dataclasses.replace(batch, segments=segments, positions=positions)

    def _read_all(self, files: Sequence[str]) -> np.ndarray:
        records = np.empty((len(self), self._layout.size), np.uint8)
        filled = 0
        for file in files:
            reader = array_record_module.ArrayRecordReader(file)
            shard = self._to_array(reader.read_all())
            reader.close()
            records[filled : filled + len(shard)] = shard
            filled += len(shard)
        return records[:filled]

    def _to_array(self, records: Iterable[bytes]) -> np.ndarray:
        return np.frombuffer(b"".join(records), np.uint8).reshape(-1, self._layout.size)

    def _damaged(self, error: Exception) -> UserError:
        return UserError(
            f"The prepared corpus is damaged: {error}",
            where=str(self._folder),
            remedy="run the same command with --mode prepare: it writes again what is "
            "wrong.",
        )


def segment(tokens: np.ndarray, *, eos: int, pad: int) -> tuple[np.ndarray, np.ndarray]:
    """Documents within windows: segments and positions, int32 [B, L] each.

    A document ends with its EOS. Segments count from 1, padding is 0; positions count
    from 0 in each segment.
    """
    begins = np.zeros(tokens.shape, bool)
    begins[:, 0] = True
    begins[:, 1:] = tokens[:, :-1] == eos
    column = np.arange(tokens.shape[1])
    start = np.maximum.accumulate(np.where(begins, column, 0), axis=1)
    segments = np.where(tokens == pad, 0, np.cumsum(begins, axis=1))
    return segments.astype(np.int32), (column - start).astype(np.int32)


def draw_length(length: int, *, share: float, seed: int, step: int) -> int:
    """How many leading tokens of the windows of a step stay.

    Nie et al. 2025, "Large Language Diffusion Models", section 2.2: so a model also
    learns texts that are shorter than a window.

    Args:
      length: tokens per window.
      share: of the steps that are cut, to a length uniform on 1 to `length`.
    """
    # The raw bits of Philox, which no version of NumPy changes; a key per step.
    key = np.array([seed % 2**64, (_LENGTHS + step) % 2**64], np.uint64)
    whether, how_long = np.random.Philox(key=key).random_raw(2).tolist()
    if whether >= share * 2**64:
        return length
    return 1 + how_long * length // 2**64


def kept_share(length: int, share: float) -> float:
    """Share of the tokens of full windows that random lengths leave, on average."""
    return 1 - share * (length - 1) / (2 * length)


def cut(batch: Batch, length: int, *, pad: int) -> Batch:
    """A batch of which `length` leading tokens stay; behind them is padding."""
    behind = np.arange(batch.tokens.shape[1]) >= length
    tokens = np.where(behind, np.int32(pad), batch.tokens)
    # Of all other fields with a number per token it is the 0 that means padding.
    names = ("weights", "words", "bytes", "segments", "positions")
    fields = {name: getattr(batch, name) for name in names}
    zeroed = {
        name: np.where(behind, values.dtype.type(0), values)
        for name, values in fields.items()
        if values is not None
    }
    return dataclasses.replace(batch, tokens=tokens, **zeroed)


def train_batches(
    prepared: Prepared,
    *,
    batch_size: int,
    seed: int,
    mixture: Mixture | None = None,
    document_mask: bool = False,
    random_length: float = 0.0,
    start_step: int = 0,
    process_index: int = 0,
    process_count: int = 1,
) -> Iterator[Batch]:
    """Yields the batches of training from `start_step` on.

    Batch s is a pure function of (seed, s): windows are drawn without replacement
    within an epoch, and in a new order in each. All of its state is the number s.
    There is no end but that of a mixture whose sources are all limited.

    Args:
      batch_size: windows per step, over all processes.
      mixture: how often each source is drawn; without it, as its size says.
      document_mask: whether batches have segments and positions.
      random_length: share of the batches of which all rows are cut to one length,
        uniform on 1 to that of a window; what is behind becomes padding.
      process_index: this process yields the rows it has in the global batch: the
        rows of all processes, in order, are the same for any `process_count`.
    """
    windows = Windows(prepared, "train", document_mask=document_mask)
    rows = _rows(batch_size, process_index, process_count)
    mixture = mixture or Mixture.plain(len(windows.per_source))
    order = DrawOrder(windows.per_source, mixture, seed)
    length, pad = prepared.sequence_length, prepared.tokenizer.special.pad
    num_windows = mixture.num_windows(windows.per_source)
    num_batches = _ENDLESS if math.isinf(num_windows) else num_windows // batch_size

    def read(step: int) -> Batch:
        positions = step * batch_size + np.arange(batch_size)
        batch = windows.batch(order(positions)[rows])
        kept = draw_length(length, share=random_length, seed=seed, step=step)
        return batch if kept == length else cut(batch, kept, pad=pad)

    # Threads read ahead; more of them fight for the interpreter.
    threads = 1 if windows.in_memory else 2
    options = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=2 * threads)
    # The dataset is one of steps: a whole batch is read and decoded at once, much
    # faster than window by window.
    dataset = grain.MapDataset.range(int(num_batches)).map(read)
    iterator = iter(dataset.to_iter_dataset(options))
    iterator.set_state({"next_index": start_step})
    return iterator


def eval_batches(
    prepared: Prepared,
    *,
    batch_size: int,
    split: str = "valid",
    num_batches: int = 0,
    document_mask: bool = False,
    process_index: int = 0,
    process_count: int = 1,
) -> Iterator[Batch]:
    """Yields windows in a fixed order, the last batch filled up with weight 0.

    Args:
      batch_size: windows per batch, over all processes.
      num_batches: 0 reads every window once; otherwise at most so many batches, of
        windows that are spread evenly and stand for each source by its size.
    """
    windows = Windows(prepared, split, document_mask=document_mask)
    rows = _rows(batch_size, process_index, process_count)
    chosen = np.arange(len(windows))
    if 0 < num_batches * batch_size < len(windows):
        chosen = _spread(windows.per_source, num_batches * batch_size)
    chosen = np.pad(chosen, (0, -len(chosen) % batch_size), constant_values=-1)
    for indices in chosen.reshape(-1, batch_size):
        yield windows.batch(indices[rows])


def _rows(batch_size: int, process_index: int, process_count: int) -> slice:
    if batch_size % process_count:
        raise ValueError(
            f"batch_size {batch_size} is no multiple of the {process_count} processes"
        )
    local = batch_size // process_count
    return slice(process_index * local, (process_index + 1) * local)


def _spread(per_source: np.ndarray, total: int) -> np.ndarray:
    """Chooses windows evenly: each source in proportion, and at least once if it can.

    Args:
      per_source: int [S], windows of each source.
      total: windows to choose; fewer than there are.
    """
    share = total * per_source / per_source.sum()
    counts = np.minimum(
        np.maximum(share.astype(int), total >= len(per_source)), per_source
    )
    while counts.sum() != total:
        # Towards the exact share, from the source that is furthest from it.
        step = np.sign(total - counts.sum())
        room = counts < per_source if step > 0 else counts > 1
        gap = np.where(room, step * (share - counts), -np.inf)
        counts[np.argmax(gap)] += step
    starts = np.cumsum(per_source) - per_source
    return np.concatenate(
        [
            start + (np.arange(count) * size) // max(count, 1)
            for start, size, count in zip(starts, per_source, counts, strict=True)
        ]
    )
