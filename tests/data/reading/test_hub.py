"""Datasets are fetched once, tried again, and what is wrong with them is said."""

import subprocess
import sys
from pathlib import Path

import pytest

from lmjax.core.errors import UserError
from lmjax.data.reading import hub
from lmjax.data.reading.formats import ReadOptions, open_reader

pytest.importorskip("datasets")
parquet = pytest.importorskip("pyarrow.parquet")

ROOT = Path(__file__).parents[3]
SPEC = "hf://owner/name?column=body"


class FakeDataset:
    """As much of datasets.IterableDataset as is used."""

    def __init__(self, rows, error=None, known=True):
        self.rows, self.error = rows, error
        self.column_names = list(rows[0]) if known and rows else None

    def select_columns(self, columns):
        return FakeDataset(
            [{c: row[c] for c in columns} for row in self.rows], self.error
        )

    def iter(self, batch_size):
        for start in range(0, len(self.rows), batch_size):
            rows = self.rows[start : start + batch_size]
            yield {name: [row[name] for row in rows] for name in rows[0]}
        if self.error is not None:
            raise self.error


@pytest.fixture
def online(monkeypatch):
    """Answers with the given datasets, one per attempt; records what was asked."""

    class Online:
        answers, asked, waited, commit = [], [], [], "c0ffee"

        def load(self, spec):
            self.asked.append(spec)
            answer = self.answers.pop(0)
            if isinstance(answer, Exception):
                raise answer
            return answer

    online = Online()
    online.answers, online.asked, online.waited = [], [], []
    monkeypatch.setattr(hub, "_load", online.load)
    monkeypatch.setattr(hub, "_resolve", lambda spec: online.commit)
    monkeypatch.setattr(hub.time, "sleep", online.waited.append)
    return online


def _rows(*texts):
    return [{"n": i, "body": text} for i, text in enumerate(texts)]


def _leftovers(folder):
    return [f.name for f in folder.rglob("*") if f.is_file()]


@pytest.mark.parametrize("known", [True, False])
def test_a_dataset_is_fetched_once(tmp_path, online, monkeypatch, known):
    monkeypatch.setattr(hub, "_BATCH_ROWS", 2)
    online.answers = [FakeDataset(_rows("a", None, "b c"), known=known)]
    file = hub.fetch_dataset(SPEC, tmp_path)
    assert file.parent == tmp_path / "datasets"
    assert file.name.startswith("owner--name-")
    assert [d.content for d in open_reader(file, ReadOptions()).read()] == ["a", "b c"]
    metadata = parquet.read_schema(file).metadata
    assert metadata[hub.REVISION_KEY] == b"c0ffee"
    assert b'"name": "owner/name"' in metadata[hub.DATASET_KEY]
    assert online.asked[0].revision == "c0ffee"  # what is noted is what is fetched
    assert hub.fetch_dataset(SPEC, tmp_path) == file
    assert hub.fetch_dataset(SPEC + "&split=train", tmp_path) == file
    assert len(online.asked) == 1
    assert _leftovers(tmp_path) == [file.name]


def _with_prompts(*pairs):
    return [{"n": 1, "ask": ask, "body": body} for ask, body in pairs]


@pytest.mark.parametrize("known", [True, False])
@pytest.mark.parametrize("named", ["&prompt=ask", ""])
def test_prompts_are_fetched_beside_the_text(tmp_path, online, known, named):
    rows = _with_prompts(("a?", "b"), ("c? ", "d"))
    online.answers = [FakeDataset(rows, known=known)]
    field = "prompt" if named else "ask"  # what the spec names goes before it
    file = hub.fetch_dataset(SPEC + named, tmp_path, field)
    assert parquet.read_schema(file).names == ["text", "prompt"]
    reader = open_reader(file, ReadOptions(text_field="x", prompt_field=field))
    found = [(d.prompt.text, d.content) for d in reader.read()]
    assert found == [("a?", "b"), ("c? ", "d")]
    assert hub.fetch_dataset(SPEC + named, tmp_path, field) == file
    assert len(online.asked) == 1


def test_prompts_make_another_file_and_leave_others_as_they_were(tmp_path, online):
    online.answers = [
        FakeDataset(_with_prompts(("a?", "b"))),
        FakeDataset(_rows("b")),
    ]
    with_prompts = hub.fetch_dataset(SPEC, tmp_path, "ask")
    plain = hub.fetch_dataset(SPEC, tmp_path)
    assert with_prompts != plain
    metadata = parquet.read_schema(plain).metadata
    assert b"prompt" not in metadata[hub.DATASET_KEY]
    # The name is part of what caches are found by.
    assert plain.name == "owner--name-ec968c96fec954ac.parquet"


@pytest.mark.parametrize(
    ("spec", "field", "what"),
    [
        (SPEC, "asked", "no column 'asked'; there are 'n', 'ask', 'body'"),
        (SPEC + "&prompt=n", "prompt", "column 'n' does not hold text"),
        (SPEC + "&prompt=ask", "", "data.prompt_field is empty"),
    ],
)
def test_wrong_prompts_are_explained(tmp_path, online, spec, field, what):
    online.answers = [FakeDataset(_with_prompts(("a?", "b")))]
    with pytest.raises(UserError, match=what):
        hub.fetch_dataset(spec, tmp_path, field)
    assert _leftovers(tmp_path) == []


