"""What a finished run is worth: report.json and the closing table."""

import dataclasses
import json
import pathlib
from typing import Any

import jax

from lmjax import experiment, training_run
from lmjax.assembly import pair_objective
from lmjax.config.schema import SAMPLE_CORPUS, Config
from lmjax.core import trees
from lmjax.core.files import replacing
from lmjax.core.types import PyTree
from lmjax.data.preparation.manifest import Prepared
from lmjax.data.sample import corpus as sample_corpus
from lmjax.data.sample import pairs as sample_pairs
from lmjax.evaluate.figures import Figure, finite
from lmjax.evaluate.likelihood import Scorer
from lmjax.evaluate.minimal_pairs import Pair, evaluate_pairs
from lmjax.experiment import System
from lmjax.train.progress import Progress


def make(
    config: Config,
    prepared: Prepared,
    system: System,
    scorer: Scorer,
    params: PyTree,
    progress: Progress,
) -> dict[str, Any]:
    """Evaluates on all held-out text; the content of report.json.

    Args:
      progress: what these parameters have seen.
    """
    batches = training_run.eval_batches(config, prepared, num_batches=0)
    found = scorer.evaluate(params, batches, draws=config.evaluate.draws)
    found_all = found.pop(-1)
    summary = {
        "params": trees.count(system.model.shapes),
        "steps": progress.step,
        "tokens_seen": progress.tokens,
        "words_seen": progress.words,
        "seconds": progress.seconds,
        "tokens_per_second": progress.tokens / max(progress.seconds, 1e-9),
        "corpus": _corpus(prepared),
        "eval": found_all.to_json(),
    }
    figures = found_all.figures("held-out")
    summary["eval"]["sources"] = {
        prepared.sources[index]: likelihood.to_json()
        for index, likelihood in sorted(found.items())
    }
    if config.data.train == (SAMPLE_CORPUS,):
        summary["sample"], more = _sample_figures(
            config, system, params, summary["eval"]["bits_per_word"]
        )
        figures += more
    summary["figures"] = [figure.to_json() for figure in figures]
    return summary


def _corpus(prepared: Prepared) -> dict[str, Any]:
    """The training text: each word once, without what is held out."""
    return {
        "sha256": prepared.sha256,
        "tokenizer_sha256": prepared.tokenizer.identity,
        "sources": [
            {"name": records.source} | dataclasses.asdict(records.counts)
            for records in prepared.train.records
        ],
    }


def _sample_figures(
    config: Config, system: System, params: Any, bits_per_word: float
) -> tuple[dict[str, Any], list[Figure]]:
    """What only the built-in corpus can tell: the truth, and its minimal pairs."""
    entropy = sample_corpus.entropy_bits_per_word()
    figures: dict[str, Any] = {
        "true_entropy_bits_per_word": entropy,
        "above_true_entropy": bits_per_word / entropy - 1,
    }
    encode = system.tokenizer.encode
    pairs = [
        Pair(encode(pair.good), encode(pair.bad), pair.phenomenon)
        for pair in sample_pairs.minimal_pairs(
            seed=1, count=config.evaluate.minimal_pairs
        )
    ]
    objective = pair_objective(system.objective)
    if pairs and objective is not None:
        special = system.tokenizer.special
        first_id = experiment.first_input(config.objective, special)
        accuracy = evaluate_pairs(
            Scorer(system.on_mesh.bind, objective, system.mesh),
            params,
            pairs,
            opening=experiment.document_opening(config.data, special, first_id),
            eos_id=special.eos,
            pad_id=special.pad,
            document_mask=config.data.document_mask,
        )
        figures["minimal_pairs"] = dataclasses.asdict(accuracy)
        return figures, accuracy.figures("minimal-pairs")
    return figures, []


def write(summary: dict[str, Any], workdir: pathlib.Path) -> pathlib.Path:
    """Writes report.json in one go; returns its path."""
    return write_json(summary, workdir / "report.json")


