"""Preparation and the training pipeline, measured beside Hugging Face datasets.

    python benchmarks/corpus.py --text FOLDER [--tokenizer tokenizer.json]
        [--megabytes 100] [--large 1000] [--out benchmarks/results/corpus.md]

One text (the files of FOLDER, repeated up to --megabytes) and one tokenizer (trained
on it when none is given) go through both: lmjax from the file to shards of windows,
words counted and everything hashed; `datasets` from the file to token ids by
`load_dataset("text")` and `map(batched=True, num_proc=2)`, and once more with the map
that groups them into windows. Every part is a fresh process; they alternate, and the
table shows medians and ranges. Peak memory is that of all processes of a part together
(proportional set size); lmjax alone prepares --large
megabytes for that, too. The pipeline is then read as training reads it, beside what the
nano model consumes on this machine. Needs the extra "hf", and Linux for the memory.
"""

import argparse
import json
import os
import pathlib
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from importlib import metadata
from typing import Any

PROCESSES = 2
LENGTH = 1024
PARTS = ("lmjax", "datasets", "datasets, grouped")


def prepare_with_lmjax(text: pathlib.Path, model: pathlib.Path, cache: pathlib.Path):
    """The whole preparation of a file."""
    from lmjax.config import schema
    from lmjax.data.preparation.prepare import prepare
    from lmjax.data.reading.sources import Source

    prepared = prepare(
        schema.DataConfig(
            sequence_length=LENGTH,
            cache_dir=str(cache),
            documents=schema.DocumentUnit.BLOCK,
            workers=PROCESSES,
        ),
        schema.TokenizerConfig(kind=schema.TokenizerKind.HUGGINGFACE, path=str(model)),
        seed=0,
        train=[Source("text", (text,))],
    )
    counts = [prepared.train.counts, prepared.valid.counts]
    return {
        "tokens": sum(c.tokens for c in counts),
        "words": sum(c.words for c in counts),
        "folder": str(prepared.folder),
    }


def prepare_with_datasets(
    text: pathlib.Path, model: pathlib.Path, cache: pathlib.Path, group: bool
):
    """Token ids, one document per blank-line block; `group` makes windows of them."""
    import datasets
    import tokenizers

    tokenizer = tokenizers.Tokenizer.from_file(str(model))
    end = tokenizer.token_to_id("</s>")

    def encode(batch: dict[str, list[str]]) -> dict[str, list[list[int]]]:
        encodings = tokenizer.encode_batch(batch["text"], add_special_tokens=False)
        return {"input_ids": [[*encoding.ids, end] for encoding in encodings]}

    def to_windows(batch: dict[str, list[list[int]]]) -> dict[str, list[list[int]]]:
        joined = [token for ids in batch["input_ids"] for token in ids]
        whole = len(joined) // LENGTH * LENGTH
        return {"input_ids": [joined[i : i + LENGTH] for i in range(0, whole, LENGTH)]}

    raw = datasets.load_dataset(
        "text",
        data_files=str(text),
        sample_by="paragraph",
        cache_dir=str(cache),
        split="train",
    )
    encoded = raw.map(
        encode, batched=True, num_proc=PROCESSES, remove_columns=raw.column_names
    )
    if group:
        encoded = encoded.map(to_windows, batched=True, num_proc=PROCESSES)
    return {"documents": len(raw)}


def run_part(part: str, text: pathlib.Path, model: pathlib.Path, cache: pathlib.Path):
    """One part in this process; prints what it found and its seconds as JSON."""
    started = time.perf_counter()
    if part == "lmjax":
        found = prepare_with_lmjax(text, model, cache)
    else:
        found = prepare_with_datasets(text, model, cache, group="grouped" in part)
    print(json.dumps(found | {"seconds": time.perf_counter() - started}))


