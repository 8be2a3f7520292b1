"""Kill -9 at random moments: what is resumed must end in the bits of a quiet run.

    python benchmarks/faults.py --kills 50 --seed 0 --json FILE [--objective diffusion]

A short run of the real command (a tiny model, accumulation, dropout and moving average
on, held-out figures, samples, word milestones and a checkpoint every few steps) goes
through twice undisturbed. The first is the reference; the second, whose programs are
compiled by then, tells how long each phase lasts. Then --kills runs die by SIGKILL,
with all their processes, at a random moment of a phase in turn, or of the whole run;
every fifth of them two or three times. The same command takes them to the end. Compared
bit for bit: every array of the last checkpoint and of all milestones, what was saved
with them, metrics.jsonl (without speeds), samples.jsonl, the ledger and report.json
(without seconds).

The phase a kill has hit is read from what the run left: files under a temporary name,
and its last figures. Runs that end differently stay in the work folder; the exit status
is then 1.
"""

import argparse
import contextlib
import dataclasses
import json
import os
import pathlib
import platform
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from importlib import metadata
from typing import Any

import numpy as np

from lmjax.data.sample.corpus import write_corpus

ROOT = pathlib.Path(__file__).resolve().parents[1]
PHASES = (
    "tokenizer",  # its training
    "shards",  # their writing
    "start",  # imports, compilation, and what is restored
    "steps",
    "save",
    "milestone",
    "evaluation",
    "sampling",
    "closing",  # the evaluation of the end
)
ANY = "any time"
DONE = "done"
PREPARES = ("tokenizer", "shards", ANY)  # with a cache of its own, empty
AGAIN = ("start", "steps", "save", "milestone")  # what second and third kills aim at
TRIES = 5  # to kill a run before it ends
UNFINISHED = ".orbax-checkpoint-tmp"
# And where a cache stands.
TIMINGS = ("seconds", "spent", "tokens_per_second", "cache_dir")
LIMIT = 600  # seconds after which a start hangs
POLL = 0.005  # seconds between looks at a run, which go off its own time


@dataclasses.dataclass(frozen=True)
class Job:
    """The run that is killed: its command, and when it does what, in steps."""

    text: pathlib.Path
    compiled: pathlib.Path
    cache: pathlib.Path
    objective: str = "ar"
    steps: int = 60
    save: int = 5
    evaluate: int = 12
    generate: int = 20
    log: int = 4  # no divisor of `save`: sums of half a line are saved, too
    words: int = 2000  # between milestones
    flags: tuple[str, ...] = ()

    def environment(self) -> dict[str, str]:
        """Ours, but bytecode is kept: without it, half of a start compiles it."""
        kept = {k: v for k, v in os.environ.items() if k != "PYTHONDONTWRITEBYTECODE"}
        return kept | {"PYTHONPATH": str(ROOT)}

    def command(self, folder: pathlib.Path, cache: pathlib.Path) -> list[str]:
        """The same for every start of a run."""
        fields = {
            "data.train": self.text,
            "data.cache_dir": cache,
            "data.sequence_length": 32,
            "data.shard_bytes": 20_000,
            "data.workers": 2,
            "tokenizer.vocab_size": 400,
            "model.num_layers": 2,
            "model.width": 32,
            "model.num_heads": 2,
            "model.mlp_width": 64,
            "model.max_length": 32,
            "model.dropout": 0.1,
            "optim.ema_decay": 0.9,
            "train.budget": f"{self.steps} steps",
            "train.batch_size": 16,
            "train.microbatch_size": 8,
            "checkpoint.every": f"{self.save} steps",
            "checkpoint.milestones": f"every {self.words} words",
            "evaluate.every": f"{self.evaluate} steps",
            "evaluate.batches": 2,
            "evaluate.batch_size": 64,
            "evaluate.draws": 2,
            "generate.every": f"{self.generate} steps",
            "generate.max_new_tokens": 16,
            "generate.steps": 8,
            "log.every": f"{self.log} steps",
        }
        return [
            *(sys.executable, "-m", "lmjax.main"),
            *("--config", f"configs/babylm.py:{self.objective},nano"),
            *("--workdir", str(folder), "--compilation_cache", str(self.compiled)),
            *(f"--config.{name}={value}" for name, value in fields.items()),
            *self.flags,
        ]


