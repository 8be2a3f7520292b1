"""Memory as a CPU likes it: in huge pages, and from the heap.

XLA on CPU asks the C library for the arrays of each step and gives them back at its
end. By default glibc gets such large ones from the kernel every time, 4 kB by 4 kB,
each of which has to be zeroed and found again: about a seventh of a step.
"""

import os
import platform
import sys
from collections.abc import Mapping
from pathlib import Path

# https://sourceware.org/glibc/manual/latest/html_node/Memory-Allocation-Tunables.html
TUNABLES = "GLIBC_TUNABLES"
_SETTINGS = {
    "hugetlb": 1,  # huge pages where the kernel gives them to those who ask
    "mmap_max": 0,  # large arrays too from the heap where it can grow,
    "trim_threshold": 2**40,  # whose end is not given back
}
_FIRST_GLIBC = (2, 35)  # knows the first of them


def restart_for_large_arrays() -> None:
    """Starts this process again with these settings, which glibc reads but once.

    Nothing happens where a GPU or TPU holds the arrays, where the C library has no such
    settings, or where `GLIBC_TUNABLES` is set already, be it to nothing. To be called
    before anything is done.
    """
    if not _would_help(os.environ) or not sys.executable:
        return
    pairs = (f"glibc.malloc.{name}={value}" for name, value in _SETTINGS.items())
    environment = os.environ | {TUNABLES: ":".join(pairs)}
    sys.stdout.flush()
    sys.stderr.flush()
    os.execve(sys.executable, [sys.executable, *sys.orig_argv[1:]], environment)


def _would_help(environment: Mapping[str, str], devices: Path = Path("/dev")) -> bool:
    """Whether this is glibc on a machine that computes on its CPU."""
    library, version = platform.libc_ver()
    if library != "glibc" or TUNABLES in environment:
        return False
    if tuple(map(int, version.split(".")[:2])) < _FIRST_GLIBC:
        return False
    if environment.get("JAX_PLATFORMS") == "cpu":
        return True
    accelerators = ("nvidia[0-9]*", "accel[0-9]*", "vfio/[0-9]*", "kfd")
    return not any(any(devices.glob(pattern)) for pattern in accelerators)
