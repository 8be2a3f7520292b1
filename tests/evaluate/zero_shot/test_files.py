"""Result files: the official ones to the byte, and ours."""

import csv
import dataclasses
import json
import tarfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lmjax.core.errors import UserError
from lmjax.evaluate.zero_shot import files, items, readers
from lmjax.evaluate.zero_shot.files import (
    Revision,
    predictions_json,
    read_predictions,
    report_text,
    results_table,
    write_results,
)
from lmjax.evaluate.zero_shot.items import Item, Task
from lmjax.evaluate.zero_shot.results import Stamp, TaskResult
from tests.evaluate.zero_shot.texts import item, task

STAMP = Stamp(backend="causal", tie_rule="official", dtype="float32")
MODEL = "GPT2-Small-BabyLM-CE/main/zero_shot/causal"


def _result(given: Task, chosen: list[int], **changes: Any) -> TaskResult:
    return TaskResult(task=given, chosen=np.array(chosen), stamp=STAMP, **changes)


def _grouped() -> Task:
    pairs = [("Ein Bär.", "Eine Bär."), ("c", "d"), ("e", "f")]
    groups = [("x", "q"), ("y", "p"), ("x", "p")]
    made = [
        dataclasses.replace(item(*pair), groups={"field": field, "UID": uid})
        for pair, (field, uid) in zip(pairs, groups, strict=True)
    ]
    return Task("blimp", "blimp_fast", tuple(made), rule="a rule")


REPORT = """\
TEMPERATURE: 1.00

### FIELD ACCURACY
x: 50.00
y: 0.00

### UID ACCURACY
q: 100.00
p: 0.00

### AVERAGE ACCURACY
50.00

"""


def test_official_files_are_as_officially() -> None:
    result = _result(_grouped(), [0, 1, 1])
    assert report_text(result) == REPORT
    assert predictions_json(result) == (
        '{"q": {"predictions": [{"id": "q_0", "pred": "Ein B\\u00e4r."}]}, '
        '"p": {"predictions": [{"id": "p_0", "pred": "d"}, '
        '{"id": "p_1", "pred": "f"}]}}'
    )


def test_splits_stand_behind_the_uids_of_a_report() -> None:
    uids = ["regular_0_ops", "regular_1_ops", "regular_1_ops", "ambiref_0_ops"]
    given = task(
        *[item("a", "b", uid=uid) for uid in uids], splits=("regular", "ambiref")
    )
    lines = report_text(_result(given, [0, 0, 1, 1])).splitlines()
    assert lines[2:] == [
        "### UID ACCURACY",
        "regular_0_ops: 100.00",
        "regular_1_ops: 50.00",
        "ambiref_0_ops: 0.00",
        "regular: 75.00",
        "ambiref: 0.00",
        "",
        "### AVERAGE ACCURACY",
        "37.50",
        "",
    ]


def test_a_folder_holds_what_the_official_one_does(tmp_path: Path) -> None:
    result = _result(_grouped(), [0, 1, 1], ties=2, nans=1)
    other = _result(_grouped(), [0, 0, 0])
    revisions = [Revision("m", "main", [result]), Revision("m", "chck_1M", [other])]
    table, rows = write_results(tmp_path, revisions)
    found = sorted(str(p.relative_to(tmp_path)) for p in tmp_path.rglob("*.*"))
    place = "zero_shot/causal/blimp/blimp_fast"
    names = ("best_temperature_report.txt", "predictions.json", "scorer.json")
    assert found == sorted(
        ["results.csv", "results.json"]
        + [f"m/{r}/{place}/{name}" for r in ("main", "chck_1M") for name in names]
    )
    stamp = json.loads((tmp_path / "m/main" / place / "scorer.json").read_text())
    assert (stamp["ties"], stamp["nans"], stamp["tie_rule"]) == (2, 1, "official")
    assert stamp["rule"] == "" and stamp["dtype"] == "float32"
    summary = json.loads(table.read_text())
    assert [entry["revision"] for entry in summary] == ["main", "chck_1M"]
    assert [entry["accuracy"] for entry in summary] == [50.0, 100.0]
    assert summary[0]["groups"]["UID"]["p"] == {
        "accuracy": 0.0,
        "interval": [0.0, 0.0],
        "standard_error": 0.0,
        "items": 2,
    }
    lines = list(csv.DictReader(rows.read_text().splitlines()))
    assert [(line["kind"], line["group"]) for line in lines[:5]] == [
        ("average", ""),
        ("field", "x"),
        ("field", "y"),
        ("UID", "q"),
        ("UID", "p"),
    ]
    assert lines[1]["accuracy"] == "50.0"
    assert {line["scorer"] for line in lines} == {STAMP.scorer}
    assert {line["tie_rule"] for line in lines} == {"official"}


