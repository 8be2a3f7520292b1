"""What cleaning does to a text, and what it leaves."""

import numpy as np
import pytest

from lmjax.config.schema import CleaningConfig
from lmjax.data.preparation.cleaning import Cleaner, near_duplicates, signature

WHOLE = {"begins": True, "ends": True}


def test_nothing_happens_by_default():
    cleaner = Cleaner(CleaningConfig())
    text = "  a  b\t\nc \u00e2\u20ac\u2122 "
    assert cleaner.clean(text, **WHOLE) == text
    assert not cleaner.rewrites and cleaner.describe() == {}


def test_whitespace_is_tidied_and_lines_stay():
    cleaner = Cleaner(CleaningConfig(whitespace=True))
    assert cleaner.clean(" a \t b\r\n\n  c\u00a0d  ", **WHOLE) == "a b\n\nc d"
    assert cleaner.describe() == {"whitespace": True}


def test_a_piece_keeps_the_blank_at_its_border():
    cleaner = Cleaner(CleaningConfig(whitespace=True))
    assert cleaner.clean("  a  ", begins=True, ends=False) == "a "
    assert cleaner.clean("  b  ", begins=False, ends=True) == " b"


def test_mojibake_is_repaired_and_nothing_else():
    pytest.importorskip("ftfy")
    cleaner = Cleaner(CleaningConfig(repair_unicode=True))
    assert cleaner.clean("the dog\u00e2\u20ac\u2122s", **WHOLE) == "the dog\u2019s"
    text = "\u201cna\u00efve\u201d \ufb01ne  &amp; \uff21"
    assert cleaner.clean(text, **WHOLE) == text


def test_the_rules_that_changed_a_text_are_named():
    pytest.importorskip("ftfy")
    cleaner = Cleaner(CleaningConfig(repair_unicode=True, whitespace=True))
    changed = cleaner.rewrite(" dog\u00e2\u20ac\u2122s", **WHOLE)
    assert list(changed) == ["repair_unicode", "whitespace"]
    assert list(changed.values()) == [" dog\u2019s", "dog\u2019s"]
    assert cleaner.rewrite("plain text", **WHOLE) == {}


def test_signatures_agree_as_the_texts_do():
    pytest.importorskip("datasketch")
    words = [f"w{i}" for i in range(400)]
    whole = signature(" ".join(words))
    assert whole.shape == (64,)
    assert (whole == signature("  ".join(words))).all()
    # Runs of five words in common: 296 of 496.
    other = " ".join([*words[:300], *(f"x{i}" for i in range(100))])
    assert abs(np.mean(whole == signature(other)) - 296 / 496) < 0.2
    assert np.mean(whole == signature(" ".join(f"y{i}" for i in range(400)))) < 0.1


def test_of_similar_texts_the_first_stays():
    pytest.importorskip("datasketch")
    words = [f"w{i}" for i in range(300)]
    texts = [" ".join(words), "a b", " ".join(words[:-2]), "a b", "a b c"]
    dropped = near_duplicates([signature(text) for text in texts], 0.8)
    assert dropped.tolist() == [False, False, True, True, False]
