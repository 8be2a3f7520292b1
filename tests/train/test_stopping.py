"""A first signal asks, a second one insists, and afterwards all is as before."""

import os
import signal
from collections.abc import Iterator

import pytest

from lmjax.train.stopping import StopSignal


@pytest.fixture(autouse=True)
def _own_handlers() -> Iterator[None]:
    """A signal that nobody catches fails the test rather than ending all of them."""

    def fail(number: int, _: object) -> None:
        raise AssertionError(f"nobody caught signal {number}")

    numbers = (signal.SIGINT, signal.SIGTERM)
    previous = {number: signal.signal(number, fail) for number in numbers}
    yield
    for number, handler in previous.items():
        signal.signal(number, handler)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
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