def test_results_of_several_commands_stand_together(tmp_path: Path) -> None:
    """One command after another writes what one alone would."""
    masked = dataclasses.replace(STAMP, backend="mlm")
    comps = dataclasses.replace(_grouped(), name="comps")
    fast = dataclasses.replace(_grouped(), dataset="comps_fast")
    results = [
        _result(_grouped(), [0, 1, 1]),
        dataclasses.replace(_result(_grouped(), [0, 0, 1]), stamp=masked),
        _result(comps, [0, 0, 0]),
        _result(fast, [1, 0, 0]),
    ]
    alone = [
        Revision("m", "chck_1M", results[:1], step=10, words=1_000_000),
        Revision("m", "main", results[:1], step=20, words=2_000_000),
        Revision("n", "main", results[:1], step=20, words=2_000_000),
        *[Revision("m", "main", [other], 20, 2_000_000) for other in results[1:]],
    ]
    for revision in alone:
        written = write_results(tmp_path / "many", [revision])
    at_once = write_results(tmp_path / "one", alone)
    for many, one in zip(written, at_once, strict=True):
        assert many.read_bytes() == one.read_bytes()
    entries = json.loads(written[0].read_text())
    assert len(entries) == len(alone)
    assert (entries[0]["step"], entries[0]["words"]) == (10, 1_000_000)
    lines = list(csv.DictReader(written[1].read_text().splitlines()))
    averages = [line for line in lines if line["kind"] == "average"]
    assert [line["step"] for line in averages] == ["10"] + ["20"] * 5
    assert [line["words"] for line in averages] == ["1000000"] + ["2000000"] * 5


def test_what_is_scored_again_takes_the_place_of_what_was(tmp_path: Path) -> None:
    result, better = _result(_grouped(), [0, 1, 1]), _result(_grouped(), [0, 0, 0])
    names = ("chck_1M", "chck_2M", "main")
    write_results(tmp_path, [Revision("m", name, [result]) for name in names])
    table, rows = write_results(tmp_path, [Revision("m", "chck_2M", [better], 7)])
    entries = json.loads(table.read_text())
    assert [entry["revision"] for entry in entries] == list(names)
    assert [entry["accuracy"] for entry in entries] == [50.0, 100.0, 50.0]
    assert [entry["step"] for entry in entries] == [0, 7, 0]
    lines = csv.DictReader(rows.read_text().splitlines())
    averages = [line["accuracy"] for line in lines if line["kind"] == "average"]
    assert averages == ["50.0", "100.0", "50.0"]


def test_results_of_earlier_versions_are_kept(tmp_path: Path) -> None:
    """They had no counts."""
    old = Revision("m", "chck_1M", [_result(_grouped(), [0, 1, 1])])
    table, _ = write_results(tmp_path, [old])
    (entry,) = json.loads(table.read_text())
    del entry["step"], entry["words"]
    table.write_text(json.dumps([entry]))
    _, rows = write_results(tmp_path, [old._replace(revision="main")])
    assert json.loads(table.read_text())[0] == entry
    first = next(csv.DictReader(rows.read_text().splitlines()))
    assert (first["revision"], first["step"], first["words"]) == ("chck_1M", "0", "0")


@pytest.mark.parametrize(
    "content",
    [
        b"[{",
        b"\xff",
        b"7",
        b"[7]",
        b'{"a": 1}',
        b'[{"model": "m"}]',
        b'[{"model": "m", "revision": "r", "task": "t", "dataset": "d", '
        b'"stamp": {"backend": "b"}}]',
    ],
    ids=["cut", "no-text", "number", "numbers", "no-list", "no-key", "no-figures"],
)
def test_earlier_results_that_cannot_be_read_are_named_and_left_alone(
    content: bytes, tmp_path: Path
) -> None:
    table = tmp_path / "results.json"
    table.write_bytes(content)
    result = _result(_grouped(), [0, 1, 0])
    with pytest.raises(UserError, match=r"(?s)can't be read.*results\.json"):
        write_results(tmp_path, [Revision("m", "main", [result])])
    assert table.read_bytes() == content
    assert len(list(tmp_path.rglob("predictions.json"))) == 1  # nothing is scored twice


