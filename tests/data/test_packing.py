"""Windows hold every token once, in order; records give windows back."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lmjax.data.packing import RecordLayout, pack
from lmjax.data.tokenizers import Encoding

REPEATABLE = settings(derandomize=True, deadline=None)
EOS, PAD = 2, 3


def _encoding(tokens: list[int]) -> Encoding:
    tokens = np.array(tokens, np.int32)
    return Encoding(tokens, tokens % 2, tokens % 5)


def test_documents_are_joined_and_split():
    windows = list(
        pack([_encoding([11, 12]), _encoding([13])], length=3, eos=EOS, pad=PAD)
    )
    assert [w.tokens.tolist() for w in windows] == [[11, 12, EOS], [13, EOS, PAD]]
    assert [w.words.tolist() for w in windows] == [[1, 0, 0], [1, 0, 0]]
    assert [w.bytes.tolist() for w in windows] == [[1, 2, 0], [3, 0, 0]]


def test_no_document_is_no_window():
    assert not list(pack([], length=4, eos=EOS, pad=PAD))


def test_a_full_window_is_not_followed_by_padding():
    (window,) = pack([_encoding([10, 11, 12])], length=4, eos=EOS, pad=PAD)
    assert window.tokens.tolist() == [10, 11, 12, EOS]


@REPEATABLE
@given(
    st.lists(st.lists(st.integers(10, 99), max_size=30), min_size=1, max_size=10),
    st.integers(1, 9),
)
def test_nothing_is_lost_or_reordered(documents, length):
    encodings = [_encoding(tokens) for tokens in documents]
    windows = list(pack(encodings, length=length, eos=EOS, pad=PAD))
    assert all(array.shape == (length,) for w in windows for array in w)
    tokens, words, num_bytes = (
        np.concatenate(arrays) for arrays in zip(*windows, strict=True)
    )
    expected = [token for tokens in documents for token in [*tokens, EOS]]
    assert tokens[: len(expected)].tolist() == expected
    assert (tokens[len(expected) :] == PAD).all()
    assert len(tokens) - len(expected) < length
    assert words.sum() == sum(e.words.sum() for e in encodings)
    assert num_bytes.sum() == sum(e.bytes.sum() for e in encodings)


@pytest.mark.parametrize("token_dtype, count_dtype", [("<u2", "|u1"), ("<u4", "<u2")])
def test_records_give_windows_back(token_dtype, count_dtype):
    layout = RecordLayout(length=3, token_dtype=token_dtype, count_dtype=count_dtype)
    largest = np.iinfo(token_dtype).max // 2, np.iinfo(count_dtype).max
    windows = [
        Encoding(*np.array([[1, 2, 3], [0, 1, 0], [4, 5, 6]])),
        Encoding(*np.array([[largest[0], 0, 7], [0, 0, 2], [largest[1], 0, 0]])),
    ]
    records = [layout.to_bytes(window) for window in windows]
    assert {len(record) for record in records} == {layout.size}
    raw = np.frombuffer(b"".join(records), np.uint8).reshape(2, -1)
    for found, expected in zip(
        layout.from_bytes(raw), zip(*windows, strict=True), strict=True
    ):
        assert found.dtype == np.int32
        assert (found == np.stack(expected)).all()


def test_a_record_is_little_endian():
    layout = RecordLayout(length=1, token_dtype="<u2", count_dtype="|u1")
    window = Encoding(np.array([258]), np.array([1]), np.array([9]))
    assert layout.to_bytes(window) == bytes([2, 1, 1, 9])


def test_a_count_that_does_not_fit_is_refused():
    layout = RecordLayout(length=1, token_dtype="<u2", count_dtype="|u1")
    with pytest.raises(OverflowError, match="256"):
        layout.to_bytes(Encoding(np.array([9]), np.array([1]), np.array([256])))
