"""Statistics of texts whose answers are known, and texts that repeat themselves."""

import dataclasses
import json
import math
from collections.abc import Sequence

import numpy as np
import pytest

from lmjax.evaluate.generated_text import (
    GenerativePerplexity,
    describe,
    evaluate_texts,
    repeats,
    unigram_entropy,
)

FINE = (
    "One morning the old man walked down to the river with his dog, and there they met "
    "a small boy who had lost his boat. They looked for it until the sun was low, and "
    "found it under a bridge, where the wind had blown it among the reeds."
)


def _words(text: str) -> list[int]:
    """An id for each word."""
    known: dict[str, int] = {}
    return [known.setdefault(word, len(known)) for word in text.split()]


def _letters(text: str) -> list[int]:
    return list(text.encode())


def test_the_entropy_of_a_known_sample() -> None:
    assert unigram_entropy([7] * 9) == 0.0
    assert unigram_entropy([]) == 0.0
    assert unigram_entropy([5, 6] * 8) == pytest.approx(math.log(2))
    assert unigram_entropy([1, 1, 2, 3]) == pytest.approx(1.5 * math.log(2))


def test_statistics_of_two_short_texts() -> None:
    """Tokens a b a b and a c: entropies ln 2, together those of 3 a, 2 b, 1 c."""
    found = describe(["ab ab", "ac\n"], [[1, 2, 1, 2], np.array([1, 3], np.int32)])
    assert (found.texts, found.tokens, found.words) == (2, 6, 3)
    assert found.entropy == pytest.approx(math.log(2))
    assert found.entropy_error == pytest.approx(0.0, abs=1e-12)
    pooled = math.log(2) / 2 + math.log(3) / 3 + math.log(6) / 6
    assert found.pooled_entropy == pytest.approx(pooled)
    # 1-grams a b c of 6; 2-grams ab ba ac of 4; 3-grams aba bab of 2.
    assert found.distinct == pytest.approx((3 / 6, 3 / 4, 1.0))
    by_name = {figure.name: figure for figure in found.figures("sample")}
    length = by_name["sample/mean_tokens"]
    assert (length.value, length.standard_error) == pytest.approx((3.0, 1.0))
    words = by_name["sample/mean_words"]
    assert (words.value, words.standard_error) == pytest.approx((1.5, 0.5))
    assert by_name["sample/entropy"].kind == "statistic (nats, mean over texts)"
    assert by_name["sample/distinct_2"].value == found.distinct[1]
    assert by_name["sample/repeating"].value == found.repeating == 0.0
    report = json.loads(json.dumps(found.to_json(), allow_nan=False))
    assert report["distinct_3"] == 1.0
    assert report["entropy"] == found.entropy


def test_a_single_empty_text_has_statistics_too() -> None:
    found = describe([""], [[]])
    assert (found.tokens, found.words, found.entropy) == (0, 0, 0.0)
    assert math.isnan(found.distinct[0]) and math.isnan(found.entropy_error)
    assert (
        json.loads(json.dumps(found.to_json(), allow_nan=False))["distinct_1"] is None
    )


def test_texts_and_ids_must_belong_together() -> None:
    with pytest.raises(ValueError, match="0 texts"):
        describe([], [])
    with pytest.raises(ValueError, match="1 texts and 2"):
        describe(["a"], [[1], [2]])


@pytest.mark.parametrize("encode", [_words, _letters])
@pytest.mark.parametrize(
    "text",
    [
        "the " * 40,
        "I am a cat. " * 20,
        "one two " * 20,
        FINE + " and on" * 30,
        FINE * 3,
    ],
)
def test_a_text_that_repeats_itself_is_flagged(text: str, encode) -> None:
    assert repeats(text, encode(text))


@pytest.mark.parametrize("encode", [_words, _letters])
@pytest.mark.parametrize("text", [FINE, "No, no, no!", "", "ha ha ha ha", FINE[:70]])
def test_a_fine_or_a_short_text_is_not_flagged(text: str, encode) -> None:
    assert not repeats(text, encode(text))


@pytest.mark.parametrize(
    ("ids", "flagged"),
    [
        ([5] * 15, False),  # too short to judge
        ([5] * 16, True),
        ([4, 5, 6, 7] * 5, True),  # ln 4 = 1.39 nats
        (np.random.default_rng(0).integers(4, size=200).tolist(), True),
        (list(range(30)), False),
        ([1, 2, 3, *range(10, 20), 1, 2, 3, *range(20, 24)], False),  # twice of 18
        ([1, 2, 3, *range(10, 17)] * 4, True),  # a period of 10, four times
        ([1, 2, 3, *range(10, 30)] * 4, False),  # one of 23: left to the words
    ],
)
def test_tokens_alone_are_judged_by_entropy_and_trigrams(
    ids: list[int], flagged: bool
) -> None:
    assert repeats("", ids) is flagged


@dataclasses.dataclass(frozen=True)
class Gullible:
    """A judge that finds each repeated letter likelier than a new one."""

    name: str = "gullible"
    counted: str = "every letter"

    def nll(self, texts: Sequence[str]) -> list[tuple[float, int]]:
        return [(float(len(set(text))), len(text)) for text in texts]


def _evaluate(texts: Sequence[str]) -> GenerativePerplexity:
    return evaluate_texts(Gullible(), texts, [_letters(text) for text in texts])


def test_a_likely_sample_that_repeats_itself_does_not_pass_for_good() -> None:
    """Its perplexity is the better one: only what stands beside it tells."""
    bad, good = _evaluate(["the " * 40, "cat " * 40]), _evaluate([FINE, FINE[:-60]])
    assert bad.value < good.value
    assert (bad.statistics.repeating, good.statistics.repeating) == (1.0, 0.0)
    assert bad.statistics.entropy < 1.5 < 2.5 < good.statistics.entropy
    for found in (bad, good):
        names = [figure.name for figure in found.figures("gen")]
        assert names[0] == "gen/generative_perplexity"
        assert {"gen/entropy", "gen/distinct_3", "gen/repeating"} < set(names)
        assert "entropy" in found.to_json()["statistics"]


def test_the_perplexity_is_of_all_tokens_and_its_error_over_texts() -> None:
    """2 nats for 4 letters, 3 for 8: exp(5 / 12), give or take 1 / 18 of it."""
    found = _evaluate(["abab", "abcabcab", ""])
    assert found.value == pytest.approx(math.exp(5 / 12))
    assert found.standard_error == pytest.approx(found.value / 18)
    assert (found.tokens, found.unjudged, found.statistics.texts) == (12, 1, 3)
    assert found.kind == "generative perplexity under gullible"
    assert found.figures()[0].kind == f"{found.kind} (every letter)"
    report = json.loads(json.dumps(found.to_json(), allow_nan=False))
    assert report["value"] == found.value
    assert report["kind"] == found.kind
    alone = json.dumps(_evaluate(["abab"]).to_json(), allow_nan=False)
    assert json.loads(alone)["standard_error"] is None
    with pytest.raises(ValueError, match="gullible counts no token of these 2"):
        _evaluate(["", ""])
