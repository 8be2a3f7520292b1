"""Documents as tokens -> windows of one length -> bytes of a record.

Everything here works on the tokens of one shard at once, and no token is lost: what
does not fill a window is padded with weight 0.
"""

import dataclasses
import itertools
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

from lmjax.config.schema import Packing
from lmjax.data.tokenization.encoding import Encoded
from lmjax.data.tokenization.tokenizers import SpecialIds

_PADDING = -1  # in an index of tokens
_LONGEST = 2**24  # tokens of a window that a file may ask for
_BLOCK = 1024  # windows that stand in memory at once
_BEST_FIT_BINS = 64  # windows that stay open while documents look for a place


@dataclasses.dataclass(frozen=True, kw_only=True)
class PackingRule:
    """How documents become windows.

    Attributes:
      kind: see `Packing`.
      length: tokens per window.
      stride: tokens from window to window of one long document (`Packing.DOCUMENTS`);
        what two windows share is a context in the second, not counted there. 0 means
        `length`: they share nothing.
      bos: whether BOS opens each document.
    """

    kind: Packing
    length: int
    stride: int = 0
    bos: bool = False


class PackedWindows(NamedTuple):
    """W windows of L tokens; words and bytes are 0 on what is not counted."""

    tokens: np.ndarray  # int32 [W, L]
    words: np.ndarray  # int32 [W, L]
    bytes: np.ndarray  # int32 [W, L]
    context: np.ndarray  # int32 [W], leading tokens that are not counted here: those
    # of a prompt, and those that an earlier window counts


def join(
    encoded: Encoded,
    begins: np.ndarray,
    ends: np.ndarray,
    special: SpecialIds,
    *,
    bos: bool,
) -> Encoded:
    """Joins pieces to documents, with EOS behind each and, if asked for, BOS before it.

    Args:
      encoded: pieces of documents, in order.
      begins, ends: bool [pieces], whether a piece is the first, the last of its
        document; a shard may begin or end within one.
      bos: whether BOS opens each document.
    """
    ends = np.asarray(ends, bool)
    begins = np.asarray(begins, bool) & bos
    before, behind = begins.astype(np.int64), ends.astype(np.int64)
    lengths = encoded.lengths + before + behind
    stops = np.cumsum(lengths)
    shift = np.repeat(stops - behind - np.cumsum(encoded.lengths), encoded.lengths)
    places = np.arange(len(encoded.tokens)) + shift
    total = int(stops[-1]) if len(stops) else 0
    tokens, words, num_bytes = np.zeros((3, total), np.int32)
    tokens[places] = encoded.tokens
    words[places] = encoded.words
    num_bytes[places] = encoded.bytes
    tokens[stops[ends] - 1] = special.eos
    tokens[(stops - lengths)[begins]] = special.bos
    # Pieces of one document are one from here on; the last may lack its end.
    last = ends.copy()
    last[-1:] = True
    return Encoded(tokens, words, num_bytes, np.diff(stops[last], prepend=0))


def prepend(encoded: Encoded, prompts: Sequence[np.ndarray]) -> Encoded:
    """Puts prompts in front of pieces; they have no words and no bytes.

    Args:
      prompts: int32 [n] for each piece, of no token where there is none.
    """
    sizes = np.array([len(prompt) for prompt in prompts], np.int64)
    at = np.repeat(np.cumsum(encoded.lengths) - encoded.lengths, sizes)
    return Encoded(
        np.insert(encoded.tokens, at, np.concatenate(prompts)),
        np.insert(encoded.words, at, 0),
        np.insert(encoded.bytes, at, 0),
        encoded.lengths + sizes,
    )


def pack(
    documents: Encoded,
    rule: PackingRule,
    *,
    pad: int,
    prompts: np.ndarray | None = None,
) -> Iterator[PackedWindows]:
    """Yields windows of documents that already carry their EOS, some at a time.

    Many short documents in windows of their own are mostly padding, which never stands
    in memory all at once.

    Args:
      prompts: int64 [documents], leading tokens of each that never count, fewer than a
        window has; for `Packing.DOCUMENTS`. None: there are none.
    """
    if prompts is None:
        prompts = np.zeros(len(documents.lengths), np.int64)
    elif rule.kind is not Packing.DOCUMENTS:
        raise ValueError(f"prompts need windows of one document, not {rule.kind}")
    stops = np.cumsum(documents.lengths)
    starts = stops - documents.lengths
    match rule.kind:
        case Packing.CONCATENATE:
            whole = np.array([len(documents.tokens)])
            start = whole - whole
            rule = dataclasses.replace(rule, stride=0)
            blocks = _spans(start, whole, start, rule)
        case Packing.DOCUMENTS:
            blocks = _spans(starts, stops, prompts, rule)
        case Packing.BEST_FIT:
            blocks = _best_fit(starts, stops, rule.length)
    for index, context in blocks:
        absent = index == _PADDING
        uncounted = absent | (np.arange(rule.length) < context[:, None])
        padded = np.where(absent, 0, index)
        yield PackedWindows(
            np.where(absent, pad, documents.tokens[padded]).astype(np.int32),
            np.where(uncounted, 0, documents.words[padded]).astype(np.int32),
            np.where(uncounted, 0, documents.bytes[padded]).astype(np.int32),
            context,
        )


