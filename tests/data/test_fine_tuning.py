"""Prompts are read and never count; answers count as they would by themselves."""

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import sentencepiece

from lmjax.config import checks
from lmjax.config.schema import (
    CleaningConfig,
    Config,
    DataConfig,
    DataFormat,
    Packing,
    TokenizerConfig,
    TokenizerKind,
)
from lmjax.core.errors import ConfigError, UserError
from lmjax.data.batch import Batch
from lmjax.data.pipeline import Windows, train_batches
from lmjax.data.preparation import corpus_tokenizer, statistics
from lmjax.data.preparation.manifest import Prepared
from lmjax.data.preparation.prepare import prepare
from lmjax.data.reading import documents
from lmjax.data.reading.sources import Source
from lmjax.data.tokenization.tokenizers import load_tokenizer
from lmjax.data.tokenization.training import train_tokenizer

BOS, EOS, PAD = 1, 2, 3  # of the tokenizer of bytes, in which "a" is 102
BYTES = TokenizerConfig(kind=TokenizerKind.BYTES)
Records = list[tuple[str, str]]

RECORDS: Records = [
    ("What is 2+2? ", "4"),
    ("What is 2+2?", " 4"),
    ("What is 2+2?\n", "It is 4.\n"),
    ("What is 2+2?", "\n\nIt is 4."),
    ("Go on: the ca", "t sat  on the mat"),
    ("", "no prompt"),
    (" ", "a blank"),
    ("\u732b\u306f?", "\u5ea7\u3063\u305f\u3002 \U0001f600"),
    ("The same again: ", "no prompt"),
    ("</s>\u2581<pad>", "<mask>\u2581<s>"),
]

HELD_OUT = ("in ", "o t")


def _write(file: Path, records: Records) -> Path:
    lines = [json.dumps({"prompt": p, "answer": a, "n": 1}) for p, a in records]
    file.write_text("\n".join(lines) + "\n")
    return file


def _prepare(
    folder: Path,
    records: Records,
    *,
    tokenizer: TokenizerConfig = BYTES,
    cleaning: CleaningConfig | None = None,
    file: Path | None = None,
    **data: Any,
) -> Prepared:
    """Prepares records for training, and one more that is held out."""
    file = file or _write(folder / "train.jsonl", records)
    held = _write(folder / "held.jsonl", [HELD_OUT])
    defaults = {
        "sequence_length": 64,
        "packing": Packing.DOCUMENTS,
        "text_field": "answer",
        "prompt_field": "prompt",
        "cache_dir": str(folder / "cache"),
    }
    return prepare(
        DataConfig(**defaults | data),
        tokenizer,
        cleaning,
        seed=0,
        train=[Source("train", (file,))],
        valid=[Source("held", (held,))],
        progress=False,
    )


def _batch(prepared: Prepared) -> Batch:
    windows = Windows(prepared, "train")
    return windows.batch(range(len(windows)))


def _rows(batch: Batch) -> list[tuple[list[int], list[float]]]:
    return list(zip(batch.tokens.tolist(), batch.weights.tolist(), strict=True))


def _ids(text: str) -> list[int]:
    """Bytes, and "$" for EOS, "^" for BOS, "_" for padding."""
    special = {"$": EOS, "^": BOS, "_": PAD}
    return [special.get(c, 5 + ord(c)) for c in text]


def _spells(rows: np.ndarray, *texts: str) -> bool:
    return rows.tolist() == [_ids(text) for text in texts]


def _texts(prepared: Prepared, batch: Batch) -> list[str]:
    """What each document counts; documents end with their EOS."""
    found, document = [], []
    for token in batch.tokens[batch.weights > 0].tolist():
        if token == prepared.tokenizer.special.eos:
            found.append(prepared.tokenizer.decode(document))
            document = []
        else:
            document.append(token)
    assert not document
    return found


def test_a_prompt_stands_at_the_start_and_does_not_count(tmp_path):
    prepared = _prepare(tmp_path, [("ab ", "cd e")], sequence_length=10, bos=True)
    batch = _batch(prepared)
    assert _spells(batch.tokens, "^ab cd e$_")
    assert batch.weights.tolist() == [[0, 0, 0, 0, 1, 1, 1, 1, 1, 0]]
    assert batch.words.tolist() == [[0, 0, 0, 0, 1, 0, 0, 1, 0, 0]]
    assert batch.bytes.tolist() == [[0, 0, 0, 0, 1, 1, 1, 1, 0, 0]]
    counts = prepared.train.counts
    assert (counts.documents, counts.windows) == (1, 1)
    assert (counts.words, counts.bytes, counts.tokens) == (2, 4, 5)


