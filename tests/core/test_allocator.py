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


def _run(**environment: str) -> list[str]:
    kept = {k: v for k, v in os.environ.items() if k != allocator.TUNABLES}
    result = subprocess.run(
        [sys.executable, "-c", PROGRAM, "one", "two words"],
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
