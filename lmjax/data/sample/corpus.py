"""The built-in sample corpus: text of a small grammar, of exactly known entropy.

Every text of `sample_grammar` has one derivation. So the information in the text is
that of the rules chosen, and the entropy in bits per whitespace word is computed from
the rule weights alone: a trained model's loss can be held against the truth. A document
is one sentence or more, one per line, in lower case; the last word carries its full
stop or question mark. Sentences are independent of each other, and after each one the
document ends with probability `STOP_PROBABILITY`.
"""

import functools
import math
import random
from collections.abc import Iterator
from pathlib import Path

from lmjax.core.files import replacing
from lmjax.data.sample.grammar import (
    FINAL_MARKS,
    cumulative_weights,
    expand,
    grammar,
    join,
)

STOP_PROBABILITY = 1 / 6  # so a document has 6 sentences on average


def generate_documents(seed: int, num_words: int = 300_000) -> Iterator[str]:
    """Yields whole documents until they hold at least `num_words` whitespace words.

    The same seed gives the same text on every platform and Python version.
    """
    rng = random.Random(seed)
    words = 0
    while words < num_words:
        sentences = [join(expand(["Sentence"], rng))]
        while rng.random() >= STOP_PROBABILITY:
            sentences.append(join(expand(["Sentence"], rng)))
        words += sum(len(sentence.split()) for sentence in sentences)
        yield "\n".join(sentences)


def write_corpus(path: Path, seed: int, num_words: int = 300_000) -> None:
    """Writes the documents to `path`, a blank line between them, all or nothing."""
    with (
        replacing(path) as temporary,
        temporary.open("w", encoding="ascii", newline="\n") as file,
    ):
        for index, document in enumerate(generate_documents(seed, num_words)):
            file.write(("\n" if index else "") + document + "\n")


@functools.cache
def _expectation(symbol: str) -> tuple[float, float]:
    """Returns the entropy in bits of what a symbol stands for, and its mean words."""
    if symbol not in grammar():
        return 0.0, float(symbol not in FINAL_MARKS)
    bits = words = 0.0
    for weight, symbols in grammar()[symbol]:
        probability = weight / cumulative_weights(symbol)[-1]
        children = [_expectation(child) for child in symbols]
        bits += probability * (sum(b for b, _ in children) - math.log2(probability))
        words += probability * sum(w for _, w in children)
    return bits, words


def expected_words_per_document() -> float:
    """Returns the mean number of whitespace words in a document."""
    return _expectation("Sentence")[1] / STOP_PROBABILITY


def entropy_bits_per_word() -> float:
    """Returns E[-log2 p(document)] / E[words in a document], exactly.

    The end of the document is part of it. No model of the text can have a lower
    cross-entropy per word, except by chance or by having seen the text.
    """
    go_on = 1 - STOP_PROBABILITY
    ends = -math.log2(STOP_PROBABILITY) - go_on / STOP_PROBABILITY * math.log2(go_on)
    bits = _expectation("Sentence")[0] / STOP_PROBABILITY + ends
    return bits / expected_words_per_document()


@functools.cache
def _first_words(symbol: str) -> frozenset[str]:
    if symbol not in grammar():
        return frozenset((symbol,))
    return frozenset().union(
        *(_first_words(symbols[0]) for _, symbols in grammar()[symbol])
    )


def _parse(symbol: str, tokens: list[str], start: int) -> list[tuple[int, float]]:
    """Returns (end, probability) of each derivation of tokens[start:end]."""
    if start == len(tokens) or tokens[start] not in _first_words(symbol):
        return []
    if symbol not in grammar():
        return [(start + 1, 1.0)]
    found = []
    for weight, symbols in grammar()[symbol]:
        ends = [(start, weight / cumulative_weights(symbol)[-1])]
        for child in symbols:
            ends = [
                (end, before * probability)
                for middle, before in ends
                for end, probability in _parse(child, tokens, middle)
            ]
        found += ends
    return found


def _derivations(sentence: str) -> list[float]:
    """Returns the probability of each derivation of a sentence; [] if there is none."""
    words = sentence.split(" ")
    tokens = [*words[:-1], words[-1][:-1], words[-1][-1:]]
    return [p for end, p in _parse("Sentence", tokens, 0) if end == len(tokens)]


def log2_probability(document: str) -> float:
    """Returns the exact log2 probability of a document, its end included.

    Raises:
      ValueError: if a line is no sentence of the grammar; the message quotes it.
    """
    sentences = document.split("\n")
    total = math.log2(STOP_PROBABILITY)
    total += (len(sentences) - 1) * math.log2(1 - STOP_PROBABILITY)
    for number, sentence in enumerate(sentences, start=1):
        probabilities = _derivations(sentence)
        if not probabilities:
            raise ValueError(
                f"line {number} of the document, {sentence!r}, is no sentence of the "
                "sample grammar; only text from generate_documents has a probability"
            )
        total += math.log2(math.fsum(probabilities))
    return total
