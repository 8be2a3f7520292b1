"""What a prepared corpus is made of, in numbers, as a table and as a picture."""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from array_record.python import array_record_module

from lmjax.core.extras import require
from lmjax.data.preparation.manifest import Prepared, Split, damaged
from lmjax.data.preparation.packing import RecordLayout
from lmjax.data.preparation.scanning import Scan
from lmjax.data.preparation.shards import Counts
from lmjax.data.preparation.splits import RULES, SPLITS, Assignment, repeats, rule_place

_PERCENTILES = {"median": 50, "p95": 95}
_MOST_IN_LEGEND = 12


def gather(
    scans: Mapping[str, Mapping[str, Sequence[Scan]]],
    assignment: Assignment,
    splits: Mapping[str, Split],
) -> dict[str, Any]:
    """Figures of every source in every split, and what cleaning did.

    Returns:
      "train", "valid": by source: counts; "unique_words", those of distinct documents;
        "duplicates", documents whose text came before; "lengths", whitespace words per
        document, "histogram" of them in powers of two (entry i counts documents of
        2**(i-1) to 2**i - 1 words, entry 0 those of none); where documents have
        prompts, "prompt_words", which no other figure counts.
      "removed", "rewritten": by split the source was given for, source and rule;
        "removed" with documents and words.
      "shared": share of the validation documents, and of their words, whose text is
        trained on too.
    """
    figures: dict[str, Any] = {"train": {}, "valid": {}, "removed": {}, "rewritten": {}}
    counts = {
        (split, records.source): records.counts
        for split, content in splits.items()
        for records in content.records
    }
    for given, sources in scans.items():
        for source, files in sources.items():
            places = np.concatenate(assignment.places[given][source])
            hashes = np.concatenate([scan.hashes for scan in files])
            words = np.concatenate([scan.words for scan in files])
            prompt_words = np.concatenate([scan.prompt_words for scan in files])
            for place, split in SPLITS.items():
                chosen = places == place
                if chosen.any():
                    figures[split][source] = _source(
                        counts[split, source], hashes[chosen], words[chosen]
                    )
                    if len(prompt_words):
                        figures[split][source]["prompt_words"] = int(
                            prompt_words[chosen].sum()
                        )
            removed = {
                rule: {
                    "documents": int((places == rule_place(rule)).sum()),
                    "words": int(words[places == rule_place(rule)].sum()),
                }
                for rule in RULES
                if (places == rule_place(rule)).any()
            }
            rewritten: dict[str, int] = {}
            for scan in files:
                for rule, number in scan.rewritten.items():
                    rewritten[rule] = rewritten.get(rule, 0) + number
            # A source may be given for both splits.
            if removed:
                figures["removed"].setdefault(given, {})[source] = removed
            if rewritten:
                rewritten = dict(sorted(rewritten.items()))
                figures["rewritten"].setdefault(given, {})[source] = rewritten
    figures["shared"] = {
        "documents": assignment.shared,
        "words": assignment.shared_words,
    }
    return figures


def _source(counts: Counts, hashes: np.ndarray, words: np.ndarray) -> dict[str, Any]:
    again = repeats(hashes)
    histogram = np.bincount(np.ceil(np.log2(words + 1)).astype(int))
    return dataclasses.asdict(counts) | {
        "tokens_per_word": _ratio(counts.tokens, counts.words),
        "bytes_per_token": _ratio(counts.bytes, counts.tokens),
        "unique_words": int(words[~again].sum()),
        "duplicates": int(again.sum()),
        "lengths": {
            "least": int(words.min()),
            "mean": round(float(words.mean()), 2),
            **{n: float(np.percentile(words, p)) for n, p in _PERCENTILES.items()},
            "most": int(words.max()),
            "histogram": histogram.tolist(),
        },
    }


def token_counts(prepared: Prepared) -> np.ndarray:
    """How often each id stands in the training text, int64 [vocab_size].

    What has no weight in a batch is left out: padding, BOS, prompts, and what an
    earlier window counts.

    Raises:
      UserError: a shard can't be read.
    """
    special, layout = prepared.tokenizer.special, prepared.layout
    counts = np.zeros(prepared.tokenizer.vocab_size, np.int64)
    for records in prepared.train.records:
        for shard in records.shards:
            tokens, context = _read_tokens(prepared.folder / shard.file, layout)
            if tokens.max(initial=0) >= len(counts):
                problem = f"the shard {shard.file} holds ids of another tokenizer"
                raise damaged(prepared.folder, problem)
            counts += np.bincount(tokens.reshape(-1), minlength=len(counts))
            some = context > 0
            uncounted = np.arange(layout.length) < context[some, None]
            counts -= np.bincount(tokens[some][uncounted], minlength=len(counts))
    counts[[special.pad, special.bos]] = 0
    return counts


def _read_tokens(file: Path, layout: RecordLayout) -> tuple[np.ndarray, np.ndarray]:
    """Tokens [windows, length] and context [windows] of a shard."""
    try:
        reader = array_record_module.ArrayRecordReader(str(file))
        data = b"".join(reader.read_all())
        reader.close()
        windows = layout.from_bytes(
            np.frombuffer(data, np.uint8).reshape(-1, layout.size)
        )
    except (OSError, RuntimeError, ValueError) as error:
        raise damaged(file.parent, f"the shard {file.name}: {error}") from error
    return windows.tokens, windows.context


