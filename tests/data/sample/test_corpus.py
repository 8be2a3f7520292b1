"""The sample corpus is what it says: repeatable, unambiguous, of known entropy."""

import collections
import hashlib
import itertools
import math
import re
from pathlib import Path

import pytest

from lmjax.data.sample import corpus as sample_corpus
from lmjax.data.sample import grammar as sample_grammar
from lmjax.data.sample import pairs as sample_pairs


@pytest.fixture(scope="module")
def documents() -> list[str]:
    return list(sample_corpus.generate_documents(seed=3, num_words=12_000))


@pytest.fixture(scope="module")
def pairs() -> list[sample_pairs.MinimalPair]:
    return sample_pairs.minimal_pairs(seed=5, count=330)


def _strings(symbol: str) -> list[tuple[float, str]]:
    """Every string of a symbol with its probability, by brute force."""
    rules = sample_grammar.grammar().get(symbol)
    if rules is None:
        return [(1.0, symbol)]
    total = sum(weight for weight, _ in rules)
    found = []
    for weight, symbols in rules:
        for choice in itertools.product(*(_strings(child) for child in symbols)):
            probability = math.prod(p for p, _ in choice) * weight / total
            found.append((probability, " ".join(text for _, text in choice)))
    return found


def test_a_seed_always_gives_the_same_text() -> None:
    text = "\n\n".join(sample_corpus.generate_documents(seed=0, num_words=2_000))
    digest = hashlib.sha256(text.encode()).hexdigest()
    assert digest == (
        "b8bc0f94dc78f2672d594a7cde46c6297ec378c6fa1f6ccee575889e247a6d74"
    )
    assert text.startswith("what does it throw?\nis this funny brother teaching")
    other = "\n\n".join(sample_corpus.generate_documents(seed=1, num_words=2_000))
    assert other != text


def test_documents_stop_once_there_are_enough_words(documents: list[str]) -> None:
    counts = [len(document.split()) for document in documents]
    assert sum(counts[:-1]) < 12_000 <= sum(counts)
    assert list(sample_corpus.generate_documents(seed=0, num_words=0)) == []


def test_the_file_holds_the_documents_apart_by_blank_lines(tmp_path: Path) -> None:
    path = tmp_path / "sample.txt"
    path.write_text("an older corpus")
    sample_corpus.write_corpus(path, seed=4, num_words=500)
    documents = list(sample_corpus.generate_documents(seed=4, num_words=500))
    assert len(documents) > 1
    assert path.read_bytes().decode("ascii") == "\n\n".join(documents) + "\n"
    assert list(tmp_path.iterdir()) == [path]


def test_text_is_lower_case_words_with_one_space_between(documents: list[str]) -> None:
    sentence = re.compile(r"([a-z]+ )+[a-z]+[.?]")
    for line in "\n".join(documents).split("\n"):
        assert sentence.fullmatch(line), line


def test_vocabulary_is_of_the_size_claimed(documents: list[str]) -> None:
    written = sample_grammar.vocabulary()
    assert 250 <= len({word.rstrip(".?") for word in written}) <= 350
    assert written.issuperset(" ".join(documents).split())
    # "she" opens clauses only; every verb form can end a sentence.
    assert "she" in written and "she." not in written
    assert {"dog", "dog.", "dog?", "ran."} <= written


def test_every_sentence_has_exactly_one_derivation(documents: list[str]) -> None:
    sentences = "\n".join(documents).split("\n")[:800]
    ambiguous = [s for s in sentences if len(sample_corpus._derivations(s)) != 1]
    assert len(sentences) == 800
    assert ambiguous == []


def test_a_second_derivation_would_be_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    doubled = dict(sample_grammar.grammar())
    doubled["Adjunct"] = [*doubled["Adjunct"], (100, ("why",))]
    monkeypatch.setattr(sample_corpus, "grammar", lambda: doubled)
    assert len(sample_corpus._derivations("why does he run?")) == 2


