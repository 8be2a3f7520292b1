"""What a word is, and where words begin.

Words are counted as GNU `wc -w` does in a UTF-8 locale. That is `str.split()`, but for
two things. U+2060 separates words, while U+001C to U+001F and U+0085 do not. And a
control character that separates nothing is as if it were not there: it neither starts
nor ends a word.
"""

import functools
import re
import unicodedata

import numpy as np

_WORD_JOINER = 0x2060
_NO_SEPARATORS = (*range(0x1C, 0x20), 0x85)  # whitespace to Python alone
_END = 0x3001  # no separator or control character lies above

# Classes of bytes and of characters. A byte is UNDECIDED where a character begins
# whose class takes its further bytes to tell.
_SEPARATOR, _WORD, _NOTHING, _UNDECIDED = range(4)


def _class_of(code_point: int) -> int:
    character = chr(code_point)
    if code_point == _WORD_JOINER:
        return _SEPARATOR
    if character.isspace() and code_point not in _NO_SEPARATORS:
        return _SEPARATOR
    return _NOTHING if unicodedata.category(character) == "Cc" else _WORD


@functools.cache
def _classes() -> np.ndarray:
    """uint8 [_END + 1] by code point; the last one stands for all above."""
    return np.array([_class_of(c) for c in range(_END)] + [_WORD], np.uint8)


@functools.cache
def _byte_classes() -> bytes:
    """Class of each byte, for bytes.translate; continuation bytes are _WORD."""
    special = (chr(c).encode()[0] for c in range(0x80, _END) if _class_of(c) != _WORD)
    table = bytearray([_class_of(c) for c in range(0x80)] + [_WORD] * 0x80)
    for lead in special:
        table[lead] = _UNDECIDED
    return bytes(table)


@functools.cache
def _odd() -> re.Pattern[str]:
    """Finds a character that str.split() gets wrong."""
    odd = [c for c in range(_END) if _class_of(c) == _NOTHING]
    return re.compile(f"[{re.escape(''.join(map(chr, (*odd, _WORD_JOINER))))}]")


def count_words(text: str, inside: bool = False) -> int:
    """Number of words; equals len(word_starts(text)).

    Args:
      inside: whether the text before it ended within a word, which was counted there.
    """
    if inside:
        return count_words(f"x{text}") - 1
    if _odd().search(text):

        def plain(found: re.Match[str]) -> str:
            return " " if ord(found[0]) == _WORD_JOINER else ""

        text = _odd().sub(plain, text)
    return len(text.split())


def ends_in_word(text: str, inside: bool = False) -> bool:
    """Whether a text ends within a word, so that what follows may go on with it.

    Args:
      inside: whether the text before it ended so.
    """
    for start in range(len(text) - 1, -1, -1):
        kind = int(_classes()[min(ord(text[start]), _END)])
        if kind != _NOTHING:
            return kind == _WORD
    return inside


def word_starts(text: str | bytes) -> np.ndarray:
    """Finds the first character of every word.

    Args:
      text: a text, or its UTF-8. Bytes that are no UTF-8 belong to words; in a str
        each is the lone surrogate that `errors="surrogateescape"` makes of it.

    Returns:
      int64 [words], positions in the UTF-8, in order.

    Raises:
      UnicodeEncodeError: the text has another lone surrogate.
    """
    data = text.encode("utf-8", "surrogateescape") if isinstance(text, str) else text
    classes = np.frombuffer(bytearray(data.translate(_byte_classes())), np.uint8)
    if not data.isascii():
        _decide(classes, np.frombuffer(data, np.uint8))
    if not (classes == _NOTHING).any():
        return _rises(classes)
    something = np.flatnonzero(classes != _NOTHING)
    return something[_rises(classes[something])]


def _rises(classes: np.ndarray) -> np.ndarray:
    """Positions of _WORD at the beginning or behind a _SEPARATOR."""
    inner = np.flatnonzero(classes[1:] > classes[:-1]) + 1
    if len(classes) and classes[0] == _WORD:
        return np.concatenate([[0], inner])
    return inner


def _decide(classes: np.ndarray, data: np.ndarray) -> None:
    """Gives the bytes of every _UNDECIDED character its class, in place."""
    at = np.flatnonzero(classes == _UNDECIDED)
    classes[at] = _WORD
    first = data[at]
    # Zeros behind the end are no continuation bytes.
    second, third = (_at(data, at + i) for i in (1, 2))
    two = (first < 0xE0) & _continues(second)
    three = (first >= 0xE0) & _continues(second) & _continues(third)
    short = (first.astype(np.int64) & 0x1F) << 6 | second & 0x3F
    long = (first.astype(np.int64) & 0xF) << 12 | (second & 0x3F) << 6 | third & 0x3F
    for size, valid, points in ((2, two, short), (3, three, long)):
        found = _classes()[np.minimum(points[valid], _END)]
        odd = found != _WORD
        for i in range(size):
            classes[at[valid][odd] + i] = found[odd]


def _at(data: np.ndarray, positions: np.ndarray) -> np.ndarray:
    """int64; 0 for positions behind the end."""
    inside = positions < len(data)
    return np.where(inside, data[np.where(inside, positions, 0)], 0).astype(np.int64)


def _continues(data: np.ndarray) -> np.ndarray:
    return (data & 0xC0) == 0x80
