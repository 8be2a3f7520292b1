"""How fast a run goes, and what its time goes to."""

import contextlib
import dataclasses
import time
from collections.abc import Iterator, Mapping

# What a run does, as its report calls it; of training, the wait for data apart.
ACTIVITIES = (
    "train",
    "data",
    "evaluate",
    "generate",
    "save",
    "compile",
    "prepare",
)


class TimeSpent:
    """Seconds by what they went to: always one thing, and within it what it calls.

    Args:
      doing: what is done from now on, one of `ACTIVITIES`.
    """

    def __init__(self, doing: str):
        self.seconds = dict.fromkeys(ACTIVITIES, 0.0)
        self._doing, self._since = doing, time.perf_counter()

    def add(self, seconds: Mapping[str, float]) -> None:
        """Counts what earlier starts spent, as `read` gave it."""
        for name, more in seconds.items():
            self.seconds[name] = self.seconds.get(name, 0.0) + more

    @contextlib.contextmanager
    def on(self, doing: str) -> Iterator[None]:
        """Counts the time within for `doing`, and for nothing else."""
        before = self._switch(doing)
        try:
            yield
        finally:
            self._switch(before)

    def read(self) -> dict[str, float]:
        """Seconds so far, of all that took any."""
        self._switch(self._doing)
        return {name: spent for name, spent in self.seconds.items() if spent}

    def _switch(self, doing: str) -> str:
        now = time.perf_counter()
        self.seconds[self._doing] += now - self._since
        before, self._doing, self._since = self._doing, doing, now
        return before


@dataclasses.dataclass
class Clock:
    """Measures the speed since the last reading, pauses left out.

    Attributes:
      total_steps: length of the run.
      flops_per_token: floating-point operations per trained token.
      peak_flops: operations per second the devices could do together; 0 if unknown.
      spent: what the time of the run goes to.
    """

    total_steps: int
    flops_per_token: float
    peak_flops: float
    spent: TimeSpent = dataclasses.field(default_factory=lambda: TimeSpent("train"))

    def __post_init__(self) -> None:
        self._started = time.perf_counter()
        self._steps = 0
        self._tokens = 0.0
        self._train_seconds = 0.0

    def add(self, tokens: float) -> None:
        """Counts one finished step."""
        self._steps += 1
        self._tokens += tokens

    @contextlib.contextmanager
    def paused(self, doing: str) -> Iterator[None]:
        """Leaves the time within out of the speed; it is spent on `doing`."""
        self._train_seconds += time.perf_counter() - self._started
        try:
            with self.spent.on(doing):
                yield
        finally:
            self._started = time.perf_counter()

    def read(self, step: int) -> dict[str, float]:
        """Speed since the last reading, and the seconds that are left."""
        now = time.perf_counter()
        seconds = self._train_seconds + now - self._started
        seconds = max(seconds, 1e-9)
        tokens_per_second = self._tokens / seconds
        steps_left = self.total_steps - step
        eta = steps_left * seconds / self._steps if self._steps else 0.0
        values = {"tokens_per_second": tokens_per_second, "eta_seconds": eta}
        if self.peak_flops:
            values["mfu"] = tokens_per_second * self.flops_per_token / self.peak_flops
        self._steps, self._tokens, self._train_seconds = 0, 0.0, 0.0
        self._started = now
        return values
