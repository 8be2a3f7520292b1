"""Whatever bytes a reader is fed, it reads them or says what is wrong with them.

Ten thousand cases, always the same ones, in a child that may die of them: see
`fuzzing.py`, which also tells how to run one again. `benchmarks/fuzz.py` runs more.
"""

import json
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lmjax.core.errors import UserError
from tests.faults import fuzzing, mutations
from tests.faults.foreign_files import KINDS, Kind
from tests.faults.fuzzing import Fuzzer

pytestmark = pytest.mark.skipif(
    sys.platform != "linux", reason="the child reads its memory from /proc"
)
CASES = 10_000
_SHARES = sum(kind.share for kind in KINDS.values())


@pytest.fixture(scope="module")
def fuzzer() -> Iterator[Fuzzer]:
    with Fuzzer() as started:
        yield started


@pytest.mark.parametrize("name", KINDS)
def test_any_bytes_end_in_a_clear_message_or_are_read(
    fuzzer: Fuzzer, name: str
) -> None:
    count = round(CASES * KINDS[name].share / _SHARES)
    tally = fuzzer.run(name, 0, count)
    assert not tally.unread, "a valid file is not read"
    findings = "\n".join(f"case {n}: {what}" for n, what in tally.findings.items())
    command = f'python tests/faults/fuzzing.py "{name}" CASE'
    assert not tally.findings, f"run one again: {command}\n{findings[:20_000]}"
    assert tally.cases == count
    # Damage that is never noticed, or always at the first byte, would prove nothing.
    assert tally.told or name == "metrics"
    assert tally.valid
    assert tally.most_memory[0] < fuzzing.MEMORY


def _raise(error: BaseException) -> None:
    raise error


def _kind(*reads: Callable[[], None]) -> Kind:
    """Files that are never damaged; the number of a case chooses what happens."""

    def read(folder: Path, rng: np.random.Generator) -> None:
        reads[int((folder / "a").read_text()) % len(reads)]()

    class Numbered(Kind):
        def case(self, number: int, seed: int) -> tuple[dict[str, bytes], Any]:
            return {"a": str(number).encode()}, np.random.default_rng(0)

    return Numbered(
        name="x", examples=lambda: [{"a": b"0"}], read=read, damage={}, share=1
    )


def _loop() -> None:
    while True:
        pass


_NOTHING = lambda: None  # noqa: E731
DEADLY = {
    "aborts": _kind(_NOTHING, os.abort, _NOTHING),
    "hangs": _kind(_NOTHING, _loop, _NOTHING),
    "fills memory": _kind(_NOTHING, lambda: bytearray(2**31), _NOTHING),
}


@pytest.mark.parametrize(
    ("read", "how"),
    [
        (_NOTHING, "valid"),
        (lambda: _raise(UserError("it is wrong")), "told"),
        (lambda: _raise(ValueError("it is wrong")), "finding"),
        (lambda: _raise(UserError(" ")), "finding"),
        (lambda: _raise(SystemExit(0)), "finding"),
    ],
)
def test_what_is_no_clear_message_is_a_finding(
    tmp_path: Path, read: Callable[[], None], how: str
) -> None:
    assert fuzzing.run_case(_kind(read), 0, 0, tmp_path, 60)["how"] == how


def test_a_case_that_kills_its_process_is_a_finding_and_the_next_one_runs() -> None:
    kinds = "tests.faults.test_fuzzing:DEADLY"
    said = {"aborts": "status -6", "hangs": "Timeout", "fills memory": "MemoryError"}
    with Fuzzer(seconds=1, kinds=kinds) as started:
        for name, told in said.items():
            tally = started.run(name, 0, 3)
            assert list(tally.findings) == [1]
            assert told in tally.findings[1]
            assert tally.valid == 2


def test_a_case_is_the_same_each_time_and_no_two_are() -> None:
    kind = KINDS["config"]
    files = [kind.case(number, 0)[0] for number in (*range(20), *range(20))]
    assert files[:20] == files[20:]
    assert len({str(each) for each in files}) > 15
    assert kind.case(0, 1)[0] != files[0]


@pytest.mark.parametrize("name", KINDS)
def test_damage_is_done_to_every_example(name: str) -> None:
    """A few cases may come out as they went in, most may not."""
    kind = KINDS[name]
    if name in ("model folder", "prepared corpus", "sentencepiece"):
        return  # made in the child alone: they take long
    examples = [dict(files) for files in kind.examples()]
    changed = sum(kind.case(number, 0)[0] not in examples for number in range(100))
    assert changed > 80


def test_mutations_know_their_formats() -> None:
    """What is damaged inside is whole outside, often enough."""
    rng = np.random.default_rng(0)
    text = b'{"a": {"b": [1, 2.5, "c"]}, "d": null}'
    parsed = 0
    for _ in range(200):
        try:
            json.loads(mutations.json_of(rng, text))
            parsed += 1
        except (ValueError, RecursionError):
            pass
    assert parsed > 120