def test_another_spec_is_another_file(tmp_path, online):
    specs = [SPEC, SPEC + "&split=test", SPEC + "&revision=x", SPEC + "&config=x"]
    online.answers = [FakeDataset(_rows(spec)) for spec in specs]
    assert len({hub.fetch_dataset(spec, tmp_path) for spec in specs}) == 4
    assert [asked.split for asked in online.asked] == [
        "train",
        "test",
        "train",
        "train",
    ]


def test_the_revision_asked_for_is_used_where_the_commit_is_not_told(tmp_path, online):
    online.commit = ""
    online.answers = [FakeDataset(_rows("a"))]
    file = hub.fetch_dataset(SPEC + "&revision=v1", tmp_path)
    assert online.asked[0].revision == "v1"
    assert hub.REVISION_KEY not in parquet.read_schema(file).metadata


def test_the_network_is_tried_again(tmp_path, online):
    lost = ConnectionResetError("connection reset")
    online.answers = [TimeoutError("slow"), FakeDataset(_rows("x"), lost)]
    online.answers += [FakeDataset(_rows("a"))]
    file = hub.fetch_dataset(SPEC, tmp_path)
    assert [d.content for d in open_reader(file, ReadOptions()).read()] == ["a"]
    assert len(online.waited) == 2
    assert online.waited == sorted(online.waited)
    assert _leftovers(tmp_path) == [file.name]


def test_no_network_is_explained(tmp_path, online):
    online.answers = [ConnectionError("no route to host")] * 4
    with pytest.raises(UserError, match="no route to host") as caught:
        hub.fetch_dataset(SPEC, tmp_path)
    assert len(online.waited) == 3
    assert "huggingface.co" in caught.value.where
    assert "Parquet file" in caught.value.remedy
    assert _leftovers(tmp_path) == []


@pytest.mark.parametrize(
    ("answer", "what"),
    [
        (
            FakeDataset([{"n": 1, "text": "a"}]),
            "no column 'body'; there are 'n', 'text'",
        ),
        (FakeDataset([{"n": 1}], known=False), "no column 'body'; there are 'n'"),
        (FakeDataset([{"body": 3}]), "column 'body' does not hold text"),
        (
            ValueError("Bad split: train. Available splits: ['test']"),
            r"Available splits: \['test'\]",
        ),
    ],
)
def test_a_wrong_spec_is_explained_at_once(tmp_path, online, answer, what):
    online.answers = [answer]
    with pytest.raises(UserError, match=what) as caught:
        hub.fetch_dataset(SPEC, tmp_path)
    assert "owner/name" in caught.value.where
    assert "column='body'" in caught.value.where
    assert not online.waited
    assert _leftovers(tmp_path) == []


def test_nothing_is_tried_again_offline(tmp_path, online):
    errors = pytest.importorskip("huggingface_hub.errors")
    online.answers = [errors.OfflineModeIsEnabled("offline mode is enabled")]
    with pytest.raises(UserError, match="offline mode") as caught:
        hub.fetch_dataset(SPEC, tmp_path)
    assert "HF_HUB_OFFLINE" in caught.value.remedy
    assert not online.waited


def test_an_unknown_dataset_is_no_network_error(tmp_path, online):
    errors = pytest.importorskip("datasets.exceptions")
    online.answers = [errors.DatasetNotFoundError("Dataset 'owner/name' doesn't exist")]
    with pytest.raises(UserError, match=r"no such dataset: .*doesn't exist"):
        hub.fetch_dataset(SPEC, tmp_path)
    assert not online.waited


def test_a_folder_that_can_not_be_written_is_explained(tmp_path, online):
    (tmp_path / "datasets").write_text("a file")
    with pytest.raises(UserError, match="can't be written") as caught:
        hub.fetch_dataset(SPEC, tmp_path)
    assert "data.cache_dir" in caught.value.remedy


@pytest.mark.parametrize(
    ("spec", "what"),
    [
        ("hf://", "no name of a dataset but ''"),
        ("hf://a/b/c", "no name of a dataset but 'a/b/c'"),
        ("hf://../../etc", "no name of a dataset"),
        ("hf://a/b?field=text", "unknown option 'field'"),
    ],
)
def test_a_malformed_spec_is_explained(tmp_path, online, spec, what):
    with pytest.raises(UserError, match=what) as caught:
        hub.fetch_dataset(spec, tmp_path)
    assert "revision, config, split, column" in caught.value.remedy
    assert not online.asked


def test_the_whole_spec_is_understood():
    spec = "hf://a/b-c.d?revision=main&split=test&column=body&config=en"
    assert hub.DatasetSpec.parse(spec) == hub.DatasetSpec(
        "a/b-c.d", revision="main", split="test", column="body", config="en"
    )
    assert hub.DatasetSpec.parse("hf://a") == hub.DatasetSpec("a")


@pytest.mark.parametrize(
    ("setting", "what"),
    [
        ("HF_ENDPOINT=http://127.0.0.1:9", "refused"),
        ("HF_HUB_OFFLINE=1", "ffline"),
    ],
)
def test_the_real_library_without_a_network(tmp_path, setting, what):
    program = (
        "from pathlib import Path\n"
        "from lmjax.data.reading import hub\n"
        "hub._WAITS = (0.0,)\n"
        f"hub.fetch_dataset('hf://owner/name', Path({str(tmp_path)!r}))\n"
    )
    name, value = setting.split("=")
    environment = {name: value, "HF_HOME": str(tmp_path / "home"), "PATH": ""}
    done = subprocess.run(
        [sys.executable, "-c", program],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode != 0
    assert "can't be fetched" in done.stderr
    assert what in done.stderr
    assert "download it elsewhere" in done.stderr
