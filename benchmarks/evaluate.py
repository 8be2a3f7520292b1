"""Zero-shot scoring and generation of a run, beside transformers on the same weights.

    python benchmarks/evaluate.py RUN --data EVALUATION_DATA [--pairs 20] [--batch 64]
        [--rounds 3] [--new 128] [--prompts 8] [--out FILE.md]

The run is exported, and transformers loads the export. Both then score the same pairs
of BLiMP (so many of each file), taking turns; the table has medians and their ratio:

* causal: one row for each sentence;
* mlm (a diffusion run): one row for each token of each sentence;
* generate (a causal run): greedy continuations of the first words of sentences, with
  key-value caches on both sides, EOS never chosen, so that all texts are as long. They
  are compared text for text.

The loop beside it does what BabyLM's pipeline does: batches of sentences as they come
in the files, the masked copies of a batch in batches of the same size, logits of all
positions. lmjax is measured at batches of the same number of rows, and as it comes.
Items are in ids on both sides before the clock starts, and programs are compiled.
"""

import argparse
import dataclasses
import datetime
import pathlib
import platform
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import numpy as np
import torch
import transformers

from lmjax import experiment, modes
from lmjax.config import serialize
from lmjax.config.schema import AutoregressiveConfig, Config, EvaluateConfig
from lmjax.core import trees
from lmjax.evaluate.probes import Prober
from lmjax.evaluate.zero_shot.items import Task
from lmjax.evaluate.zero_shot.readers import load_tasks
from lmjax.evaluate.zero_shot.scoring import ZeroShot
from lmjax.experiment import System
from lmjax.models.build import build_model
from lmjax.modes.checkpoints import exact_system
from lmjax.modes.zero_shot import scored_model
from lmjax.run_folder import RunFolder

Row = tuple[str, str, float, float, float]  # what, unit, ours, theirs, agreement


class Loop:
    """What one would write with transformers."""

    def __init__(self, folder: pathlib.Path, batch: int, causal: bool):
        kind = "AutoModelForCausalLM" if causal else "AutoModelForMaskedLM"
        load = getattr(transformers, kind).from_pretrained
        self.model = load(folder, trust_remote_code=True).eval()
        self.tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
        self.batch, self.causal = batch, causal

    def encode(self, texts: Sequence[str]) -> list[list[int]]:
        return self.tokenizer(list(texts))["input_ids"]

    @torch.no_grad()
    def scores(self, sentences: Sequence[Sequence[int]]) -> np.ndarray:
        totals = []
        for start in range(0, len(sentences), self.batch):
            chunk = sentences[start : start + self.batch]
            totals += self._causal(chunk) if self.causal else self._masked(chunk)
        return np.array(totals)

    def _padded(self, rows: Sequence[Sequence[int]]) -> tuple[Any, Any]:
        length = max(map(len, rows))
        tokens = torch.full((len(rows), length), self.tokenizer.pad_token_id)
        attended = torch.zeros_like(tokens)
        for i, row in enumerate(rows):
            tokens[i, : len(row)] = torch.tensor(row)
            attended[i, : len(row)] = 1
        return tokens, attended

    def _causal(self, rows: Sequence[Sequence[int]]) -> list[float]:
        tokens, attended = self._padded(rows)
        logits = self.model(input_ids=tokens, attention_mask=attended).logits
        found = logits.log_softmax(-1)[:, :-1].gather(-1, tokens[:, 1:, None])[..., 0]
        return (found * attended[:, 1:]).sum(1).tolist()

    def _masked(self, rows: Sequence[Sequence[int]]) -> list[float]:
        copies = [(row, place) for row in rows for place in range(1, len(row))]
        owners = [i for i, row in enumerate(rows) for _ in range(1, len(row))]
        totals = [0.0] * len(rows)
        for start in range(0, len(copies), self.batch):
            chunk = copies[start : start + self.batch]
            tokens, attended = self._padded([row for row, _ in chunk])
            order = torch.arange(len(chunk))
            places = torch.tensor([place for _, place in chunk])
            targets = tokens[order, places]
            tokens[order, places] = self.tokenizer.mask_token_id
            logits = self.model(input_ids=tokens, attention_mask=attended).logits
            found = logits[order, places].log_softmax(-1)[order, targets]
            for owner, value in zip(owners[start:], found.tolist(), strict=False):
                totals[owner] += value
        return totals

    @torch.no_grad()
    def generate(self, prompts: Sequence[Sequence[int]], new: int) -> np.ndarray:
        silent = self.model.generation_config.suppress_tokens
        out = self.model.generate(
            torch.tensor(prompts),
            attention_mask=torch.ones(
                (len(prompts), len(prompts[0])), dtype=torch.long
            ),
            max_new_tokens=new,
            do_sample=False,
            suppress_tokens=[*silent, self.tokenizer.eos_token_id],
        )
        return out[:, len(prompts[0]) :].numpy()


