"""From an item's texts to ids, and which of them are scored."""

import dataclasses
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from lmjax.config.schema import LongItems
from lmjax.core.errors import UserError
from lmjax.data.tokenization.tokenizers import Tokenizer
from lmjax.evaluate.zero_shot.items import Candidate, Item, Task


class EncodedCandidate(NamedTuple):
    """A row of ids: the opening, the prefix and the completion.

    Attributes:
      ids: int32 [n].
      start: index of the first id that is scored; all behind it are.
    """

    ids: np.ndarray
    start: int


@dataclasses.dataclass(frozen=True, eq=False)
class EncodedTask:
    """The items of a task in ids.

    Attributes:
      items: the candidates of each item.
      truncated: items that lost some of their prefix.
    """

    items: tuple[tuple[EncodedCandidate, ...], ...]
    truncated: int


def encode_task(
    task: Task,
    tokenizer: Tokenizer,
    *,
    opening: Sequence[int],
    max_length: int,
    long_items: LongItems,
) -> EncodedTask:
    """Encodes every candidate as one text, behind the opening and without an end.

    An id is scored if its bytes end behind the beginning of the completion, as in
    BabyLM's pipeline: one that straddles it is scored whole.

    Args:
      opening: ids that stand before every text; read, never scored.
      max_length: most ids of a candidate, the opening included.
      long_items: what becomes of items with a longer candidate. All candidates of an
        item lose as many ids of their prefixes, so they stay alike.

    Raises:
      UserError: an item is too long, or nothing of a candidate is scored.
    """
    items, truncated = [], 0
    for item in task.items:
        rows = [_encode(each, item, tokenizer, opening) for each in item.candidates]
        excess = max(len(row.ids) for row in rows) - max_length
        if excess > 0:
            _check_length(item, rows, len(opening), excess, max_length, long_items)
            rows = [_without(row, len(opening), excess) for row in rows]
            truncated += 1
        items.append(tuple(rows))
    return EncodedTask(tuple(items), truncated)


def _encode(
    candidate: Candidate, item: Item, tokenizer: Tokenizer, opening: Sequence[int]
) -> EncodedCandidate:
    ids, sizes = tokenizer.encode_aligned(candidate.text)
    scored = np.cumsum(sizes) > len(candidate.prefix.encode())
    if not scored.any():
        raise UserError(
            f"A completion is empty: {candidate.completion!r}.",
            where=item.where,
            remedy="remove this line.",
        )
    row = np.concatenate([np.array(opening, np.int32), ids.astype(np.int32)])
    return EncodedCandidate(row, len(opening) + int(np.argmax(scored)))


def _check_length(
    item: Item,
    rows: Sequence[EncodedCandidate],
    opening: int,
    excess: int,
    max_length: int,
    long_items: LongItems,
) -> None:
    longest = max(len(row.ids) for row in rows)
    problem = f"An item takes {longest} tokens, but the model takes {max_length}."
    if long_items is LongItems.REFUSE:
        raise UserError(
            problem,
            where=item.where,
            remedy="cut prefixes from their beginnings with "
            "--config.evaluate.long_items=truncate, or leave the item out.",
        )
    if any(opening + excess > row.start for row in rows if len(row.ids) > max_length):
        raise UserError(
            f"{problem} Its completions alone are too long, or nearly so.",
            where=item.where,
            remedy="leave the item out, or take a model with a longer context.",
        )


def _without(row: EncodedCandidate, opening: int, excess: int) -> EncodedCandidate:
    """The row without `excess` ids behind its opening, or as many as its prefix has."""
    cut = min(excess, row.start - opening)
    ids = np.concatenate([row.ids[:opening], row.ids[opening + cut :]])
    return EncodedCandidate(ids, row.start - cut)