@pytest.mark.parametrize("symbol", ["Agent.he", "Place", "Quality", "Phrase.things"])
def test_strings_of_a_symbol_are_distinct_and_sum_to_one(symbol: str) -> None:
    strings = _strings(symbol)
    assert math.fsum(p for p, _ in strings) == pytest.approx(1, abs=1e-12)
    assert len({text for _, text in strings}) == len(strings)
    bits, words = sample_corpus._expectation(symbol)
    assert bits == pytest.approx(math.fsum(-p * math.log2(p) for p, _ in strings))
    assert words == pytest.approx(math.fsum(p * len(t.split()) for p, t in strings))
    for probability, text in strings[:: len(strings) // 20]:
        parsed = sample_corpus._parse(symbol, text.split(), 0)
        whole = [p for end, p in parsed if end == len(text.split())]
        assert whole == [pytest.approx(probability)]


def test_probability_of_a_document_is_that_of_its_rules() -> None:
    def share(symbol: str, *expansion: str) -> float:
        rules = sample_grammar.grammar()[symbol]
        chosen = [weight for weight, symbols in rules if symbols == expansion]
        return sum(chosen) / sum(weight for weight, _ in rules)

    i_ran = (
        share("Sentence", "Statement", ".")
        * share("Statement", "Subject.i", "Predicate.i")
        * share("Predicate.i", "Action.past.i")
        * share("Action.past.i", "Core.past.i")
        * share("Core.past.i", "Move.past")
        * share("Move.past", "ran")
    )
    one = sample_corpus.log2_probability("i ran.")
    assert one == pytest.approx(math.log2(i_ran / 6))
    three = sample_corpus.log2_probability("i ran.\ni ran.\ni ran.")
    assert three == pytest.approx(math.log2(i_ran**3 * (5 / 6) ** 2 / 6))


def test_entropy_is_the_mean_information_of_generated_text(
    documents: list[str],
) -> None:
    entropy = sample_corpus.entropy_bits_per_word()
    bits = [-sample_corpus.log2_probability(document) for document in documents]
    words = [len(document.split()) for document in documents]
    # Standard error of a ratio of means: that of the residuals bits - entropy * words.
    residuals = [b - entropy * w for b, w in zip(bits, words, strict=True)]
    error = math.sqrt(sum(r * r for r in residuals)) / sum(words)
    assert error < 0.02
    assert abs(sum(bits) / sum(words) - entropy) < 4 * error
    assert 4.0 < entropy < 4.7


def test_documents_are_as_long_as_expected(documents: list[str]) -> None:
    expected = sample_corpus.expected_words_per_document()
    words = [len(document.split()) for document in documents]
    mean = sum(words) / len(words)
    error = math.sqrt(sum((w - mean) ** 2 for w in words)) / len(words)
    assert abs(mean - expected) < 4 * error
    assert 6 <= expected * sample_corpus.STOP_PROBABILITY <= 9


@pytest.mark.parametrize(
    "sentence",
    [
        "",
        "i ran",
        "i  ran.",
        "i ran .",
        "I ran.",
        "ran i.",
        "i ran?",
        "the dog run.",
        "the dog that the dog that ran hugged ran.",
        "i hugged me.",
    ],
)
def test_what_is_no_sentence_is_refused_and_quoted(sentence: str) -> None:
    with pytest.raises(ValueError, match="line 2") as caught:
        sample_corpus.log2_probability(f"i ran.\n{sentence}")
    assert repr(sentence) in str(caught.value)


def test_only_the_good_sentence_of_a_pair_is_of_the_grammar(
    pairs: list[sample_pairs.MinimalPair],
) -> None:
    for pair in pairs:
        assert len(sample_corpus._derivations(pair.good)) == 1, pair
        assert sample_corpus._derivations(pair.bad) == [], pair


def test_pairs_differ_in_one_word_or_in_word_order(
    pairs: list[sample_pairs.MinimalPair],
) -> None:
    for pair in pairs:
        good, bad = pair.good.split(), pair.bad.split()
        assert len(good) == len(bad)
        changed = sum(g != b for g, b in zip(good, bad, strict=True))
        if pair.phenomenon == "question inversion":
            assert changed >= 2 and sorted(good) == sorted(bad), pair
        else:
            assert changed == 1, pair


def test_pairs_are_distinct_balanced_and_written_in_corpus_words(
    pairs: list[sample_pairs.MinimalPair],
) -> None:
    many = sample_pairs.minimal_pairs(seed=7, count=2_200)
    assert len(set(many)) == len(many) == 2_200
    counts = collections.Counter(pair.phenomenon for pair in many)
    assert len(counts) == 11
    assert set(counts.values()) == {200}
    used = {word for pair in pairs for word in f"{pair.good} {pair.bad}".split()}
    assert used <= sample_grammar.vocabulary()


def test_pairs_depend_on_the_seed_alone(
    pairs: list[sample_pairs.MinimalPair],
) -> None:
    assert sample_pairs.minimal_pairs(seed=5, count=22) == pairs[:22]
    assert sample_pairs.minimal_pairs(seed=6, count=22) != pairs[:22]


def test_agreement_across_a_phrase_has_a_noun_of_the_other_number(
    pairs: list[sample_pairs.MinimalPair],
) -> None:
    plural = {
        word
        for gender in ("he", "she", "it")
        for _, (word,) in sample_grammar.grammar()[f"Nouns.{gender}"]
    }
    singular = {
        word
        for gender in ("he", "she", "it")
        for _, (word,) in sample_grammar.grammar()[f"Noun.{gender}"]
    }
    for pair in pairs:
        if pair.phenomenon == "agreement across phrase":
            nouns = [w for w in pair.good.split() if w in plural | singular]
            assert (nouns[0] in plural) != (nouns[1] in plural), pair