@dataclasses.dataclass
class Start:
    """One start of a run: its process, and what can be seen of it from outside."""

    job: Job
    folder: pathlib.Path
    cache: pathlib.Path

    def __post_init__(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        self.output = self.folder.with_suffix(".txt")
        self._log_before = _size(self.folder / "log.txt")
        self.began = time.time()
        with self.output.open("a") as output:
            self._process = subprocess.Popen(
                self.job.command(self.folder, self.cache),
                cwd=ROOT,
                env=self.job.environment(),
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    @property
    def seconds(self) -> float:
        return time.time() - self.began

    def running(self) -> bool:
        if self.seconds > LIMIT:
            self.kill()
            sys.exit(f"{self.folder} hung for {LIMIT} s, see {self.output}")
        return self._process.poll() is None

    def kill(self) -> bool:
        """Ends all processes of this start; whether it was still running."""
        with contextlib.suppress(ProcessLookupError):  # it has ended meanwhile
            os.killpg(self._process.pid, signal.SIGKILL)
        return self._process.wait() == -signal.SIGKILL

    def status(self) -> int:
        """Waits for the end."""
        while self.running():
            time.sleep(POLL)
        return self._process.returncode

    def step(self) -> int:
        """The last step that has a figure, in whichever start."""
        return max((r["step"] for r in self._lines("metrics.jsonl")), default=0)

    def resumed_from(self) -> int | None:
        """The step this start went on from; None if it never came so far."""
        log = self._log()
        found = re.search(r"^resumes +after step ([\d,]+)", log, re.M)
        return int(found[1].replace(",", "")) if found else 0 if log else None

    def phase(self) -> str:
        """What this start does, or was doing when it was killed."""
        log, job = self._log(), self.job
        if not log:
            return self._preparing()
        for name, folder in (("milestone", "milestones"), ("save", "checkpoints")):
            paths = (self.folder / folder).glob(f"*{UNFINISHED}*")
            if any(map(self._is_of_this_start, paths)):
                return name
        if self._is_of_this_start(self.folder / "report.json"):
            return DONE
        figures = [(r["step"], r["split"]) for r in self._lines("metrics.jsonl")]
        last = max((step for step, split in figures if split == "train"), default=0)
        if last <= (self.resumed_from() or 0) and "\nstep " not in log:
            return "start"
        if last == job.steps:
            return "closing" if last in _steps(self.folder) else "steps"
        if last % job.evaluate == 0 and (last, "valid") not in figures:
            return "evaluation"
        samples = {r["step"] for r in self._lines("samples.jsonl")}
        if last % job.generate == 0 and last not in samples:
            return "sampling"
        return "steps"

    def _preparing(self) -> str:
        if list(self.cache.glob("*/manifest.json")):
            return "start"
        if list(self.cache.glob("tokenizers/*.model")):
            return "shards"
        return "tokenizer" if (self.cache / "locks").exists() else "start"

    def _lines(self, name: str) -> list[dict[str, Any]]:
        return list(_records(self.folder / name))

    def _log(self) -> str:
        """What this start has written to the log."""
        file = self.folder / "log.txt"
        if not file.exists():
            return ""
        return file.read_bytes()[self._log_before :].decode(errors="replace")

    def _is_of_this_start(self, path: pathlib.Path) -> bool:
        """Whether this start wrote it, rather than one that was killed before."""
        try:
            return path.stat().st_mtime >= self.began
        except FileNotFoundError:  # or it has just got its final name
            return False


@dataclasses.dataclass(frozen=True)
class Turn:
    """One time that a run was in a phase: from which step on, and for how long."""

    step: int
    seconds: float


Turns = dict[str, list[Turn]]


@dataclasses.dataclass(frozen=True)
class Aim:
    """A moment: so many seconds into a phase, at its first turn from a step on."""

    phase: str
    step: int = 0
    seconds: float = 0.0

    @classmethod
    def draw(cls, rng: random.Random, phase: str, turns: Turns) -> "Aim":
        """A random moment of one of the turns that a phase has had.

        A phase that was over between two looks at the run is aimed at blindly.
        """
        phase = phase if turns.get(phase) else ANY
        turn = rng.choice(turns[phase])
        return cls(phase, turn.step, rng.uniform(0, turn.seconds))

    def wait(self, start: Start) -> None:
        """Returns at the moment, or when the run has ended."""
        since = start.began if self.phase == ANY else None
        while start.running():
            if since is None and start.step() >= self.step:
                since = time.time() if start.phase() == self.phase else None
            if since is not None and time.time() - since >= self.seconds:
                return
            time.sleep(POLL)


@dataclasses.dataclass(frozen=True)
class Kill:
    """One kill: what it was aimed at, what it hit, and from where the run went on."""

    aimed: str
    hit: str
    step: int  # the last that had a figure
    seconds: float  # since the start
    resumed_from: int = 0


@dataclasses.dataclass(frozen=True)
class Case:
    """One run that was killed and resumed, and where it ended differently."""

    name: str
    kills: tuple[Kill, ...]
    seconds: float
    differences: tuple[str, ...]


Content = Mapping[str, Any]


def run_quietly(job: Job, folder: pathlib.Path, cache: pathlib.Path) -> Turns:
    """One undisturbed run; the turns of each phase, and the whole as that of ANY."""
    start = Start(job, folder, cache)
    turns: Turns = defaultdict(list)
    before, step, since = "start", 0, start.began
    while start.running():
        phase = start.phase()
        if phase != before:
            turns[before].append(Turn(step, time.time() - since))
            before, step, since = phase, start.step(), time.time()
        time.sleep(POLL)
    if start.status():
        sys.exit(f"the undisturbed run failed:\n{start.output.read_text()}")
    turns[before].append(Turn(step, time.time() - since))
    turns[ANY] = [Turn(0, start.seconds)]
    return turns


def run_case(
    job: Job,
    folder: pathlib.Path,
    phases: Sequence[str],
    turns: Turns,
    rng: random.Random,
    reference: Content,
) -> Case:
    """Kills one run once in each of the phases, and takes it to its end."""
    began, own = time.time(), folder.with_name(f"{folder.name}-cache")
    cache = own if phases[0] in PREPARES else job.cache
    for _ in range(TRIES):
        aims = [Aim.draw(rng, phase, turns) for phase in phases]
        kills, failure = kill_and_resume(job, folder, cache, aims)
        if kills:
            break
        for leftover in (folder, own):  # it ended first
            shutil.rmtree(leftover, ignore_errors=True)
    if not kills:
        found = ["it was never killed in time"]
    else:
        found = [failure] if failure else differences(reference, content(folder))
    return Case(folder.name, tuple(kills), time.time() - began, tuple(found))


def kill_and_resume(
    job: Job, folder: pathlib.Path, cache: pathlib.Path, aims: Sequence[Aim]
) -> tuple[list[Kill], str]:
    """Kills a run at each of these moments, until it ends before; then it may end.

    Returns:
      The kills, and how the last start failed, if it did.
    """
    kills: list[Kill] = []
    resumed: list[int | None] = []  # of each start
    for aim in aims:
        start = Start(job, folder, cache)
        aim.wait(start)
        seconds = start.seconds
        if not start.kill():
            break
        # Before the next start, which goes on writing the same files.
        kills.append(Kill(aim.phase, start.phase(), start.step(), seconds))
        resumed.append(start.resumed_from())
    start = Start(job, folder, cache)
    status = start.status()
    resumed = [*resumed[: len(kills)], start.resumed_from()]
    for number, kill in enumerate(kills):
        later = (step for step in resumed[number + 1 :] if step is not None)
        kills[number] = dataclasses.replace(kill, resumed_from=next(later, 0))
    said = start.output.read_text(errors="replace").strip()
    return kills, f"exit status {status}: {said[-300:]}" if status else ""


def content(folder: pathlib.Path) -> Content:
    """All that a finished run must have in common with another: name -> value."""
    steps = _steps(folder)
    last = steps[max(steps)]
    found = {"last checkpoint": last.name}
    for path in (last, *(folder / "milestones").glob("chck_*")):
        if UNFINISHED not in path.name:
            found |= {f"{path.name}/{k}": v for k, v in _saved(path).items()}
    found["ledger"] = json.loads((folder / "milestones/ledger.json").read_text())
    found["report"] = _without_timings(json.loads((folder / "report.json").read_text()))
    for name in ("metrics.jsonl", "samples.jsonl"):
        lines = [r for r in _records(folder / name) if r.get("split") != "speed"]
        found |= {f"{name} line {n}": r for n, r in enumerate(lines, start=1)}
    return found


def _steps(folder: pathlib.Path) -> dict[int, pathlib.Path]:
    """The whole checkpoints of a run folder."""
    paths = (folder / "checkpoints").glob("*")
    return {int(path.name): path for path in paths if path.name.isdecimal()}


def _saved(folder: pathlib.Path) -> Content:
    """The arrays and the values of a folder that Orbax wrote."""
    import jax
    import orbax.checkpoint as ocp

    found: dict[str, Any] = {}
    for item in sorted(path for path in folder.iterdir() if path.is_dir()):
        if (item / "metadata").exists():  # JSON
            saved = json.loads((item / "metadata").read_text())
            found[item.name] = _without_timings(saved)
            continue
        handler = ocp.PyTreeCheckpointHandler()
        to_numpy = jax.tree.map(
            lambda _: ocp.RestoreArgs(restore_type=np.ndarray),
            handler.metadata(item).tree,
        )
        arguments = ocp.args.PyTreeRestore(restore_args=to_numpy)
        tree = handler.restore(item, args=arguments)
        for path, leaf in jax.tree_util.tree_flatten_with_path(tree)[0]:
            found[item.name + jax.tree_util.keystr(path)] = np.asarray(leaf)
    return found


def differences(reference: Content, found: Content) -> list[str]:
    """Where two runs ended differently, in words; bits count, not values."""
    wrong = [f"{name} is missing" for name in reference if name not in found]
    wrong += [f"{name} is too much" for name in found if name not in reference]
    for name in reference.keys() & found.keys():
        a, b = reference[name], found[name]
        if not isinstance(a, np.ndarray):
            if a != b:
                wrong.append(f"{name} differs")
        elif (a.dtype, a.shape) != (b.dtype, b.shape):
            wrong.append(f"{name} has another shape or dtype")
        elif a.tobytes() != b.tobytes():
            # Bytes, for -0.0 equals 0.0 and NaN does not equal itself.
            pairs = zip(a.tobytes(), b.tobytes(), strict=True)
            wrong.append(f"{name} differs in {sum(x != y for x, y in pairs)} bytes")
    return sorted(wrong)


def _without_timings(value: Any) -> Any:
    if isinstance(value, dict):
        kept = {k: v for k, v in value.items() if k not in TIMINGS}
        return {name: _without_timings(v) for name, v in kept.items()}
    return [_without_timings(v) for v in value] if isinstance(value, list) else value


def _records(path: pathlib.Path) -> Iterator[dict[str, Any]]:
    """The whole lines of a file of JSON Lines."""
    if path.exists():
        for line in path.read_bytes().split(b"\n"):
            with contextlib.suppress(ValueError):  # half a line
                yield json.loads(line)


def _size(path: pathlib.Path) -> int:
    return path.stat().st_size if path.exists() else 0


def table(cases: Sequence[Case]) -> list[str]:
    """A row per phase that was hit."""
    hits: dict[str, list[tuple[Kill, Case]]] = defaultdict(list)
    for case in cases:
        for kill in case.kills:
            hits[kill.hit].append((kill, case))
    lines = [
        "| killed in | kills | after step | resumed from step | same bits at the end |",
        "|---|---|---|---|---|",
    ]
    for phase in (*PHASES, DONE):
        if not (found := hits[phase]):
            continue
        same = sum(not case.differences for _, case in found)
        steps = [
            sorted(k.step for k, _ in found),
            sorted(k.resumed_from for k, _ in found),
        ]
        spans = [f"{span[0]} to {span[-1]}" for span in steps]
        lines.append(
            f"| {phase} | {len(found)} | {spans[0]} | {spans[1]} "
            f"| {same} of {len(found)} |"
        )
    kills = sum(len(case.kills) for case in cases)
    same = sum(not case.differences for case in cases)
    runs = f"{same} of {len(cases)} runs"
    return [*lines, f"| all | {kills} | | | {runs} |"]


def plan_kills(kills: int, rng: random.Random) -> list[list[str]]:
    """The phases each run is killed in: each as often, some runs again and again."""
    phases = [*PHASES, ANY]
    cases: list[list[str]] = []
    while len(cases) < kills:
        cases += [[phase] for phase in rng.sample(phases, len(phases))]
    for number, case in enumerate(cases):
        if number % 5 == 4:
            case += rng.choices(AGAIN, k=1 + number // 5 % 2)
    return cases[:kills]


def prepare(work: pathlib.Path, objective: str, **changes: Any) -> Job:
    """The run to kill, and its text; keywords are fields of the job."""
    text = work / "text.train"
    write_corpus(text, seed=0, num_words=30_000)
    places = {"compiled": work / "compiled", "cache": work / "cache"}
    return Job(text=text, objective=objective, **places | changes)


def run(job: Job, work: pathlib.Path, kills: int, seed: int) -> Iterator[Case]:
    """Yields each case when it is over; the first are the quiet runs, without kills."""
    run_quietly(job, work / "reference", job.cache)
    reference = content(work / "reference")
    began = time.time()
    turns = run_quietly(job, work / "again", work / "again-cache")
    again = differences(reference, content(work / "again"))
    yield Case("again", (), time.time() - began, tuple(again))
    rng = random.Random(seed)
    for number, phases in enumerate(plan_kills(kills, rng), start=1):
        folder = work / f"killed-{number:02}"
        case = run_case(job, folder, phases, turns, rng, reference)
        yield case
        if not case.differences:
            shutil.rmtree(folder)
            shutil.rmtree(f"{folder}-cache", ignore_errors=True)


def main() -> None:
    """Prints a line per run and the table; ends with 1 if any run ended differently."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--kills", type=int, default=50, help="runs that are killed")
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    parser.add_argument("--objective", choices=("ar", "diffusion"), default="ar")
    parser.add_argument("--work", type=pathlib.Path, help="where runs stand")
    parser.add_argument("--json", type=pathlib.Path, help="file for all of it")
    flags = parser.parse_args()
    work = flags.work or pathlib.Path(tempfile.mkdtemp(prefix="lmjax-faults-"))
    work.mkdir(parents=True, exist_ok=True)
    began, cases = time.time(), []
    job = prepare(work.absolute(), flags.objective)
    for case in run(job, work.absolute(), flags.kills, flags.seed):
        told = ", ".join(
            f"{k.hit} at step {k.step} (from {k.resumed_from})" for k in case.kills
        )
        print(f"{case.name}: {told or 'not killed'}: {case.seconds:.0f} s", flush=True)
        for difference in case.differences:
            print(f"  {difference}", flush=True)
        cases.append(case)
    seconds = time.time() - began
    about = {
        "date": time.strftime("%Y-%m-%d"),
        "python": platform.python_version(),
        "jax": metadata.version("jax"),
        "cpus": os.cpu_count(),
        "objective": flags.objective,
        "seed": flags.seed,
        "seconds": seconds,
    }
    print("\n" + ", ".join(f"{name} {value}" for name, value in about.items()) + "\n")
    print("\n".join(table(cases)))
    if flags.json:
        found = about | {"cases": [dataclasses.asdict(case) for case in cases]}
        flags.json.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    if any(case.differences for case in cases):
        print(f"\nwhat ended differently stands in {work}")
        sys.exit(1)
    if not flags.work:
        shutil.rmtree(work)


if __name__ == "__main__":
    main()
