"""A run that hangs says where; one that goes on is left alone."""

import subprocess
import sys
import threading
import time
from pathlib import Path

import jax
import pytest

from lmjax.train.watchdog import HUNG_STATUS, Watchdog


def _wait_in_a_function_of_this_name(log: Path) -> None:
    end = time.monotonic() + 20
    while "watchdog" not in _read(log) and time.monotonic() < end:
        time.sleep(0.02)


def _read(log: Path) -> str:
    return log.read_text() if log.exists() else ""


def test_a_run_that_hangs_says_where(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    log = tmp_path / "log.txt"
    held = threading.Event()
    other = threading.Thread(target=held.wait, name="writer")
    other.start()
    with Watchdog(0.2, log) as watchdog:
        watchdog.beat("step 7")
        _wait_in_a_function_of_this_name(log)
        time.sleep(0.1)
    held.set()
    other.join()
    told = _read(log)
    assert "since step 7; the run goes on waiting" in told
    assert "_wait_in_a_function_of_this_name" in told, "the stack of the main thread"
    assert told.count("File ") > 5 and "threading.py" in told, "and of the others"
    assert f"process 0, {jax.local_devices()[0]}: memory" in told
    assert "since step 7" in capsys.readouterr().err


def test_a_run_that_goes_on_is_left_alone(tmp_path: Path) -> None:
    with Watchdog(0.3, tmp_path / "log.txt") as watchdog:
        for step in range(25):
            watchdog.beat(f"step {step}")
            time.sleep(0.02)
    assert not (tmp_path / "log.txt").exists()


def test_a_watchdog_that_is_off_never_reports(tmp_path: Path) -> None:
    with Watchdog(0.0, tmp_path / "log.txt") as watchdog:
        watchdog.beat("step 1")
        time.sleep(0.05)
    assert threading.active_count() < 50 and not _read(tmp_path / "log.txt")


def test_a_run_that_is_told_to_ends_with_its_own_status(tmp_path: Path) -> None:
    script = f"""
import time
from pathlib import Path
from lmjax.train.watchdog import Watchdog
with Watchdog(0.2, Path({str(tmp_path / "log.txt")!r}), exits=True):
    time.sleep(60)
"""
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == HUNG_STATUS == 75
    assert "ending the run" in done.stderr
    assert "ending the run" in _read(tmp_path / "log.txt")
