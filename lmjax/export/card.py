"""README.md of an exported model: what it is, what it saw, and what it is worth.

Every number comes from the run. What the run does not know is left out.
"""

import dataclasses
import importlib.metadata
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from lmjax.core.secrets import redact
from lmjax.data.preparation.manifest import Prepared


@dataclasses.dataclass(frozen=True, kw_only=True)
class Source:
    """One source of the training text, or all of it where it has no parts."""

    name: str
    documents: int
    words: int
    tokens: int


@dataclasses.dataclass(frozen=True, kw_only=True)
class ZeroShotScore:
    """A score of a zero-shot evaluation.

    Attributes:
      task: what was evaluated, and in which form.
      percent: the score; its standard error, NaN where it is not known.
      scorer: how it was found: backend, rule for ties, version.
    """

    task: str
    percent: float
    standard_error: float
    scorer: str


@dataclasses.dataclass(frozen=True, kw_only=True)
class CardFacts:
    """What a card tells.

    Attributes:
      name: of the model; owner/name where it goes to the hub.
      objective: what was trained, such as "masked diffusion".
      causal: whether it is a causal model; the others fill masks.
      own_code: whether it comes with code of its own.
      samples: whether that code writes text (`generate_diffusion`).
      num_params: numbers that were trained.
      max_length: longest input, in tokens.
      steps, tokens, words: what this model has seen in training, repeats included;
        0 where it is not known.
      changed: fields of the config that are not as lmjax's defaults, by dotted name.
      sources: the training text; unique words, before any repeats.
      corpus_sha256: of the prepared corpus; empty where it is not known.
      tokenizer_sha256: of the tokenizer's model.
      figures: those of report.json: objects with name, kind, value, standard_error.
      zero_shot: scores, where there are any.
      revisions: branches of the repository, and the words that each has seen.
      languages: codes such as "en".
    """

    name: str
    objective: str
    causal: bool
    own_code: bool
    samples: bool
    num_params: int
    max_length: int
    steps: int = 0
    tokens: int = 0
    words: int = 0
    changed: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    sources: Sequence[Source] = ()
    corpus_sha256: str = ""
    tokenizer_sha256: str = ""
    figures: Sequence[Mapping[str, Any]] = ()
    zero_shot: Sequence[ZeroShotScore] = ()
    revisions: Mapping[str, int] = dataclasses.field(default_factory=dict)
    languages: Sequence[str] = ("en",)


def training_sources(prepared: Prepared) -> tuple[Source, ...]:
    """The sources of a prepared corpus, without what is held out."""
    return tuple(
        Source(
            name=records.source,
            documents=records.counts.documents,
            words=records.counts.words,
            tokens=records.counts.tokens,
        )
        for records in prepared.train.records
    )


def model_card(facts: CardFacts) -> str:
    """The text of README.md, with the header that the hub reads."""
    parts = [
        _header(facts),
        f"# {facts.name.split('/')[-1]}",
        _introduction(facts),
        "## How to use it\n\n" + _usage(facts),
        *_section("## Training", _training(facts)),
        *_section("## Training text", _text(facts)),
        *_section("## Evaluation", _evaluation(facts)),
        *_section("## Checkpoints", _revisions(facts)),
        *_section("## Configuration", _configuration(facts)),
    ]
    return redact("\n\n".join(parts) + "\n")


def _header(facts: CardFacts) -> str:
    """YAML; strings are written as JSON, which YAML contains."""
    tags = ["lmjax", facts.objective.replace(" ", "-").lower()]
    task = "text-generation" if facts.causal else "fill-mask"
    lines = [
        "---",
        "# license: choose one, such as apache-2.0, and remove the sign at the front",
        "language:",
        *(f"- {json.dumps(code)}" for code in facts.languages),
        "library_name: transformers",
        f"pipeline_tag: {task}",
        "tags:",
        *(f"- {json.dumps(tag)}" for tag in tags),
        "---",
    ]
    return "\n".join(lines)


def _introduction(facts: CardFacts) -> str:
    version = importlib.metadata.version("lmjax")
    return (
        f"A language model of {facts.num_params:,} parameters, trained by "
        f"{facts.objective} with lmjax {version}. It takes up to "
        f"{facts.max_length:,} tokens."
    )


