"""Memory as a CPU likes it: in huge pages, and from the heap.

XLA on CPU asks the C library for the arrays of each step and gives them back at its
end. By default glibc gets such large ones from the kernel every time, 4 kB by 4 kB,
each of which has to be zeroed and found again: up to a tenth of a step.
"""

import ctypes
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
    "trim_threshold": 2**40,  # whose end is not given back,
    "arena_max": 1,  # and which all threads share: heaps of their own are given back
}
_FIRST_GLIBC = (2, 35)  # knows the first of them
# A heap that is kept has gaps: it was seen to grow to 1.6 times what a step needs.
_GAPS = 2.0
# The library's own values of what makes it give large arrays back, as `mallopt` names
# them in malloc.h: trim_threshold, mmap_threshold (both 128 kB) and mmap_max.
_GIVE_BACK = {-1: 128 * 1024, -3: 128 * 1024, -4: 65_536}


def restart_for_large_arrays() -> None:
    """Starts this process again with these settings, which glibc reads but once.

    Nothing happens where a GPU or TPU holds the arrays, where the C library has no such
    settings, or where `GLIBC_TUNABLES` is set already, be it to nothing. To be called
    before anything is done.
    """
    if not _would_help(os.environ) or not sys.executable:
        return
    environment = os.environ | {TUNABLES: _tunables()}
    sys.stdout.flush()
    sys.stderr.flush()
    os.execve(sys.executable, [sys.executable, *sys.orig_argv[1:]], environment)


def give_back_where_scarce(needed: int) -> bool:
    """Has large arrays given back after all, where kept ones might not fit.

    Huge pages stay. Nothing happens where `restart_for_large_arrays` did nothing.

    Args:
      needed: bytes of the arrays that exist at once.

    Returns:
      Whether they are given back from now on.
    """
    if os.environ.get(TUNABLES) != _tunables() or _GAPS * needed <= _free_bytes():
        return False
    library = ctypes.CDLL(None)
    for parameter, value in _GIVE_BACK.items():
        library.mallopt(parameter, value)
    library.malloc_trim(0)
    return True


def _tunables() -> str:
    pairs = (f"glibc.malloc.{name}={value}" for name, value in _SETTINGS.items())
    return ":".join(pairs)


def _free_bytes(root: Path = Path("/")) -> int:
    """Memory of a Linux machine that could be had now, within a container's limit."""
    machine = _figures(root / "proc/meminfo")
    found = [1024 * machine["MemAvailable:"]] if "MemAvailable:" in machine else []
    group = root / "sys/fs/cgroup"
    try:
        limit, used = (
            (group / f"memory.{name}").read_text().strip()
            for name in ("max", "current")
        )
        if limit != "max":
            cached = _figures(group / "memory.stat").get("inactive_file", 0)
            found.append(max(0, int(limit) - int(used) + cached))
    except OSError:  # the machine has no such limits, or those of an older kind
        pass
    return min(found, default=sys.maxsize)


def _figures(file: Path) -> dict[str, int]:
    """What stands in a file of lines "name 123 ..."."""
    lines = (line.split() for line in file.read_text().splitlines())
    return {line[0]: int(line[1]) for line in lines if len(line) > 1}


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
