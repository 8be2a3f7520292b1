"""The built-in sample corpus: a small grammar of English whose entropy is known.

The grammar is probabilistic and acyclic, and every text has exactly one derivation. So
the information in the text is that of the rules chosen, and the entropy in bits per
whitespace word is computed from the rule weights alone: a trained model's loss can be
held against the truth. A document is one sentence or more, one per line, in lower case;
the last word carries its full stop or question mark. Sentences are independent of each
other, and after each one the document ends with probability `STOP_PROBABILITY`.

What one sentence can hold: number agreement (also across prepositional phrases and
relative clauses), determiners, pronouns with case, reflexives, negation and questions
with do-support, subject and object relative clauses, adjectives, adverbs and places.
"""

import bisect
import dataclasses
import functools
import itertools
import math
import os
import random
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path

STOP_PROBABILITY = 1 / 6  # so a document has 6 sentences on average

Rule = tuple[int, tuple[str, ...]]  # weight within its nonterminal, right-hand side
Grammar = dict[str, list[Rule]]  # a symbol that is no key is a word or a final mark
_FINAL_MARKS = (".", "?")

# Words. No form serves two classes, or a text could have two derivations: hence no
# "you", no "that" or "her" before a noun, no verb like "put" whose past is its base.
# After "a" comes a noun or an adjective, so these begin with consonants.
_PEOPLE = {
    "he": "boy boys|man men|brother brothers|daddy daddies|king kings|grandpa grandpas",
    "she": "girl girls|woman women|sister sisters|mommy mommies|queen queens"
    "|grandma grandmas",
    "it": "dog dogs|cat cats|bird birds|duck ducks|bear bears|rabbit rabbits"
    "|horse horses|mouse mice|monkey monkeys|frog frogs|lion lions|puppy puppies",
}
_THINGS = (
    "ball balls|book books|cup cups|toy toys|car cars|box boxes|hat hats|shoe shoes"
    "|cookie cookies|block blocks|doll dolls|spoon spoons|boat boats|truck trucks"
    "|chair chairs|blanket blankets|bottle bottles|basket baskets|balloon balloons"
    "|bucket buckets|banana bananas|puzzle puzzles|drum drums|kite kites"
)
_VERB_FORMS = ("base", "s", "past", "ing")
_VERBS = {
    "Move": "sleep sleeps slept sleeping|play plays played playing"
    "|run runs ran running|sit sits sat sitting|laugh laughs laughed laughing"
    "|jump jumps jumped jumping|sing sings sang singing|cry cries cried crying"
    "|dance dances danced dancing|walk walks walked walking"
    "|smile smiles smiled smiling|fall falls fell falling",
    # These take a person or an animal as their object.
    "Meet": "help helps helped helping|hug hugs hugged hugging"
    "|watch watches watched watching|chase chases chased chasing"
    "|wash washes washed washing|draw draws drew drawing|feed feeds fed feeding"
    "|kiss kisses kissed kissing|tickle tickles tickled tickling"
    "|follow follows followed following|teach teaches taught teaching",
    # These take a thing as their object.
    "Handle": "take takes took taking|make makes made making|find finds found finding"
    "|throw throws threw throwing|hold holds held holding|drop drops dropped dropping"
    "|bring brings brought bringing|break breaks broke breaking"
    "|carry carries carried carrying|push pushes pushed pushing"
    "|buy buys bought buying",
}
_WORDS = {
    "Name.he": "tom sam ben jack",
    "Name.she": "mary lucy kate sue",
    "Size": "big little new funny pretty nice",
    "Feeling": "happy sad tired hungry sleepy silly",
    "Colour": "red blue green yellow brown white",
    "Where": "park garden kitchen house yard school forest bedroom barn store zoo",
    "Adverb": "today again now together slowly quickly outside",
    "Often": "always never often",
    "Modal": "can will must should",
    "Adjunct": "where why when",
}

