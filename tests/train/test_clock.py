"""Speeds leave pauses out, and start anew after each reading."""

import time

import pytest

from lmjax.train.clock import Clock, TimeSpent


@pytest.fixture
def now(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Seconds that pass only when a test says so."""
    seconds = [100.0]
    monkeypatch.setattr(time, "perf_counter", lambda: seconds[0])
    return seconds


def test_pauses_do_not_count(now: list[float]) -> None:
    clock = Clock(total_steps=10, flops_per_token=3.0, peak_flops=600.0)
    now[0] += 2
    clock.add(100)
    with clock.paused("save"):
        now[0] += 1000
    now[0] += 2
    clock.add(100)
    values = clock.read(step=2)
    assert values["tokens_per_second"] == pytest.approx(50)
    assert values["mfu"] == pytest.approx(50 * 3 / 600)
    assert values["eta_seconds"] == pytest.approx(8 * 2)


def test_each_reading_starts_anew(now: list[float]) -> None:
    clock = Clock(total_steps=10, flops_per_token=1.0, peak_flops=0.0)
    now[0] += 50
    clock.add(1)
    clock.read(step=1)
    now[0] += 1
    clock.add(30)
    values = clock.read(step=2)
    assert values["tokens_per_second"] == pytest.approx(30)
    assert "mfu" not in values, "the peak is unknown"


def test_a_reading_without_steps_is_no_error(now: list[float]) -> None:
    clock = Clock(total_steps=10, flops_per_token=1.0, peak_flops=0.0)
    assert clock.read(step=0) == {"tokens_per_second": 0.0, "eta_seconds": 0.0}


def test_every_second_goes_to_one_thing(now: list[float]) -> None:
    spent = TimeSpent("prepare")
    now[0] += 1
    with spent.on("train"):
        now[0] += 2
        with spent.on("data"):
            now[0] += 4
        now[0] += 8
        clock = Clock(total_steps=1, flops_per_token=1.0, peak_flops=0.0, spent=spent)
        with pytest.raises(ZeroDivisionError), clock.paused("evaluate"):
            now[0] += 16
            raise ZeroDivisionError
        now[0] += 32
    now[0] += 64
    found = spent.read()
    assert found == {"train": 42.0, "data": 4.0, "evaluate": 16.0, "prepare": 65.0}


def test_seconds_of_earlier_starts_are_added(now: list[float]) -> None:
    spent = TimeSpent("train")
    spent.add({"train": 5.0, "save": 1.0})
    now[0] += 2
    assert spent.read() == {"train": 7.0, "save": 1.0}
