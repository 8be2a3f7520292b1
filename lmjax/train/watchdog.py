"""Says where a run hangs: when no step ends for long, all stacks go to the log."""

import faulthandler
import os
import sys
import threading
import time
from pathlib import Path
from typing import TextIO

import jax

HUNG_STATUS = 75  # of a run that hangs and is told to end: "try again" in sysexits.h


class Watchdog:
    """A thread that speaks up when nobody calls `beat` for too long.

    It runs while the main thread waits for a device or for another process, which is
    where runs hang. Use as a context manager.

    Args:
      seconds: without a beat, after which it reports; 0 switches it off. It reports
        again whenever twice the time has passed.
      log: file that reports are appended to, besides standard error.
      exits: whether the process then ends, with `HUNG_STATUS`.
    """

    def __init__(self, seconds: float, log: Path, *, exits: bool = False):
        self.seconds, self.log, self.exits = seconds, log, exits
        self._beat = time.monotonic()
        self._what = "the start"
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> "Watchdog":
        if self.seconds:
            self.beat(self._what)
            self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        if self._thread.is_alive():
            self._thread.join()

    def beat(self, what: str) -> None:
        """Something ended: a step, a batch that was evaluated, a text.

        Args:
          what: in words, for the report.
        """
        self._beat, self._what = time.monotonic(), what

    def _watch(self) -> None:
        reported, limit = self._beat, self.seconds
        while not self._ended.wait(min(limit / 10, 10.0)):
            if self._beat != reported:
                reported, limit = self._beat, self.seconds
            silent = time.monotonic() - reported
            if silent > limit:
                limit *= 2
                self._report(silent)
                if self.exits:
                    os._exit(HUNG_STATUS)

    def _report(self, silent: float) -> None:
        with self.log.open("a", encoding="utf-8") as log:
            for file in (sys.stderr, log):
                self._write(file, silent)

    def _write(self, file: TextIO, silent: float) -> None:
        then = "ending the run" if self.exits else "the run goes on waiting"
        print(
            f"\nwatchdog: nothing ended for {silent:.0f} s, since {self._what}; "
            f"{then}. Stacks of all threads:",
            file=file,
            flush=True,
        )
        faulthandler.dump_traceback(_with_descriptor(file), all_threads=True)
        for device in jax.local_devices():
            print(f"watchdog: {_device_state(device)}", file=file, flush=True)


def _with_descriptor(file: TextIO) -> TextIO:
    """The file, or the process's own standard error where it is only an imitation."""
    try:
        file.fileno()
    except OSError:
        return sys.__stderr__
    return file


def _device_state(device: jax.Device) -> str:
    stats = device.memory_stats() or {}
    used, limit = stats.get("bytes_in_use"), stats.get("bytes_limit")
    memory = f"{used:,} of {limit:,} bytes in use" if limit else "memory unknown"
    return f"process {device.process_index}, {device}: {memory}"
