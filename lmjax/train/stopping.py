"""Being asked to stop: by a signal, a deadline or a notice of the cloud.

What is under way then decides how soon. A step is finished, and saved. Work that can be
done again, such as an evaluation or the preparation of a corpus, is interrupted.
"""

import contextlib
import signal
import sys
import threading
from collections.abc import Iterator
from types import FrameType

# What terminals, job schedulers and machines that are taken away send. SIGUSR1 is how
# Slurm is usually told to announce the end of a job (sbatch --signal=USR1@120).
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)


class Stopped(KeyboardInterrupt):
    """Interrupts work that is done again when the same command is given again.

    Args:
      reason: who asked, such as "SIGTERM".
      work: what was interrupted, such as "preparing the corpus".
    """

    status = 0  # exit status of the process

    def __init__(self, reason: str, work: str):
        self.reason, self.work = reason, work
        super().__init__(f"{reason} while {work}")


class StopSignal:
    """True once the process was asked to stop; a second signal stops at once.

    Use as a context manager: inside it signals are caught, after it they act as
    before. Only possible in the main thread.

    Attributes:
      together: whether other processes work in step with this one. Then nothing is
        interrupted, for they would wait: they have to agree first.

    Args:
      after: seconds from now after which the process is asked to stop; 0: never.
      told: what the request is called then, for messages.
    """

    def __init__(self, after: float = 0.0, told: str = "the deadline"):
        self.name = ""
        self.together = False
        self._previous: dict[int, object] = {}
        self._requests: list[str] = []
        self._work = ""  # that may be interrupted; empty: none
        self._deadline = threading.Timer(after, self.request, (told,))
        self._deadline.daemon = True
        self._has_deadline = after > 0

    def __bool__(self) -> bool:
        return bool(self.name)

    def __enter__(self) -> "StopSignal":
        for number in SIGNALS:
            self._previous[number] = signal.signal(number, self._handle)
        if self._has_deadline:
            self._deadline.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._deadline.cancel()
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def request(self, reason: str) -> None:
        """Asks the main thread to stop, from any thread; more than once is as once."""
        self._requests.append(reason)
        # A real signal: it also ends a wait for data or for a lock.
        signal.pthread_kill(threading.main_thread().ident, signal.SIGTERM)

    @contextlib.contextmanager
    def interruptible(self, work: str) -> Iterator[None]:
        """In this context a request to stop interrupts: it raises `Stopped`.

        Args:
          work: what is done, for messages: "preparing the corpus".
        """
        outer, self._work = self._work, work
        try:
            self.check()
            yield
            self.check()  # a library may have swallowed what interrupted it
        finally:
            self._work = outer

    def check(self) -> None:
        """Raises `Stopped` where there was a request and work may be interrupted."""
        if self.name and self._work and not self.together:
            raise Stopped(self.name, self._work)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        request = self._requests.pop() if self._requests else ""
        if self.name:
            if request:  # a deadline that passes while the run is being saved
                return
            raise KeyboardInterrupt
        self.name = request or signal.Signals(number).name
        alone = self._work and not self.together
        doing = f"leaving off {self._work}" if alone else "finishing this step"
        print(
            f"\n{self.name}: {doing}, then saving (a second signal: at once)",
            file=sys.stderr,
            flush=True,
        )
        self.check()
