"""How long the main job takes from the start of its process to its first finished step.

    python benchmarks/startup.py [--json FILE] [--out FILE] [--repeats N]
        [--objectives diffusion ar] [--python PATH ...]

Starts `python -m lmjax.main --config configs/babylm.py:sample` (and `:ar,sample`) in
new run folders, as a user would, until step 1 is logged: cold, with neither prepared
corpus nor compiled programs, then warm, with both. What a phase takes is noted by the
process itself, on its way through the functions that end it; the sum is what a clock
outside it says. Every start but the cold one is done several times; the table shows the
medians. About two minutes per Python on two CPU cores.
"""

import argparse
import json
import os
import pathlib
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from typing import Any

OBJECTIVES = ("diffusion", "ar")
# Each phase lasts from the end of the one before.
PHASES = ("imports", "devices", "corpus", "model", "compile", "first step")
LIMIT_SECONDS = 15.0  # of a warm start
HEADER = (
    f"| Python, JAX | objective | caches | {' | '.join(PHASES)} | total s |\n"
    f"|---|---|---|{'---|' * (len(PHASES) + 1)}"
)
_BEGAN, _EVENTS = "LMJAX_STARTUP_BEGAN", "LMJAX_STARTUP_EVENTS"


def main() -> None:
    """Prints the table; writes it, and all figures as JSON, where files are named."""
    if _EVENTS in os.environ:
        _start()
        return
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", type=pathlib.Path)
    parser.add_argument("--out", type=pathlib.Path)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--objectives", nargs="+", default=OBJECTIVES)
    parser.add_argument("--python", nargs="+", default=[sys.executable])
    arguments = parser.parse_args()
    print(HEADER, flush=True)
    results, rows = [], []
    for python in arguments.python:
        for objective in arguments.objectives:
            for result in measure(python, objective, arguments.repeats):
                results.append(result)
                rows.append(_row(result))
                print(rows[-1], flush=True)
    slowest = max(each["total"] for each in results if each["caches"] == "warm")
    verdict = "within" if slowest <= LIMIT_SECONDS else "MORE THAN"
    print(f"\nslowest warm start: {slowest:.1f} s, {verdict} {LIMIT_SECONDS:.0f} s")
    if arguments.json:
        arguments.json.write_text(json.dumps(results, indent=1) + "\n", "utf-8")
    if arguments.out:
        with arguments.out.open("a", encoding="utf-8") as file:
            print("\n".join(rows), file=file)


def measure(python: str, objective: str, repeats: int) -> list[dict[str, Any]]:
    """Seconds of each phase: of one cold start, and the medians of warm ones."""
    with tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(name)
        starts = [
            _time_start(python, objective, folder, f"run{number}")
            for number in range(1 + repeats)
        ]
    versions = starts[0].pop("versions")
    cold, *warm = starts
    median = {
        phase: statistics.median(start[phase] for start in warm) for phase in cold
    }
    about = {"versions": versions, "objective": objective}
    return [
        {**about, "caches": "cold", **cold},
        {**about, "caches": "warm", "starts": repeats, **median},
    ]


def _time_start(
    python: str, objective: str, folder: pathlib.Path, run: str
) -> dict[str, Any]:
    """Seconds of each phase of one start, and of all of it."""
    events = folder / f"{run}.json"
    command = [
        *(python, __file__, f"--config=configs/babylm.py:{objective},sample"),
        *(f"--workdir={folder / run}", f"--compilation_cache={folder / 'compiled'}"),
        f"--config.data.cache_dir={folder / 'cache'}",
        "--config.log.every=1 steps",
    ]
    began = time.time()
    environment = {**os.environ, _BEGAN: repr(began), _EVENTS: str(events)}
    finished = subprocess.run(command, env=environment, capture_output=True, text=True)
    if not events.exists():
        raise SystemExit(f"the main job made no step:\n{finished.stderr[-2000:]}")
    return json.loads(events.read_text("utf-8"))


def _start() -> None:
    """The main job, which notes when it reaches what ends a phase, up to step 1."""
    ended = {}

    def note(phase: str) -> None:
        ended.setdefault(phase, time.time())

    from lmjax.parallel import processes

    _before(processes, "together", lambda: note("imports"))
    from lmjax.config import checks

    _before(checks, "check", lambda: note("devices"))
    from lmjax import experiment

    _after(experiment, "prepare_corpus", lambda: note("corpus"))
    from lmjax.train.step import TrainStep

    _before(TrainStep, "compile", lambda: note("model"))
    _after(TrainStep, "compile", lambda: note("compile"))
    from lmjax.train.loggers import RunLogger

    def finish() -> None:
        note("first step")
        _write(ended)
        os._exit(0)

    _before(RunLogger, "progress", finish)
    from lmjax import main

    main.main()


def _before(owner: Any, name: str, tell: Callable[[], None]) -> None:
    """Has `tell` called whenever a function is."""
    function = getattr(owner, name)

    def told(*arguments: Any, **named: Any) -> Any:
        tell()
        return function(*arguments, **named)

    setattr(owner, name, told)


def _after(owner: Any, name: str, tell: Callable[[], None]) -> None:
    """Has `tell` called whenever a function has returned."""
    function = getattr(owner, name)

    def told(*arguments: Any, **named: Any) -> Any:
        result = function(*arguments, **named)
        tell()
        return result

    setattr(owner, name, told)


def _write(ended: dict[str, float]) -> None:
    import jax

    python = ".".join(map(str, sys.version_info[:3]))
    seconds: dict[str, Any] = {"versions": f"{python}, {jax.__version__}"}
    last = began = float(os.environ[_BEGAN])
    for phase in PHASES:
        seconds[phase] = ended[phase] - last
        last = ended[phase]
    seconds["total"] = last - began
    pathlib.Path(os.environ[_EVENTS]).write_text(json.dumps(seconds), "utf-8")


def _row(result: dict[str, Any]) -> str:
    phases = " | ".join(f"{result[phase]:.1f}" for phase in PHASES)
    return (
        f"| {result['versions']} | {result['objective']} | {result['caches']} "
        f"| {phases} | {result['total']:.1f} |"
    )


if __name__ == "__main__":
    main()
