"""A process that dies, halts or refuses ends the others, which say who it was."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from lmjax.parallel.peer_watch import PEER_LOST_STATUS
from tests.parallel.peer_processes import PEER_TIMEOUT, SCENARIOS

ROOT = Path(__file__).resolve().parents[2]
MARGIN = 4.0  # seconds, on a busy machine
GONE = "is gone: it ended without a word, or its host did"

Outcomes = dict[str, list[dict[str, Any]]]


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory: pytest.TempPathFactory) -> Outcomes:
    """All scenarios, side by side: most of their time they wait."""
    folder = tmp_path_factory.mktemp("scenarios")
    script = ROOT / "tests/parallel/peer_processes.py"
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    subprocess.run([sys.executable, script, folder], env=environment, check=True)
    return json.loads((folder / "outcomes.json").read_text())


@pytest.mark.parametrize(
    ("scenario", "lost", "told"),
    [
        ("one of three dies", 1, GONE),
        ("the first dies", 0, GONE),
        ("one dies while others wait", 1, GONE),
        ("one aborts", 1, GONE),
        ("one is halted", 1, "has not been heard of for"),
        ("the first is halted", 0, "has not been heard of for"),
        ("one refuses", 1, "has ended with an error: UserError: the disk is full"),
    ],
)
def test_the_others_end_in_time_and_say_who_is_lost(
    scenario: str, lost: int, told: str, outcomes: Outcomes
) -> None:
    for index, outcome in enumerate(outcomes[scenario]):
        if index == lost:
            continue
        # The last thing that is said, whatever JAX had to say before.
        *_, message = outcome["said"].partition("lmjax: ")
        assert message.startswith(f"process {lost} (host "), outcome["said"]
        assert told in message.splitlines()[0]
        assert "start all processes again, this one with: again" in message
        assert f"process {index} of {SCENARIOS[scenario][0]}" in message
        assert message.endswith("the last whole checkpoint stands\n")
        assert outcome["status"] == PEER_LOST_STATUS
        assert outcome["after"] < PEER_TIMEOUT + MARGIN


def test_whose_fault_it_is_ends_with_the_status_of_that(outcomes: Outcomes) -> None:
    assert outcomes["one refuses"][1]["status"] == 1
    assert (
        "lmjax: the disk is full\n  to do: free" in outcomes["one refuses"][1]["said"]
    )
    assert outcomes["one aborts"][1]["status"] == -6  # not taken for a peer's loss
    assert "lmjax" not in outcomes["one aborts"][1]["said"]


def test_an_error_of_all_is_nobody_s_loss(outcomes: Outcomes) -> None:
    for outcome in outcomes["all refuse"]:
        assert outcome["status"] == 1
        assert outcome["said"].endswith("lmjax: the corpus is empty\n")


def test_who_is_done_first_waits_for_the_others(outcomes: Outcomes) -> None:
    for outcome in outcomes["all leave"]:
        assert outcome["status"] == 0
        assert "lmjax" not in outcome["said"]


def test_a_vote_of_one_is_seen_by_all_at_the_next_call(outcomes: Outcomes) -> None:
    for outcome in outcomes["votes"]:
        assert outcome["status"] == 0, outcome["said"]
        assert "votes [0, 0, 0, 4, 0, 1, 0]\n" in outcome["said"]
