"""The grammar of the built-in corpus: a small probabilistic grammar of English.

It is acyclic, and every sentence has exactly one derivation. What one sentence can
hold: number agreement (also across prepositional phrases and relative clauses),
determiners, pronouns with case, reflexives, negation and questions with do-support,
subject and object relative clauses, adjectives, adverbs and places.
"""

import bisect
import functools
import itertools
import random
from collections.abc import Sequence

Rule = tuple[int, tuple[str, ...]]  # weight within its nonterminal, right-hand side
Grammar = dict[str, list[Rule]]  # a symbol that is no key is a word or a final mark
FINAL_MARKS = (".", "?")

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
VERBS = {
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
PRONOUNS = {  # nominative: object case, reflexive
    "i": ("me", "myself"),
    "we": ("us", "ourselves"),
    "he": ("him", "himself"),
    "she": ("her", "herself"),
    "it": ("it", "itself"),
    "they": ("them", "themselves"),
}
_AGENT_WEIGHT = {"i": 14, "we": 9, "he": 21, "she": 21, "it": 14, "they": 21}
# Who stands between a subject of one, or of many, and its verb. Mostly somebody of the
# other number: were it by chance, agreeing with the nearest noun would nearly always be
# right, and a model that trains for minutes would learn no more than that.
_BETWEEN_WEIGHT = {
    "one": {"i": 6, "we": 12, "he": 7, "she": 7, "it": 6, "they": 62},
    "many": {"i": 8, "we": 5, "he": 27, "she": 27, "it": 23, "they": 10},
}
_SINGULAR = ("he", "she", "it", "who")
NOUN_AGENTS = ("he", "she", "it", "they")


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
    for kind, entries in VERBS.items():
        for index, form in enumerate(_VERB_FORMS):
            rules[f"{kind}.{form}"] = _lexicon(_column(entries, index))
    either = "| 10 my | 9 your | 8 his | 6 our | 6 their"
    rules["Determiner.one"] = _rules(f"24 the | 22 a | 16 this | 10 every {either}")
    rules["Determiner.many"] = _rules(
        f"20 the | 10 some | 12 these | 8 those | 10 two | 6 three | 6 many {either}"
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
        "Relative": _rules("50 that | 50 who"),
        "Place": _rules("60 in the Where | 20 near the Where | 20 behind the Where"),
        "Ending": _rules("70 Place | 30 Adverb"),
        "Thing": _rules("84 Something | 9 it | 7 them"),
        "ThingWithRelative": _rules(
            "60 Phrase.thing that Gap.Handle | 40 Phrase.things that Gap.Handle"
        ),
    }
    for noun in (*NOUN_AGENTS, "thing", "things"):
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
    for agent in NOUN_AGENTS:
        number = "many" if agent == "they" else "one"
        rules[f"WithRelative.{agent}"] = _rules(
            f"25 Phrase.{agent} Relative Core.{_present(agent)}.{agent}"
            f"| 25 Phrase.{agent} Relative Core.past.{agent}"
            f"| 50 Phrase.{agent} Relative Gap.Meet.{number}"
        )
        rules[f"Subject.{agent}"] = _rules(
            f"44 Agent.{agent} | 30 Phrase.{agent} Beside.{number}"
            f"| 26 WithRelative.{agent}"
        )
    for number, weights in _BETWEEN_WEIGHT.items():
        nouns = " | ".join(f"{weights[noun]} Phrase.{noun}" for noun in NOUN_AGENTS)
        rules[f"Between.{number}"] = _rules(nouns)
        rules[f"Beside.{number}"] = _rules(
            f"50 near Between.{number} | 20 behind Between.{number} | 30 with Something"
        )
        rules[f"Gap.Meet.{number}"] = _gap("Meet", weights)
    rules["Gap.Handle"] = _gap("Handle", _AGENT_WEIGHT)
    for agent in _AGENT_WEIGHT:
        named = f"| 20 Name.{agent}" if agent in ("he", "she") else ""
        phrase = f"| 60 Phrase.{agent}" if agent in NOUN_AGENTS else ""
        rules[f"Agent.{agent}"] = _rules(f"24 {agent} {named} {phrase}")
    rules["Subject.i"], rules["Subject.we"] = _rules("1 i"), _rules("1 we")
    return rules


def _gap(kind: str, weights: dict[str, int]) -> list[Rule]:
    """A clause whose object is the noun before it."""
    return [
        (weight, (f"Agent.{agent}", f"{kind}.{form}"))
        for agent, weight in weights.items()
        for form in (_present(agent), "past")
    ]


def _present(agent: str) -> str:
    return "s" if agent in _SINGULAR else "base"


def _verb_phrase_rules(agent: str) -> Grammar:
    """What an agent is said to do or be: verb, objects, tense, negation."""
    # "i draw us" is no English: the first person is not its own plain object.
    first = ("i", "we")
    objects = [
        pronoun
        for person, (pronoun, _) in PRONOUNS.items()
        if not (agent in first and person in first)
    ]
    pronouns = "".join(f"| 5 {pronoun}" for pronoun in objects)
    present = _present(agent)
    rules = {
        f"Object.{agent}": _rules(f"60 Somebody | 7 Name.he | 7 Name.she {pronouns}"),
        f"Do.{agent}": _rules(f"75 {'does' if present == 's' else 'do'} | 25 did"),
    }
    now = "am" if agent == "i" else "is" if present == "s" else "are"
    then = "was" if present == "s" or agent == "i" else "were"
    rules[f"Be.{agent}"] = _rules(f"75 {now} | 25 {then}")
    for form in ("base", "past", "ing", present):
        core = f"Core.{form}.{agent}"
        rules[core] = _rules(
            f"28 Move.{form} | 30 Meet.{form} Object.{agent} | 30 Handle.{form} Thing"
        )
        if agent in PRONOUNS:
            rules[core] += _rules(f"16 Meet.{form} {PRONOUNS[agent][1]}")
        somebody = "".join(
            f"| 1 Meet.{form} WithRelative.{other}" for other in NOUN_AGENTS
        )
        rules[f"Action.{form}.{agent}"] = _rules(
            f"48 {core} | 40 {core} Ending"
            f"| 6 Handle.{form} ThingWithRelative {somebody}"
        )
    # One table for the auxiliary and what follows; "not" or the agent goes between.
    rules[f"Predicate.{agent}"] = _rules(
        f"20 Action.{present}.{agent} | 8 Action.past.{agent}"
        f"| 4 Often Action.{present}.{agent} | 2 Often Action.past.{agent}"
        f"| 28 Be.{agent} Action.ing.{agent} | 6 Be.{agent} not Action.ing.{agent}"
        f"| 12 Be.{agent} State | 4 Be.{agent} not State"
        f"| 8 Modal Action.base.{agent} | 2 Modal not Action.base.{agent}"
        f"| 6 Do.{agent} not Action.base.{agent}"
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
            "58 Statement . | 8 AboutThings . | 14 ClosedQuestion ?"
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
def cumulative_weights(symbol: str) -> list[int]:
    return list(itertools.accumulate(weight for weight, _ in grammar()[symbol]))


def choose(symbol: str, rng: random.Random) -> tuple[str, ...]:
    steps = cumulative_weights(symbol)
    return grammar()[symbol][bisect.bisect(steps, int(rng.random() * steps[-1]))][1]


def expand(symbols: Sequence[str], rng: random.Random) -> list[str]:
    """Draws the words and final marks that a sequence of symbols stands for."""
    tokens: list[str] = []
    stack = list(reversed(symbols))
    while stack:
        symbol = stack.pop()
        if symbol in grammar():
            stack.extend(reversed(choose(symbol, rng)))
        else:
            tokens.append(symbol)
    return tokens


def join(tokens: list[str]) -> str:
    return " ".join(tokens[:-1]) + tokens[-1]


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
            if child in FINAL_MARKS:
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