def _usage(facts: CardFacts) -> str:
    """Code that runs as it stands."""
    auto = "AutoModelForCausalLM" if facts.causal else "AutoModelForMaskedLM"
    trust = ", trust_remote_code=True" if facts.own_code else ""
    lines = [
        "import torch",
        f"from transformers import AutoTokenizer, {auto}",
        "",
        f"name = {json.dumps(facts.name)}",
        "tokenizer = AutoTokenizer.from_pretrained(name)",
        f"model = {auto}.from_pretrained(name{trust})",
        "",
    ]
    if facts.causal:
        lines += [
            'inputs = tokenizer("The", return_tensors="pt")',
            "output = model.generate(**inputs, max_new_tokens=20, do_sample=True)",
            "print(tokenizer.decode(output[0], skip_special_tokens=True))",
        ]
    else:
        lines += [
            'text = f"The {tokenizer.mask_token} sat."',
            'inputs = tokenizer(text, return_tensors="pt")',
            "with torch.no_grad():",
            "    logits = model(**inputs).logits",
            "masked = inputs.input_ids[0] == tokenizer.mask_token_id",
            "print(tokenizer.decode(logits[0, masked].argmax(-1)))",
        ]
    if facts.samples:
        lines += [
            "",
            "# Fills the masks and writes on, by the reverse process of the diffusion.",
            "output = model.generate_diffusion(**inputs, max_new_tokens=16, steps=32)",
            "print(tokenizer.decode(output[0], skip_special_tokens=True))",
        ]
    code = "\n".join(["```python", *lines, "```"])
    notes = [
        "The tokenizer puts one opening token before a text and nothing behind it. A "
        "special token's name in a text, such as that of the mask, is read as that "
        "token; `tokenizer(text, split_special_tokens=True)` takes it for text, as in "
        "training."
    ]
    if facts.own_code:
        notes.append(
            "The code of the model, `modeling_lmjax.py`, comes with the weights; look "
            "at it before you trust it."
        )
    if facts.causal:
        notes.append("For classification, pad on the left and take the last token.")
    return "\n\n".join([code, *notes])


def _training(facts: CardFacts) -> list[str]:
    rows = [
        ("optimizer steps", facts.steps),
        ("tokens seen", facts.tokens),
        ("words seen", facts.words),
    ]
    known = [(name, f"{value:,}") for name, value in rows if value]
    if not known:
        return []
    return [
        *_table(("", "this model"), known),
        "",
        "Repeats count; a word is what stands between whitespace.",
    ]


def _text(facts: CardFacts) -> list[str]:
    lines = []
    if facts.sources:
        rows = [
            (each.name, f"{each.documents:,}", f"{each.words:,}", f"{each.tokens:,}")
            for each in facts.sources
        ]
        if len(rows) > 1:
            totals = (
                sum(getattr(each, name) for each in facts.sources)
                for name in ("documents", "words", "tokens")
            )
            rows.append(("all", *(f"{total:,}" for total in totals)))
        lines += _table(("source", "documents", "words", "tokens"), rows)
    hashes = [
        ("prepared corpus", facts.corpus_sha256),
        ("tokenizer", facts.tokenizer_sha256),
    ]
    lines += [""] if lines else []
    lines += [f"- SHA-256 of the {what}: `{value}`" for what, value in hashes if value]
    return lines


def _evaluation(facts: CardFacts) -> list[str]:
    lines = []
    rows = [
        (
            figure["name"],
            f"{figure['value']:,.4f}",
            _error(figure.get("standard_error")),
            figure["kind"],
        )
        for figure in facts.figures
        if figure.get("value") is not None
    ]
    if rows:
        lines += _table(("figure", "value", "± s.e.", "kind"), rows)
        lines += ["", "A figure that is an upper bound is no better than it says."]
    scores = [
        (each.task, f"{each.percent:.1f}", _error(each.standard_error, 1), each.scorer)
        for each in facts.zero_shot
    ]
    if scores:
        lines += [""] if lines else []
        lines += _table(("zero-shot task", "%", "± s.e.", "scorer"), scores)
    return lines


def _revisions(facts: CardFacts) -> list[str]:
    if not facts.revisions:
        return []
    rows = [(f"`{name}`", f"{words:,}") for name, words in facts.revisions.items()]
    return [
        "Models saved along the way, to load with `revision=`:",
        "",
        *_table(("revision", "words seen"), rows),
    ]


def _configuration(facts: CardFacts) -> list[str]:
    if not facts.changed:
        return []
    rows = [
        (f"`{field}`", f"`{json.dumps(value, ensure_ascii=False)}`")
        for field, value in facts.changed.items()
    ]
    return [
        "Where it is not as lmjax's defaults:",
        "",
        *_table(("field", "value"), rows),
    ]


def _section(title: str, lines: Sequence[str]) -> Iterator[str]:
    if lines:
        yield title + "\n\n" + "\n".join(lines)


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """Lines of a table of Markdown; numbers stand to the right."""
    right = ["---:" if _is_number(cell) else "---" for cell in rows[0]]
    lines = [header, right, *rows]
    return ["| " + " | ".join(_cell(cell) for cell in line) + " |" for line in lines]


def _is_number(cell: str) -> bool:
    return cell.replace(",", "").replace(".", "").lstrip("-").isdigit() or cell == "-"


def _cell(text: str) -> str:
    return " ".join(text.replace("|", "\\|").split())


def _error(value: float | None, digits: int = 4) -> str:
    """A standard error, where it is known."""
    if value is None or not math.isfinite(value):
        return "-"
    return f"{value:.{digits}f}"
