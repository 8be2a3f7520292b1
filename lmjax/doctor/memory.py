"""What a compiled program needs of a device's memory, and what to do if it lacks."""

import itertools
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax

from lmjax.core.errors import UserError
from lmjax.doctor.hardware import device_hardware, granted_bytes
from lmjax.doctor.targets import is_absent

# How backends word it: XLA on all of them, what its allocators add, CUDA's libraries.
_SIGNS = ("resource_exhausted", "out of memory", "out_of_memory", "alloc_failed")
# What a kernel has too little of, whatever the batch.
_OF_KERNELS = ("shared memory", "memory space vmem", "memory space smem")
# Share of a device's memory that a program may plan with: the rest goes to fragments,
# and to what evaluation holds beside the state.
USABLE = 0.95
# What the compiler for TPU says of a program that it refuses, in powers of two.
_REFUSED = re.compile(r"(?:\(|Used )(\d+(?:\.\d+)?)([KMGT])\b")
_FIGURES = 4  # of smaller microbatches, told where a device does not say its memory
_NOTHING_FITS = (
    "no smaller step fits: choose a smaller model, or spread it over more devices with "
    "--config.parallel.fsdp=N"
)
_IT_WOULD_FIT = (
    "; but the step alone would fit, so see first what else holds memory of the device"
)


def program_bytes(compiled: Any) -> int:
    """Bytes per device that the compiler plans for a program; 0 if it does not say.

    Arguments and results, counted once where a result takes an argument's place, and
    temporaries.
    """
    analysis = compiled.memory_analysis()
    if analysis is None:
        return 0
    return int(
        analysis.argument_size_in_bytes
        + analysis.output_size_in_bytes
        - analysis.alias_size_in_bytes
        + analysis.temp_size_in_bytes
    )


def device_bytes(device: jax.Device) -> int:
    """Memory of a device; 0 where it does not say (as on CPU).

    Of one that is planned for and not there, what a program would be granted.
    """
    if is_absent(device):
        hardware = device_hardware(device)
        return int(granted_bytes(hardware)) if hardware else 0
    if device.process_index != jax.process_index():
        device = jax.local_devices()[0]  # others cannot be asked, and are like it
    stats = device.memory_stats() or {}
    return int(stats.get("bytes_limit", 0))


def format_bytes(count: float) -> str:
    """Bytes as "512 B", "3.4 MB" or "1.2 GB", in powers of ten."""
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000 or unit == "GB":
            return f"{count:.0f} B" if unit == "B" else f"{count:,.1f} {unit}"
        count /= 1000
    raise AssertionError("unreachable")


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error, or one that led to it, says that a device's memory is short."""
    found: BaseException | None = error
    while found is not None:
        if isinstance(found, MemoryError):  # what a CPU has no room for
            return True
        # A full disk is worded much the same, but is no error of the runtime.
        if isinstance(found, jax.errors.JaxRuntimeError):
            text = str(found).lower()
            if any(sign in text for sign in _OF_KERNELS):
                return False
            if any(sign in text for sign in _SIGNS):
                return True
        found = found.__cause__ or found.__context__
    return False


def refusal(error: BaseException) -> str:
    """What a compiler says it would have needed, such as "48.5 GB"; else "more"."""
    if found := _REFUSED.search(str(error)):
        count = float(found[1]) * 2.0 ** (10 * (1 + "KMGT".index(found[2])))
        return format_bytes(count)
    return "more"


def advice(
    what: str,
    measure: Callable[[int], int],
    *,
    batch_size: int,
    microbatch_size: int,
    limit_bytes: int,
    multiple: int = 1,
    others: Mapping[str, Callable[[int], int]] | None = None,
    where: str = "",
) -> UserError:
    """What to change when a training step lacks memory: computed, not guessed.

    A figure is that of the program which would run, and takes a compilation. One that
    the compiler refuses for want of memory counts as one that does not fit.

    Args:
      what: what failed, such as "compiling the training step".
      measure: microbatch size -> bytes per device that the compiler plans; 0 if it does
        not say.
      batch_size: sequences per optimizer step.
      microbatch_size: sequences per forward pass when it failed; 0 means batch_size.
      limit_bytes: memory of a device; 0 if it does not say.
      multiple: what a microbatch is a multiple of: the devices that split a batch.
      others: further ways by their flag ("--config.train.remat=full"), each with a
        `measure` of its own.
      where: the device, for the message.
    """
    size, others = microbatch_size or batch_size, others or {}
    planned = _planned(measure, size)
    halves = list(_halves(batch_size, size, multiple))
    ways = {
        f"--config.train.microbatch_size={half}": (measure, half) for half in halves
    }
    further = {flag: (other, size) for flag, other in others.items()}
    if limit_bytes:
        usable = int(USABLE * limit_bytes)
        found = [
            *itertools.islice(_fitting(ways, usable), 1),
            *_fitting(further, usable),
        ]
        if not found and halves:
            least = f"--config.train.microbatch_size={halves[-1]}"
            both = {f"{least} {flag}": (o, halves[-1]) for flag, o in others.items()}
            found = [*itertools.islice(_fitting(both, usable), 1)]
        remedy = f"add {', or '.join(found)}" if found else _NOTHING_FITS
        if planned and planned <= usable:
            remedy += _IT_WOULD_FIT
    else:
        ways = dict(itertools.islice(ways.items(), _FIGURES))
        found = list(_fitting(ways | further, usable=None))
        joined = ", or ".join(found)
        remedy = f"add what fits the device: {joined}" if found else _NOTHING_FITS
    of = f" of {format_bytes(limit_bytes)}" if limit_bytes else ""
    needs = f", which needs {format_bytes(planned)}{of} per device" if planned else ""
    return UserError(f"out of memory while {what}{needs}", where=where, remedy=remedy)


def largest_fitting(
    measure: Callable[[int], int],
    *,
    batch_size: int,
    size: int,
    limit_bytes: int,
    multiple: int = 1,
    agree: Callable[[bool], bool] = bool,
) -> int:
    """The first microbatch, of `size` and its halves, that fits; 0 where none does.

    Args:
      measure, batch_size, limit_bytes, multiple: see `advice`.
      agree: whether all processes found that it fits; all ask as often.
    """
    for tried in (size, *_halves(batch_size, size, multiple)):
        planned = _planned(measure, tried)
        if agree(planned is not None and planned <= USABLE * limit_bytes):
            return tried
    return 0


def _halves(batch_size: int, size: int, multiple: int) -> Iterator[int]:
    """Ever smaller microbatches, each the largest that is at most half the last."""
    while True:
        whole = range(size // 2, 0, -1)
        size = next((n for n in whole if batch_size % n == 0 and n % multiple == 0), 0)
        if not size:
            return
        yield size


def _planned(measure: Callable[[int], int], size: int) -> int | None:
    """Bytes that the compiler plans; 0 if it does not say, None where it refuses."""
    try:
        return measure(size)
    except (jax.errors.JaxRuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        return None


def _fitting(
    ways: Mapping[str, tuple[Callable[[int], int], int]], usable: int | None
) -> Iterator[str]:
    """The flags of those that fit, with what they need; None takes what compiles."""
    for flags, (measure, size) in ways.items():
        planned = _planned(measure, size)
        if planned is None or (usable is not None and planned > usable):
            continue
        yield f"{flags} ({format_bytes(planned)})" if planned else flags
