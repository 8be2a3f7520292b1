"""Tokens are counted as training counts them."""

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest

from lmjax.config.schema import (
    DataConfig,
    DocumentUnit,
    Packing,
    TokenizerConfig,
    TokenizerKind,
)
from lmjax.core.errors import UserError
from lmjax.data.pipeline import eval_batches
from lmjax.data.preparation.manifest import Prepared
from lmjax.data.preparation.prepare import prepare
from lmjax.data.preparation.statistics import token_counts
from lmjax.data.reading.sources import Source

LINES = [f"line {i}: {'na ' * (i % 7)}batman, \u732b" for i in range(60)]


def _prepare(folder: Path, **data) -> Prepared:
    """Two sources and several shards."""
    fields = {"prompt_field": "p", "text_field": "a"} if data.pop("prompts", 0) else {}
    sources = []
    for name, lines in (("one", LINES[:45]), ("two", LINES[45:])):
        file = folder / f"{name}.txt"
        if fields:
            lines = [json.dumps({"p": line[:8], "a": line[8:]}) for line in lines]
        file.write_text("\n".join(lines), "utf-8")
        sources.append(Source(name, (file,)))
    return prepare(
        DataConfig(
            sequence_length=16,
            cache_dir=str(folder / "cache"),
            documents=DocumentUnit.LINE,
            shard_bytes=500,
            **fields,
            **data,
        ),
        TokenizerConfig(kind=TokenizerKind.BYTES),
        seed=0,
        train=sources,
        progress=False,
    )


@pytest.mark.parametrize(
    "data",
    [
        {},
        {"bos": True},
        {"packing": Packing.BEST_FIT},
        {"packing": Packing.DOCUMENTS, "stride": 5, "bos": True},
        {"packing": Packing.DOCUMENTS, "prompts": True},
        {"packing": Packing.DOCUMENTS, "prompts": True, "stride": 9, "bos": True},
    ],
    ids=str,
)
def test_tokens_are_counted_where_they_have_a_weight(tmp_path, data):
    prepared = _prepare(tmp_path, **data)
    assert len(prepared.train.records[0].shards) > 1
    expected = np.zeros(prepared.tokenizer.vocab_size, np.int64)
    for batch in eval_batches(prepared, batch_size=8, split="train"):
        np.add.at(expected, batch.tokens[batch.weights > 0], 1)
    counts = token_counts(prepared)
    assert counts.dtype == np.int64
    assert counts.tolist() == expected.tolist()
    totals = prepared.train.counts
    assert counts.sum() == totals.tokens
    special = prepared.tokenizer.special
    assert counts[special.eos] == totals.documents
    assert counts[[special.bos, special.pad, special.mask]].tolist() == [0, 0, 0]


def test_what_is_held_out_is_not_counted(tmp_path):
    prepared = _prepare(tmp_path)
    assert prepared.valid.counts.documents > 0
    cats = 5 + "\u732b".encode()[0]  # one in each document
    assert token_counts(prepared)[cats] == prepared.train.counts.documents


def test_a_damaged_shard_is_named(tmp_path):
    prepared = _prepare(tmp_path)
    copy = tmp_path / "copy"
    copy.mkdir()
    with pytest.raises(UserError, match=r"train-000-00000\.array_record") as caught:
        token_counts(dataclasses.replace(prepared, folder=copy))
    assert caught.value.where == str(copy)
    assert "--mode prepare" in caught.value.remedy
