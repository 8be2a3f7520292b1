"""Runs cases in a process of their own, which may die of them.

    python tests/faults/fuzzing.py "torch lists" 4711 [SEED]

runs one case again, here, with all that Python says of it. Otherwise a `Fuzzer` starts
a child and hands it ranges of cases: it has so much memory and so much time for each,
and says how each ended. One that kills the child is a finding like any other; the next
child goes on behind it.
"""

import contextlib
import dataclasses
import faulthandler
import importlib
import json
import os
import pathlib
import resource
import subprocess
import sys
import tempfile
import time
import traceback
from typing import Any

import numpy as np

ROOT = pathlib.Path(__file__).resolve().parents[2]
if __name__ == "__main__":
    sys.path.insert(0, str(ROOT))

from lmjax.core.errors import UserError  # noqa: E402
from tests.faults import foreign_files  # noqa: E402

SECONDS = 20  # for a case, of a machine that may be busy
MEMORY = 2**30  # bytes beyond what reading valid files takes
_BROKEN = 3  # status of a child that fails where no reader runs
_MOST_TOLD = 20_000  # characters of a message that a person may still read
_ENVIRONMENT = {
    "JAX_PLATFORMS": "cpu",
    "MALLOC_ARENA_MAX": "2",  # each reserves room that counts as memory
    "RAYON_NUM_THREADS": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "OMP_NUM_THREADS": "1",
    "HF_HUB_OFFLINE": "1",
    "PYTHONWARNINGS": "ignore",
}


@dataclasses.dataclass
class Tally:
    """How the cases of one kind ended.

    Attributes:
      told: cases that ended in an error for the user.
      valid: cases that were read all the same.
      findings: what ended in any other way, by the number of its case.
      slowest: seconds of the slowest case, and its number.
      most_memory: bytes that a case took beyond what was in use, and its number.
      unread: what was said of valid files; they are read first.
    """

    told: int = 0
    valid: int = 0
    findings: dict[int, str] = dataclasses.field(default_factory=dict)
    slowest: tuple[float, int] = (0.0, -1)
    most_memory: tuple[int, int] = (0, -1)
    unread: str = ""

    @property
    def cases(self) -> int:
        return self.told + self.valid + len(self.findings)

    def add(self, number: int, end: dict[str, Any]) -> None:
        self.told += end["how"] == "told"
        self.valid += end["how"] == "valid"
        if end["how"] == "finding":
            self.findings[number] = end["what"]
        self.slowest = max(self.slowest, (end["seconds"], number))
        self.most_memory = max(self.most_memory, (end["memory"], number))


class Fuzzer:
    """A child that is started when it is needed, and again when it died.

    Args:
      seed: of all cases.
      seconds: for each.
      kinds: module and name of the kinds of files.
    """

    def __init__(
        self,
        seed: int = 0,
        *,
        seconds: float = SECONDS,
        kinds: str = "tests.faults.foreign_files:KINDS",
    ):
        self._arguments = ["--child", str(seed), str(seconds), kinds]
        self._child: subprocess.Popen | None = None
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115

    def __enter__(self) -> "Fuzzer":
        return self

    def __exit__(self, *_: object) -> None:
        if self._child is not None:
            self._child.kill()
            self._death()
        self._errors.close()

    def run(self, kind: str, first: int, count: int) -> Tally:
        """Runs cases [first, first + count) of a kind."""
        tally, number = Tally(), first
        while number < first + count:
            child = self._started()
            job = {"kind": kind, "first": number, "count": first + count - number}
            began = time.perf_counter()
            child.stdin.write(json.dumps(job).encode() + b"\n")
            child.stdin.flush()
            if not (line := child.stdout.readline()):
                raise RuntimeError(f"no case was run: {self._death()}")
            tally.unread = json.loads(line)
            while number < first + count and (line := child.stdout.readline()):
                tally.add(number, json.loads(line))
                number += 1
                began = time.perf_counter()
            if number < first + count:
                if child.wait() == _BROKEN:
                    raise RuntimeError(f"the engine failed: {self._death()}")
                took = time.perf_counter() - began
                end = {"how": "finding", "what": self._death()}
                tally.add(number, end | {"seconds": took, "memory": 0})
                number += 1
        return tally

    def _started(self) -> subprocess.Popen:
        if self._child is None:
            self._errors.seek(0)
            self._errors.truncate()
            self._child = subprocess.Popen(
                [sys.executable, __file__, *self._arguments],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=self._errors,
                cwd=ROOT,
                env=os.environ | _ENVIRONMENT,
            )
        return self._child

    def _death(self) -> str:
        with self._child as child, contextlib.suppress(BrokenPipeError):
            child.stdin.close()
        status, self._child = child.returncode, None
        self._errors.seek(0)
        said = self._errors.read().decode("utf-8", "replace")
        return f"the process ended with status {status}: {said[-3000:]}"