def test_records_do_not_share_windows(tmp_path):
    prepared = _prepare(tmp_path, [("a", "b"), ("", "c"), ("d", "e")], bos=True)
    batch = _batch(prepared)
    assert _spells(batch.tokens[:, :4], "^ab$", "^c$_", "^de$")
    assert batch.weights[:, :4].tolist() == [[0, 0, 1, 1], [0, 1, 1, 0], [0, 0, 1, 1]]
    assert not batch.weights[:, 4:].any()


def test_a_long_answer_goes_on_without_its_prompt(tmp_path):
    batch = _batch(_prepare(tmp_path, [("ab", "cdefgh")], sequence_length=4))
    assert _spells(batch.tokens, "abcd", "efgh", "$___")
    assert batch.weights.tolist() == [[0, 0, 1, 1], [1, 1, 1, 1], [1, 0, 0, 0]]


@pytest.mark.parametrize(
    ("prompt", "answer", "stride", "rows", "weights"),
    [
        ("ab", "cdefgh", 3, ["abcd", "defg", "gh$_"], ["0011", "0111", "0110"]),
        # Further than the prompt is from the end of the window.
        ("abc", "def", 1, ["abcd", "bcde", "cdef", "def$"], ["0001"] * 4),
    ],
)
def test_with_a_stride_each_answer_counts_once(
    tmp_path, prompt, answer, stride, rows, weights
):
    batch = _batch(
        _prepare(tmp_path, [(prompt, answer)], sequence_length=4, stride=stride)
    )
    assert _spells(batch.tokens, *rows)
    assert [
        "".join(map(str, row)) for row in batch.weights.astype(int).tolist()
    ] == weights


@pytest.fixture(
    params=["bytes", "bpe", "unigram", "huggingface"],
)
def tokenizer(request, tmp_path) -> TokenizerConfig:
    if request.param == "bytes":
        return BYTES
    kind = TokenizerKind.SENTENCEPIECE
    if request.param == "huggingface":
        pytest.importorskip("tokenizers")
        kind = TokenizerKind.HUGGINGFACE
    config = TokenizerConfig(kind=kind, path=str(tmp_path / "model"), vocab_size=300)
    if request.param == "unigram":
        config.model = type(config.model).UNIGRAM
    texts = [prompt + answer for prompt, answer in RECORDS] * 5
    Path(config.path).write_bytes(train_tokenizer(config, texts))
    return config


@pytest.mark.parametrize("bos", [False, True])
def test_prompt_and_answer_decode_to_their_text(tmp_path, tokenizer, bos):
    prepared = _prepare(tmp_path, RECORDS, tokenizer=tokenizer, bos=bos)
    batch = _batch(prepared)
    assert [prepared.tokenizer.decode(row) for row in batch.tokens] == [
        prompt + answer for prompt, answer in RECORDS
    ]
    for row, (prompt, _) in zip(batch.tokens, RECORDS, strict=True):
        opening = [BOS] * bos + prepared.tokenizer.encode(prompt)
        assert row[: len(opening)].tolist() == opening


@pytest.mark.parametrize("length, stride", [(64, 0), (24, 0), (24, 1), (24, 17)])
def test_answers_are_counted_as_they_are_without_prompts(
    tmp_path, tokenizer, length, stride
):
    prepared = _prepare(
        tmp_path, RECORDS, tokenizer=tokenizer, sequence_length=length, stride=stride
    )
    batch = _batch(prepared)
    answers = [answer for _, answer in RECORDS]
    assert _texts(prepared, batch) == answers
    encode = prepared.tokenizer.encode
    counted = [t for answer in answers for t in (*encode(answer), EOS)]
    assert batch.tokens[batch.weights > 0].tolist() == counted
    counts = prepared.train.counts
    assert counts.words == batch.words.sum() == sum(len(a.split()) for a in answers)
    assert counts.bytes == batch.bytes.sum() == sum(len(a.encode()) for a in answers)
    assert counts.tokens == batch.weights.sum() == len(counted)
    assert not batch.words[batch.weights == 0].any()
    assert not batch.bytes[batch.weights == 0].any()


