"""Time to a held-out loss: the main job beside nanoGPT's recipe in torch.

    python benchmarks/time_to_loss.py --data FOLDER [--size nano] [--minutes 10]
        [--share 0.6] [--eager] [--json FILE] [--out benchmarks/results/time_to_loss.md]

Both train an autoregressive model of the same shape from scratch, on the same prepared
text with the same tokenizer, and are asked for bits per byte of the same held-out
windows. The baseline is a Llama of transformers in torch, compiled (or `--eager`), with
the settings of nanoGPT: AdamW at 6e-4 with betas 0.9 and 0.95, decay 0.1, clipping at
1, a warm-up and a cosine to a tenth that ends when its time does, batches of the same
size. lmjax is `python -m lmjax.main --config configs/babylm.py:ar,SIZE` as it comes,
with as many steps as fit into `--share` of the baseline's time by a short trial.

The two take turns of seconds, the one halted while the other runs, so whatever else the
machine does meets both. The baseline's clock counts its training steps alone; lmjax's
counts all that the process does, from its start: imports, compilation, evaluation,
saving. Held-out text: 20 batches; lmjax's figure is that of its own log.
"""

import argparse
import contextlib
import dataclasses
import datetime
import json
import math
import pathlib
import platform
import re
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from importlib import metadata
from typing import Any

ROOT = pathlib.Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
TURN = 15.0  # seconds that the baseline trains at a time
TRIAL_STEPS = 200  # of which the second half is timed
MARGIN = 0.92  # of lmjax's time that its steps may fill by the trial
EVALUATIONS = "20%"  # of the run
PEAK, BETAS, DECAY, CLIP, WARMUP = 6e-4, (0.9, 0.95), 0.1, 1.0, 0.02  # nanoGPT
HELD_OUT = re.compile(r"step [\d,]+ held-out: ")
STEP = re.compile(r"step ([\d,]+)/")


def settings(arguments: argparse.Namespace, steps: int) -> dict[str, Any]:
    """What the config of the main job is given besides its variant."""
    return {
        "data.train": (str(arguments.data),),
        "data.cache_dir": str(arguments.cache),
        "train.budget": f"{steps} steps",
        "evaluate.every": EVALUATIONS,
        "generate.every": "0",
        "checkpoint.every": "50%",
        "log.tensorboard": False,
    }


def variant(arguments: argparse.Namespace) -> str:
    return f"{ROOT}/configs/babylm.py:ar,{arguments.size}"


def command(arguments: argparse.Namespace, steps: int, folder: str) -> list[str]:
    fields = settings(arguments, steps)
    fields["data.train"] = str(arguments.data)
    return [
        *(sys.executable, "-m", "lmjax.main", "--config", variant(arguments)),
        *("--workdir", folder),
        *(f"--config.{name}={value}" for name, value in fields.items()),
    ]


def baseline(arguments: argparse.Namespace) -> None:
    """Torch's side: each line of standard input is seconds to train, or "evaluate"."""
    import numpy as np
    import torch
    import transformers

    from lmjax import experiment, training_run
    from lmjax.config.load import load_config
    from lmjax.models.build import padded_vocab_size

    config = load_config(variant(arguments), settings(arguments, 10**6))
    prepared = experiment.prepare_corpus(config)
    model_config, bos = config.model, prepared.tokenizer.special.bos
    torch.manual_seed(0)
    model = transformers.LlamaForCausalLM(
        transformers.LlamaConfig(
            vocab_size=padded_vocab_size(prepared.tokenizer.vocab_size),
            hidden_size=model_config.width,
            num_hidden_layers=model_config.num_layers,
            num_attention_heads=model_config.num_heads,
            num_key_value_heads=model_config.num_heads,
            intermediate_size=model_config.mlp_width,
            max_position_embeddings=model_config.max_length,
            tie_word_embeddings=model_config.tied_embeddings,
            use_cache=False,
            attn_implementation="sdpa",
        )
    )
    matrices = [p for p in model.parameters() if p.dim() >= 2]
    vectors = [p for p in model.parameters() if p.dim() < 2]
    groups = [{"params": matrices}, {"params": vectors, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(
        groups, lr=PEAK, betas=BETAS, weight_decay=DECAY, fused=True
    )

    def costs(tokens: Any) -> Any:
        first = torch.full_like(tokens[:, :1], bos)
        logits = model(input_ids=torch.cat([first, tokens[:, :-1]], dim=1)).logits
        return torch.nn.functional.cross_entropy(
            logits.float().flatten(0, 1), tokens.flatten(), reduction="none"
        )

    costs_of = costs if arguments.eager else torch.compile(costs)
    batches = training_run.train_batches(config, prepared, 0)

    def step(elapsed: float) -> None:
        passed = elapsed / (60 * arguments.minutes)
        cosine = 0.1 + 0.9 * (1 + math.cos(math.pi * min(passed, 1.0))) / 2
        for group in optimizer.param_groups:
            group["lr"] = PEAK * min(1.0, passed / WARMUP) * cosine
        tokens = torch.from_numpy(np.asarray(next(batches).tokens)).long()
        costs_of(tokens).mean().backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), CLIP)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    step(0.0)  # compiles, at a learning rate of zero
    print(json.dumps({"params": sum(p.numel() for p in model.parameters())}))
    elapsed, taken = 0.0, 0
    for line in sys.stdin:
        if line.strip() == "evaluate":
            print(json.dumps({"bits_per_byte": _held_out(config, prepared, costs)}))
        else:
            until = elapsed + float(line)
            while elapsed < until:
                began = time.perf_counter()
                step(elapsed)
                elapsed += time.perf_counter() - began
                taken += 1
            print(json.dumps({"seconds": elapsed, "steps": taken}))
        sys.stdout.flush()