def measure(part: str, text: pathlib.Path, model: pathlib.Path, cache: pathlib.Path):
    """One part in a fresh process: what it says, and its peak memory in bytes."""
    environment = os.environ | {"HF_HOME": str(cache / "home"), "HF_HUB_OFFLINE": "1"}
    process = subprocess.Popen(
        [sys.executable, __file__, "--part", part, "--text", str(text)]
        + ["--tokenizer", str(model), "--cache", str(cache)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=environment,
        text=True,
    )
    peak = [0]
    watch = threading.Thread(target=_watch, args=(process, peak))
    watch.start()
    output, errors = process.communicate()
    watch.join()
    if process.returncode:
        sys.exit(f"{part} failed:\n{errors}")
    return json.loads(output.splitlines()[-1]) | {"peak": peak[0]}


def _watch(process: subprocess.Popen, peak: list[int]) -> None:
    while process.poll() is None:
        peak[0] = max(peak[0], _memory(process.pid))
        time.sleep(0.1)


def _memory(pid: int) -> int:
    """Proportional set size of a process and all below it, in bytes."""
    total = 0
    try:
        for line in pathlib.Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
            if line.startswith("Pss:"):
                total += int(line.split()[1]) * 1024
        for task in pathlib.Path(f"/proc/{pid}/task").iterdir():
            for child in (task / "children").read_text().split():
                total += _memory(int(child))
    except OSError:
        pass  # it has just ended
    return total


def read_pipeline(folder: str, seconds: float = 5.0) -> float:
    """Tokens per second of the training batches."""
    from lmjax.data import pipeline
    from lmjax.data.preparation.manifest import load_prepared

    prepared = load_prepared(pathlib.Path(folder))
    batches = pipeline.train_batches(prepared, batch_size=256, seed=0)
    next(batches)
    count, started = 0, time.perf_counter()
    while time.perf_counter() - started < seconds:
        count += next(batches).tokens.size
    return count / (time.perf_counter() - started)


def train_nano(variant: str) -> float:
    """Tokens per second that the nano model trains on here, data left aside."""
    import types

    import jax

    from lmjax import experiment, training_run
    from lmjax.config.load import load_config
    from lmjax.data.batch import synthetic
    from lmjax.data.tokenization.byte_tokenizer import ByteTokenizer

    config = load_config(f"configs/babylm.py:{variant},nano")
    system = experiment.build_system(config, ByteTokenizer(), jax.devices()[:1])
    counts = types.SimpleNamespace(windows=1000, tokens=64_000, words=50_000)
    records = types.SimpleNamespace(source="text", counts=counts)
    train = types.SimpleNamespace(counts=counts, records=[records])
    run = training_run.build_run(config, system, types.SimpleNamespace(train=train))
    state = run.state_maker.make(jax.random.key(0))
    batch = synthetic(config.train.batch_size, config.data.sequence_length, token=9)
    step = jax.jit(run.step, donate_argnums=0)
    times = []
    for _ in range(6):
        started = time.perf_counter()
        state, metrics = step(state, batch)
        jax.block_until_ready(metrics)
        times.append(time.perf_counter() - started)
    return batch.tokens.size / statistics.median(times[1:])


def make_text(folder: pathlib.Path, megabytes: int, file: pathlib.Path) -> int:
    """All files of a folder as one text, repeated; returns its bytes."""
    files = sorted(f for f in folder.rglob("*") if f.is_file())
    written = 0
    with file.open("wb") as out:
        while written < megabytes * 10**6:
            for each in files:
                written += out.write(each.read_bytes().strip() + b"\n\n")
    return written


def train_tokenizer(folder: pathlib.Path, file: pathlib.Path) -> None:
    """A byte-level BPE of 16384 ids on the text, as BabyLM entries train it."""
    from lmjax.config import schema
    from lmjax.data.tokenization import training

    config = schema.TokenizerConfig(kind=schema.TokenizerKind.HUGGINGFACE)
    files = sorted(f for f in folder.rglob("*") if f.is_file())
    file.write_bytes(training.train_tokenizer(config, (f.read_text() for f in files)))


def table(results: dict[str, list[dict[str, Any]]], size: int) -> list[str]:
    """Rows of medians with ranges, and the ratios of each round."""
    lines = [
        "| | MB/s | range | peak memory MB | lmjax is faster by |",
        "|---|---|---|---|---|",
    ]
    own = [size / 1e6 / result["seconds"] for result in results["lmjax"]]
    for part, rounds in results.items():
        speeds = [size / 1e6 / result["seconds"] for result in rounds]
        ratios = [a / b for a, b in zip(own, speeds, strict=True)]
        peak = max(result["peak"] for result in rounds) / 1e6
        lines.append(
            f"| {part} | {statistics.median(speeds):.2f} "
            f"| {min(speeds):.2f} to {max(speeds):.2f} | {peak:,.0f} "
            f"| {statistics.median(ratios):.2f}x |"
        )
    return lines


def main() -> None:
    """Prints the table, and appends it to a file where one is named."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--text", type=pathlib.Path, required=True)
    parser.add_argument("--tokenizer", type=pathlib.Path)
    parser.add_argument("--megabytes", type=int, default=100)
    parser.add_argument(
        "--large", type=int, default=1000, help="megabytes for the memory of lmjax"
    )
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--out", type=pathlib.Path)
    parser.add_argument("--part", choices=PARTS, help=argparse.SUPPRESS)
    parser.add_argument("--cache", type=pathlib.Path, help=argparse.SUPPRESS)
    flags = parser.parse_args()
    if flags.part:
        run_part(flags.part, flags.text, flags.tokenizer, flags.cache)
        return
    with tempfile.TemporaryDirectory() as folder:
        lines = benchmark(flags, pathlib.Path(folder))
    if flags.out:
        with flags.out.open("a", encoding="utf-8") as file:
            file.write("\n".join([*lines, "", ""]))


def benchmark(flags: argparse.Namespace, folder: pathlib.Path) -> list[str]:
    """Runs everything; prints lines as they are known, and returns them."""
    lines: list[str] = []

    def say(line: str) -> None:
        print(line, flush=True)
        lines.append(line)

    text, model = folder / "text.txt", flags.tokenizer or folder / "tokenizer.json"
    size = make_text(flags.text, flags.megabytes, text)
    if not flags.tokenizer:
        train_tokenizer(flags.text, model)
    versions = ", ".join(
        f"{n} {metadata.version(n)}" for n in ("datasets", "tokenizers")
    )
    cores = len(os.sched_getaffinity(0))
    say(
        f"{time.strftime('%Y-%m-%d')}, Python {platform.python_version()}, {versions}, "
        f"{cores} cores; {size / 1e6:.0f} MB of text, {flags.rounds} rounds, "
        f"{'tokenizer ' + model.name if flags.tokenizer else 'BPE of 16384 ids'}"
    )
    say("")
    results: dict[str, list[dict[str, Any]]] = {part: [] for part in PARTS}
    for number in range(flags.rounds):
        for part in PARTS:
            cache = folder / "cache"
            cache.mkdir()
            results[part].append(measure(part, text, model, cache))
            keep = part == "lmjax" and number == flags.rounds - 1
            if keep:
                shutil.move(results[part][-1]["folder"], folder / "prepared")
            shutil.rmtree(cache)
    for line in table(results, size):
        say(line)
    say("")
    if flags.large:
        size = make_text(flags.text, flags.large, text)
        found = measure("lmjax", text, model, folder / "cache")
        say(
            f"lmjax on {size / 1e6:,.0f} MB: {size / 1e6 / found['seconds']:.2f} MB/s, "
            f"peak memory {found['peak'] / 1e6:,.0f} MB"
        )
        shutil.rmtree(folder / "cache")
    read = read_pipeline(str(folder / "prepared"))
    say(f"training pipeline: {read / 1e6:.1f}M tokens/s at {LENGTH} tokens per window")
    for variant in ("ar", "diffusion"):
        consumed = train_nano(variant)
        say(
            f"nano, {variant}: {consumed:,.0f} tokens/s are trained on, "
            f"1/{read / consumed:,.0f} of that"
        )
    return lines


if __name__ == "__main__":
    main()