def in_turn(
    ours: Callable[[], Any], theirs: Callable[[], Any], rounds: int
) -> tuple[float, float, Any, Any]:
    """Median seconds of both, and what they returned; one round warms up."""
    times: list[tuple[float, float]] = []
    for _ in range(rounds + 1):
        began = time.perf_counter()
        mine = jax.block_until_ready(ours())
        middle = time.perf_counter()
        other = theirs()
        times.append((middle - began, time.perf_counter() - middle))
    medians = [statistics.median(column) for column in zip(*times[1:], strict=True)]
    return *medians, mine, other


def scoring(
    config: Config, system: System, params: Any, task: Task, loop: Loop, rounds: int
) -> Iterator[Row]:
    """Sentences a second, at batches of the same rows and at lmjax's own."""
    special = system.tokenizer.special
    causal = isinstance(config.objective, AutoregressiveConfig)
    texts = [each.text for item in task.items for each in item.candidates]
    sentences = loop.encode(texts)
    rows = [len(ids) for ids in sentences]
    length = statistics.mean(rows) if causal else np.square(rows).sum() / sum(rows)
    for name, tokens in (("same rows", round(loop.batch * length)), ("its own", 0)):
        prober = Prober(
            scored_model(config, system).bind,
            system.mesh,
            max_length=config.model.max_length,
            pad_id=special.pad,
            causal=causal,
            batch_tokens=tokens,
        )
        zero_shot = ZeroShot(
            EvaluateConfig(),
            prober,
            system.tokenizer,
            max_length=config.model.max_length,
            opening=(experiment.text_opening(config, special),),
            causal=causal,
            mask_id=special.mask,
            dtype="float32",
        )
        zero_shot.encoded(task)
        mine, other, found, wanted = in_turn(
            lambda: np.concatenate(zero_shot.scores(params, task)),  # noqa: B023
            lambda: loop.scores(sentences),
            rounds,
        )
        difference = float(np.abs(found - wanted).max())
        backend = zero_shot.backend.name
        yield (
            f"{backend}, batches: {name}",
            "sentences/s",
            len(texts) / mine,
            len(texts) / other,
            difference,
        )