def _ratio(a: int, b: int) -> float:
    return round(a / b, 4) if b else 0.0


def say(counts: Counts) -> str:
    """Counts in words."""
    return ", ".join(
        f"{number:,} {name}" for name, number in dataclasses.asdict(counts).items()
    )


_COLUMNS = (
    ("documents", "documents", "{:,}"),
    ("words", "words", "{:,}"),
    ("unique words", "unique_words", "{:,}"),
    ("bytes", "bytes", "{:,}"),
    ("tokens", "tokens", "{:,}"),
    ("windows", "windows", "{:,}"),
    ("tokens/word", "tokens_per_word", "{:.3f}"),
    ("bytes/token", "bytes_per_token", "{:.3f}"),
    ("duplicates", "duplicates", "{:,}"),
)
_LENGTHS = ("least", "median", "mean", "p95", "most")


def table(prepared: Prepared) -> str:
    """A row per source and split, totals, and what was removed, for a terminal.

    Raises:
      UserError: the manifest has other statistics than `gather` makes.
    """
    try:
        return _table(prepared)
    except (
        ArithmeticError,
        AttributeError,
        LookupError,
        TypeError,
        ValueError,
    ) as error:
        problem = f"the statistics in its manifest can't be read ({error!r})"
        raise damaged(prepared.folder, problem) from error


def _table(prepared: Prepared) -> str:
    lines = []
    for split in ("train", "valid"):
        figures = prepared.statistics[split]
        total = dataclasses.asdict(prepared.split(split).counts)
        for name in ("unique_words", "duplicates"):
            total[name] = sum(values[name] for values in figures.values())
        total["tokens_per_word"] = _ratio(total["tokens"], total["words"])
        total["bytes_per_token"] = _ratio(total["bytes"], total["tokens"])
        rows = [[split, *(title for title, _, _ in _COLUMNS)]]
        for source, values in (*figures.items(), ("all", total)):
            cells = [form.format(values[key]) for _, key, form in _COLUMNS]
            rows.append([source, *cells])
        lines += [*_aligned(rows), ""]
    rows = [["words per training document", *_LENGTHS]]
    for source, values in prepared.statistics["train"].items():
        lengths = values["lengths"]
        rows.append([source, *(f"{lengths[name]:,.0f}" for name in _LENGTHS)])
    lines += [*_aligned(rows), ""]
    for what in ("removed", "rewritten"):
        by_source = [
            pair
            for sources in prepared.statistics[what].values()
            for pair in sources.items()
        ]
        for source, rules in by_source:
            for rule, number in rules.items():
                if isinstance(number, dict):
                    number = "{documents:,} documents, {words:,} words".format(**number)
                else:
                    number = f"{number:,} documents"
                lines.append(f"{what} by {rule} from {source}: {number}")
    for split in ("train", "valid"):
        for source, values in prepared.statistics[split].items():
            if "prompt_words" in values:
                number = f"{values['prompt_words']:,} words, not counted above"
                lines.append(f"prompts of {source} ({split}): {number}")
    shared = prepared.statistics["shared"]
    lines.append(
        f"of the validation documents, {shared['documents']:.2%} (of their words, "
        f"{shared['words']:.2%}) are in the training text too"
    )
    return "\n".join(lines)


def _aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  ".join(
            cell.ljust(width) if number == 0 else cell.rjust(width)
            for number, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]


def plot(prepared: Prepared, file: Path) -> None:
    """Draws sizes and document lengths of the training sources as a PNG.

    Raises:
      UserError: matplotlib is not installed.
    """
    require("matplotlib", extra="plots", what="The picture of a corpus")
    from matplotlib.figure import Figure

    figures = prepared.statistics["train"]
    names = list(figures)
    figure = Figure(figsize=(11, 1.8 + 0.5 * len(names)), layout="constrained")
    sizes, tokens, lengths = figure.subplots(1, 3)
    places = np.arange(len(names))
    for axes, key, title in (
        (sizes, "words", "words (millions)"),
        (tokens, "tokens_per_word", "tokens per word"),
    ):
        scale = 1e6 if key == "words" else 1.0
        axes.barh(places, [figures[name][key] / scale for name in names])
        axes.set_title(title)
        axes.set_yticks(places, names if axes is sizes else [""] * len(names))
        axes.invert_yaxis()
    for name in names:
        histogram = np.array(figures[name]["lengths"]["histogram"], float)
        share = histogram / histogram.sum()
        lengths.plot(2.0 ** np.arange(len(share)), share, marker="o", ms=3, label=name)
    lengths.set_xscale("log", base=2)
    lengths.set_title("documents by length (words)")
    lengths.set_ylabel("share of documents")
    if len(names) <= _MOST_IN_LEGEND:
        lengths.legend(fontsize="small")
    figure.savefig(file, dpi=120)
