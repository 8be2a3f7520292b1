"""Without a terminal, a long preparation still says how far it is."""

import pytest
from absl import logging

from lmjax.data.preparation import progress


@pytest.fixture
def clock(monkeypatch):
    now = [0.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    return now


def _told(caplog) -> list[str]:
    return [record.getMessage() for record in caplog.records]


def test_a_line_now_and_then(clock, caplog):
    caplog.set_level("INFO", logger=logging.get_absl_logger().name)
    with progress.Progress("Preparing", 400_000_000, shown=True) as bar:
        for second in range(1, 51):
            clock[0] = float(second)
            bar.add(1_000_000)
    assert _told(caplog) == [
        "Preparing: 21 of 400 MB, about 6 minute(s) left",
        "Preparing: 42 of 400 MB, about 6 minute(s) left",
    ]


def test_nothing_where_nothing_is_to_be_shown(clock, caplog):
    caplog.set_level("INFO", logger=logging.get_absl_logger().name)
    with progress.Progress("Preparing", 400, shown=False) as bar:
        clock[0] = 100.0
        bar.add(10)
    assert _told(caplog) == []
