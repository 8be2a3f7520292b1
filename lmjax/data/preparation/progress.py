"""How far a preparation is: a bar on a terminal, now and then a line elsewhere."""

import time

import tqdm
from absl import logging

_SECONDS_BETWEEN_LINES = 20.0


class Progress:
    """Bytes done of a total; use as a context manager.

    Args:
      what: what is going on, in a word.
      total: bytes in all.
      shown: whether anything is shown.
    """

    def __init__(self, what: str, total: int, *, shown: bool):
        self._bar = tqdm.tqdm(
            desc=what,
            total=total,
            unit="B",
            unit_scale=True,
            dynamic_ncols=True,
            disable=None if shown else True,  # None: only on a terminal
        )
        self._what, self._total, self._shown = what, total, shown
        self._done = 0
        self._begin = self._told = time.monotonic()

    def __enter__(self) -> "Progress":
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.close()

    def add(self, num_bytes: int) -> None:
        """So many bytes more are done."""
        self._bar.update(num_bytes)
        self._done += num_bytes
        now = time.monotonic()
        if not self._bar.disable or not self._shown:
            return
        if now - self._told > _SECONDS_BETWEEN_LINES and self._done < self._total:
            self._told = now
            left = (now - self._begin) * (self._total / self._done - 1)
            logging.info(
                "%s: %.0f of %.0f MB, about %.0f minute(s) left",
                self._what,
                self._done / 1e6,
                self._total / 1e6,
                max(left / 60, 1),
            )