# Who an agent is, named by the pronoun that stands for it; "who" is the asked-for one.
_PRONOUNS = {  # nominative: object case, reflexive
    "i": ("me", "myself"),
    "we": ("us", "ourselves"),
    "he": ("him", "himself"),
    "she": ("her", "herself"),
    "it": ("it", "itself"),
    "they": ("them", "themselves"),
}
_AGENT_WEIGHT = {"i": 14, "we": 9, "he": 21, "she": 21, "it": 14, "they": 21}
_SINGULAR = ("he", "she", "it", "who")
_NOUN_AGENTS = ("he", "she", "it", "they")


def _rules(text: str) -> list[Rule]:
    """Reads "weight symbol symbol ... | weight symbol ..."."""
    alternatives = [alternative.split() for alternative in text.split("|")]
    return [(int(weight), tuple(symbols)) for weight, *symbols in alternatives]


def _lexicon(words: list[str]) -> list[Rule]:
    """Weighs the word of rank r, counted from 0, by 1/(r + 4), in thousandths."""
    return [(1000 // (rank + 4), (word,)) for rank, word in enumerate(words)]


def _column(entries: str, index: int) -> list[str]:
    return [entry.split()[index] for entry in entries.split("|")]


def _word_rules() -> Grammar:
    """Rules whose right-hand side is one word: nouns, verb forms, small classes."""
    rules = {name: _lexicon(words.split()) for name, words in _WORDS.items()}
    for gender, entries in _PEOPLE.items():
        rules[f"Noun.{gender}"] = _lexicon(_column(entries, 0))
        rules[f"Nouns.{gender}"] = _lexicon(_column(entries, 1))
    rules["Noun.they"] = _rules("30 Nouns.he | 30 Nouns.she | 40 Nouns.it")
    rules["Noun.thing"] = _lexicon(_column(_THINGS, 0))
    rules["Noun.things"] = _lexicon(_column(_THINGS, 1))
    for kind, entries in _VERBS.items():
        for index, form in enumerate(_VERB_FORMS):
            rules[f"{kind}.{form}"] = _lexicon(_column(entries, index))
    either = "| 10 my | 9 your | 8 his | 6 our | 6 their"
    rules["Determiner.one"] = _rules(f"28 the | 20 a | 12 this | 8 every {either}")
    rules["Determiner.many"] = _rules(
        f"24 the | 9 some | 8 these | 7 those | 7 two | 5 three | 5 many {either}"
    )
    return rules


def _noun_phrase_rules() -> Grammar:
    """Phrases around a noun: alone, beside another one, with a relative clause."""
    rules = {
        "Look.person": _rules("50 Size | 50 Feeling"),
        "Look.thing": _rules("50 Size | 50 Colour"),
        "Somebody": _rules(
            "24 Phrase.he | 24 Phrase.she | 24 Phrase.it | 28 Phrase.they"
        ),
        "Something": _rules("60 Phrase.thing | 40 Phrase.things"),
        "Beside": _rules("45 near Somebody | 20 behind Somebody | 35 with Something"),
        "Relative": _rules("50 that | 50 who"),
        "Place": _rules("60 in the Where | 20 near the Where | 20 behind the Where"),
        "Ending": _rules("70 Place | 30 Adverb"),
        "Thing": _rules("84 Something | 9 it | 7 them"),
        "ThingWithRelative": _rules(
            "60 Phrase.thing that Gap.Handle | 40 Phrase.things that Gap.Handle"
        ),
    }
    for noun in (*_NOUN_AGENTS, "thing", "things"):
        number = "many" if noun in ("they", "things") else "one"
        look = "Look.thing" if noun.startswith("thing") else "Look.person"
        rules[f"Phrase.{noun}"] = _rules(
            f"66 Determiner.{number} Noun.{noun}"
            f"| 34 Determiner.{number} {look} Noun.{noun}"
        )
    for noun, agent in (("thing", "it"), ("things", "they")):
        rules[f"Subject.{noun}"] = _rules(
            f"74 Phrase.{noun} | 16 Phrase.{noun} near Something"
            f"| 10 Phrase.{noun} that Gap.Handle"
        )
        rules[f"AboutThings.{noun}"] = _rules(f"100 Subject.{noun} Be.{agent} Quality")
    rules["Quality"] = _rules("45 Look.thing | 15 very Look.thing | 40 Place")
    rules["State"] = _rules("50 Look.person | 20 very Look.person | 30 Place")
    for agent in _NOUN_AGENTS:
        rules[f"WithRelative.{agent}"] = _rules(
            f"30 Phrase.{agent} Relative Core.{_present(agent)}.{agent}"
            f"| 30 Phrase.{agent} Relative Core.past.{agent}"
            f"| 40 Phrase.{agent} Relative Gap.Meet"
        )
        rules[f"Subject.{agent}"] = _rules(
            f"70 Agent.{agent} | 16 Phrase.{agent} Beside | 14 WithRelative.{agent}"
        )
    for kind in ("Meet", "Handle"):  # a clause whose object is the noun before it
        rules[f"Gap.{kind}"] = [
            (weight, (f"Agent.{agent}", f"{kind}.{form}"))
            for agent, weight in _AGENT_WEIGHT.items()
            for form in (_present(agent), "past")
        ]
    for agent in _AGENT_WEIGHT:
        named = f"| 20 Name.{agent}" if agent in ("he", "she") else ""
        phrase = f"| 60 Phrase.{agent}" if agent in _NOUN_AGENTS else ""
        rules[f"Agent.{agent}"] = _rules(f"24 {agent} {named} {phrase}")
    rules["Subject.i"], rules["Subject.we"] = _rules("1 i"), _rules("1 we")
    return rules


def _present(agent: str) -> str:
    return "s" if agent in _SINGULAR else "base"


def _verb_phrase_rules(agent: str) -> Grammar:
    """What an agent is said to do or be: verb, objects, tense, negation."""
    # "i draw us" is no English: the first person is not its own plain object.
    first = ("i", "we")
    objects = [
        pronoun
        for person, (pronoun, _) in _PRONOUNS.items()
        if not (agent in first and person in first)
    ]
    pronouns = "".join(f"| 5 {pronoun}" for pronoun in objects)
    present = _present(agent)
    rules = {
        f"Object.{agent}": _rules(f"60 Somebody | 7 Name.he | 7 Name.she {pronouns}"),
        f"Do.{agent}": _rules(f"55 {'does' if present == 's' else 'do'} | 45 did"),
    }
    now = "am" if agent == "i" else "is" if present == "s" else "are"
    then = "was" if present == "s" or agent == "i" else "were"
    rules[f"Be.{agent}"] = _rules(f"60 {now} | 40 {then}")
    for form in ("base", "past", "ing", present):
        core = f"Core.{form}.{agent}"
        rules[core] = _rules(
            f"28 Move.{form} | 30 Meet.{form} Object.{agent} | 30 Handle.{form} Thing"
        )
        if agent in _PRONOUNS:
            rules[core] += _rules(f"6 Meet.{form} {_PRONOUNS[agent][1]}")
        somebody = "".join(
            f"| 1 Meet.{form} WithRelative.{other}" for other in _NOUN_AGENTS
        )
        rules[f"Action.{form}.{agent}"] = _rules(
            f"48 {core} | 40 {core} Ending"
            f"| 6 Handle.{form} ThingWithRelative {somebody}"
        )
    # One table for the auxiliary and what follows; "not" or the agent goes between.
    rules[f"Predicate.{agent}"] = _rules(
        f"24 Action.{present}.{agent} | 24 Action.past.{agent}"
        f"| 4 Often Action.{present}.{agent} | 4 Often Action.past.{agent}"
        f"| 14 Be.{agent} Action.ing.{agent} | 4 Be.{agent} not Action.ing.{agent}"
        f"| 6 Be.{agent} State | 2 Be.{agent} not State"
        f"| 8 Modal Action.base.{agent} | 2 Modal not Action.base.{agent}"
        f"| 8 Do.{agent} not Action.base.{agent}"
    )
    return rules


def _question_rules() -> Grammar:
    """Questions, each with its auxiliary before the agent unless the agent is asked."""
    closed: list[Rule] = []
    opened: list[Rule] = []
    for agent, weight in _AGENT_WEIGHT.items():
        who = f"Agent.{agent}"
        closed.append((2 * weight, (f"Be.{agent}", who, "State")))
        for share, helper, form in (
            (3, f"Be.{agent}", "ing"),
            (2, "Modal", "base"),
            (4, f"Do.{agent}", "base"),
        ):
            scale = share * weight
            action, core = f"Action.{form}.{agent}", f"Core.{form}.{agent}"
            closed.append((2 * scale, (helper, who, action)))
            opened.append((scale, ("Adjunct", helper, who, core)))
            opened.append((scale, ("what", helper, who, f"Handle.{form}")))
            opened.append((scale, ("who", helper, who, f"Meet.{form}")))
    return {
        "ClosedQuestion": closed,
        "OpenQuestion": opened,
        "ThingQuestion": _rules(
            "30 Be.it Phrase.thing Quality | 20 Be.they Phrase.things Quality"
            "| 30 where Be.it Phrase.thing | 20 where Be.they Phrase.things"
        ),
    }


@functools.cache
def grammar() -> Grammar:
    """Returns the whole grammar; its start symbol is "Sentence"."""
    rules = {
        "Sentence": _rules(
            "62 Statement . | 8 AboutThings . | 10 ClosedQuestion ?"
            "| 9 OpenQuestion ? | 5 ThingQuestion ? | 6 who Predicate.who ?"
        ),
        "Statement": [
            (weight, (f"Subject.{agent}", f"Predicate.{agent}"))
            for agent, weight in _AGENT_WEIGHT.items()
        ],
        "AboutThings": _rules("60 AboutThings.thing | 40 AboutThings.things"),
    }
    rules |= _word_rules() | _noun_phrase_rules() | _question_rules()
    for agent in (*_AGENT_WEIGHT, "who"):
        rules |= _verb_phrase_rules(agent)
    return rules


# Generating: only `random()` is asked of the generator, since its sequence alone is
# promised to stay; the weights are integers, so no rounding can move a choice.
@functools.cache
def _cumulative(symbol: str) -> list[int]:
    return list(itertools.accumulate(weight for weight, _ in grammar()[symbol]))


def _choose(symbol: str, rng: random.Random) -> tuple[str, ...]:
    steps = _cumulative(symbol)
    return grammar()[symbol][bisect.bisect(steps, int(rng.random() * steps[-1]))][1]


def _expand(symbols: Sequence[str], rng: random.Random) -> list[str]:
    """Draws the words and final marks that a sequence of symbols stands for."""
    tokens: list[str] = []
    stack = list(reversed(symbols))
    while stack:
        symbol = stack.pop()
        if symbol in grammar():
            stack.extend(reversed(_choose(symbol, rng)))
        else:
            tokens.append(symbol)
    return tokens


def _join(tokens: list[str]) -> str:
    return " ".join(tokens[:-1]) + tokens[-1]


def generate_documents(seed: int, num_words: int = 300_000) -> Iterator[str]:
    """Yields whole documents until they hold at least `num_words` whitespace words.

    The same seed gives the same text on every platform and Python version.
    """
    rng = random.Random(seed)
    words = 0
    while words < num_words:
        sentences = [_join(_expand(["Sentence"], rng))]
        while rng.random() >= STOP_PROBABILITY:
            sentences.append(_join(_expand(["Sentence"], rng)))
        words += sum(len(sentence.split()) for sentence in sentences)
        yield "\n".join(sentences)


def write_corpus(path: Path, seed: int, num_words: int = 300_000) -> None:
    """Writes the documents to `path`, a blank line between them, all or nothing."""
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("w", encoding="ascii", newline="\n") as file:
            for index, document in enumerate(generate_documents(seed, num_words)):
                file.write(("\n" if index else "") + document + "\n")
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


@functools.cache
def _expectation(symbol: str) -> tuple[float, float]:
    """Returns the entropy in bits of what a symbol stands for, and its mean words."""
    if symbol not in grammar():
        return 0.0, float(symbol not in _FINAL_MARKS)
    bits = words = 0.0
    for weight, symbols in grammar()[symbol]:
        probability = weight / _cumulative(symbol)[-1]
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
        ends = [(start, weight / _cumulative(symbol)[-1])]
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


@functools.cache
def _written_forms(symbol: str) -> tuple[frozenset[str], frozenset[str]]:
    """Returns the words a symbol can hold before its end, and those that can end it."""
    if symbol not in grammar():
        return frozenset(), frozenset((symbol,))
    inside: set[str] = set()
    endings: set[str] = set()
    for _, symbols in grammar()[symbol]:
        last: frozenset[str] = frozenset()
        for child in symbols:
            if child in _FINAL_MARKS:
                last = frozenset(word + child for word in last)
            else:
                inside |= last | _written_forms(child)[0]
                last = _written_forms(child)[1]
        endings |= last
    return frozenset(inside), frozenset(endings)


@functools.cache
def vocabulary() -> frozenset[str]:
    """Returns the words as written: "dog", "dog." and "dog?" are three."""
    return frozenset().union(*_written_forms("Sentence"))


@dataclasses.dataclass(frozen=True)
class MinimalPair:
    """A sentence of the grammar, and one just beside it that is none."""

    good: str
    bad: str
    phenomenon: str


_FORMS = [entry.split() for entries in _VERBS.values() for entry in entries.split("|")]


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
_OTHER_CASE = _both_ways([(me, case) for me, (case, _) in _PRONOUNS.items()])
del _OTHER_CASE["it"]
_REFLEXIVES = [reflexive for _, reflexive in _PRONOUNS.values()]
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
    before = _expand(symbols[:at], rng)
    word, *after = _expand(symbols[at:], rng)
    if word not in others:
        return None
    return [*before, word, *after], [*before, _pick(others[word], rng), *after]


def _swap_anywhere(others: dict[str, list[str]], rng: random.Random) -> _Draft:
    """Draws a sentence and exchanges its first word that has a counterpart."""
    tokens = _expand(["Sentence"], rng)
    places = [at for at, token in enumerate(tokens) if token in others]
    return _swap(others, tokens, places[0], rng) if places else None


def _disagreement(between: str, rng: random.Random) -> _Draft:
    """Puts a finite verb in the other number; a noun between is of that number."""
    agent = _pick(_NOUN_AGENTS, rng)
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
    agent = _pick(list(_PRONOUNS), rng)
    symbols = [f"Subject.{agent}", *_choose(f"Predicate.{agent}", rng), "."]
    return _swap(_OTHER_FORM, symbols, -2, rng) if "not" in symbols else None


def _swap_in_question(
    others: dict[str, list[str]], at: int, rng: random.Random
) -> _Draft:
    return _swap(others, [*_choose("ClosedQuestion", rng), "?"], at, rng)


def _uninverted(rng: random.Random) -> _Draft:
    asked, helper, agent, rest = (
        _expand([symbol], rng) for symbol in _choose("OpenQuestion", rng)
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
            good, bad = (_join(tokens) for tokens in draft)
            # "he hugged she." would be told by "she." alone, which no text holds.
            if vocabulary().issuperset(bad.split()):
                pairs[MinimalPair(good, bad, phenomenon)] = None
    return list(pairs)