def write_json(content: Any, path: pathlib.Path) -> pathlib.Path:
    """Writes a JSON file in one go, in one process; returns its path."""
    if jax.process_index() > 0:
        return path
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as temporary:
        text = json.dumps(_finite(content), indent=1, allow_nan=False)
        temporary.write_text(text + "\n", encoding="utf-8")
    return path


def _finite(content: Any) -> Any:
    """The content with null for numbers that JSON does not have."""
    if isinstance(content, dict):
        return {name: _finite(value) for name, value in content.items()}
    if isinstance(content, list | tuple):
        return [_finite(value) for value in content]
    return finite(content) if isinstance(content, float) else content


def scalars(summary: dict[str, Any]) -> dict[str, float]:
    """The figures of the evaluation, for the metrics log."""
    values = {
        name: value
        for name, value in summary["eval"].items()
        if isinstance(value, (int, float))
    }
    pairs = summary.get("sample", {}).get("minimal_pairs")
    return values | ({"minimal_pair_accuracy": pairs["accuracy"]} if pairs else {})


def table(summary: dict[str, Any]) -> str:
    """The closing summary for a person."""
    total = summary["eval"]
    spent = summary.get("spent")  # of a run that has just ended
    lines = [
        "",
        f"parameters         {summary['params']:,}",
        f"trained            {summary['steps']:,} steps, {summary['tokens_seen']:,} "
        f"tokens, {summary['words_seen']:,} words, {summary['seconds']:,.0f} s, "
        f"{summary['tokens_per_second']:,.0f} tokens/s",
        *([f"time               {_spent(spent)}"] if spent else []),
        f"held-out text      {total['tokens']:,} tokens, {total['words']:,} words in "
        f"{total['windows']:,} windows",
        f"estimator          {total['estimator']} ({total['kind']}; "
        f"{total['draws']} draw(s) per window{_noise(total)})",
        "",
        f"{'':<28}{'nll/token':>10}{'± s.e.':>9}{'ppl':>10}{'bits/byte':>11}"
        f"{'bits/word':>11}",
        _row(f"all ({total['kind']})", total),
    ]
    if len(total["sources"]) > 1:
        lines += [_row(name, values) for name, values in total["sources"].items()]
    sample = summary.get("sample")
    if sample:
        error = total["bits_per_word_standard_error"]
        lines += [
            "",
            f"true entropy       {sample['true_entropy_bits_per_word']:.3f} bits per "
            f"word; the model is {sample['above_true_entropy']:+.1%} above it "
            f"(± {error / sample['true_entropy_bits_per_word']:.1%})",
        ]
    if sample and "minimal_pairs" in sample:
        pairs = sample["minimal_pairs"]
        lines.append(
            f"minimal pairs      {pairs['accuracy']:.1%} ± "
            f"{pairs['standard_error']:.1%} of {pairs['pairs']} ({pairs['score']})"
        )
        lines += [f"  {k:<34}{v:>6.1%}" for k, v in pairs["phenomena"].items()]
    return "\n".join(lines)


def _spent(seconds: dict[str, float]) -> str:
    """What the time of the run went to, of all starts, each as its share."""
    total = max(sum(seconds.values()), 1e-9)
    shares = (f"{name} {spent / total:.1%}" for name, spent in seconds.items())
    return f"{', '.join(shares)} of {total:,.0f} s"


def _noise(total: dict[str, Any]) -> str:
    """What the drawing of masks adds to the figure, where it is known."""
    error = total["monte_carlo_error"]
    return f", which leave ± {error:.4f} nats per token" if error else ""


def _row(name: str, values: dict[str, Any]) -> str:
    return (
        f"{name:<28}{values['nll_per_token']:>10.4f}{values['standard_error']:>9.4f}"
        f"{values['perplexity']:>10.2f}{values['bits_per_byte']:>11.4f}"
        f"{values['bits_per_word']:>11.4f}"
    )
