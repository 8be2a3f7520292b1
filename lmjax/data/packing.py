"""Documents as tokens -> windows of one length -> bytes of a record."""

import dataclasses
from collections.abc import Iterable, Iterator

import numpy as np

from lmjax.data.tokenizers import Encoding


def pack(
    documents: Iterable[Encoding], *, length: int, eos: int, pad: int
) -> Iterator[Encoding]:
    """Yields windows of `length` tokens: documents joined by `eos`, then split.

    Each document is followed by `eos`. The last window is filled up with `pad`; both
    stand for no word and no byte. Nothing is lost or reordered.
    """
    rest = np.zeros((3, 0), np.int64)
    end = np.array([[eos], [0], [0]])
    for document in documents:
        joined = np.concatenate([rest, np.stack(document), end], axis=1)
        num_windows = joined.shape[1] // length
        for i in range(num_windows):
            yield Encoding(*joined[:, i * length : (i + 1) * length])
        rest = joined[:, num_windows * length :]
    if rest.shape[1]:
        window = np.zeros((3, length), np.int64)
        window[0] = pad
        window[:, : rest.shape[1]] = rest
        yield Encoding(*window)


@dataclasses.dataclass(frozen=True, kw_only=True)
class RecordLayout:
    """A window as bytes: tokens, then words, then bytes, all little-endian.

    Attributes:
      length: tokens per window.
      token_dtype: of a token id, "<u2" or "<u4".
      count_dtype: of the words and of the bytes of a token, "|u1" or "<u2".
    """

    length: int
    token_dtype: str
    count_dtype: str

    @property
    def size(self) -> int:
        """Bytes of one record."""
        tokens, counts = np.dtype(self.token_dtype), np.dtype(self.count_dtype)
        return self.length * (tokens.itemsize + 2 * counts.itemsize)

    def to_bytes(self, window: Encoding) -> bytes:
        """Raises OverflowError if a word or byte count does not fit."""
        limit = np.iinfo(self.count_dtype).max
        most = max(window.words.max(), window.bytes.max())
        if most > limit:
            raise OverflowError(f"one token stands for {most} bytes, above {limit}")
        counts = np.concatenate([window.words, window.bytes]).astype(self.count_dtype)
        return window.tokens.astype(self.token_dtype).tobytes() + counts.tobytes()

    def from_bytes(self, records: np.ndarray) -> tuple[np.ndarray, ...]:
        """uint8 [B, size] -> tokens, words, bytes, int32 [B, length] each."""
        count_size = np.dtype(self.count_dtype).itemsize
        split = self.size - 2 * count_size * self.length
        tokens = records[:, :split].view(self.token_dtype)
        counts = records[:, split:].view(self.count_dtype)
        words, num_bytes = counts[:, : self.length], counts[:, self.length :]
        return tuple(array.astype(np.int32) for array in (tokens, words, num_bytes))
