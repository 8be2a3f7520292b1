"""Minimal pairs from the grammar of the built-in corpus."""

import dataclasses
import itertools
import random
from collections.abc import Callable, Sequence
from functools import partial

from lmjax.data.sample.grammar import (
    NOUN_AGENTS,
    PRONOUNS,
    VERBS,
    choose,
    expand,
    join,
    vocabulary,
)


@dataclasses.dataclass(frozen=True)
class MinimalPair:
    """A sentence of the grammar, and one just beside it that is none."""

    good: str
    bad: str
    phenomenon: str


_FORMS = [entry.split() for entries in VERBS.values() for entry in entries.split("|")]


def _both_ways(pairs: list[tuple[str, str]]) -> dict[str, list[str]]:
    return {one: [other] for pair in pairs for one, other in (pair, pair[::-1])}


# What may stand, wrongly, in the place of a word.
_OTHER_AGREEMENT = _both_ways(
    [("is", "are"), ("was", "were"), ("do", "does")] + [(b, s) for b, s, _, _ in _FORMS]
)
_OTHER_FORM = {b: [s, past] for b, s, past, _ in _FORMS} | {
    ing: [b, s] for b, s, _, ing in _FORMS
}
_OTHER_DETERMINER = _both_ways([("this", "these"), ("every", "many"), ("a", "two")])
_OTHER_CASE = _both_ways([(me, case) for me, (case, _) in PRONOUNS.items()])
del _OTHER_CASE["it"]
_REFLEXIVES = [reflexive for _, reflexive in PRONOUNS.values()]
_OTHER_REFLEXIVE = {
    word: [other for other in _REFLEXIVES if other != word] for word in _REFLEXIVES
}

# Tokens of the good sentence and of the bad one; None if the draw has no such place.
_Draft = tuple[list[str], list[str]] | None


def _pick(options: Sequence[str], rng: random.Random) -> str:
    return options[int(rng.random() * len(options))]


def _swap(
    others: dict[str, list[str]], symbols: Sequence[str], at: int, rng: random.Random
) -> _Draft:
    """Draws a sentence and exchanges the word that opens the phrase of symbol `at`."""
    before = expand(symbols[:at], rng)
    word, *after = expand(symbols[at:], rng)
    if word not in others:
        return None
    return [*before, word, *after], [*before, _pick(others[word], rng), *after]


def _swap_anywhere(others: dict[str, list[str]], rng: random.Random) -> _Draft:
    """Draws a sentence and exchanges its first word that has a counterpart."""
    tokens = expand(["Sentence"], rng)
    places = [at for at, token in enumerate(tokens) if token in others]
    return _swap(others, tokens, places[0], rng) if places else None


def _disagreement(between: str, rng: random.Random) -> _Draft:
    """Puts a finite verb in the other number; a noun between is of that number."""
    agent = _pick(NOUN_AGENTS, rng)
    other = _pick(("he", "she", "it"), rng) if agent == "they" else "they"
    modifier = {
        "nothing": [],
        "phrase": ["near", f"Phrase.{other}"],
        "subject relative": ["Relative", "Meet.past", f"Phrase.{other}"],
        "object relative": ["Relative", f"Agent.{other}", "Meet.past"],
    }[between]
    symbols = [f"Phrase.{agent}", *modifier, f"Predicate.{agent}", "."]
    return _swap(_OTHER_AGREEMENT, symbols, -2, rng)


def _wrong_form_after_not(rng: random.Random) -> _Draft:
    agent = _pick(list(PRONOUNS), rng)
    symbols = [f"Subject.{agent}", *choose(f"Predicate.{agent}", rng), "."]
    return _swap(_OTHER_FORM, symbols, -2, rng) if "not" in symbols else None


def _swap_in_question(
    others: dict[str, list[str]], at: int, rng: random.Random
) -> _Draft:
    return _swap(others, [*choose("ClosedQuestion", rng), "?"], at, rng)


def _uninverted(rng: random.Random) -> _Draft:
    asked, helper, agent, rest = (
        expand([symbol], rng) for symbol in choose("OpenQuestion", rng)
    )
    return [*asked, *helper, *agent, *rest, "?"], [*asked, *agent, *helper, *rest, "?"]


_DRAFTS: dict[str, Callable[[random.Random], _Draft]] = {
    "agreement": partial(_disagreement, "nothing"),
    "agreement across phrase": partial(_disagreement, "phrase"),
    "agreement across subject relative": partial(_disagreement, "subject relative"),
    "agreement across object relative": partial(_disagreement, "object relative"),
    "determiner agreement": partial(_swap_anywhere, _OTHER_DETERMINER),
    "pronoun case": partial(_swap_anywhere, _OTHER_CASE),
    "reflexive agreement": partial(_swap_anywhere, _OTHER_REFLEXIVE),
    "question inversion": _uninverted,
    "question agreement": partial(_swap_in_question, _OTHER_AGREEMENT, 0),
    "question verb form": partial(_swap_in_question, _OTHER_FORM, 2),
    "negation verb form": _wrong_form_after_not,
}


def minimal_pairs(seed: int, count: int) -> list[MinimalPair]:
    """Returns `count` different pairs, one phenomenon after the other in turn.

    Both sentences of a pair have the same number of words, all of them words of the
    corpus as written. The bad one cannot come from the grammar; it differs in one word,
    or in "question inversion" in the auxiliary's place.
    """
    rng = random.Random(seed)
    pairs: dict[MinimalPair, None] = {}  # keeps the order
    for phenomenon in itertools.islice(itertools.cycle(_DRAFTS), count):
        drawn = len(pairs)
        while len(pairs) == drawn:
            draft = _DRAFTS[phenomenon](rng)
            if draft is None:
                continue
            good, bad = (join(tokens) for tokens in draft)
            # "he hugged she." would be told by "she." alone, which no text holds.
            if vocabulary().issuperset(bad.split()):
                pairs[MinimalPair(good, bad, phenomenon)] = None
    return list(pairs)
