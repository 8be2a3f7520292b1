"""Whether a training step fits the devices, and what would."""

import contextlib
import dataclasses
import functools
from collections.abc import Iterator
from typing import Any

import jax

from lmjax import experiment, training_run
from lmjax.config.schema import Config, Remat
from lmjax.core.errors import UserError
from lmjax.data.batch import synthetic
from lmjax.data.preparation.manifest import Prepared
from lmjax.doctor import memory
from lmjax.experiment import System
from lmjax.parallel import hosts
from lmjax.training_run import Run


def compile_step(config: Config, system: System, run: Run) -> Any:
    """The executable of the training step."""
    batch = synthetic(
        config.train.batch_size,
        config.data.sequence_length,
        document_mask=config.data.document_mask,
    )
    return run.step.compile(run.state_maker.abstract(), batch, system.mesh)


def fit(
    config: Config, system: System, prepared: Prepared, run: Run, *, chosen: int = 0
) -> tuple[Run, Any]:
    """The run with as few microbatches as fit the devices, and its compiled step.

    Where the config names a microbatch, that is taken. Else it is what an earlier start
    chose, so that a run goes on to the same bits, or less where that does not fit; and
    at first the whole batch, or the largest of its halves that fits. All processes
    take the same.

    Args:
      chosen: the microbatch of an earlier start; 0 where there is none.

    Raises:
      UserError: none fits; says what would.
    """
    train = config.train
    limit = memory.device_bytes(system.mesh.devices.flat[0])
    if train.microbatch_size:
        return run, compile_step(config, system, run)
    size = chosen if chosen and train.batch_size % chosen == 0 else train.batch_size
    made: dict[int, tuple[Run, Any]] = {}

    def measure(size: int) -> int:
        why = _why(size, chosen, train.batch_size, limit)
        made.clear()  # what did not fit holds memory of the host
        cut = run.with_microbatches(train.batch_size // size, why)
        made[size] = cut, compile_step(config, system, cut)
        return memory.program_bytes(made[size][1])

    if not limit:
        measure(size)
        return made[size]
    fitting = memory.largest_fitting(
        measure,
        batch_size=train.batch_size,
        size=size,
        limit_bytes=limit,
        multiple=_rows_together(system),
        agree=hosts.all_agree,
    )
    if not fitting:
        what = "compiling the training step"
        raise less_memory(with_microbatch(config, size), system, prepared, what)
    return made[fitting]


def with_microbatch(config: Config, size: int) -> Config:
    """The config with a microbatch of `size`."""
    train = dataclasses.replace(config.train, microbatch_size=size)
    return dataclasses.replace(config, train=train)


def _why(size: int, chosen: int, batch_size: int, limit_bytes: int) -> str:
    if size == chosen:
        return f" of {size}, as at the first start" if size < batch_size else ""
    if size == batch_size or not limit_bytes:
        return ""
    of = memory.format_bytes(limit_bytes)
    return f" of {size}, the most that fits {memory.USABLE:.0%} of {of}"


def _rows_together(system: System) -> int:
    """What a microbatch is a multiple of: the devices that split a batch."""
    return system.mesh.shape["data"] * system.mesh.shape["fsdp"]


@contextlib.contextmanager
def memory_explained(
    config: Config, system: System, prepared: Prepared, what: str
) -> Iterator[None]:
    """Turns an error for want of memory into advice; every other one passes through.

    Args:
      what: is done meanwhile, such as "compiling the training step".
    """
    try:
        yield
    except (jax.errors.JaxRuntimeError, MemoryError) as error:
        if not memory.is_out_of_memory(error):
            raise
        raise less_memory(config, system, prepared, what) from error


def less_memory(
    config: Config, system: System, prepared: Prepared, what: str
) -> UserError:
    """What would fit the devices, by the compiler's own figures."""

    def measure(remat: Remat, microbatch_size: int) -> int:
        train = dataclasses.replace(
            config.train, microbatch_size=microbatch_size, remat=remat
        )
        changed = dataclasses.replace(config, train=train)
        system = experiment.build_system(changed, prepared.tokenizer, prepared=prepared)
        run = training_run.build_run(changed, system, prepared)
        return memory.program_bytes(compile_step(changed, system, run))

    device = system.mesh.devices.flat[0]
    return memory.advice(
        what,
        functools.partial(measure, config.train.remat),
        batch_size=config.train.batch_size,
        microbatch_size=config.train.microbatch_size,
        limit_bytes=memory.device_bytes(device),
        multiple=_rows_together(system),
        others={
            f"--config.train.remat={remat.value}": functools.partial(measure, remat)
            for remat in (Remat.DOTS, Remat.NAMED, Remat.FULL)
            if config.train.remat not in (remat, Remat.FULL)
        },
        where=f"{device.device_kind}, {system.mesh.size} of them",
    )
