"""A trace of some steps of a run, for TensorBoard and xprof."""

import pathlib
from collections.abc import Callable
from types import TracebackType
from typing import Any, Self

import jax

STEP = "train"  # the name that steps go by in a trace


class ProfiledStep:
    """A training step that writes a trace of those from `first` to `last`.

    Use as a context manager: a run that ends between them ends the trace. The first
    process writes one, of its own devices. The host waits for the device before the
    first of these steps and after the last, so that nothing else is in it.

    Args:
      step: what is called.
      first, last: of the run, counted from 1.
      start_step: steps that were done before this start.
      folder: where the trace goes.
      tell: is told of the trace, a line.
    """

    def __init__(
        self,
        step: Callable[..., Any],
        *,
        first: int,
        last: int,
        start_step: int,
        folder: pathlib.Path,
        tell: Callable[[str], None],
    ):
        self._step, self._number = step, start_step
        self._first, self._last = max(first, start_step + 1), last
        self._folder, self._tell = folder, tell
        self._writes = jax.process_index() == 0
        self._began = 0  # the first step of the trace that runs; 0: none does

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._end()

    def __call__(self, state: Any, batch: Any) -> Any:
        self._number += 1
        if self._number == self._first <= self._last and self._writes:
            self._begin(state)
        if not self._began:
            return self._step(state, batch)
        with jax.profiler.StepTraceAnnotation(STEP, step_num=self._number):
            result = self._step(state, batch)
        if self._number == self._last:
            jax.block_until_ready(result)
            self._end()
        return result

    def _begin(self, state: Any) -> None:
        jax.block_until_ready(state)
        self._folder.mkdir(parents=True, exist_ok=True)
        options = jax.profiler.ProfileOptions()
        options.python_tracer_level = 0  # every call of Python slows what is measured
        jax.profiler.start_trace(str(self._folder), profiler_options=options)
        self._began = self._number

    def _end(self) -> None:
        if not self._began:
            return
        began, self._began = self._began, 0
        jax.profiler.stop_trace()
        self._tell(
            f"profile of steps {began:,} to {self._number:,}: {self._folder}; "
            f"see it with: tensorboard --logdir {self._folder}"
        )