def _spans(
    starts: np.ndarray, stops: np.ndarray, prompts: np.ndarray, rule: PackingRule
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Tokens and context of windows that each hold a span, or a part of a long one."""
    stride = rule.stride or rule.length
    beyond = np.maximum(stops - starts - rule.length, 0)
    counts = np.where(stops > starts, 1 + -(-beyond // stride), 0)
    number = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)
    first = np.repeat(starts, counts) + number * stride
    stop = np.repeat(stops, counts)
    prompt = np.repeat(prompts, counts)
    context = np.where(number > 0, rule.length - stride, prompt).astype(np.int32)
    for at in range(0, len(first), _BLOCK):
        block = slice(at, at + _BLOCK)
        index = first[block, None] + np.arange(rule.length)
        index[index >= stop[block, None]] = _PADDING
        yield index, context[block]


def _best_fit(
    starts: np.ndarray, stops: np.ndarray, length: int
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Windows of whole documents, by Grain's packer; a long one is split first."""
    import grain  # here, because it brings jax along

    parts = [
        {"index": np.arange(at, min(at + length, stop), dtype=np.int64) - _PADDING}
        for start, stop in zip(starts.tolist(), stops.tolist(), strict=True)
        for at in range(start, stop, length)
    ]
    packed = grain.experimental.BestFitPackIterDataset(
        grain.MapDataset.source(parts).to_iter_dataset(),
        length_struct={"index": length},
        num_packing_bins=_BEST_FIT_BINS,
        shuffle_bins=False,
    )
    windows = (window["index"] for window in packed) if parts else iter(())
    while block := list(itertools.islice(windows, _BLOCK)):
        yield np.stack(block) + _PADDING, np.zeros(len(block), np.int32)


@dataclasses.dataclass(frozen=True, kw_only=True)
class RecordLayout:
    """A window as bytes: tokens, words, bytes, then context, all little-endian.

    Attributes:
      length: tokens per window.
      token_dtype: of a token id, "<u2" or "<u4".
      count_dtype: of the words and of the bytes of a token, "|u1" or "<u4".
    """

    length: int
    token_dtype: str
    count_dtype: str

    def __post_init__(self) -> None:
        """Raises ValueError: a layout may come from a file."""
        if type(self.length) is not int or not 0 < self.length <= _LONGEST:
            raise ValueError(f"{self.length!r} is no length of a window")
        known = ("<u2", "<u4"), ("|u1", "<u2", "<u4")
        if self.token_dtype not in known[0] or self.count_dtype not in known[1]:
            raise ValueError(f"there is no layout of this kind: {self!r}")

    @property
    def size(self) -> int:
        """Bytes of one record."""
        return self._fields.itemsize

    def to_bytes(self, windows: PackedWindows) -> Iterator[bytes]:
        """Yields one record per window.

        Raises:
          OverflowError: a word or byte count does not fit.
        """
        limit = np.iinfo(self.count_dtype).max
        most = max(
            int(counts.max(initial=0)) for counts in (windows.words, windows.bytes)
        )
        if most > limit:
            raise OverflowError(f"one token stands for {most} bytes, above {limit}")
        records = np.zeros(len(windows.tokens), self._fields)
        for name, values in windows._asdict().items():
            records[name] = values
        return (record.tobytes() for record in records)

    def from_bytes(self, records: np.ndarray) -> PackedWindows:
        """uint8 [W, size] -> windows."""
        fields = np.ascontiguousarray(records).view(self._fields)[:, 0]
        return PackedWindows(
            *(fields[name].astype(np.int32) for name in PackedWindows._fields)
        )

    @property
    def _fields(self) -> np.dtype:
        return np.dtype(
            [
                ("tokens", self.token_dtype, (self.length,)),
                ("words", self.count_dtype, (self.length,)),
                ("bytes", self.count_dtype, (self.length,)),
                ("context", "<u4"),
            ]
        )
