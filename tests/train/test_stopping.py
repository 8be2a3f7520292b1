"""A first signal asks, a second one insists, and afterwards all is as before."""

import contextlib
import os
import signal
import threading
import time
from collections.abc import Iterator

import pytest

from lmjax.train.stopping import SIGNALS, Stopped, StopSignal


@pytest.fixture(autouse=True)
def _own_handlers() -> Iterator[None]:
    """A signal that nobody catches fails the test rather than ending all of them."""

    def fail(number: int, _: object) -> None:
        raise AssertionError(f"nobody caught signal {number}")

    previous = {number: signal.signal(number, fail) for number in SIGNALS}
    yield
    for number, handler in previous.items():
        signal.signal(number, handler)


@pytest.mark.parametrize("number", SIGNALS)
def test_a_signal_sets_the_flag_and_interrupts_nothing(number: signal.Signals) -> None:
    with StopSignal() as stop:
        assert not stop
        os.kill(os.getpid(), number)
        assert stop
        assert stop.name == number.name


@pytest.mark.parametrize("second", [signal.SIGINT, signal.SIGTERM])
def test_a_second_signal_stops_at_once(second: signal.Signals) -> None:
    with StopSignal() as stop:
        signal.raise_signal(signal.SIGTERM)
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(second)
        assert stop.name == "SIGTERM"


def test_handlers_are_restored_also_after_an_error() -> None:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(RuntimeError), StopSignal():
        assert signal.getsignal(signal.SIGINT) is not before
        raise RuntimeError
    assert signal.getsignal(signal.SIGINT) is before
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_IGN


def test_a_run_that_nobody_stops_is_not_stopped() -> None:
    with StopSignal() as stop:
        pass
    assert not stop
    assert stop.name == ""


def test_work_that_can_be_done_again_is_interrupted() -> None:
    with (
        StopSignal() as stop,
        pytest.raises(Stopped) as stopped,
        stop.interruptible("evaluating"),
    ):
        signal.raise_signal(signal.SIGTERM)
        raise AssertionError("went on")
    assert (stopped.value.reason, stopped.value.work) == ("SIGTERM", "evaluating")


def test_work_is_not_begun_once_a_stop_was_asked_for() -> None:
    with StopSignal() as stop:
        signal.raise_signal(signal.SIGTERM)
        with pytest.raises(Stopped), stop.interruptible("sampling"):
            raise AssertionError("began")
        assert stop, "and after it, signals interrupt nothing"


def test_an_interruption_that_a_library_swallows_is_told_at_the_end() -> None:
    with (
        StopSignal() as stop,
        pytest.raises(Stopped),
        stop.interruptible("preparing"),
        contextlib.suppress(KeyboardInterrupt),
    ):
        signal.raise_signal(signal.SIGTERM)


def test_what_is_done_with_other_processes_is_not_interrupted() -> None:
    with StopSignal() as stop:
        stop.together = True
        with stop.interruptible("evaluating"):
            signal.raise_signal(signal.SIGTERM)
        assert stop.name == "SIGTERM"


def test_a_deadline_ends_a_wait() -> None:
    began = time.monotonic()
    with (
        StopSignal(after=0.05, told="train.stop_after=1 minute") as stop,
        pytest.raises(Stopped) as stopped,
        stop.interruptible("waiting for data"),
    ):
        threading.Event().wait(30)
    assert time.monotonic() - began < 10
    assert str(stopped.value) == "train.stop_after=1 minute while waiting for data"


def test_a_deadline_after_a_signal_is_no_second_signal() -> None:
    with StopSignal() as stop:
        signal.raise_signal(signal.SIGTERM)
        stop.request("a notice of the cloud")
        time.sleep(0.01)
        assert stop.name == "SIGTERM"
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGTERM)


def test_a_deadline_that_is_not_reached_leaves_no_thread() -> None:
    with StopSignal(after=1000.0):
        assert any(type(t) is threading.Timer for t in threading.enumerate())
    time.sleep(0.05)
    assert not any(type(t) is threading.Timer for t in threading.enumerate())
