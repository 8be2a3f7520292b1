"""How fast a run goes: tokens per second, share of the hardware's peak, time left."""

import dataclasses
import time


@dataclasses.dataclass
class Clock:
    """Measures the speed since the last reading, pauses left out.

    Attributes:
      total_steps: length of the run.
      flops_per_token: floating-point operations per trained token.
      peak_flops: operations per second the devices could do together; 0 if unknown.
    """

    total_steps: int
    flops_per_token: float
    peak_flops: float

    def __post_init__(self) -> None:
        self._started = time.perf_counter()
        self._steps = 0
        self._tokens = 0.0
        self._train_seconds = 0.0

    def add(self, tokens: float) -> None:
        """Counts one finished step."""
        self._steps += 1
        self._tokens += tokens

    def pause(self) -> None:
        """Stops counting, for evaluation, sampling and saving."""
        self._train_seconds += time.perf_counter() - self._started

    def go(self) -> None:
        """Counts again."""
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
