"""Ends this process when another of the same run is lost, and says which."""

import atexit
import ctypes
import os
import selectors
import signal
import sys
import threading
import time
from collections.abc import Mapping
from typing import Any

from lmjax.core.errors import UserError
from lmjax.parallel.peers import Coordinates, Line

PEER_LOST_STATUS = 76  # exit status of a process that ends because another is lost
_GRACE = 1.5  # seconds that a process has to end by itself, for the same reason


class PeerWatch:
    """A thread that hears from the other processes of a run.

    It costs a step nothing: it sleeps until something comes. Process 0 hears all, and
    tells the others.

    Args:
      here: who this process is.
      lines: connections by the index of the process at the other end.
      seconds: of silence after which JAX counts a process as dead.
      command: what starts this process again, for the message.
    """

    def __init__(
        self,
        here: Coordinates,
        lines: Mapping[int, Line],
        *,
        seconds: float,
        command: str = "",
    ):
        self._here, self._lines, self._seconds = here, dict(lines), seconds
        self._command = command
        self._beat = min(seconds / 10, 5.0)
        self._ages: dict[str, float] = {}  # as process 0 last told them
        self._left = False  # whether this process has no more to do
        self._ending = threading.Event()  # it ends by itself
        self._over = threading.Event()  # nobody waits for anybody any more
        self._lost = ""
        # Kept here, for the C library holds no reference of its own.
        self._handler = ctypes.CFUNCTYPE(None, ctypes.c_int)(self._aborted)
        self._thread = threading.Thread(target=self._run, daemon=True, name="peers")

    def __enter__(self) -> "PeerWatch":
        # JAX ends a process in which it finds an error of another with abort(), from
        # a thread of C++. Python's own handlers would not run any more.
        _on_abort(self._handler)
        self._thread.start()
        return self

    def __exit__(self, kind: object, error: BaseException | None, *_: object) -> None:
        if error is None:
            self.leave()
            return
        if not isinstance(error, UserError | SystemExit | KeyboardInterrupt):
            # A collective breaks by the loss of a process before anybody can say so.
            self._over.wait(2 * _GRACE)
        status = _status(error)
        told = str(error).partition("\n")[0]
        how = "with an error" if status else "early"
        self.fail(f"has ended {how}: {type(error).__name__}: {told}")
        # JAX would wait for the others to end as well. This runs before its own
        # handler, and after the message or the traceback is shown.
        atexit.register(_exit_at_once, status)

    def leave(self) -> None:
        """Waits until all processes are done, so that none takes another for lost."""
        self._left = True
        self._tell(left=True)
        self._over.wait()
        _on_abort(signal.SIG_DFL)

    def fail(self, how: str) -> None:
        """Tells the others that this process ends without them, and how."""
        self._ending.set()
        self._tell(failed=how)

    def _run(self) -> None:
        beaten = 0.0
        with selectors.DefaultSelector() as selector:
            for line in self._lines.values():
                selector.register(line.socket, selectors.EVENT_READ, line)
            while not self._over.is_set():
                for key, _ in selector.select(min(self._beat, 0.5)):
                    self._hear(key.data)
                    if key.data.closed:
                        selector.unregister(key.fileobj)
                if time.monotonic() - beaten > self._beat:
                    beaten = time.monotonic()
                    self._tell_ages()
                if self._here.index == 0 and self._left and self._all_left():
                    self._tell(over=True)
                    self._over.set()

    def _all_left(self) -> bool:
        return all(line.left for line in self._lines.values())

    def _tell(self, **message: Any) -> None:
        for line in self._lines.values():
            line.send(**message)

    def _tell_ages(self) -> None:
        """A sign of life, and from process 0 how long ago each gave one."""
        now = time.monotonic()
        lines = self._lines.values() if self._here.index == 0 else ()
        self._tell(ages={line.name: now - line.heard for line in lines})

    def _hear(self, line: Line) -> None:
        for message in line.read():
            line.left |= bool(message.get("left"))
            self._ages = message.get("ages") or self._ages
            if message.get("over"):
                self._over.set()
            if "lost" in message:
                self._end(str(message["lost"]))
            if "failed" in message:
                self._lose(line, str(message["failed"]))
        if line.closed and not self._over.is_set():
            self._lose(line, "is gone: it ended without a word, or its host did")

    def _lose(self, line: Line, how: str) -> None:
        text = f"{line.name} {how}"
        if self._here.index == 0:
            self._tell(lost=text)
        self._end(text)

    def _end(self, lost: str) -> None:
        """Ends this process, unless it is about to end for a reason of its own."""
        self._lost = self._lost or lost
        if self._ending.wait(_GRACE):
            self._over.set()
            return
        self._exit()

    def _exit(self) -> None:
        told = f"lmjax: {self._lost}\n  where: this is {self._here.name}\n  to do: "
        told += "start all processes again"
        if self._command:
            told += f", this one with: {self._command}"
        told += "\n  the last whole checkpoint stands\n"
        print(told, end="", file=sys.stderr)
        # Nothing that waits for a collective, or for a thread that does, could be left
        # in order.
        _exit_at_once(PEER_LOST_STATUS)

    def _aborted(self, number: int) -> None:
        """JAX, or something else, calls abort()."""
        if self._ending.wait(_GRACE):
            time.sleep(2 * _GRACE)  # meanwhile it does
        # Meanwhile, too, a connection that breaks has been noticed.
        self._lost = self._lost or self._silent()
        if self._lost:
            self._exit()
        _on_abort(signal.SIG_DFL)

    def _silent(self) -> str:
        """Who has not been heard of for long; empty where all have been."""
        now = time.monotonic()
        ages = {line.name: now - line.heard for line in self._lines.values()}
        if self._here.index and max(ages.values()) < self._seconds / 2:
            ages = self._ages
        silent = [name for name, age in ages.items() if age > self._seconds / 2]
        if not silent:
            return ""
        verb = "has" if len(silent) == 1 else "have"
        age = min(ages[name] for name in silent)
        return f"{', '.join(silent)} {verb} not been heard of for {age:.0f} s"


def _on_abort(handler: Any) -> None:
    ctypes.CDLL(None).signal(signal.SIGABRT, handler)


def _status(error: BaseException) -> int:
    """The exit status that an error is going to lead to."""
    if isinstance(error, SystemExit):
        return error.code if isinstance(error.code, int) else int(bool(error.code))
    return getattr(error, "status", 130 if isinstance(error, KeyboardInterrupt) else 1)


def _exit_at_once(status: int) -> None:
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)
