"""Readers of zero-shot tasks, on files that a reader can check, and on real ones."""

import collections
import io
import json
import tarfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from lmjax.core.errors import ConfigError, UserError
from lmjax.evaluate.human.places import find_file
from lmjax.evaluate.zero_shot.items import Item, Task
from lmjax.evaluate.zero_shot.readers import PLACES, load_tasks


def _write(file: Path, *rows: Mapping[str, Any]) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    lines = [json.dumps(row, ensure_ascii=False) for row in rows]
    file.write_text("\n".join(lines) + "\n", encoding="utf-8")


def _load(name: str, folder: Path) -> Task:
    (task,) = load_tasks([name], str(folder))
    return task


def _texts(item: Item) -> list[tuple[str, str, str]]:
    return [(each.prefix, each.completion, each.stored) for each in item.candidates]


BLIMP = {
    "sentence_good": "Cats run.",
    "sentence_bad": "Cats runs.",
    "field": "syntax_semantics",
    "linguistics_term": "agreement",
    "UID": "plural_1",
}


def test_blimp_compares_whole_sentences(tmp_path: Path) -> None:
    other = BLIMP | {"UID": "plural_2", "field": "syntax"}
    _write(tmp_path / "blimp_fast" / "b.jsonl", BLIMP, BLIMP)
    _write(tmp_path / "blimp_fast" / "a.jsonl", other)
    task = _load("blimp", tmp_path)
    assert (task.name, task.dataset) == ("blimp", "blimp_fast")
    assert task.ids() == ["plural_2_0", "plural_1_0", "plural_1_1"]
    assert _texts(task.items[1]) == [
        ("", "Cats run.", "Cats run."),
        ("", "Cats runs.", "Cats runs."),
    ]
    assert task.items[1].groups == {
        "field": "syntax/semantics",
        "UID": "plural_1",
        "linguistics_term": "agreement",
    }
    assert task.weights() == {"plural_1": 0.5, "plural_2": 0.5}


def test_the_supplement_is_named_by_its_files(tmp_path: Path) -> None:
    row = {"sentence_good": "A: Où?\nB: Là.", "sentence_bad": "A: Où?\nB: Oui."}
    _write(tmp_path / "supplement_filtered" / "qa.jsonl", row)
    task = _load("supplement", tmp_path)
    assert (task.name, task.dataset) == ("blimp", "supplement_filtered")
    assert list(task.items[0].groups.values()) == ["supplement", "qa", "supplement"]
    assert task.items[0].candidates[0].text == "A: Où?\nB: Là."


def test_ewok_compares_one_target_after_two_contexts(tmp_path: Path) -> None:
    row = {"Context1": "C1.", "Context2": "C2.", "Target1": "T1.", "Target2": "T2."}
    row |= {"Domain": "d", "ContextType": "t", "ContextDiff": "c", "TargetDiff": "x"}
    _write(tmp_path / "ewok_filtered" / "d.jsonl", row)
    task = _load("ewok", tmp_path)
    assert _texts(task.items[0]) == [
        ("C1.", " T1.", "C1. T1."),
        ("C2.", " T1.", "C2. T1."),
    ]
    assert list(task.items[0].groups) == [
        "UID",
        "context_type",
        "context_contrast",
        "target_contrast",
    ]
    assert "2026" in task.rule


def test_entity_tracking_leaves_out_what_says_nothing(tmp_path: Path) -> None:
    row = {"input_prefix": "Box 0 contains ", "options": ["a.", "b."], "numops": 2}
    empty = row | {"options": ["a.", "nothing."]}
    folder = tmp_path / "entity_tracking"
    for split in ("regular", "ambiref"):
        _write(folder / f"{split}.jsonl", row, empty, row | {"numops": 0})
    task = _load("entity_tracking", tmp_path)
    assert task.ids() == [
        "ambiref_2_ops_0",
        "ambiref_0_ops_0",
        "regular_2_ops_0",
        "regular_0_ops_0",
    ]
    assert _texts(task.items[0])[0] == ("Box 0 contains ", "a.", "a.")