def _serve(seed: int, seconds: float, kinds: str) -> None:
    """The child: jobs come on standard input, ends of cases go to standard output."""
    # What libraries print must not get between the lines.
    answers = os.fdopen(os.dup(1), "wb", buffering=0)
    os.dup2(2, 1)
    module, _, name = kinds.partition(":")
    known = getattr(importlib.import_module(module), name)
    most = resource.getrlimit(resource.RLIMIT_AS)[1]
    with tempfile.TemporaryDirectory(dir=_fast_folder()) as name:
        folder = pathlib.Path(name)
        ready: dict[str, str] = {}
        for line in sys.stdin:
            job = json.loads(line)
            kind = known[job["kind"]]
            if kind.name not in ready:
                resource.setrlimit(resource.RLIMIT_AS, (most, most))
                ready[kind.name] = _read_valid(kind, folder)
            answers.write(json.dumps(ready[kind.name]).encode() + b"\n")
            limit = _status("VmSize") + MEMORY
            resource.setrlimit(resource.RLIMIT_AS, (limit, most))
            for number in range(job["first"], job["first"] + job["count"]):
                end = run_case(kind, number, seed, folder, seconds)
                answers.write(json.dumps(end).encode() + b"\n")


def _read_valid(kind: foreign_files.Kind, folder: pathlib.Path) -> str:
    """Reads what is whole, which brings the libraries into memory.

    Returns:
      What was said of a file that was not read with any of some settings.
    """
    for files in foreign_files.examples_of(kind):
        foreign_files.write(files, folder)
        for seed in range(12):
            try:
                kind.read(folder, np.random.default_rng(seed))
                break
            except UserError as error:
                said = str(error)
        else:
            return said
    return ""


def run_case(
    kind: foreign_files.Kind,
    number: int,
    seed: int,
    folder: pathlib.Path,
    seconds: float,
) -> dict[str, Any]:
    """How a case ended ("told", "valid" or "finding"), and what it took.

    The process ends if it takes longer than so many seconds.
    """
    files, rng = kind.case(number, seed)
    foreign_files.write(files, folder)
    faulthandler.dump_traceback_later(seconds, exit=True)
    pathlib.Path("/proc/self/clear_refs").write_text("5")  # forgets the peak
    before = _status("VmRSS")
    began = time.perf_counter()
    how, what = "valid", ""
    try:
        kind.read(folder, rng)
    except UserError as error:
        how, what = "told", _unclear(error)
    except BaseException:  # whatever else there is, a panic of Rust too
        how, what = "finding", traceback.format_exc()[-3000:]
    took = time.perf_counter() - began
    faulthandler.cancel_dump_traceback_later()
    memory = max(_status("VmHWM") - before, 0)
    if what:
        how = "finding"
    return {"how": how, "what": what, "seconds": took, "memory": memory}


def _unclear(error: UserError) -> str:
    """What is wrong with a message; empty if nothing is."""
    message = str(error)
    if not error.what.strip():
        return "the message says nothing"
    if len(message) > _MOST_TOLD:
        return f"a message of {len(message):,} characters: {message[:300]}"
    if not message.replace("\n", "").isprintable():
        return f"a message with control characters: {message[:2000]!r}"
    return ""


def _status(name: str) -> int:
    """A number of bytes from /proc."""
    for line in pathlib.Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{name}:"):
            return int(line.split()[1]) * 1024
    raise ValueError(f"there is no {name}")


def _fast_folder() -> str | None:
    return "/dev/shm" if os.access("/dev/shm", os.W_OK) else None


def _again(name: str, number: int, seed: int) -> None:
    """Runs one case in this process."""
    kind = foreign_files.KINDS[name]
    files, rng = kind.case(number, seed)
    with tempfile.TemporaryDirectory() as folder:
        foreign_files.write(files, pathlib.Path(folder))
        for file, content in files.items():
            print(f"{file}: {len(content):,} bytes, {content[:2000]!r}")
        kind.read(pathlib.Path(folder), rng)


if __name__ == "__main__":
    if sys.argv[1] == "--child":
        faulthandler.enable()
        try:
            _serve(int(sys.argv[2]), float(sys.argv[3]), sys.argv[4])
        except BaseException:
            traceback.print_exc()
            os._exit(_BROKEN)
    else:
        _again(sys.argv[1], int(sys.argv[2]), int((*sys.argv, 0)[3]))
