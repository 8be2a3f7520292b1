"""What saving costs: steps per second with a checkpoint every 50 steps, and without.

    python benchmarks/checkpoints.py [--rounds 12] [--objectives ar diffusion]
        [--json FILE] [--out benchmarks/results/checkpoints.md]

Trains `configs/babylm.py:ar,nano` (and `:nano`) by the command line, on the built-in
text, with a checkpoint every 100 steps and a line per step. So stretches of 50 steps
with a save, and all that it does in the background, alternate with stretches of 50
steps without one, in one process: what else the machine does meets both alike. A round
is one with a save; it is compared with the mean of those before and after it, which
cancels drift. The table shows medians and quartiles over rounds. A save blocks the loop
for as long as the first step after it comes later than a step does in the median.
"""

import argparse
import itertools
import json
import os
import pathlib
import platform
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from importlib import metadata
from typing import Any

from lmjax.data.sample.corpus import write_corpus

ROOT = pathlib.Path(__file__).resolve().parents[1]
STRETCH = 50  # steps, of which the first follows a save or does not
VARIANTS = {"ar": "ar,nano", "diffusion": "nano"}
MOST = 0.03  # that saving may cost
HEADER = (
    "| objective | saved MB | rounds | steps/s without | with | slower by | quartiles "
    "| blocked ms | quartiles |\n|---|---|---|---|---|---|---|---|---|"
)


def command(objective: str, work: pathlib.Path) -> list[str]:
    """A run that saves every second stretch, and would go on for long."""
    fields = {
        "data.train": work / "text.train",
        "data.cache_dir": work / "cache",
        # The text has few words: their ids, in a table of the size's own rows.
        "tokenizer.vocab_size": 1024,
        "model.vocab_size": 4096,
        "train.budget": "1000000 steps",
        "checkpoint.every": f"{2 * STRETCH} steps",
        "evaluate.every": "0",
        "generate.every": "0",
        "log.every": "1 steps",
        "log.tensorboard": False,
    }
    return [
        *(sys.executable, "-m", "lmjax.main"),
        *("--config", f"configs/babylm.py:{VARIANTS[objective]}"),
        *("--workdir", str(work / objective)),
        *(f"--config.{name}={value}" for name, value in fields.items()),
    ]


def step_times(objective: str, work: pathlib.Path, steps: int) -> list[float]:
    """When the line of each step came; the run is killed after so many."""
    process = subprocess.Popen(
        command(objective, work),
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1"},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    times: list[float] = []
    said: list[str] = []
    for line in process.stderr:
        said.append(line)
        if line.startswith(f"step {len(times) + 1:,}/"):
            times.append(time.perf_counter())
        if len(times) == steps:
            break
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    if len(times) < steps:
        sys.exit(f"the run ended after {len(times)} steps:\n{''.join(said[-20:])}")
    return times


def compare(times: Sequence[float]) -> dict[str, Any]:
    """Figures from the times of the steps 1, 2, ...; a save follows every 2 STRETCH."""
    between = [b - a for a, b in itertools.pairwise(times)]
    # between[n] is what step n + 2 took, so a stretch that a save begins starts here.
    firsts = range(2 * STRETCH - 1, len(between) - 2 * STRETCH + 1, 2 * STRETCH)
    usual = statistics.median(between)
    slower, with_save, without, blocked = [], [], [], []
    for first in firsts:
        before, during, after = (
            sum(between[first + shift : first + shift + STRETCH])
            for shift in (-STRETCH, 0, STRETCH)
        )
        slower.append(during / statistics.mean((before, after)) - 1)
        with_save.append(STRETCH / during)
        without += [STRETCH / before, STRETCH / after]
        blocked.append(1000 * (between[first] - usual))
    return {
        "rounds": len(slower),
        "with": statistics.median(with_save),
        "without": statistics.median(without),
        "slower": quartiles(slower),
        "blocked_ms": quartiles(blocked),
    }


def quartiles(values: Sequence[float]) -> tuple[float, float, float]:
    """The first, the median and the third."""
    if len(values) < 2:
        return (values[0],) * 3
    return tuple(statistics.quantiles(values, n=4, method="inclusive"))


def saved_bytes(folder: pathlib.Path) -> int:
    """Of the newest checkpoint."""
    newest = max(p for p in (folder / "checkpoints").iterdir() if p.name.isdecimal())
    return sum(file.stat().st_size for file in newest.rglob("*") if file.is_file())


def row(objective: str, found: Mapping[str, Any]) -> str:
    slower, blocked = found["slower"], found["blocked_ms"]
    return (
        f"| {objective} | {found['bytes'] / 1e6:.1f} | {found['rounds']} "
        f"| {found['without']:.2f} | {found['with']:.2f} | {slower[1]:+.1%} "
        f"| {slower[0]:+.1%} to {slower[2]:+.1%} | {blocked[1]:.0f} "
        f"| {blocked[0]:.0f} to {blocked[2]:.0f} |"
    )


def main() -> None:
    """Prints the table; ends with 1 if saving costs more than it may."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=12)
    parser.add_argument(
        "--objectives", nargs="+", choices=VARIANTS, default=[*VARIANTS]
    )
    parser.add_argument("--json", type=pathlib.Path)
    parser.add_argument("--out", type=pathlib.Path)
    flags = parser.parse_args()
    lines = [
        f"{time.strftime('%Y-%m-%d')}, Python {platform.python_version()}, "
        f"JAX {metadata.version('jax')}, {len(os.sched_getaffinity(0))} cores",
        "",
        HEADER,
    ]
    print("\n".join(lines), flush=True)
    results = {}
    with tempfile.TemporaryDirectory() as folder:
        work = pathlib.Path(folder)
        write_corpus(work / "text.train", seed=0, num_words=300_000)
        for objective in flags.objectives:
            # One stretch to warm up, and one more behind the last round.
            steps = 2 * STRETCH * (flags.rounds + 1)
            found = compare(step_times(objective, work, steps))
            found["bytes"] = saved_bytes(work / objective)
            results[objective] = found
            lines.append(row(objective, found))
            print(lines[-1], flush=True)
            shutil.rmtree(work / objective)
    if flags.json:
        flags.json.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    if flags.out:
        with flags.out.open("a", encoding="utf-8") as file:
            file.write("\n".join([*lines, "", ""]))
    if any(found["slower"][1] > MOST for found in results.values()):
        sys.exit(f"\nsaving costs more than {MOST:.0%}")


if __name__ == "__main__":
    main()