def test_a_tokenizer_that_puts_a_blank_before_texts_puts_one_at_the_seam(tmp_path):
    """SentencePiece with its defaults, as RSCaLM trains it."""
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(["the cat sees a dog", "two and two is four"] * 9),
        model_writer=model,
        model_type="bpe",
        vocab_size=40,
        minloglevel=2,
    )
    config = TokenizerConfig(path=str(tmp_path / "x.model"))
    Path(config.path).write_bytes(model.getvalue())
    records = [("two and two", "is four"), ("the ", " cat")]
    batch = _batch(_prepare(tmp_path, records, tokenizer=config))
    decode = load_tokenizer(config).decode
    texts = [decode(row) for row in batch.tokens]
    assert texts == ["two and two is four", "the cat"]


@pytest.mark.parametrize("workers", [1, 2])
def test_an_answer_in_pieces_and_shards_is_whole(tmp_path, monkeypatch, workers):
    if workers == 1:  # what is patched stays in this process
        monkeypatch.setattr(documents, "MAX_PIECE_BYTES", 64)
    lines = "".join(f"line {i} of the answer\n" for i in range(40))
    records = [("Write! ", lines), ("a ", "b"), ("Again: ", lines + "c")]
    prepared = _prepare(tmp_path, records, shard_bytes=300, workers=workers)
    assert len(prepared.train.records[0].shards) > 1
    batch = _batch(prepared)
    assert _texts(prepared, batch) == [answer for _, answer in records]
    assert batch.words.sum() == sum(len(answer.split()) for _, answer in records)
    openings = [row[: weights.index(1)] for row, weights in _rows(batch)]
    prompts = [prepared.tokenizer.decode(opening) for opening in openings if opening]
    assert prompts == [prompt for prompt, _ in records]


def test_training_draws_the_same_windows(tmp_path):
    prepared = _prepare(tmp_path, RECORDS)
    batch = next(train_batches(prepared, batch_size=len(RECORDS), seed=1))
    assert sorted(_rows(batch)) == sorted(_rows(_batch(prepared)))


BAD = {
    "no prompt": ('{"answer": "a"}', "'prompt' is missing", "data.prompt_field"),
    "null": ('{"prompt": null, "answer": "a"}', "JSON null", "data.prompt_field"),
    "a number": ('{"prompt": 3, "answer": "a"}', "JSON number", "data.prompt_field"),
    "no answer": ('{"prompt": "a"}', "'answer' is missing", "data.text_field"),
    "empty": ('{"prompt": "a", "answer": ""}', "is empty", "take the record out"),
    "blank": ('{"prompt": "a", "answer": " \\n"}', "is empty", "data.text_field"),
    "half a pair": (
        '{"prompt": "\\ud800", "answer": "a"}',
        "half a surrogate pair",
        "replace_invalid_utf8",
    ),
}


@pytest.mark.parametrize("line, what, remedy", BAD.values(), ids=BAD)
def test_a_record_that_is_wrong_is_named(tmp_path, line, what, remedy):
    file = _write(tmp_path / "x.jsonl", [("a", "b")])
    file.write_text(file.read_text() + "\n" + line + "\n")
    with pytest.raises(UserError) as caught:
        _prepare(tmp_path, [], file=file)
    assert what in caught.value.what
    assert caught.value.where == f"{file}, line 3"
    assert remedy in caught.value.remedy


@pytest.mark.parametrize("bos", [False, True])
def test_a_prompt_that_leaves_no_room_is_named(tmp_path, bos):
    fits = ("p" * (7 - bos), "answer")
    prepared = _prepare(tmp_path, [fits], sequence_length=8, bos=bos)
    batch = _batch(prepared)
    assert _texts(prepared, batch) == ["answer"]
    assert batch.weights[0].tolist() == [0] * 7 + [1]
    long = [("a", "b"), fits, ("p" * (8 - bos), "c"), ("p" * 20, "d")]
    with pytest.raises(UserError, match="leaves no room") as caught:
        _prepare(tmp_path, long, sequence_length=8, bos=bos)
    assert f"{8 - bos} tokens" in caught.value.what
    assert caught.value.where == f"{tmp_path / 'train.jsonl'}, line 3"
    assert f"data.sequence_length to {21 + bos} or more" in caught.value.remedy
    assert not list((tmp_path / "cache").rglob("*.tmp"))
    _prepare(tmp_path, long, sequence_length=21 + bos, bos=bos)