def _held_out(config: Any, prepared: Any, costs: Any) -> float:
    """Bits per byte of the windows that lmjax evaluates in training."""
    import numpy as np
    import torch

    from lmjax import training_run

    nats = num_bytes = 0.0
    batches = training_run.eval_batches(config, prepared, config.evaluate.batches)
    with torch.no_grad():
        for batch in batches:
            tokens = torch.from_numpy(np.asarray(batch.tokens)).long()
            nats += float(np.sum(costs(tokens).numpy() * batch.weights.reshape(-1)))
            num_bytes += float(np.sum(batch.bytes))
    return nats / math.log(2) / num_bytes


class Baseline:
    """The process of torch's side."""

    def __init__(self, arguments: argparse.Namespace):
        flags = ["--data", str(arguments.data), "--cache", str(arguments.cache)]
        flags += ["--size", arguments.size, "--minutes", str(arguments.minutes)]
        self._process = subprocess.Popen(
            [sys.executable, __file__, "--baseline", *flags]
            + ["--eager"] * arguments.eager,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self.params = self._answer()["params"]

    def train(self, seconds: float) -> dict[str, float]:
        return self._ask(str(seconds))

    def evaluate(self) -> float:
        return self._ask("evaluate")["bits_per_byte"]

    def end(self) -> None:
        self._process.stdin.close()
        self._process.wait()

    def _ask(self, line: str) -> dict[str, float]:
        self._process.stdin.write(line + "\n")
        self._process.stdin.flush()
        return self._answer()

    def _answer(self) -> dict[str, float]:
        for line in self._process.stdout:
            if line.startswith("{"):
                return json.loads(line)
        raise SystemExit(f"the baseline ended with {self._process.wait()}")


@dataclasses.dataclass
class MainJob:
    """The main job as a process that is halted but for its turns.

    Attributes:
      seconds: it ran so far.
      told: seconds at which it told the figure of an evaluation.
    """

    arguments: argparse.Namespace
    steps: int
    folder: str
    seconds: float = 0.0
    told: list[float] = dataclasses.field(default_factory=list)
    ended: bool = False

    def __post_init__(self) -> None:
        self._began = time.perf_counter()
        self._process = subprocess.Popen(
            command(self.arguments, self.steps, self.folder),
            cwd=ROOT,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        threading.Thread(target=self._listen, daemon=True).start()
        self._halt()

    def run(self, seconds: float) -> None:
        """Goes on for so long, or to its end."""
        if self.ended:
            return
        self._began = time.perf_counter()
        self._process.send_signal(signal.SIGCONT)
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(seconds)
            self.ended = True
        self._halt()

    def _halt(self) -> None:
        if not self.ended:
            self._process.send_signal(signal.SIGSTOP)
        self.seconds += time.perf_counter() - self._began

    def _listen(self) -> None:
        for line in self._process.stderr:
            print(f"  lmjax: {line.rstrip()}", file=sys.stderr, flush=True)
            if HELD_OUT.match(line):
                self.told.append(self.seconds + time.perf_counter() - self._began)

    def figures(self) -> list[tuple[float, float]]:
        """(seconds, bits per byte) of its evaluations."""
        lines = pathlib.Path(self.folder, "metrics.jsonl").read_text().splitlines()
        records = [json.loads(line) for line in lines]
        values = [r["bits_per_byte"] for r in records if r["split"] == "valid"]
        return list(zip(self.told, values, strict=True))


def steps_that_fit(arguments: argparse.Namespace, seconds: float) -> int:
    """Steps that a run of so many seconds has time for, by a trial."""
    times: dict[int, float] = {}
    with tempfile.TemporaryDirectory() as folder:
        began = time.perf_counter()
        process = subprocess.Popen(
            command(arguments, TRIAL_STEPS, folder),
            cwd=ROOT,
            stderr=subprocess.PIPE,
            text=True,
        )
        for line in process.stderr:
            if found := STEP.match(line):
                times[int(found[1].replace(",", ""))] = time.perf_counter()
                if TRIAL_STEPS in times:  # what follows is the evaluation of the end
                    break
        process.kill()
        process.wait()
    if TRIAL_STEPS not in times:
        raise SystemExit("the trial failed")
    first, last = min(times), max(times)
    middle = min(times, key=lambda step: abs(step - (first + last) / 2))
    rate = (last - middle) / (times[last] - times[middle])
    return int(MARGIN * rate * (seconds - (times[first] - began)))


def race(arguments: argparse.Namespace) -> dict[str, Any]:
    """Both in turns; what they reached and when."""
    job_seconds = 60 * arguments.minutes * arguments.share
    with _prepared(arguments) as folder:
        steps = steps_that_fit(arguments, job_seconds)
        torch_side = Baseline(arguments)
        job = MainJob(arguments, steps, folder)
        turns = math.ceil(60 * arguments.minutes / TURN)
        curve: list[tuple[float, float]] = []
        for turn in range(turns):
            told = torch_side.train(60 * arguments.minutes / turns)
            if (turn + 1) % max(1, turns // 10) == 0:
                curve.append((told["seconds"], torch_side.evaluate()))
                print(f"baseline {curve[-1]}", file=sys.stderr, flush=True)
            job.run(job_seconds / turns)
        aim = torch_side.evaluate()
        torch_side.end()
        while not job.ended and job.seconds < 60 * arguments.minutes:
            job.run(TURN)
        job.run(600.0)
        figures = job.figures()
    reached = [seconds for seconds, value in figures if value <= aim]
    return {
        "size": arguments.size,
        "parameters": torch_side.params,
        "baseline": "eager" if arguments.eager else "compiled",
        "baseline_seconds": told["seconds"],
        "baseline_steps": told["steps"],
        "baseline_bits_per_byte": aim,
        "baseline_curve": curve,
        "lmjax_steps": steps,
        "lmjax_curve": figures,
        "lmjax_seconds_to_it": reached[0] if reached else None,
        "share_of_time": reached[0] / told["seconds"] if reached else None,
    }


@contextlib.contextmanager
def _prepared(arguments: argparse.Namespace) -> Iterator[str]:
    """A run folder, with the corpus prepared for both."""
    with tempfile.TemporaryDirectory() as folder:
        arguments.cache = arguments.cache or pathlib.Path(folder, "cache")
        prepare = [*command(arguments, 1, folder), "--mode", "prepare"]
        subprocess.run(prepare, check=True, cwd=ROOT)
        yield f"{folder}/run"


def table(found: dict[str, Any]) -> list[str]:
    """The figures in Markdown."""

    def curve(name: str) -> str:
        return ", ".join(f"{value:.3f} at {at:.0f} s" for at, value in found[name])

    share = found["share_of_time"]
    told = "not reached" if share is None else f"{share:.2f} of the baseline's time"
    at = found["lmjax_seconds_to_it"]
    return [
        f"Size {found['size']} ({found['parameters']:,} parameters), "
        f"torch {found['baseline']}.",
        "",
        "| | steps | seconds | bits per byte |",
        "|---|---|---|---|",
        f"| torch, nanoGPT's settings | {found['baseline_steps']:,} | "
        f"{found['baseline_seconds']:.0f} | {found['baseline_bits_per_byte']:.3f} |",
        f"| lmjax, to the same or less | of {found['lmjax_steps']:,} | "
        f"{'n/a' if at is None else f'{at:.0f}'} | {told} |",
        "",
        f"torch: {curve('baseline_curve')}",
        "",
        f"lmjax: {curve('lmjax_curve')}",
    ]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=pathlib.Path, required=True)
    parser.add_argument("--cache", type=pathlib.Path)
    parser.add_argument("--size", default="nano")
    parser.add_argument("--minutes", type=float, default=10.0, help="of the baseline")
    parser.add_argument("--share", type=float, default=0.6, help="of it for lmjax")
    parser.add_argument("--eager", action="store_true", help="torch without compile")
    parser.add_argument("--json", type=pathlib.Path)
    parser.add_argument("--out", type=pathlib.Path)
    parser.add_argument("--baseline", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    arguments.data = arguments.data.resolve()
    if arguments.baseline:
        baseline(arguments)
        return
    found = race(arguments)
    versions = ", ".join(
        f"{name} {metadata.version(name)}" for name in ("jax", "torch", "transformers")
    )
    about = f"{datetime.date.today()}; Python {platform.python_version()}, {versions}."
    lines = [about, "", *table(found)]
    print("\n".join(lines))
    if arguments.out:
        arguments.out.write_text("\n".join(["# Time to a loss", "", *lines, ""]))
    if arguments.json:
        arguments.json.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
