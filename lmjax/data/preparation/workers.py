"""Work on all cores: a bounded number of jobs at a time, in processes or right here."""

import concurrent.futures
import itertools
import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import process
from multiprocessing import connection
from typing import TypeVar

from lmjax.core.errors import UserError

Item = TypeVar("Item")
Job = TypeVar("Job")
Result = TypeVar("Result")

# Waiting jobs per process: enough that none idles, few enough that none fills memory.
_QUEUED = 1


def num_cores() -> int:
    """Cores this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def one_job(item: Item) -> tuple[Item]:
    """An item that is a job itself."""
    return (item,)


class Workers:
    """A context in which jobs run.

    Args:
      num_processes: 1 runs the jobs in this process.
    """

    def __init__(self, num_processes: int):
        self.num_processes = num_processes
        self._executor: concurrent.futures.ProcessPoolExecutor | None = None

    def __enter__(self) -> "Workers":
        return self

    def __exit__(self, *_: object) -> None:
        if self._executor is not None:
            self._executor.shutdown(cancel_futures=True)

    def run(
        self,
        function: Callable[[Job], Result],
        items: Iterable[Item],
        *,
        expand: Callable[[Item], Iterable[Job]] = one_job,
    ) -> Iterator[Result]:
        """Yields results as they come, in any order; takes jobs as they are needed.

        An exception of a job is raised here; what else is under way still ends.

        Args:
          expand: makes the jobs of an item, in this process.
        """
        jobs = itertools.chain.from_iterable(map(expand, items))
        if self.num_processes == 1:
            yield from map(function, jobs)
            return
        executor = self._start()
        limit = self.num_processes * (1 + _QUEUED)
        pending: set[concurrent.futures.Future[Result]] = set()
        try:
            for job in jobs:
                pending.add(executor.submit(function, job))
                if len(pending) >= limit:
                    done, pending = concurrent.futures.wait(
                        pending, return_when=concurrent.futures.FIRST_COMPLETED
                    )
                    yield from (future.result() for future in done)
            for future in concurrent.futures.as_completed(pending):
                yield future.result()
        except process.BrokenProcessPool as error:
            raise UserError(
                "A process that prepares the corpus ended abruptly.",
                where=f"{self.num_processes} processes, data.workers",
                remedy="if memory ran out, lower data.workers or data.shard_bytes and "
                "start again: what is finished stays. A script of your own that calls "
                'this must do so under `if __name__ == "__main__":`.',
            ) from error

    def _start(self) -> concurrent.futures.ProcessPoolExecutor:
        if self._executor is None:
            self._executor = concurrent.futures.ProcessPoolExecutor(
                self.num_processes,
                # Not forked: threads of JAX and of tokenizers do not survive that.
                mp_context=multiprocessing.get_context("spawn"),
                initializer=_initialize,
            )
        return self._executor


def _initialize() -> None:
    # One process per core: the libraries' own threads would only fight for it.
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    os.environ["RAYON_NUM_THREADS"] = "1"
    # An interrupt at the terminal reaches all; the parent decides what becomes of it.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    """A killed parent can't tell its workers: without this they would stay for ever."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        connection.wait([parent.sentinel])
        os._exit(1)