@pytest.mark.parametrize(
    ("content", "kind"),
    [(b"some text\n", "text"), (b"5 6 7 2\n", "token_text"), (b"a", "token_ids")],
)
def test_files_without_fields_are_refused(tmp_path, content, kind):
    (tmp_path / "x").write_bytes(content)
    kind_given = DataFormat(kind) if kind == "token_ids" else DataFormat.AUTO
    with pytest.raises(UserError, match=f"read as {kind}") as caught:
        _prepare(tmp_path, [], file=tmp_path / "x", format=kind_given)
    assert caught.value.where == str(tmp_path / "x")
    assert "data.prompt_field" in caught.value.remedy


def test_an_empty_file_is_left_out(tmp_path):
    (tmp_path / "empty.jsonl").touch()
    file = _write(tmp_path / "x.jsonl", [("a", "b")])
    data = DataConfig(
        packing=Packing.DOCUMENTS,
        text_field="answer",
        prompt_field="prompt",
        cache_dir=str(tmp_path / "cache"),
    )
    held = _write(tmp_path / "held.jsonl", [HELD_OUT])
    files = (file, tmp_path / "empty.jsonl")
    train = [Source("all", files), Source("none", files[1:])]
    valid = [Source("held", (held,))]
    prepared = prepare(data, BYTES, seed=0, train=train, valid=valid)
    assert prepared.train.counts.documents == 1
    assert prepared.statistics["train"]["all"]["prompt_words"] == 1


def test_columns_are_read_as_fields_are(tmp_path):
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    prompts, answers = zip(*RECORDS, strict=True)
    # The file's order of columns is not that in which they are asked for.
    table = pyarrow.table(
        {"prompt": prompts, "n": range(len(prompts)), "answer": answers}
    )
    parquet.write_table(table, tmp_path / "x.parquet", row_group_size=3)
    found = _batch(_prepare(tmp_path, [], file=tmp_path / "x.parquet"))
    expected = _batch(_prepare(tmp_path, RECORDS))
    for field in ("tokens", "weights", "words", "bytes"):
        assert np.array_equal(getattr(found, field), getattr(expected, field))


@pytest.mark.parametrize(
    ("columns", "what", "where"),
    [
        ({"prompt": ["a", None], "answer": ["b", "c"]}, "'prompt' is null", ", row 2"),
        ({"prompt": ["a", "b"], "answer": [None, "c"]}, "'answer' is null", ", row 1"),
        ({"prompt": ["a", "b"], "answer": ["c", " "]}, "is empty", ", row 2"),
        ({"answer": ["a"]}, "'prompt' is missing", ""),
        ({"prompt": [1], "answer": ["a"]}, "'prompt' holds int64", ""),
        ({"prompt": ["p" * 64], "answer": ["a"]}, "leaves no room", ", row 1"),
    ],
)
def test_a_row_that_is_wrong_is_named(tmp_path, columns, what, where):
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    file = tmp_path / "x.parquet"
    parquet.write_table(pyarrow.table(columns), file)
    with pytest.raises(UserError, match=what) as caught:
        _prepare(tmp_path, [], file=file)
    assert caught.value.where == f"{file}{where}"


def test_a_prompt_is_part_of_what_the_cache_is_named_after(tmp_path):
    plain = _prepare(tmp_path, RECORDS, prompt_field="")
    with_prompts = _prepare(tmp_path, RECORDS)
    assert plain.folder != with_prompts.folder
    assert plain.sha256 != with_prompts.sha256
    assert "prompt" not in (plain.folder / "manifest.json").read_text()
    again = _prepare(tmp_path, RECORDS)
    assert again.folder == with_prompts.folder
    assert again.sha256 == with_prompts.sha256


def test_equal_records_are_duplicates_and_equal_answers_are_none(tmp_path):
    records = [("a", "bc"), ("ab", "c"), ("x", "bc"), ("", "abc"), ("a", "bc")]
    cleaning = CleaningConfig(exact_duplicates=True)
    prepared = _prepare(tmp_path, records, cleaning=cleaning)
    found = _batch(prepared).tokens
    texts = [prepared.tokenizer.decode(row) for row in found]
    assert texts == ["abc", "abc", "xbc", "abc"]
    removed = prepared.statistics["removed"]["train"]["train"]
    assert removed == {"exact_duplicates": {"documents": 1, "words": 1}}


def test_near_duplicates_resemble_in_prompt_and_answer(tmp_path):
    pytest.importorskip("datasketch")
    prompts = [" ".join(f"{name}{i}" for i in range(12)) for name in "ab"]
    records = [(prompts[0], "yes"), (prompts[1], "yes"), (prompts[1], "yes")]
    cleaning = CleaningConfig(near_duplicates=0.8)
    prepared = _prepare(tmp_path, records, cleaning=cleaning)
    assert prepared.train.counts.documents == 2


