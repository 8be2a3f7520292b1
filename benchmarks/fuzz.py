"""Every reader of foreign files, fed with damaged ones: what comes of it.

    python benchmarks/fuzz.py [--cases 1000000] [--seed 1] [--kinds config,parquet]
        [--json FILE] [--out FILE.md]

The engine is that of tests/faults: valid files are damaged, by bytes or by what their
format is made of, and read in a process of their own, which has 1 GiB of memory beyond
what it needs and 20 seconds a case. A case must be read or end in a message that says
what is wrong; anything else is a finding, printed with the command that runs it again.
`--cases` is shared among the kinds as in the tests, `--kinds` leaves the others out.
Needs Linux and the extra "hf".
"""

import argparse
import dataclasses
import json
import os
import pathlib
import platform
import sys
import time

ROOT = pathlib.Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from tests.faults.foreign_files import KINDS  # noqa: E402
from tests.faults.fuzzing import Fuzzer, Tally  # noqa: E402

HEADER = (
    "| files | cases | errors told | read as valid | findings | seconds "
    "| slowest case, s | most memory, MB |\n|---|---|---|---|---|---|---|---|"
)


def row(name: str, tally: Tally, seconds: float) -> str:
    """The line of a kind in the table."""
    return (
        f"| {name} | {tally.cases:,} | {tally.told:,} | {tally.valid:,} "
        f"| {len(tally.findings):,} | {seconds:,.0f} | {tally.slowest[0]:.2f} "
        f"| {tally.most_memory[0] / 1e6:,.0f} |"
    )


def main() -> None:
    """Prints a row as soon as a kind is done; ends with 1 if there are findings."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cases", type=int, default=100_000)
    parser.add_argument("--seed", type=int, default=1)  # the tests have 0
    parser.add_argument("--kinds", default=",".join(KINDS))
    parser.add_argument("--json", type=pathlib.Path)
    parser.add_argument("--out", type=pathlib.Path)
    arguments = parser.parse_args()
    names = arguments.kinds.split(",")
    shares = sum(KINDS[name].share for name in names)
    print(f"{os.cpu_count()} CPUs, Python {platform.python_version()}\n\n{HEADER}")
    tallies: dict[str, Tally] = {}
    rows = []
    for name in names:
        count = round(arguments.cases * KINDS[name].share / shares)
        began = time.perf_counter()
        with Fuzzer(arguments.seed) as fuzzer:
            tallies[name] = fuzzer.run(name, 0, count)
        rows.append(row(name, tallies[name], time.perf_counter() - began))
        print(rows[-1], flush=True)
        for number, what in tallies[name].findings.items():
            again = f'python tests/faults/fuzzing.py "{name}" {number}'
            print(f"{again} {arguments.seed}\n{what}\n", file=sys.stderr, flush=True)
    if arguments.json:
        found = {name: dataclasses.asdict(tally) for name, tally in tallies.items()}
        arguments.json.write_text(json.dumps(found, indent=1) + "\n")
    if arguments.out:
        with arguments.out.open("a", encoding="utf-8") as file:
            print("\n".join([HEADER, *rows]), file=file)
    sys.exit(any(tally.findings for tally in tallies.values()))


if __name__ == "__main__":
    main()
