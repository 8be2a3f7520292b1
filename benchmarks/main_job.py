"""What the main job reaches on the built-in corpus, against the grammar's entropy.

    python benchmarks/main_job.py [--out benchmarks/results/main_job.md]

Trains `configs/babylm.py:sample` and `:ar,sample` in new run folders and prints one
table row each. About four minutes per objective on two CPU cores.
"""

import argparse
import json
import os
import pathlib
import platform
import subprocess
import sys
import tempfile
import time
from importlib import metadata

OBJECTIVES = ("diffusion", "ar")
HEADER = (
    "| Python, JAX | objective | wall s | tokens/s | bits/word | above the truth "
    "| s.e. | minimal pairs |\n|---|---|---|---|---|---|---|---|"
)


def run(objective: str, workdir: pathlib.Path) -> str:
    """Trains one variant; returns its table row. Wall time includes everything."""
    command = [
        *(sys.executable, "-m", "lmjax.main"),
        *("--config", f"configs/babylm.py:{objective},sample"),
        *("--workdir", str(workdir), "--compilation_cache="),
        f"--config.data.cache_dir={workdir / 'cache'}",
    ]
    started = time.perf_counter()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    seconds = time.perf_counter() - started
    report = json.loads((workdir / "report.json").read_text())
    sample, found = report["sample"], report["eval"]
    entropy = sample["true_entropy_bits_per_word"]
    error = found["bits_per_word_standard_error"] / entropy
    versions = f"{platform.python_version()}, {metadata.version('jax')}"
    return (
        f"| {versions} | {objective} ({found['kind']}) | {seconds:.0f} "
        f"| {report['tokens_per_second']:,.0f} | {found['bits_per_word']:.3f} "
        f"| {sample['above_true_entropy']:+.1%} | {error:.1%} "
        f"| {sample['minimal_pairs']['accuracy']:.1%} |"
    )


def main() -> None:
    """Prints the table, and appends its rows to a file where one is named."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=pathlib.Path)
    out = parser.parse_args().out
    print(f"{os.cpu_count()} CPUs, {platform.machine()}\n\n{HEADER}", flush=True)
    for objective in OBJECTIVES:
        with tempfile.TemporaryDirectory() as folder:
            row = run(objective, pathlib.Path(folder))
        print(row, flush=True)
        if out:
            with out.open("a", encoding="utf-8") as file:
                print(row, file=file)


if __name__ == "__main__":
    main()