def test_cleaning_keeps_the_blank_at_the_seam(tmp_path):
    records = [("  Q:  x ", "4  \n 5 "), ("Q:", "   4"), ("", "  4")]
    cleaning = CleaningConfig(whitespace=True)
    prepared = _prepare(tmp_path, records, cleaning=cleaning)
    texts = [prepared.tokenizer.decode(row) for row in _batch(prepared).tokens]
    assert texts == ["Q: x 4\n5", "Q: 4", "4"]
    assert _texts(prepared, _batch(prepared)) == ["4\n5", " 4", "4"]
    assert prepared.statistics["rewritten"] == {"train": {"train": {"whitespace": 3}}}


def test_few_words_are_those_of_the_answer(tmp_path):
    records = [("a long prompt", "one"), ("", "one two")]
    prepared = _prepare(tmp_path, records, cleaning=CleaningConfig(min_words=2))
    assert _texts(prepared, _batch(prepared)) == ["one two"]


def test_words_of_prompts_are_told_by_themselves(tmp_path):
    prepared = _prepare(tmp_path, [("two words ", "one"), ("2+", "2 = 4")])
    figures = prepared.statistics["train"]["train"]
    assert (figures["prompt_words"], figures["words"]) == (3, 4)
    assert prepared.train.counts.words == 4
    told = statistics.table(prepared).splitlines()
    assert "prompts of train (train): 3 words, not counted above" in told
    assert "prompts of held (valid): 1 words, not counted above" in told


def test_shards_hold_so_much_prompt_and_text(tmp_path):
    prepared = _prepare(tmp_path, [("p" * 50, "a")] * 20, shard_bytes=500)
    # 51 bytes, and 64 that a record costs beyond its text.
    assert 4 <= len(prepared.train.records[0].shards) <= 5


def test_a_tokenizer_learns_from_prompts_too(tmp_path, monkeypatch):
    seen = []
    real = corpus_tokenizer.train_tokenizer

    def train(config, texts):
        seen.extend(texts)
        return real(config, [*seen, *seen])

    monkeypatch.setattr(corpus_tokenizer, "train_tokenizer", train)
    _prepare(tmp_path, RECORDS, tokenizer=TokenizerConfig(vocab_size=320))
    assert seen == [prompt + answer for prompt, answer in RECORDS]


def _config(**data: Any) -> Config:
    return Config(data=DataConfig(prompt_field="prompt", **data))


def test_settings_that_go_with_prompts_pass():
    kinds = (DataFormat.AUTO, DataFormat.JSON_LINES, DataFormat.PARQUET)
    for kind in kinds:
        checks.check(_config(packing=Packing.DOCUMENTS, format=kind))


@pytest.mark.parametrize(
    "data",
    [
        *({"packing": packing} for packing in Packing if packing.value != "documents"),
        {"packing": Packing.DOCUMENTS, "text_field": "prompt"},
        {"packing": Packing.DOCUMENTS, "format": DataFormat.TEXT},
        {"packing": Packing.DOCUMENTS, "format": DataFormat.TOKEN_IDS},
    ],
    ids=str,
)
def test_settings_that_do_not_go_with_prompts_are_refused(data):
    with pytest.raises(ConfigError) as caught:
        checks.check(_config(**data))
    assert "data.prompt_field='prompt': needs data.packing=documents" in str(
        caught.value
    )
    assert len(str(caught.value).splitlines()) == 2


def test_a_corpus_of_prompts_alone_in_other_windows_is_no_silent_loss(tmp_path):
    """Who calls the library has no checks of a config."""
    for packing in (Packing.CONCATENATE, Packing.BEST_FIT):
        with pytest.raises(ValueError, match="windows of one document"):
            _prepare(tmp_path, RECORDS, packing=packing)


def test_evaluation_counts_answers_alone(tmp_path):
    prepared = _prepare(tmp_path, RECORDS)
    windows = Windows(prepared, "valid")
    batch = windows.batch(range(len(windows)))
    assert _spells(batch.tokens[:, :8], "in o t$_")
    assert batch.weights[0, :8].tolist() == [0, 0, 0, 1, 1, 1, 1, 0]
    assert batch.weights.sum() == prepared.valid.counts.tokens == 4
