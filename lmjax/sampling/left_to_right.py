"""Batches of texts written from left to right, in a bounded number of programs."""

import dataclasses
import functools
import time
from collections.abc import Callable, Iterable, Iterator, Sequence

import jax
import numpy as np
from jax.sharding import NamedSharding

from lmjax.core.types import PyTree
from lmjax.parallel import rules
from lmjax.sampling.autoregressive import AutoregressiveSampler, Prompts
from lmjax.sampling.canvas import bucket, windows
from lmjax.sampling.texts import GrowingText

CHUNK = 64  # tokens of each row between two looks of the host
STOP_CHUNK = 16  # the same where it looks for stop strings
SHOW_SECONDS = 0.1  # between two looks where somebody watches
_LEAST_PROMPT = 16  # tokens; shorter prompts are padded to it
_DEFAULT_BYTES = 2**30  # of a batch's cache, where a device tells no limit
_MOST_ROWS = 64

# (number of a text, what is new behind its prompt, whether it has ended)
Watch = Callable[[int, str, bool], None]


@dataclasses.dataclass(kw_only=True)
class Row:
    """One text to write.

    Attributes:
      number: its own; also that of its key.
      tokens: the opening, the prompt, and what is written behind them.
      length: that of the whole text, in tokens.
      first: tokens that are given.
      text: which new tokens are added to.
    """

    number: int
    tokens: list[int]
    length: int
    first: int
    text: GrowingText


@dataclasses.dataclass(frozen=True)
class _Job:
    """What of a row a window holds: its tokens from `start`, and room behind them."""

    row: Row
    start: int
    room: int

    @property
    def size(self) -> int:
        """Inputs that are read at once."""
        return 1 + len(self.row.tokens) - self.start