def generation(
    config: Config,
    system: System,
    params: Any,
    texts: Sequence[str],
    loop: Loop,
    new: int,
    rounds: int,
) -> Row:
    """New tokens a second; the share of tokens that differ is the agreement."""
    setting = system.model.setting
    eos = system.tokenizer.special.eos
    silent = tuple(sorted({*setting.unpredictable, eos}))
    setting = dataclasses.replace(setting, unpredictable=silent)
    system = dataclasses.replace(system, model=build_model(config.model, setting))
    options = dataclasses.replace(
        config.generate, temperature=0.0, top_k=0, top_p=1.0, stop=()
    )
    data = dataclasses.replace(config.data, packing=type(config.data.packing).DOCUMENTS)
    data.bos = False  # then a text is opened by what the export's tokenizer puts there
    generator = experiment.build_generator(
        options, data, system, max_length=config.model.max_length
    )
    prompts = [system.tokenizer.encode(text) for text in texts]
    shortest = min(map(len, prompts))
    given = [system.tokenizer.decode(ids[:shortest]) for ids in prompts]
    inputs = loop.encode(given)
    mine, other, found, wanted = in_turn(
        lambda: generator(
            params, jax.random.key(0), given, num_samples=1, max_new_tokens=new
        ),
        lambda: loop.generate(inputs, new),
        rounds,
    )
    told = [loop.tokenizer.decode(row) for row in wanted]
    same = [
        a.continuation.strip() == b.strip() for a, b in zip(found, told, strict=True)
    ]
    total = new * len(given)
    name = f"generate, {len(given)} texts of {shortest} + {new} tokens"
    return name, "tokens/s", total / mine, total / other, 1 - statistics.mean(same)


def report(run: pathlib.Path, params: int, rows: Sequence[Row], text: str) -> str:
    lines = [
        f"## {run.name}: {params:,} parameters",
        "",
        f"{datetime.date.today()}, {text}",
        "",
        "| what | unit | lmjax | transformers | ratio | largest difference |",
        "|---|---|---|---|---|---|",
    ]
    for what, unit, mine, other, difference in rows:
        lines.append(
            f"| {what} | {unit} | {mine:,.0f} | {other:,.0f} | {mine / other:.2f} | "
            f"{difference:.1e} |"
        )
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("run", type=pathlib.Path)
    parser.add_argument("--data", required=True)
    parser.add_argument("--pairs", type=int, default=20, help="of each file")
    parser.add_argument("--batch", type=int, default=64, help="rows of a batch")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--new", type=int, default=128, help="tokens of each text")
    parser.add_argument("--prompts", type=int, default=8)
    parser.add_argument("--out", type=pathlib.Path)
    arguments = parser.parse_args()
    config = serialize.load(arguments.run / "config.json")
    causal = isinstance(config.objective, AutoregressiveConfig)
    (task,) = load_tasks(["blimp_fast"], arguments.data)
    chosen = [i for m in task.members("UID").values() for i in m[: arguments.pairs]]
    items = tuple(task.items[i] for i in chosen)
    task = Task(task.name, task.dataset, items)
    with tempfile.TemporaryDirectory() as scratch:
        config.export.folder = str(pathlib.Path(scratch) / "export")
        modes.export(config, arguments.run)
        loop = Loop(pathlib.Path(config.export.folder), arguments.batch, causal)
        with RunFolder.read(arguments.run, config) as folder:
            system = exact_system(config, folder, one_device=False)
            params = folder.restore_params(system, on_mesh=True)
        rows = list(scoring(config, system, params, task, loop, arguments.rounds))
        if causal:
            texts = [item.candidates[0].text for item in items]
            step = max(1, len(texts) // arguments.prompts)
            texts = texts[::step][: arguments.prompts]
            new = arguments.new
            rows.append(
                generation(config, system, params, texts, loop, new, arguments.rounds)
            )
    machine = (
        f"{platform.machine()}, {torch.get_num_threads()} threads, "
        f"{jax.devices()[0].device_kind}; jax {jax.__version__}, torch "
        f"{torch.__version__}, transformers {transformers.__version__}; "
        f"{len(items):,} pairs, transformers in batches of {arguments.batch}, medians "
        f"of {arguments.rounds} rounds in turn; vocabulary of "
        f"{system.tokenizer.vocab_size:,}"
    )
    text = report(arguments.run, trees.count(system.model.shapes), rows, machine)
    print(text)
    if arguments.out:
        with arguments.out.open("a", encoding="utf-8") as file:
            file.write(text + "\n")


if __name__ == "__main__":
    main()
