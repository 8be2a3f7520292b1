"""Ctrl-C and termination: finish the step, save, say how to go on."""

import signal
import sys
from types import FrameType

SIGNALS = (signal.SIGINT, signal.SIGTERM)


class StopSignal:
    """True once the process was asked to stop; a second request stops at once.

    Use as a context manager: inside it signals are caught, after it they act as
    before. Only possible in the main thread.
    """

    def __init__(self) -> None:
        self.name = ""
        self._previous: dict[int, object] = {}

    def __bool__(self) -> bool:
        return bool(self.name)

    def __enter__(self) -> "StopSignal":
        for number in SIGNALS:
            self._previous[number] = signal.signal(number, self._handle)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self.name:
            raise KeyboardInterrupt
        self.name = signal.Signals(number).name
        print(
            f"\n{self.name}: stopping after this step, then saving (again: at once)",
            file=sys.stderr,
            flush=True,
        )