class LeftToRight:
    """Writes rows in batches of like size.

    Programs are compiled for sizes that are powers of two, or at most four to an
    octave: of prompts, of new tokens and of batches. A prompt is padded to its size,
    so it depends on neither its neighbours nor the size what a row holds.

    Args:
      sampler: draws the tokens.
      max_length: context of the model, in tokens.
      stride: see `Generator`.
      vocab_size: ids of the tokenizer.
      batch_size: rows at most; 0 takes 64, or as many as a quarter of the device's
        memory holds the caches of.
    """

    def __init__(
        self,
        sampler: AutoregressiveSampler,
        *,
        max_length: int,
        stride: int,
        vocab_size: int,
        batch_size: int,
    ):
        self._sampler, self._batch_size = sampler, batch_size
        self._max_length, self._stride = max_length, stride
        self._vocab_size = vocab_size
        self._prepare = jax.jit(sampler.prepare)
        # A mesh has its own programs, for it says where their results are.
        self._programs = functools.cache(self._compile)

    def __call__(
        self,
        params: PyTree,
        keys: jax.Array,
        rows: Sequence[Row],
        *,
        watch: Watch | None,
        stops: bool,
    ) -> None:
        """Adds tokens to the texts of all rows until they end.

        Args:
          params: those of the model.
          keys: randomness of each row, by its number.
          watch: is told what is new of each row, by its number.
          stops: whether texts may end at a stop string.
        """
        prepared = self._prepare(params)
        pending = list(rows)
        while pending:
            for jobs in self._batches(prepared, keys, pending):
                self._write(prepared, keys, jobs, watch, stops)
            pending = [row for row in pending if row.text.ending is None]

    def _compile(self, sharding: NamedSharding | None) -> tuple[Callable, Callable]:
        begin = jax.jit(
            self._sampler.begin, static_argnames="new_tokens", out_shardings=sharding
        )
        go_on = jax.jit(
            self._sampler.go_on,
            static_argnames="chunk",
            donate_argnames="writing",
            out_shardings=sharding,
        )
        return begin, go_on

    def _batches(
        self, params: PyTree, keys: jax.Array, rows: Iterable[Row]
    ) -> Iterator[list[_Job]]:
        """The next window of each row, with others of like size."""
        groups: dict[tuple[int, int], list[_Job]] = {}
        for row in rows:
            job = self._next_window(row)
            sizes = self._prompt_size(job.size), bucket(job.room)
            groups.setdefault(sizes, []).append(job)
        for sizes, jobs in groups.items():
            most = self._batch_size
            if not most:
                most = min(_MOST_ROWS, len(jobs))
                if most > 1:
                    most = min(most, self._rows_that_fit(params, keys, *sizes))
            for start in range(0, len(jobs), most):
                yield jobs[start : start + most]

    def _next_window(self, row: Row) -> _Job:
        for window in windows(row.length, self._max_length, self._stride):
            if window.stop > len(row.tokens):
                return _Job(row, window.start, window.stop - len(row.tokens))
        raise AssertionError(f"text {row.number} is full and goes on")

    def _prompt_size(self, size: int) -> int:
        """A power of two, or the context; rows as narrow as can be make few sizes."""
        return min(max(_LEAST_PROMPT, 1 << (size - 1).bit_length()), self._max_length)

    def _rows_that_fit(
        self, params: PyTree, keys: jax.Array, size: int, room: int
    ) -> int:
        """Rows whose caches take a quarter of the memory; a power of two."""
        begin, _ = self._programs(None)
        writing, _ = jax.eval_shape(
            functools.partial(begin, new_tokens=room),
            params,
            self._prompts(keys, [], rows=1, size=size),
        )
        row = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(writing))
        stats = jax.local_devices()[0].memory_stats() or {}
        most = stats.get("bytes_limit", 4 * _DEFAULT_BYTES) // 4
        return 1 << (max(1, most // row).bit_length() - 1)

    def _prompts(
        self, keys: jax.Array, jobs: Sequence[_Job], *, rows: int, size: int
    ) -> Prompts:
        """A batch of so many rows, of which those behind the jobs are idle."""
        penalized = self._sampler.repetition_penalty != 1.0
        inputs_BL = np.full((rows, size), self._sampler.bos_id, np.int32)
        pads_B, room_B, first_B, number_B = np.zeros((4, rows), np.int32)
        seen_BV = np.zeros((rows, self._vocab_size if penalized else 0), bool)
        for r, job in enumerate(jobs):
            tokens, text = job.row.tokens, job.row.text
            pads_B[r], room_B[r] = size - job.size, job.room
            first_B[r] = len(tokens) - job.row.first
            number_B[r] = job.row.number
            inputs_BL[r, size - job.size + 1 :] = tokens[job.start :]
            if penalized:
                seen_BV[r, text.ids] = True
        return Prompts(inputs_BL, pads_B, room_B, first_B, keys[number_B], seen_BV)

    def _write(
        self,
        params: PyTree,
        keys: jax.Array,
        jobs: Sequence[_Job],
        watch: Watch | None,
        stops: bool,
    ) -> None:
        """Writes the windows of a batch."""
        begin, go_on = self._programs(_replicated(params))
        size = self._prompt_size(max(job.size for job in jobs))
        rows = 1 << (len(jobs) - 1).bit_length()
        if self._batch_size:
            rows = min(rows, self._batch_size)
        most = max(job.room for job in jobs)
        prompts = self._prompts(keys, jobs, rows=rows, size=size)
        writing, token_B = begin(params, prompts, new_tokens=bucket(most))
        tokens_BC, written = np.asarray(token_B)[:, None], 1
        ended_B = np.ones(rows, bool)
        longest = STOP_CHUNK if stops else CHUNK
        steps = 1 if watch else longest
        while True:
            for r, job in enumerate(jobs):
                _add(job, tokens_BC[r], written - tokens_BC.shape[1], watch)
                full = job.room <= written
                ended_B[r] = full or job.row.text.ending is not None
            if ended_B.all():
                return
            began = time.perf_counter()
            steps = min(steps, longest, most - written)
            writing, tokens_BC = go_on(
                params, writing, ended_B, np.int32(steps), chunk=CHUNK
            )
            tokens_BC = np.asarray(tokens_BC)[:, :steps]
            written += steps
            if watch:
                each = (time.perf_counter() - began) / steps
                steps = max(1, int(SHOW_SECONDS / each))


def _add(job: _Job, tokens_C: np.ndarray, written: int, watch: Watch | None) -> None:
    """Adds new tokens to a row, those left out that its window has no room for."""
    row = job.row
    tokens_C = tokens_C[: max(0, job.room - written)]
    if row.text.ending is not None or not len(tokens_C):
        return
    row.tokens.extend(tokens_C.tolist())
    row.text.add(tokens_C)
    if watch:
        piece, ended = row.text.piece(), row.text.ending is not None
        if piece or ended:
            watch(row.number, piece, ended)


def _replicated(params: PyTree) -> NamedSharding | None:
    """Where results are that every host reads: on all devices, if there is a mesh."""
    sharding = getattr(jax.tree.leaves(params)[0], "sharding", None)
    if isinstance(sharding, NamedSharding):
        return rules.replicated(sharding.mesh)
    return None
