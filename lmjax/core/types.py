"""The dimension-letter legend and the contract between models and objectives.

Array names end in the letters of their dimensions:

  B batch     L length      S key length   D width     N query heads   K kv heads
  G = N / K   H head width  F mlp width    V vocabulary  E condition width
"""

from typing import Any, NamedTuple, Protocol

import jax

PyTree = Any


class KeyValueCache(NamedTuple):
    """Keys and values of one layer, in static shapes.

    Attributes:
      keys: [B, K, S, H].
      values: [B, K, S, H].
    """

    keys: jax.Array
    values: jax.Array


class LanguageModel(Protocol):
    """What objectives, samplers and evaluators may ask of a model."""

    def __call__(
        self,
        tokens_BL: jax.Array,
        *,
        lengths_B: jax.Array | None = None,
        segments_BL: jax.Array | None = None,
        positions_BL: jax.Array | None = None,
        sigma_B: jax.Array | None = None,
        dropout_key: jax.Array | None = None,
    ) -> jax.Array:
        """Hidden states [B, L, D] of tokens int32 [B, L].

        `lengths_B` counts the real tokens of each row: padding behind them is never
        attended. `segments_BL` numbers the documents of a row, from 1 and 0 on
        padding: a position attends to its own segment alone. `positions_BL` says where
        each token stands, which without it is its place in the row. `sigma_B` is the
        noise level of a time-conditioned model. Without a `dropout_key` nothing is
        dropped.
        """
        ...

    def logits(self, hidden: jax.Array) -> jax.Array:
        """Float32 logits [..., V] of hidden states [..., D].

        Ids that are never predicted (bos, pad, mask, vocabulary padding) are -inf.
        """
        ...
