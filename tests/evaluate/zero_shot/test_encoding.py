"""Which ids of a candidate are scored, and what becomes of items that are too long."""

import numpy as np
import pytest

from lmjax.config.schema import LongItems
from lmjax.core.errors import UserError
from lmjax.data.tokenization.byte_tokenizer import ByteTokenizer
from lmjax.evaluate.zero_shot.encoding import EncodedCandidate, encode_task
from lmjax.evaluate.zero_shot.items import Item, Task
from tests.evaluate.zero_shot.texts import BOS, FIRST, Pieces, item, task


def _encode(
    given: Item | Task,
    tokenizer: object = Pieces(),
    opening: tuple[int, ...] = (BOS,),
    max_length: int = 99,
    long_items: LongItems = LongItems.REFUSE,
) -> tuple[EncodedCandidate, ...]:
    whole = given if isinstance(given, Task) else task(given)
    return encode_task(
        whole,
        tokenizer,
        opening=opening,
        max_length=max_length,
        long_items=long_items,
    ).items[0]


def _scored(row: EncodedCandidate) -> list[int]:
    return row.ids[row.start :].tolist()


def _ids(letters: str) -> list[int]:
    return [FIRST + ord(letter) - ord("a") for letter in letters]


def test_the_completion_is_scored_after_opening_and_prefix() -> None:
    good, bad = _encode(item("de", "f", prefix="abc"))
    assert good.ids.tolist() == [BOS, *_ids("abcde")]
    assert (_scored(good), _scored(bad)) == (_ids("de"), _ids("f"))
    (whole, _) = _encode(item("ab", "ba"), opening=())
    assert _scored(whole) == whole.ids.tolist() == _ids("ab")


def test_an_id_that_straddles_the_border_is_scored_whole() -> None:
    """Pieces of "abcde" are ab, cd, e: the completion "de" begins inside cd."""
    (row, _) = _encode(item("de", "dd", prefix="abc"), Pieces(2))
    assert row.ids.tolist() == [BOS, *_ids("ace")]
    assert _scored(row) == _ids("ce")
    (row, _) = _encode(item("cde", "ddd", prefix="ab"), Pieces(2))
    assert _scored(row) == _ids("ce")


def test_borders_are_found_among_characters_of_several_bytes() -> None:
    tokenizer = ByteTokenizer()
    (row, _) = _encode(item("ü語!", "x", prefix="né 語"), tokenizer, opening=())
    assert tokenizer.decode(_scored(row)) == "ü語!"
    assert row.start == len("né 語".encode())


class _Silent:
    """One id for the first character, then ids that stand for no bytes, then one."""

    def encode_aligned(self, text: str) -> tuple[np.ndarray, np.ndarray]:
        size = len(text.encode())
        return np.array([7, 8, 9], np.int32), np.array([1, 0, size - 1])


def test_an_id_of_no_bytes_belongs_to_what_ends_before_it() -> None:
    (row, _) = _encode(item("bc", "bd", prefix="a"), _Silent(), opening=())
    assert _scored(row) == [9]


def test_an_empty_completion_is_refused_by_name() -> None:
    with pytest.raises(UserError, match=r"empty[\s\S]*u\.jsonl, line 1"):
        _encode(item("a", "", prefix="b"))


def test_an_item_beyond_the_context_is_refused_by_name() -> None:
    longer = item("de", "def", prefix="abc")
    assert len(_encode(longer, max_length=7)[1].ids) == 7
    with pytest.raises(UserError, match="takes 7 tokens, but the model takes 6") as e:
        _encode(longer, max_length=6)
    assert "u.jsonl, line 1" in str(e.value)
    assert "long_items=truncate" in str(e.value)


def test_truncation_takes_the_beginning_of_all_prefixes_alike() -> None:
    longer = item("de", "def", prefix="abc")
    good, bad = _encode(longer, max_length=5, long_items=LongItems.TRUNCATE)
    assert good.ids.tolist() == [BOS, *_ids("cde")]
    assert bad.ids.tolist() == [BOS, *_ids("cdef")]
    assert (_scored(good), _scored(bad)) == (_ids("de"), _ids("def"))
    encoded = encode_task(
        task(longer, item("a", "b")),
        Pieces(),
        opening=(BOS,),
        max_length=5,
        long_items=LongItems.TRUNCATE,
    )
    assert encoded.truncated == 1


def test_truncation_never_takes_what_is_scored() -> None:
    with pytest.raises(UserError, match="completions alone"):
        _encode(
            item("de", "def", prefix="abc"),
            max_length=3,
            long_items=LongItems.TRUNCATE,
        )
    with pytest.raises(UserError, match="completions alone"):
        _encode(item("abcd", "b"), max_length=4, long_items=LongItems.TRUNCATE)
