"""Windows hold every token once, in order; records give windows back."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lmjax.config.schema import Packing
from lmjax.data.preparation import packing
from lmjax.data.preparation.packing import (
    PackedWindows,
    PackingRule,
    RecordLayout,
    join,
    pack,
    prepend,
)
from lmjax.data.tokenization.encoding import Encoded
from lmjax.data.tokenization.tokenizers import SpecialIds

REPEATABLE = settings(derandomize=True, deadline=None)
SPECIAL = SpecialIds(unk=0, bos=1, eos=2, pad=3, mask=4)
BOS, EOS, PAD = 1, 2, 3
DOCUMENTS = st.lists(
    st.lists(st.integers(10, 99), min_size=1, max_size=30), min_size=1, max_size=10
)


def _encoded(documents: list[list[int]]) -> Encoded:
    tokens = np.array([t for document in documents for t in document], np.int32)
    lengths = np.array([len(document) for document in documents], np.int64)
    return Encoded(tokens, tokens % 2, tokens % 5, lengths)


def _joined(documents: list[list[int]], bos: bool = False) -> Encoded:
    whole = np.ones(len(documents), bool)
    return join(_encoded(documents), whole, whole, SPECIAL, bos=bos)


def _pack(
    documents: list[list[int]],
    kind: Packing,
    length: int,
    stride: int = 0,
    bos: bool = False,
) -> PackedWindows:
    rule = PackingRule(kind=kind, length=length, stride=stride)
    blocks = list(pack(_joined(documents, bos), rule, pad=PAD))
    if not blocks:
        return PackedWindows(*np.zeros((3, 0, length), np.int32), np.zeros(0, np.int32))
    return PackedWindows(*map(np.concatenate, zip(*blocks, strict=True)))


def test_documents_get_their_ends():
    joined = _joined([[11, 12], [13]])
    assert joined.tokens.tolist() == [11, 12, EOS, 13, EOS]
    assert joined.words.tolist() == [1, 0, 0, 1, 0]
    assert joined.bytes.tolist() == [1, 2, 0, 3, 0]
    assert joined.lengths.tolist() == [3, 2]


def test_documents_open_with_bos_when_asked():
    joined = _joined([[11, 12], [13]], bos=True)
    assert joined.tokens.tolist() == [BOS, 11, 12, EOS, BOS, 13, EOS]
    assert joined.words.tolist() == [0, 1, 0, 0, 0, 1, 0]
    assert joined.lengths.tolist() == [4, 3]


def test_pieces_of_a_document_become_one():
    pieces = _encoded([[11], [12, 13], [14], [15]])
    begins, ends = [False, True, False, True], [True, False, True, False]
    joined = join(pieces, np.array(begins), np.array(ends), SPECIAL, bos=True)
    assert joined.tokens.tolist() == [11, EOS, BOS, 12, 13, 14, EOS, BOS, 15]
    assert joined.lengths.tolist() == [2, 5, 2]  # the last goes on in another shard


def test_concatenated_documents_are_split():
    windows = _pack([[11, 12], [13]], Packing.CONCATENATE, 3)
    assert windows.tokens.tolist() == [[11, 12, EOS], [13, EOS, PAD]]
    assert windows.words.tolist() == [[1, 0, 0], [1, 0, 0]]
    assert windows.bytes.tolist() == [[1, 2, 0], [3, 0, 0]]
    assert windows.context.tolist() == [0, 0]


def test_no_document_is_no_window():
    for kind in Packing:
        assert len(_pack([], kind, 4).tokens) == 0


def test_a_full_window_is_not_followed_by_padding():
    for kind in Packing:
        windows = _pack([[10, 11, 12]], kind, 4)
        assert windows.tokens.tolist() == [[10, 11, 12, EOS]]


def test_one_document_per_window():
    windows = _pack([[11, 12], [13], [20, 21, 22, 23]], Packing.DOCUMENTS, 3)
    assert windows.tokens.tolist() == [
        [11, 12, EOS],
        [13, EOS, PAD],
        [20, 21, 22],
        [23, EOS, PAD],
    ]
    assert windows.context.tolist() == [0, 0, 0, 0]


def test_a_stride_repeats_tokens_as_context_and_counts_them_once():
    windows = _pack([[21, 22, 23, 24, 25, 26]], Packing.DOCUMENTS, 4, stride=3)
    assert windows.tokens.tolist() == [[21, 22, 23, 24], [24, 25, 26, EOS]]
    assert windows.context.tolist() == [0, 1]
    assert windows.words.tolist() == [[1, 0, 1, 0], [0, 1, 0, 0]]
    assert windows.bytes.tolist() == [[1, 2, 3, 4], [0, 0, 1, 0]]


def test_prompts_stand_before_their_pieces_without_words_and_bytes():
    pieces = _encoded([[11], [13, 15], [17], [19]])
    prompts = [np.array(p, np.int32) for p in ([91, 93], [], [95], [])]
    joined = prepend(pieces, prompts)
    assert joined.tokens.tolist() == [91, 93, 11, 13, 15, 95, 17, 19]
    assert joined.words.tolist() == [0, 0, 1, 1, 1, 0, 1, 1]
    assert joined.bytes.tolist() == [0, 0, 1, 3, 0, 0, 2, 4]
    assert joined.lengths.tolist() == [3, 2, 2, 1]
    assert joined.tokens.dtype == np.int32 and joined.lengths.dtype == np.int64
    unchanged = prepend(pieces, [np.zeros(0, np.int32)] * 4)
    assert all(map(np.array_equal, unchanged, pieces))


@REPEATABLE
@given(DOCUMENTS, st.data())
def test_what_is_behind_a_prompt_is_counted_once(documents, data):
    length = data.draw(st.integers(2, 9))
    stride = data.draw(st.integers(0, length))
    sizes = [data.draw(st.integers(0, min(length - 1, len(d)))) for d in documents]
    rule = PackingRule(kind=Packing.DOCUMENTS, length=length, stride=stride)
    blocks = pack(_joined(documents), rule, pad=PAD, prompts=np.array(sizes))
    windows = PackedWindows(*map(np.concatenate, zip(*blocks, strict=True)))
    counted = np.arange(length) >= windows.context[:, None]
    found = windows.tokens[counted & (windows.tokens != PAD)].tolist()
    expected = [d[n:] + [EOS] for d, n in zip(documents, sizes, strict=True)]
    assert found == [token for document in expected for token in document]
    assert windows.words.sum() == sum(t % 2 for d in expected for t in d if t != EOS)


@pytest.mark.parametrize("kind", [Packing.CONCATENATE, Packing.BEST_FIT])
def test_prompts_need_windows_of_one_document(kind):
    rule = PackingRule(kind=kind, length=4)
    with pytest.raises(ValueError, match="windows of one document"):
        next(pack(_joined([[11]]), rule, pad=PAD, prompts=np.array([1])))


def test_best_fit_puts_whole_documents_side_by_side():
    windows = _pack([[11] * 5, [12] * 4, [13], [14, 14]], Packing.BEST_FIT, 8)
    rows = {tuple(row) for row in windows.tokens.tolist()}
    assert rows == {
        (11, 11, 11, 11, 11, EOS, 13, EOS),
        (12, 12, 12, 12, EOS, 14, 14, EOS),
    }


def _split_at_ends(row: list[int]) -> list[tuple[int, ...]]:
    parts, part = [], []
    for token in row:
        part.append(token)
        if token == EOS:
            parts.append(tuple(part))
            part = []
    return [*parts, tuple(part)] if part else parts


@REPEATABLE
@given(DOCUMENTS, st.integers(1, 9), st.booleans())
def test_concatenation_loses_and_reorders_nothing(documents, length, bos):
    windows = _pack(documents, Packing.CONCATENATE, length, bos=bos)
    assert all(a.shape == windows.tokens.shape for a in windows[:3])
    tokens = windows.tokens.reshape(-1)
    start = [BOS] if bos else []
    expected = [token for d in documents for token in [*start, *d, EOS]]
    assert tokens[: len(expected)].tolist() == expected
    assert (tokens[len(expected) :] == PAD).all()
    assert len(tokens) - len(expected) < length
    assert windows.words.sum() == sum(t % 2 for d in documents for t in d)
    assert windows.bytes.sum() == sum(t % 5 for d in documents for t in d)


@REPEATABLE
@given(DOCUMENTS, st.integers(2, 9), st.data())
def test_strided_windows_count_every_token_once(documents, length, data):
    stride = data.draw(st.integers(1, length))
    windows = _pack(documents, Packing.DOCUMENTS, length, stride)
    counted = (np.arange(length) >= windows.context[:, None]) & (windows.tokens != PAD)
    expected = [token for d in documents for token in [*d, EOS]]
    assert windows.tokens[counted].tolist() == expected
    assert not windows.words[~counted].any() and not windows.bytes[~counted].any()
    assert windows.words.sum() == sum(t % 2 for d in documents for t in d)
    # Context is what stands before in the same document.
    for row, context in zip(windows.tokens.tolist(), windows.context, strict=True):
        assert EOS not in row[:context]


@REPEATABLE
@given(DOCUMENTS, st.integers(1, 9))
def test_best_fit_keeps_every_part(documents, length):
    windows = _pack(documents, Packing.BEST_FIT, length)
    found = [
        part
        for row in windows.tokens.tolist()
        for part in _split_at_ends([t for t in row if t != PAD])
    ]
    expected = []
    for document in documents:
        whole = [*document, EOS]
        expected += [tuple(whole[i : i + length]) for i in range(0, len(whole), length)]
    assert sorted(found) == sorted(expected)


@pytest.mark.parametrize("kind", Packing)
def test_windows_come_some_at_a_time(kind, monkeypatch):
    documents = [[10 + i, 20, 30] for i in range(40)]
    at_once = _pack(documents, kind, 4)
    monkeypatch.setattr(packing, "_BLOCK", 3)
    rule = PackingRule(kind=kind, length=4)
    sizes = [len(w.tokens) for w in pack(_joined(documents), rule, pad=PAD)]
    assert sizes == [3] * 13 + [1]
    in_blocks = _pack(documents, kind, 4)
    for one, other in zip(at_once, in_blocks, strict=True):
        assert (one == other).all()


@pytest.mark.parametrize("token_dtype, count_dtype", [("<u2", "|u1"), ("<u4", "<u2")])
def test_records_give_windows_back(token_dtype, count_dtype):
    layout = RecordLayout(length=3, token_dtype=token_dtype, count_dtype=count_dtype)
    largest = np.iinfo(token_dtype).max // 2, np.iinfo(count_dtype).max
    windows = PackedWindows(
        np.array([[1, 2, 3], [largest[0], 0, 7]]),
        np.array([[0, 1, 0], [0, 0, 2]]),
        np.array([[4, 5, 6], [largest[1], 0, 0]]),
        np.array([0, 2]),
    )
    records = list(layout.to_bytes(windows))
    assert {len(record) for record in records} == {layout.size}
    raw = np.frombuffer(b"".join(records), np.uint8).reshape(2, -1)
    for found, expected in zip(layout.from_bytes(raw), windows, strict=True):
        assert found.dtype == np.int32
        assert (found == expected).all()


def test_a_record_is_little_endian():
    layout = RecordLayout(length=1, token_dtype="<u2", count_dtype="|u1")
    windows = PackedWindows(
        np.array([[258]]), np.array([[1]]), np.array([[9]]), np.array([0])
    )
    assert list(layout.to_bytes(windows)) == [bytes([2, 1, 1, 9, 0, 0, 0, 0])]


def test_a_count_that_does_not_fit_is_refused():
    layout = RecordLayout(length=1, token_dtype="<u2", count_dtype="|u1")
    windows = PackedWindows(
        np.array([[9]]), np.array([[1]]), np.array([[256]]), np.array([0])
    )
    with pytest.raises(OverflowError, match="256"):
        layout.to_bytes(windows)
