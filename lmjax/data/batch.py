"""One training or evaluation batch."""

import dataclasses
from typing import Any

import jax
import numpy as np


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class Batch:
    """B windows of L tokens, as numpy on the host and jax arrays on the device.

    Attributes:
      tokens: int32 [B, L]; padding only at the end of a row.
      weights: float32 [B, L], 1 where a token counts in the loss, 0 on padding.
      words: int32 [B, L], whitespace words that start in each token.
      bytes: int32 [B, L], UTF-8 bytes of text that each token stands for.
      source: int32 [B], index of the source a row comes from.
      segments: int32 [B, L], number of the document in its row, from 1 and 0 on
        padding, where attention stays within documents; None where it does not.
      positions: int32 [B, L], position in the document; None with `segments`.
    """

    tokens: Any
    weights: Any
    words: Any
    bytes: Any
    source: Any
    segments: Any = None
    positions: Any = None


def synthetic(
    batch_size: int, length: int, *, token: int = 0, document_mask: bool = False
) -> Batch:
    """A batch of one repeated token, for planning and compiling.

    With a `document_mask` each row is one document, and the batch has all the leaves of
    one that packs several.
    """
    shape = (batch_size, length)
    segments = positions = None
    if document_mask:
        segments = np.ones(shape, np.int32)
        positions = np.tile(np.arange(length, dtype=np.int32), (batch_size, 1))
    return Batch(
        tokens=np.full(shape, token, np.int32),
        weights=np.ones(shape, np.float32),
        words=np.zeros(shape, np.int32),
        bytes=np.zeros(shape, np.int32),
        source=np.zeros(batch_size, np.int32),
        segments=segments,
        positions=positions,
    )
