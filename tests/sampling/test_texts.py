"""What of a text can be shown while it grows, and where it ends."""

from collections.abc import Sequence

import numpy as np
import pytest

from lmjax.data.tokenization.byte_tokenizer import ByteTokenizer
from lmjax.sampling.canvas import make_draft
from lmjax.sampling.texts import Ending, GrowingText

EOS = ByteTokenizer().special.eos


class Words(ByteTokenizer):
    """A lossy tokenizer: blanks at both ends of a text, and before a comma, go."""

    lossless = False

    def decode(self, ids: Sequence[int] | np.ndarray) -> str:
        return super().decode(ids).replace(" ,", ",").strip()


def _grown(
    parts: Sequence[Sequence[int]],
    *,
    prompt: str = "",
    room: int = 100,
    stops: Sequence[str] = (),
    tokenizer: ByteTokenizer | None = None,
) -> tuple[GrowingText, list[str]]:
    """A text that came in these parts, and what was shown after each of them."""
    tokenizer = tokenizer or ByteTokenizer()
    draft = make_draft(prompt, tokenizer, [EOS], room, may_infill=False)
    text, shown = GrowingText(draft, tokenizer, stops), []
    for part in parts:
        text.add(part)
        shown.append(text.piece())
    return text, shown


def _ids(text: str) -> list[int]:
    return ByteTokenizer().encode(text)


def _cuts(ids: list[int], size: int) -> list[list[int]]:
    return [ids[i : i + size] for i in range(0, len(ids), size)]


@pytest.mark.parametrize("size", [1, 2, 3, 5, 7, 100])
@pytest.mark.parametrize(
    ("ids", "stops", "room", "expected"),
    [
        (_ids("one two"), (), 7, ("one two", 7, Ending.LENGTH)),
        (_ids("one two three"), (), 7, ("one two", 7, Ending.LENGTH)),
        ([*_ids("one"), EOS, *_ids("two")], (), 50, ("one", 4, Ending.EOS)),
        ([EOS, *_ids("one")], (), 50, ("", 1, Ending.EOS)),
        (_ids("one. two."), (".",), 50, ("one", 4, Ending.STOP)),
        (_ids("one\n\ntwo"), ("\n\n",), 50, ("one", 5, Ending.STOP)),
        # What is complete first ends the text, wherever it begins.
        (_ids("abcdef"), ("bcde", "cd"), 50, ("ab", 4, Ending.STOP)),
        (_ids("abcdef"), ("abcdef", "f"), 50, ("", 6, Ending.STOP)),
        ([*_ids("ab"), EOS, *_ids("cd")], ("bc",), 50, ("ab", 3, Ending.EOS)),
        ([*_ids("abc"), EOS], ("bc",), 50, ("a", 3, Ending.STOP)),
        (_ids("ananas"), ("nas",), 6, ("ana", 6, Ending.STOP)),
        (_ids("größer"), ("ß",), 50, ("grö", 6, Ending.STOP)),
    ],
)
def test_a_text_ends_where_it_should_in_whatever_parts_it_comes(
    ids: list[int],
    stops: tuple[str, ...],
    room: int,
    expected: tuple[str, int, Ending],
    size: int,
) -> None:
    text, shown = _grown(_cuts(ids, size), prompt="P. ", room=room, stops=stops)
    assert (text.continuation, text.num_tokens, text.ending) == expected
    assert text.text == "P. " + expected[0]
    assert "".join(shown) == expected[0]


def test_a_stop_string_in_the_prompt_or_across_its_end_stops_nothing() -> None:
    text, _ = _grown([_ids("two")], prompt="stop on", stops=("stop", "nt"), room=3)
    assert (text.text, text.ending) == ("stop ontwo", Ending.LENGTH)


def test_only_whole_characters_are_shown() -> None:
    written = "naïve 語 \U0001f600!"
    text, shown = _grown([[i] for i in _ids(written)], room=100)
    assert text.ending is None
    assert "".join(shown) == written
    assert [piece for piece in shown if piece] == list(written)


def test_bytes_that_never_become_a_character_are_shown_once_more_follows() -> None:
    broken = [_ids("a"), [5 + 0xE8], [5 + 0xAA], _ids("b"), [5 + 0xFF], [EOS]]
    text, shown = _grown(broken)
    assert shown == ["a", "", "", "\ufffdb", "", "\ufffd"]
    assert text.text == "a\ufffdb\ufffd"


def test_a_begun_stop_string_is_held_back_until_it_is_none() -> None:
    parts = [_ids(c) for c in "a<en<end"]
    _, shown = _grown([*parts, _ids("!")], stops=("<end>",))
    assert shown == ["a", "", "", "", "<en", "", "", "", "<end!"]
    text, shown = _grown([*parts, _ids(">")], stops=("<end>",))
    assert shown[-1] == "" and text.text == "a<en" and text.ending is Ending.STOP


def test_what_is_new_is_found_behind_a_prompt_that_is_spelled_anew() -> None:
    """The comma takes away a blank that the prompt ends with."""
    text, shown = _grown([_ids(", so"), [EOS]], prompt="well ", tokenizer=Words())
    assert text.text == "well, so"
    assert text.continuation == ", so"
    assert "".join(shown) == ", so"
