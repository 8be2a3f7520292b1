"""A Beam pipeline makes the very files that one machine makes."""

import random
import sys
from pathlib import Path

import pytest

from lmjax.config.schema import DataConfig, DocumentUnit, TokenizerConfig
from lmjax.core.errors import UserError
from lmjax.data.preparation import beam
from lmjax.data.preparation.prepare import prepare
from lmjax.data.reading.sources import find_sources


@pytest.fixture
def corpus(tmp_path) -> Path:
    folder = tmp_path / "corpus"
    folder.mkdir()
    rng = random.Random(0)
    for name in ("one.train", "two.train", "three.train"):
        lines = [
            " ".join(rng.choices(["cat", "dog", "sees", name], k=9)) for _ in range(90)
        ]
        (folder / name).write_text("\n\n".join(lines))
    return folder


def _prepare(corpus: Path, cache: Path, **data):
    return prepare(
        DataConfig(
            sequence_length=16,
            documents=DocumentUnit.BLOCK,
            cache_dir=str(cache),
            shard_bytes=900,
            **data,
        ),
        TokenizerConfig(vocab_size=290),
        seed=0,
        train=find_sources((str(corpus),), "train"),
    )


@pytest.mark.filterwarnings("default")
def test_a_pipeline_makes_what_this_machine_makes(corpus, tmp_path):
    pytest.importorskip("apache_beam", reason="needs the extra beam")
    local = _prepare(corpus, tmp_path / "local")
    piped = _prepare(corpus, tmp_path / "beam", beam=("--runner=DirectRunner",))
    assert piped.sha256 == local.sha256
    assert len(piped.train.records[0].shards) > 3
    for file in local.folder.glob("*.*"):
        assert (piped.folder / file.name).read_bytes() == file.read_bytes()
    assert not list((tmp_path / "beam").glob(".beam-*"))


def test_the_extra_is_named_where_it_is_missing(corpus, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "apache_beam", None)
    with pytest.raises(UserError, match="needs the package 'apache_beam'") as caught:
        beam.BeamWorkers(["--runner=DirectRunner"], tmp_path)
    assert "lmjax[beam]" in caught.value.remedy