def test_comps_scores_the_phrase_after_two_subjects(tmp_path: Path) -> None:
    row = {
        "prefix_acceptable": "A cat",
        "prefix_unacceptable": "A car",
        "property_phrase": "can purr.",
    }
    _write(tmp_path / "comps" / "comps_wugs_dist-before.jsonl", row)
    task = _load("comps", tmp_path)
    assert task.items[0].uid == "wugs_dist_before"
    assert _texts(task.items[0]) == [
        ("A cat ", "can purr.", "A cat can purr."),
        ("A car ", "can purr.", "A car can purr."),
    ]


def test_global_piqa_is_two_tasks_scored_per_token(tmp_path: Path) -> None:
    row = {"prompt": "To open", "solution0": "push.", "solution1": "wait."}
    row |= {"label": 1, "example_id": "eng_7"}
    _write(tmp_path / "global_piqa_nonparallel" / "eng_latn.jsonl", row)
    more = row | {"solution2": "sing.", "solution3": "sit.", "label": 3}
    _write(tmp_path / "full_eval" / "global_piqa_parallel" / "eng_latn.jsonl", more)
    parallel, other = load_tasks(["global_piqa"], str(tmp_path))
    assert [task.name for task in (parallel, other)] == [
        "global_piqa_parallel",
        "global_piqa_nonparallel",
    ]
    assert _texts(other.items[0]) == [
        ("To open", " push.", " push."),
        ("To open", " wait.", " wait."),
    ]
    assert (other.items[0].label, other.items[0].uid) == (1, "eng_7")
    assert len(parallel.items[0].candidates) == 4
    assert all(task.items[0].per_token for task in (parallel, other))
    assert parallel.chance() == 0.25


def test_any_file_of_completions_is_a_task(tmp_path: Path) -> None:
    first = {"prefix": "The sky is", "completions": [" blue.", " soup."], "label": 0}
    second = {
        "completions": ["x", "y", "z"],
        "label": 2,
        "group": "g",
        "per_token": True,
    }
    _write(tmp_path / "mine.jsonl", first, second)
    for name, folder in (("mine.jsonl", tmp_path), (str(tmp_path / "mine.jsonl"), "")):
        task = _load(name, Path(folder))
        assert (task.name, task.dataset) == ("mine", "mine")
        assert task.ids() == ["mine_0", "g_0"]
        assert _texts(task.items[0])[1] == ("The sky is", " soup.", " soup.")
        assert [item.label for item in task.items] == [0, 2]
        assert [item.per_token for item in task.items] == [False, True]


@pytest.mark.parametrize("place", PLACES)
def test_all_kinds_of_tasks_are_looked_for_in_the_same_places(
    place: str, tmp_path: Path
) -> None:
    _write(tmp_path / place / "blimp_fast" / "a.jsonl", BLIMP)
    table = tmp_path / place / "reading" / "table.csv"
    _write(table, BLIMP)
    assert len(_load("blimp", tmp_path).items) == 1
    assert find_file("reading", str(tmp_path), ("reading",), "table.csv") == table


def test_the_full_set_comes_before_the_fast_one(tmp_path: Path) -> None:
    _write(tmp_path / "fast_eval" / "blimp_fast" / "a.jsonl", BLIMP)
    assert _load("blimp", tmp_path).dataset == "blimp_fast"
    assert _load("blimp", tmp_path / "fast_eval" / "blimp_fast").dataset == "blimp_fast"
    _write(tmp_path / "full_eval" / "blimp_filtered" / "a.jsonl", BLIMP, BLIMP)
    assert _load("blimp", tmp_path).dataset == "blimp_filtered"
    assert _load("blimp_fast", tmp_path).dataset == "blimp_fast"
    both = load_tasks(["blimp_fast , blimp"], str(tmp_path))
    assert [len(task.items) for task in both] == [1, 2]