def test_predictions_are_read_as_they_were_written(tmp_path: Path) -> None:
    result = _result(_grouped(), [0, 1, 0])
    write_results(tmp_path, [Revision("m", "main", [result])])
    file = next(tmp_path.rglob("predictions.json"))
    again = read_predictions(file, result.task, stamp=STAMP)
    np.testing.assert_array_equal(again.chosen, result.chosen)
    other = Task("blimp", "blimp_fast", (*result.task.items, item("g", "h", uid="p")))
    with pytest.raises(UserError, match="prediction of p_2 is None"):
        read_predictions(file, other, stamp=STAMP)
    fewer = Task("blimp", "blimp_fast", result.task.items[:2])
    with pytest.raises(UserError, match="3 predictions for 2 items"):
        read_predictions(file, fewer, stamp=STAMP)
    file.write_text('{"p": []}')
    with pytest.raises(UserError, match="can't be read"):
        read_predictions(file, fewer, stamp=STAMP)
    with pytest.raises(UserError, match="can't be read"):
        read_predictions(tmp_path / "none.json", fewer, stamp=STAMP)


def test_the_table_has_a_line_for_each_task_of_each_checkpoint() -> None:
    result = _result(_grouped(), [0, 1, 1], ties=2)
    table = results_table([Revision("m", "main", [result, result])])
    assert [line.split() for line in table.splitlines()][1:] == [
        ["m", "main", "blimp_fast", "causal", "50.00", "50.00", "to", "50.00"]
        + ["50.0", "3", "2", "0"]
    ] * 2


def test_intervals_resample_the_items_of_each_uid() -> None:
    """Against resamples made item by item, and the normal law's width."""
    generator = np.random.default_rng(0)
    uids = ["a"] * 150 + ["b"] * 50
    given = task(*[item("x", "y", uid=uid) for uid in uids])
    chosen = (generator.random(200) > np.where(np.array(uids) == "a", 0.8, 0.4)).astype(
        int
    )
    result = _result(given, chosen.tolist(), resamples=4000)
    average = result.average()
    right = chosen == 0
    means = [
        (
            generator.choice(right[:150], 150).mean()
            + generator.choice(right[150:], 50).mean()
        )
        / 2
        for _ in range(4000)
    ]
    np.testing.assert_allclose(
        [average.low, average.high], np.quantile(means, [0.025, 0.975]), atol=0.012
    )
    assert average.high - average.low == pytest.approx(
        2 * 1.96 * average.standard_error, rel=0.08
    )
    assert average.value == (right[:150].mean() + right[150:].mean()) / 2
    assert result.average() == average  # seeded


def test_items_that_are_each_a_uid_are_one_sample() -> None:
    """The closed form of a hundred tosses of a coin."""
    coins = task(*[item("x", "y", uid=f"u{i}") for i in range(100)])
    result = _result(coins, [0, 1] * 50, resamples=4000)
    average = result.average()
    assert average.value == pytest.approx(0.5) and average.count == 100
    assert average.standard_error == pytest.approx(0.05)
    assert average.low == pytest.approx(0.4, abs=0.015)
    assert average.high == pytest.approx(0.6, abs=0.015)
    assert coins.chance() == pytest.approx(0.5)


def test_intervals_of_untrained_models_hold_chance_as_often_as_they_say() -> None:
    coins = task(*[item("x", "y", uid=f"u{i}") for i in range(100)])
    generator = np.random.default_rng(0)
    held = 0
    for _ in range(200):
        chosen = generator.integers(2, size=100).tolist()
        average = _result(coins, chosen, resamples=400).average()
        held += average.low <= coins.chance() <= average.high
    assert 0.9 <= held / 200 <= 0.99


def test_single_items_are_resampled_beside_uids_of_several() -> None:
    """Against the variance written out, where items weigh differently."""
    uids = ["a0", "a1", "a2", "a2", "a2", "a2", "b0", "b1"]
    chosen = [0, 1, 0, 0, 0, 1, 0, 0]
    given = task(*[item("x", "y", uid=uid) for uid in uids], splits=("a", "b"))
    result = _result(given, chosen, resamples=4000)
    # Weights: 1/6 for each of three UIDs of a, 1/4 for each of two of b.
    share = (1 / 6 + 2 / 4) / (1 / 6 + 1 / 6 + 1 / 4 + 1 / 4)
    variance = (2 / 36 + 2 / 16) * share * (1 - share) + 0.75 * 0.25 / 4 / 36
    average = result.average()
    assert average.standard_error == pytest.approx(variance**0.5)
    assert average.value == pytest.approx(1 / 6 + 0.75 / 6 + 2 / 4)
    several = result.groups()["UID"]["a2"]
    assert several.standard_error == pytest.approx((0.75 * 0.25 / 4) ** 0.5)


