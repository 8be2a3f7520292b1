"""A process that starts itself again with other settings of glibc, once."""

import os
import platform
import subprocess
import sys
from pathlib import Path

import pytest

from lmjax.core import allocator

ROOT = Path(__file__).resolve().parents[2]
PROGRAM = """
import os, sys
print("began", os.getpid())
from lmjax.core import allocator
allocator.restart_for_large_arrays()
print("went on", os.getpid(), sys.argv[1:], os.environ.get("GLIBC_TUNABLES"))
"""
HELPS = allocator._would_help({"JAX_PLATFORMS": "cpu"})


def _run(program: str = PROGRAM, **environment: str) -> list[str]:
    kept = {k: v for k, v in os.environ.items() if k != allocator.TUNABLES}
    result = subprocess.run(
        [sys.executable, "-c", program, "one", "two words"],
        env=kept | {"JAX_PLATFORMS": "cpu", "PYTHONPATH": str(ROOT)} | environment,
        capture_output=True,
        text=True,
        check=True,
    )
    return result.stdout.splitlines()


@pytest.mark.skipif(not HELPS, reason="needs glibc 2.35 or newer")
def test_it_starts_again_once_with_the_same_arguments() -> None:
    first, second, last = _run()
    assert first == second
    process = first.removeprefix("began ")
    assert last.startswith(f"went on {process} ['one', 'two words'] glibc.malloc.")
    assert "glibc.malloc.hugetlb=1:" in last


def test_what_the_user_set_stands() -> None:
    first, last = _run(GLIBC_TUNABLES="")
    assert first.startswith("began ")
    assert last.endswith("['one', 'two words'] ")


def test_it_helps_where_the_cpu_computes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    versions = {"2.36": True, "2.35": True, "2.34": False, "3.1.4": True}
    for version, helps in versions.items():
        monkeypatch.setattr(platform, "libc_ver", lambda v=version: ("glibc", v))
        assert allocator._would_help({}, tmp_path) == helps
    (tmp_path / "nvidia0").touch()
    assert not allocator._would_help({}, tmp_path)
    assert allocator._would_help({"JAX_PLATFORMS": "cpu"}, tmp_path)
    assert not allocator._would_help({"JAX_PLATFORMS": "cpu", "GLIBC_TUNABLES": ""})
    monkeypatch.setattr(platform, "libc_ver", lambda: ("", ""))  # macOS, musl
    assert not allocator._would_help({"JAX_PLATFORMS": "cpu"}, tmp_path)


SCARCE = """
import ctypes, os, sys
from pathlib import Path
from lmjax.core import allocator
allocator.restart_for_large_arrays()

class Mallinfo2(ctypes.Structure):
    _fields_ = [(name, ctypes.c_size_t) for name in
        "arena ordblks smblks hblks hblkhd usmblks fsmblks uordblks fordblks keepcost"
        .split()]

library = ctypes.CDLL(None)
library.mallinfo2.restype = Mallinfo2
library.malloc.restype = ctypes.c_void_p
library.free.argtypes = [ctypes.c_void_p]

def mapped_for_an_array() -> int:
    before = library.mallinfo2().hblkhd
    array = library.malloc(ctypes.c_size_t(50_000_000))
    mapped = library.mallinfo2().hblkhd - before
    library.free(array)
    return mapped

print(mapped_for_an_array())
print(allocator.give_back_where_scarce(1), mapped_for_an_array())
print(allocator.give_back_where_scarce(2**60), mapped_for_an_array() >= 50_000_000)
"""


@pytest.mark.skipif(not HELPS, reason="needs glibc 2.35 or newer")
def test_arrays_are_kept_unless_memory_is_scarce() -> None:
    """Kept ones lie in the heap; others are mapped by themselves, and unmapped."""
    assert _run(SCARCE) == ["0", "False 0", "True True"]
    # With settings of the user's own nothing is changed.
    assert _run(SCARCE, GLIBC_TUNABLES="")[2].startswith("False ")


def test_free_memory_is_that_of_the_machine_or_the_container(tmp_path: Path) -> None:
    (tmp_path / "proc").mkdir()
    info = "MemTotal: 2000 kB\nMemAvailable:    1000 kB\nHugePages_Total:       0\n"
    (tmp_path / "proc/meminfo").write_text(info)
    assert allocator._free_bytes(tmp_path) == 1_024_000
    group = tmp_path / "sys/fs/cgroup"
    group.mkdir(parents=True)
    (group / "memory.max").write_text("max\n")
    (group / "memory.current").write_text("900000\n")
    assert allocator._free_bytes(tmp_path) == 1_024_000
    (group / "memory.max").write_text("1000000\n")
    (group / "memory.stat").write_text("anon 700000\ninactive_file 200000\n")
    assert allocator._free_bytes(tmp_path) == 300_000  # what is cached can be dropped
    (tmp_path / "proc/meminfo").write_text("MemTotal: 2000 kB\n")
    (group / "memory.max").unlink()
    assert allocator._free_bytes(tmp_path) > 2**60
