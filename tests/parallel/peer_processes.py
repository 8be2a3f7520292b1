"""Scenarios of several processes on loopback, each forked from one that has JAX.

    python tests/parallel/peer_processes.py FOLDER SCENARIO...

runs the scenarios side by side, and writes FOLDER/outcomes.json: for each process its
exit status, what it said and when it ended, in seconds since something happened to one.
"""

import json
import os
import re
import signal
import socket
import sys
import time
from collections.abc import Callable
from pathlib import Path

import jax

from lmjax.config.schema import ParallelConfig
from lmjax.core.errors import UserError
from lmjax.parallel import hosts, processes
from lmjax.parallel.mesh import build_mesh

PEER_TIMEOUT = 4  # seconds
LONG = 60.0  # seconds that nobody waits for here


def _collectives(happens: Callable[[], None], victim: int) -> None:
    """Steps that all take together, until something happens to one process."""
    votes = hosts.Votes(build_mesh(ParallelConfig()))
    deadline = time.monotonic() + LONG
    for step in range(10**6):
        votes.cast(0)
        if step == 3 and jax.process_index() == victim:
            happens()
        if time.monotonic() > deadline:
            raise TimeoutError("nothing ended this process")


def _asleep(happens: Callable[[], None], victim: int) -> None:
    """No collective that could break: as on devices that wait for ever."""
    hosts.sum_over_hosts(1)
    if jax.process_index() == victim:
        happens()
    time.sleep(LONG)


def _die() -> None:
    _mark()
    os.kill(os.getpid(), signal.SIGKILL)


def _halt() -> None:
    _mark()
    os.kill(os.getpid(), signal.SIGSTOP)


def _refuse() -> None:
    _mark()
    raise UserError("the disk is full", remedy="free some space")


def _break() -> None:
    _mark()
    os.abort()


def _mark() -> None:
    Path("happened").touch()


def _leave_one_by_one() -> None:
    hosts.sum_over_hosts(1)
    time.sleep(0.7 * PEER_TIMEOUT * jax.process_index())  # longer than JAX would wait


def _vote() -> None:
    """Process 1 gives 4 in its third call, all give 1 in the fifth."""
    votes = hosts.Votes(build_mesh(ParallelConfig()))
    seen = []
    for call in range(7):
        own = 4 * (call == 2 and jax.process_index() == 1) | 1 * (call == 4)
        seen.append(votes.cast(own))
        time.sleep(0.05 * jax.process_index())
    print("votes", seen)


def _all_refuse() -> None:
    hosts.sum_over_hosts(1)
    raise UserError("the corpus is empty")


# Number of processes, and what each does.
SCENARIOS: dict[str, tuple[int, Callable[[], None]]] = {
    "one of three dies": (3, lambda: _collectives(_die, 1)),
    "the first dies": (3, lambda: _collectives(_die, 0)),
    "one dies while others wait": (2, lambda: _asleep(_die, 1)),
    "one is halted": (2, lambda: _asleep(_halt, 1)),
    "the first is halted": (3, lambda: _asleep(_halt, 0)),
    "one refuses": (2, lambda: _collectives(_refuse, 1)),
    "one aborts": (2, lambda: _asleep(_break, 1)),
    "all refuse": (2, _all_refuse),
    "all leave": (3, _leave_one_by_one),
    "votes": (2, _vote),
}


def _process(work: Callable[[], None], address: str, count: int, index: int) -> None:
    jax.config.update("jax_num_cpu_devices", 2)
    config = ParallelConfig(
        coordinator=address,
        num_processes=count,
        process_index=index,
        start_timeout="60 seconds",
        peer_timeout=f"{PEER_TIMEOUT} seconds",
    )
    try:
        with processes.together(config, command="again"):
            work()
    except UserError as error:
        print(f"lmjax: {error}", file=sys.stderr)
        sys.exit(error.status)


def _fork(name: str, folder: Path) -> list[int]:
    """Process ids of a scenario, by index."""
    count, work = SCENARIOS[name]
    place = folder / name
    place.mkdir()
    address = f"localhost:{free_port()}"
    ids = []
    for index in range(count):
        child = os.fork()
        if child:
            ids.append(child)
            continue
        os.chdir(place)
        said = os.open(f"{index}.txt", os.O_CREAT | os.O_WRONLY)
        os.dup2(said, 1)
        os.dup2(said, 2)
        _process(work, address, count, index)
        sys.exit(0)
    return ids


def free_port() -> int:
    """A port of this machine that nobody has."""
    with socket.create_server(("localhost", 0)) as server:
        return server.getsockname()[1]


def _said(log: Path) -> str:
    """What a process wrote, without the lines that Gloo's threads put in between."""
    return re.sub(r"\[Gloo\][^\n]*\n", "", log.read_text(errors="replace"))


def main(folder: Path, names: list[str]) -> None:
    """Runs the scenarios, and writes what came of them."""
    waiting = {
        child: (name, index)
        for name in names
        for index, child in enumerate(_fork(name, folder))
    }
    found = {name: [{} for _ in range(SCENARIOS[name][0])] for name in names}
    deadline = time.time() + 2 * LONG
    while waiting and time.time() < deadline:
        child, status = os.waitpid(-1, os.WNOHANG)
        if not child:
            time.sleep(0.02)
            continue
        name, index = waiting.pop(child)
        marker = folder / name / "happened"
        found[name][index] = {
            "status": os.waitstatus_to_exitcode(status),
            "said": _said(folder / name / f"{index}.txt"),
            "after": time.time() - marker.stat().st_mtime if marker.exists() else 0.0,
        }
        # Whom something was to happen to, and is halted, ends with the others.
        rest = {other: where for other, where in waiting.items() if where[0] == name}
        if len(rest) == 1 and "halted" in name:
            os.kill(next(iter(rest)), signal.SIGKILL)
    for child in waiting:
        os.kill(child, signal.SIGKILL)
    (folder / "outcomes.json").write_text(json.dumps(found))


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:] or list(SCENARIOS))