def test_a_group_counts_its_items_alike_and_the_average_its_uids() -> None:
    made = [item("a", "b", uid=uid) for uid in "pppq"]
    made = [dataclasses.replace(i, groups={"field": "x", **i.groups}) for i in made]
    result = _result(task(*made), [0, 0, 0, 1])
    assert result.groups()["field"]["x"].value == 0.75
    assert result.average().value == 0.5


def test_figures_say_what_they_are() -> None:
    figures = _result(_grouped(), [0, 1, 1]).figures()
    assert [figure.name for figure in figures] == [
        "zero-shot/blimp_fast/accuracy",
        "zero-shot/blimp_fast/field/x",
        "zero-shot/blimp_fast/field/y",
        "zero-shot/blimp_fast/UID/q",
        "zero-shot/blimp_fast/UID/p",
    ]
    assert figures[0].value == 0.5
    assert figures[0].kind == "accuracy (causal, ties official)"


@pytest.fixture(scope="module")
def golden(shared_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the official pipeline of 2025 wrote for a real model."""
    folder = tmp_path_factory.mktemp("golden")
    (archive,) = (shared_data / "golden").glob("*.tar.xz")
    with tarfile.open(archive) as opened:
        opened.extractall(folder, filter="data")
    return folder / MODEL


def _blocks(report: str) -> list[list[str]]:
    """Paragraphs with their lines sorted: the official order of UIDs is arbitrary."""
    return [sorted(block.splitlines()) for block in report.split("\n\n")]


def test_the_official_supplement_report_follows_from_its_predictions(
    golden: Path, shared_data: Path, tmp_path: Path
) -> None:
    (given,) = readers.load_tasks(["supplement"], str(shared_data / "eval"))
    folder = golden / "blimp" / "supplement_filtered"
    result = read_predictions(folder / "predictions.json", given, stamp=STAMP)
    write_results(tmp_path, [Revision("GPT2-Small-BabyLM-CE", "main", [result])])
    ours = tmp_path / MODEL / "blimp" / "supplement_filtered"
    for name, parse in (("predictions.json", json.loads), (REPORT_NAME, _blocks)):
        official = (folder / name).read_text(encoding="utf-8")
        written = (ours / name).read_text(encoding="utf-8")
        assert parse(written) == parse(official)
        assert len(written) == len(official)
    assert f"{100 * result.average().value:.2f}" == "63.38"


REPORT_NAME = "best_temperature_report.txt"


def test_the_official_entity_tracking_report_does_where_items_are_at_hand(
    golden: Path, shared_data: Path, tmp_path: Path
) -> None:
    """In 2025 rows with "nothing" counted: they are read here as they were then."""
    archive = shared_data / "eval" / "entity_tracking_fast.tar.xz"
    with tarfile.open(archive) as opened:
        content = opened.extractfile("entity_tracking_fast/regular.jsonl").read()
    made = []
    for line in content.splitlines():
        row = json.loads(line)
        ends = row["options"]
        groups = {"UID": f"regular_{row['numops']}_ops"}
        candidates = items.completions([row["input_prefix"]] * len(ends), ends)
        made.append(Item(candidates, 0, groups, "regular.jsonl"))
    given = Task("entity_tracking", "entity_tracking", tuple(made), ("regular",))
    folder = golden / "entity_tracking" / "entity_tracking"
    stored = json.loads((folder / "predictions.json").read_text())
    regular = {uid: stored[uid] for uid in stored if uid.startswith("regular")}
    (tmp_path / "predictions.json").write_text(json.dumps(regular))
    result = read_predictions(tmp_path / "predictions.json", given, stamp=STAMP)
    official = (folder / REPORT_NAME).read_text().splitlines()
    expected = [line for line in official if line.startswith("regular")]
    ours = report_text(result).splitlines()
    assert sorted(line for line in ours if line.startswith("regular")) == sorted(
        expected
    )
    assert len(expected) == 7


def test_a_write_that_fails_leaves_what_was_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    result = _result(_grouped(), [0, 1, 0])
    paths = write_results(tmp_path, [Revision("m", "main", [result])])
    before = [path.read_bytes() for path in paths]

    def fail(entries: Iterable[dict[str, Any]]) -> str:
        if len(list(entries)) > 1:
            raise MemoryError("no space left")
        return ""

    monkeypatch.setattr(files, "_csv", fail)
    with pytest.raises(MemoryError, match="no space"):
        write_results(tmp_path, [Revision("n", "main", [result])])
    assert [path.read_bytes() for path in paths] == before
    assert not list(tmp_path.rglob("*.tmp"))