def test_archives_are_read_as_folders_are(tmp_path: Path) -> None:
    content = json.dumps(BLIMP).encode() + b"\n"
    with tarfile.open(tmp_path / "blimp_filtered.tar.xz", "w:xz") as archive:
        for name in ("blimp_filtered/a.jsonl", "blimp_filtered/README"):
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    task = _load("blimp", tmp_path)
    assert (task.dataset, len(task.items)) == ("blimp_filtered", 1)
    (tmp_path / "ewok_fast.tar.xz").write_bytes(b"no archive")
    with pytest.raises(UserError, match=r"ewok_fast\.tar\.xz"):
        _load("ewok", tmp_path)


def test_missing_data_say_what_was_looked_for(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="supplement_fast") as caught:
        load_tasks(["supplement"], str(tmp_path))
    assert "full_eval" in str(caught.value)
    assert "supplement_filtered{,.tar.xz" in str(caught.value)
    with pytest.raises(ConfigError, match="did you mean blimp"):
        load_tasks(["blimpp"], str(tmp_path))
    (tmp_path / "comps").mkdir()
    with pytest.raises(UserError, match="no items"):
        load_tasks(["comps"], str(tmp_path))


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        ("{", "not JSON"),
        ('"a"', "not an object"),
        ("\xff", "not JSON"),
        ('{"completions": ["a", "b"]}', "no field 'label'"),
        ('{"completions": ["a", "b"], "label": 2}', "label is 2"),
        ('{"completions": ["a", "b"], "label": -1}', "label is -1"),
        ('{"completions": ["a", "b"], "label": true}', "whole number"),
        ('{"completions": ["a"], "label": 0}', "two or more"),
        ('{"completions": ["a", 3], "label": 0}', "two or more"),
        ('{"completions": "ab", "label": 0}', "list of texts"),
        ('{"prefix": 3, "completions": ["a", "b"], "label": 0}', "must be a text"),
    ],
)
def test_a_bad_row_is_told_with_file_and_line(
    line: str, problem: str, tmp_path: Path
) -> None:
    good = '{"completions": ["a", "b"], "label": 0}'
    file = tmp_path / "bad.jsonl"
    file.write_bytes(f"{good}\n\n{line}\n".encode("latin-1"))
    with pytest.raises(UserError, match=problem) as caught:
        _load("bad.jsonl", tmp_path)
    assert f"{file}, line 3" in str(caught.value)


def test_chance_and_weights_follow_the_splits(tmp_path: Path) -> None:
    row = {"input_prefix": "", "options": ["a", "b", "c", "d"], "numops": 0}
    folder = tmp_path / "entity_tracking"
    _write(folder / "regular.jsonl", row, row, row | {"numops": 1})
    _write(folder / "move_contents.jsonl", row | {"options": ["a", "b"]})
    task = _load("entity_tracking", tmp_path)
    assert task.weights() == {
        "regular_0_ops": 0.25,
        "regular_1_ops": 0.25,
        "move_contents_0_ops": 0.5,
    }
    assert task.chance() == 0.5 * 0.25 + 0.5 * 0.5


def test_the_real_sets_have_their_known_sizes(shared_data: Path) -> None:
    names = ["blimp", "supplement", "supplement_fast", "entity_tracking_fast"]
    blimp, supplement, fast, entities = load_tasks(names, str(shared_data / "eval"))
    sizes = collections.Counter(item.uid for item in blimp.items)
    assert len(sizes) == 67
    assert set(sizes.values()) == {200}
    assert {item.groups["field"] for item in blimp.items} == {
        "syntax",
        "semantics",
        "morphology",
        "syntax/semantics",
    }
    assert collections.Counter(item.uid for item in supplement.items) == {
        "hypernym": 842,
        "qa_congruence_easy": 64,
        "qa_congruence_tricky": 165,
        "subject_aux_inversion": 3867,
        "turn_taking": 280,
    }
    assert set(collections.Counter(item.uid for item in fast.items).values()) == {50}
    assert {len(item.candidates) for item in entities.items} == {5}
    assert all(
        "nothing" not in each.stored for i in entities.items for each in i.candidates
    )
