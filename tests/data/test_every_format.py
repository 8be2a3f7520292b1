"""However a corpus is stored, training sees what it sees of the same documents as text.

Each test writes documents as the tools that make a format write them, and compares the
batches of training and of evaluation, field by field, with those of plain text: a file
for each document. Held-out documents are files of their own, since which ones are drawn
depends on how they are stored. Ids come from the libraries that tokenise elsewhere.
"""

import dataclasses
import gzip
import io
import itertools
import json
import pickle
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import sentencepiece
import zstandard

from lmjax import experiment
from lmjax.config.schema import (
    Config,
    DataConfig,
    DataFormat,
    DocumentUnit,
    TokenDtype,
    TokenizerConfig,
    TokenizerKind,
)
from lmjax.data import pipeline
from lmjax.data.batch import Batch
from lmjax.data.preparation.manifest import Prepared
from lmjax.data.reading import hub
from lmjax.data.tokenization.training import train_tokenizer

LENGTH, BATCH, STEPS = 16, 8, 40  # several passes over every corpus here
FIELDS = tuple(field.name for field in dataclasses.fields(Batch))
TWO_DOCUMENTS = Path(__file__).parent / "reading" / "fixtures" / "two_documents.bin"

LINES = (
    "The cat sat on the mat.",
    "A dog saw the cat, and the cat saw the dog.",
    "It was late; nobody else was there.",
    "one",
    "\u00c9t\u00e9 comme hiver, le ch\u00e2teau est ferm\u00e9 \u00e0 c\u00f4t\u00e9.",
    "Gr\u00f6\u00dfe und Stra\u00dfe, \u00dcbung und \u00c4rger.",
    "e\u0301 is two characters, \u00e9 is one",
    "\u732b\u304c\u30de\u30c3\u30c8\u306e\u4e0a\u306b\u5ea7\u3063\u305f\u3002",
    "\u4f60\u597d\uff0c\u4e16\u754c\uff01 \u3000 a wide space",
    "\ud55c\uad6d\uc5b4 \ubb38\uc7a5",
    "Smile \U0001f600 and a family \U0001f468\u200d\U0001f469\u200d\U0001f467.",
    "\u0628\u0633\u0645 \u0627\u0644\u0644\u0647 from right to left",
    "a space is behind this ",
    "  two spaces are before this",
    "a\ttab inside",
    "\ta tab before, and one behind\t",
    "many      spaces",
    '"quoted", \\escaped\\ and {"json": "inside"}',
    "In 1984 they paid 3.50 for 12 of them, 1,000 times.",
    "no\u00a0break\u00a0here",
    "a line separator\u2028is no line end",
    "What? What! Well... (so they say) - yes; no: maybe/perhaps.",
    "THE SAME IN CAPITALS",
    "The cat sat on the mat.",  # again
)
PARAGRAPHS = (
    "two lines\nof one document",
    "A: Where is it?\nB: Where it was.\nA: I see.",
    "  indented\n\tby a tab\n  and back, with a space at the end \nof a line",
    "a line end of Windows\r\nin the middle",
)
WITH_BLANK_LINES = (
    "first paragraph\n\nsecond paragraph",
    "far\n\n\n\n apart\n \nand again",
    "Title\n\n\u732b\u304c\u3044\u308b\n\n\U0001f600",
)
BLOCKS = LINES + PARAGRAPHS
DOCUMENTS = BLOCKS + WITH_BLANK_LINES
HEADED = tuple(f"= = = Chapter {i} = = =\n{d}" for i, d in enumerate(DOCUMENTS))
HEADED_OUT = ("= = = One = = =\nThe dog was there.\n\nIt sat.", "= = = Two = = =\nNo.")
HELD_OUT = ("The dog sat on the \u732b.", "It was there, else it was \u00e9t\u00e9.")

Encode = Callable[[str], list[int]]
Write = Callable[[Path, Sequence[str]], list[Path]]  # below a folder; gives the paths


class Kind(NamedTuple):
    """A tokenizer: for lmjax, and for whoever made a file of ids."""

    config: TokenizerConfig
    encode: Encode
    eos: int


@pytest.fixture(scope="module")
def sentencepiece_kind(tmp_path_factory: pytest.TempPathFactory) -> Kind:
    file = tmp_path_factory.mktemp("sentencepiece") / "tokenizer.model"
    config = TokenizerConfig(path=str(file), vocab_size=400)
    file.write_bytes(train_tokenizer(config, DOCUMENTS * 5))
    processor = sentencepiece.SentencePieceProcessor(model_file=str(file))
    return Kind(config, processor.encode, processor.eos_id())


@pytest.fixture(scope="module")
def bytes_kind() -> Kind:
    config = TokenizerConfig(kind=TokenizerKind.BYTES)
    return Kind(config, lambda text: [5 + byte for byte in text.encode()], 2)


@pytest.fixture(scope="module")
def huggingface_kind(tmp_path_factory: pytest.TempPathFactory) -> Kind:
    library = pytest.importorskip("tokenizers")
    file = tmp_path_factory.mktemp("huggingface") / "tokenizer.json"
    config = TokenizerConfig(TokenizerKind.HUGGINGFACE, str(file), vocab_size=330)
    file.write_bytes(train_tokenizer(config, DOCUMENTS * 5))
    return _huggingface(library, file)


@pytest.fixture(scope="module")
def gpt2_kind(tmp_path_factory: pytest.TempPathFactory) -> Kind:
    """Both files of GPT-2, as its own trainer writes them."""
    library = pytest.importorskip("tokenizers")
    folder = tmp_path_factory.mktemp("gpt2")
    trained = library.ByteLevelBPETokenizer()
    trained.train_from_iterator(
        DOCUMENTS * 5,
        vocab_size=300,
        special_tokens=["<|endoftext|>"],
        show_progress=False,
    )
    vocabulary, merges = trained.save_model(str(folder))
    made = library.ByteLevelBPETokenizer(vocabulary, merges)
    return Kind(
        TokenizerConfig(TokenizerKind.GPT2, str(folder)),
        lambda text: made.encode(text).ids,
        made.token_to_id("<|endoftext|>"),
    )


@pytest.fixture(scope="module")
def make_large_kind(
    tmp_path_factory: pytest.TempPathFactory,
) -> Callable[[int], Kind]:
    """Makes a byte-level tokenizer in which "e", spaces and all that is not ASCII have
    ids from a number on; "a" to "d" are 5 to 8."""
    library = pytest.importorskip("tokenizers")

    def make(number: int) -> Kind:
        special = ["<unk>", "<s>", "</s>", "<pad>", "<mask>"]
        alphabet = sorted(library.pre_tokenizers.ByteLevel.alphabet())
        low = [*"abcd", *(c for c in alphabet if c.isascii() and c not in "abcde")]
        high = ["e", *(c for c in alphabet if not c.isascii())]
        names = [*special, *low]
        names += [f"<{i}>" for i in range(len(names), number)]
        vocabulary = {name: i for i, name in enumerate([*names, *high])}
        tokenizer = library.Tokenizer(library.models.BPE(vocab=vocabulary, merges=[]))
        tokenizer.add_special_tokens(special)
        level = library.pre_tokenizers.ByteLevel(add_prefix_space=False)
        tokenizer.pre_tokenizer = level
        tokenizer.decoder = library.decoders.ByteLevel()
        file = tmp_path_factory.mktemp("large") / "tokenizer.json"
        tokenizer.save(str(file))
        return _huggingface(library, file)

    return make


def _huggingface(library: Any, file: Path) -> Kind:
    made = library.Tokenizer.from_file(str(file))
    return Kind(
        TokenizerConfig(TokenizerKind.HUGGINGFACE, str(file)),
        lambda text: made.encode(text, add_special_tokens=False).ids,
        made.token_to_id("</s>"),
    )


class Same:
    """Compares corpora with the plain text of their documents.

    Args:
      folder: an empty one.
    """

    def __init__(self, folder: Path):
        self._folder = folder

    def check(
        self,
        tokenizer: TokenizerConfig,
        train: Sequence[str],
        valid: Sequence[str],
        *,
        texts: Mapping[str, Sequence[str]] | Sequence[str] = DOCUMENTS,
        held_out: Mapping[str, Sequence[str]] | Sequence[str] = HELD_OUT,
        fields: Sequence[str] = FIELDS,
        shard_bytes: int = 300,
        **data: Any,
    ) -> Prepared:
        """Prepares a corpus twice.

        Args:
          train, valid: as in the config; "text=..." and "held=..." where there is one
            source each.
          texts, held_out: the documents of each source, or of the only one.
          fields: of a batch, to be compared.
          shard_bytes: small enough for several shards.
          data: further fields of the config for the corpus, not for the text.
        """
        if not isinstance(texts, Mapping):
            texts = {"text": texts}
        if not isinstance(held_out, Mapping):
            held_out = {"held": held_out}
        plain = {
            "train": self._write_plain(texts),
            "valid": self._write_plain(held_out),
            "format": DataFormat.TEXT,
            "documents": DocumentUnit.FILE,
        }
        expected, text = self._read(tokenizer, shard_bytes=shard_bytes, **plain)
        given = {"train": tuple(train), "valid": tuple(valid)} | data
        found, prepared = self._read(tokenizer, shard_bytes=shard_bytes, **given)
        assert prepared.sources == text.sources
        assert len(found) == len(expected) > STEPS
        for number, (one, other) in enumerate(zip(found, expected, strict=True)):
            for field in fields:
                values = getattr(one, field)
                assert np.array_equal(values, getattr(other, field)), (field, number)
        counts = prepared.train.counts
        assert counts.documents == sum(map(len, texts.values()))
        return prepared

    def _write_plain(self, sources: Mapping[str, Sequence[str]]) -> tuple[str, ...]:
        for source, texts in sources.items():
            _write_files(self._folder / "plain" / source, texts)
        return tuple(f"{s}={self._folder / 'plain' / s}" for s in sources)

    def _read(
        self, tokenizer: TokenizerConfig, **data: Any
    ) -> tuple[list[Batch], Prepared]:
        cache = str(self._folder / "cache")
        prepared = experiment.prepare_corpus(
            Config(
                tokenizer=tokenizer,
                data=DataConfig(sequence_length=LENGTH, cache_dir=cache, **data),
            )
        )
        options = {"batch_size": BATCH, "document_mask": True}
        training = pipeline.train_batches(prepared, seed=3, **options)
        batches = list(itertools.islice(training, STEPS))
        return [*batches, *pipeline.eval_batches(prepared, **options)], prepared


@pytest.fixture
def same(tmp_path: Path) -> Same:
    return Same(tmp_path)


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    folder = tmp_path / "corpus"
    folder.mkdir()
    return folder


def _write_files(folder: Path, texts: Sequence[str]) -> None:
    folder.mkdir(parents=True)
    for number, text in enumerate(texts):
        (folder / f"{number:03}.txt").write_bytes(text.encode())


def test_plain_text_is_its_documents_one_behind_the_other(
    sentencepiece_kind: Kind, tmp_path: Path
) -> None:
    """What all others are compared with, against the windows as they are defined."""
    kind = sentencepiece_kind
    _write_files(tmp_path / "text", DOCUMENTS)
    _write_files(tmp_path / "held", HELD_OUT)
    config = Config(
        tokenizer=kind.config,
        data=DataConfig(
            train=(f"text={tmp_path / 'text'}",),
            valid=(f"held={tmp_path / 'held'}",),
            format=DataFormat.TEXT,
            documents=DocumentUnit.FILE,
            sequence_length=LENGTH,
            cache_dir=str(tmp_path / "cache"),
        ),
    )
    prepared = experiment.prepare_corpus(config)
    stream = [i for text in DOCUMENTS for i in (*kind.encode(text), kind.eos)]
    weights = [1] * len(stream) + [0] * (-len(stream) % LENGTH)
    stream += [prepared.tokenizer.special.pad] * (-len(stream) % LENGTH)
    windows = np.array(stream).reshape(-1, LENGTH).tolist()
    epoch = pipeline.train_batches(prepared, batch_size=len(windows), seed=0)
    batch = next(epoch)
    assert sorted(batch.tokens.tolist()) == sorted(windows)
    assert batch.weights.sum() == sum(weights)
    assert batch.words.sum() == sum(len(text.split()) for text in DOCUMENTS)
    assert batch.bytes.sum() == sum(len(text.encode()) for text in DOCUMENTS)


def _write_joined(
    separator: str, pack: Callable[[bytes], bytes] = bytes, name: str = "text.txt"
) -> Write:
    def write(folder: Path, texts: Sequence[str]) -> list[Path]:
        (folder / name).write_bytes(pack((separator.join(texts) + "\n").encode()))
        return [folder / name]

    return write


def _write_folder(folder: Path, texts: Sequence[str]) -> list[Path]:
    """Folders in it, and files that are hidden or no text."""
    half = len(texts) // 2
    for name, part in (("a", texts[:half]), ("b", texts[half:])):
        _write_files(folder / "texts" / name, part)
    (folder / "texts" / ".hidden.txt").write_text("not of the corpus")
    (folder / "texts" / "readme.md").write_text("nor is this")
    return [folder / "texts"]


def _write_glob(folder: Path, texts: Sequence[str]) -> list[Path]:
    _write_files(folder / "texts", texts)
    (folder / "texts" / "readme.md").write_text("not of the corpus")
    return [folder / "texts" / "*.txt"]


def _write_two(folder: Path, texts: Sequence[str]) -> list[Path]:
    half = len(texts) // 2
    (folder / "1.txt").write_text("\n\n".join(texts[:half]), "utf-8", newline="")
    (folder / "2.txt").write_text("\n\n".join(texts[half:]), "utf-8", newline="")
    return [folder / "1.txt", folder / "2.txt"]


def _gzip(content: bytes) -> bytes:
    """Two members, as `cat a.gz b.gz` makes them."""
    return gzip.compress(content[:100]) + gzip.compress(content[100:])


def _zstd(content: bytes) -> bytes:
    return zstandard.ZstdCompressor().compress(content)


def _mark(content: bytes) -> bytes:
    """A byte order mark, as Windows writes it."""
    return b"\xef\xbb\xbf" + content


class Layout(NamedTuple):
    texts: Sequence[str]
    unit: DocumentUnit
    write: Write


LAYOUTS = {
    "lines": Layout(LINES, DocumentUnit.LINE, _write_joined("\n")),
    "blank lines": Layout(BLOCKS, DocumentUnit.BLOCK, _write_joined("\n\n")),
    "blank lines found": Layout(BLOCKS, DocumentUnit.AUTO, _write_joined("\n \t\n\n")),
    "headings": Layout(HEADED, DocumentUnit.HEADING, _write_joined("\n")),
    "headings found": Layout(HEADED, DocumentUnit.AUTO, _write_joined("\n\n\n")),
    "folder": Layout(DOCUMENTS, DocumentUnit.FILE, _write_folder),
    "glob": Layout(DOCUMENTS, DocumentUnit.FILE, _write_glob),
    "two files": Layout(BLOCKS, DocumentUnit.AUTO, _write_two),
    "byte order mark": Layout(BLOCKS, DocumentUnit.AUTO, _write_joined("\n\n", _mark)),
    "gzip": Layout(
        BLOCKS, DocumentUnit.AUTO, _write_joined("\n\n", _gzip, "text.txt.gz")
    ),
    "zstd": Layout(
        BLOCKS, DocumentUnit.AUTO, _write_joined("\n\n", _zstd, "text.txt.zst")
    ),
}


def _write_both(
    folder: Path, write: Write, texts: Sequence[str], held_out: Sequence[str]
) -> dict[str, list[str]]:
    """Writes both splits; returns what the config calls them."""
    paths = {}
    for role, name, content in (
        ("train", "text", texts),
        ("valid", "held", held_out),
    ):
        (folder / name).mkdir()
        paths[role] = [f"{name}={path}" for path in write(folder / name, content)]
    return paths


@pytest.mark.parametrize("name", LAYOUTS)
def test_text(name: str, sentencepiece_kind: Kind, same: Same, corpus: Path) -> None:
    layout = LAYOUTS[name]
    held_out = HEADED_OUT if layout.texts is HEADED else HELD_OUT
    same.check(
        sentencepiece_kind.config,
        **_write_both(corpus, layout.write, layout.texts, held_out),
        texts=layout.texts,
        held_out=held_out,
        documents=layout.unit,
    )


@pytest.mark.parametrize(("suffix"), ["", ".txt"])
def test_the_files_of_babylm(
    suffix: str, sentencepiece_kind: Kind, same: Same, corpus: Path
) -> None:
    """Headings, blank lines or neither; each file is a source named after itself."""
    sources = {
        "gutenberg.train": HEADED,
        "childes.train": PARAGRAPHS + LINES,
        "switchboard.train": ("A: Where is it?\nB: It is here.",),
    }
    held_out = {"gutenberg.dev": HEADED_OUT, "childes.dev": HELD_OUT}
    for name, texts in (sources | held_out).items():
        folder = corpus / name.rpartition(".")[2]
        folder.mkdir(exist_ok=True)
        content = "\n\n".join(texts) + "\n"
        (folder / f"{name}{suffix}").write_bytes(content.encode())
    same.check(
        sentencepiece_kind.config,
        [str(corpus / "train")],
        [str(corpus / "dev")],
        texts={f"{name}{suffix}": texts for name, texts in sources.items()},
        held_out={f"{name}{suffix}": texts for name, texts in held_out.items()},
    )


def _write_json(*, ascii_only: bool, pack: Callable[[bytes], bytes] = bytes) -> Write:
    def write(folder: Path, texts: Sequence[str]) -> list[Path]:
        rows = [{"id": n, "body": t, "text": "other"} for n, t in enumerate(texts)]
        lines = [json.dumps(row, ensure_ascii=ascii_only) + "\n" for row in rows]
        (folder / "rows.jsonl").write_bytes(pack("".join(lines).encode()))
        return [folder]

    return write


def _write_parquet(folder: Path, texts: Sequence[str]) -> list[Path]:
    """Two files with several row groups, under the names that the hub gives them."""
    half = len(texts) // 2
    split = "train" if folder.name == "text" else "validation"
    for number, part in enumerate((texts[:half], texts[half:])):
        table = _arrow().table({"n": list(range(len(part))), "body": list(part)})
        file = folder / f"{split}-{number:05}-of-00002.parquet"
        pytest.importorskip("pyarrow.parquet").write_table(
            table, file, row_group_size=5
        )
    return [folder]


def _arrow() -> Any:
    return pytest.importorskip("pyarrow")


RECORDS = {
    "json lines": _write_json(ascii_only=False),
    "json lines in ASCII": _write_json(ascii_only=True, pack=_gzip),
    "parquet": _write_parquet,
}


@pytest.mark.parametrize("name", RECORDS)
def test_records(name: str, sentencepiece_kind: Kind, same: Same, corpus: Path) -> None:
    paths = _write_both(corpus, RECORDS[name], DOCUMENTS, HELD_OUT)
    same.check(sentencepiece_kind.config, **paths, text_field="body")


def test_a_dataset_of_the_hub(
    sentencepiece_kind: Kind,
    same: Same,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The library's own streams, of rows that are here instead of on the hub."""
    datasets = pytest.importorskip("datasets")
    splits = {"train": DOCUMENTS, "validation": HELD_OUT}
    asked = []

    def load(spec: hub.DatasetSpec) -> Any:
        asked.append((spec.name, spec.split, spec.revision))
        rows = {
            "story": list(splits[spec.split]),
            "text": ["x"] * len(splits[spec.split]),
        }
        return datasets.Dataset.from_dict(rows).to_iterable_dataset()

    monkeypatch.setattr(hub, "_load", load)
    monkeypatch.setattr(hub, "_resolve", lambda spec: "c0ffee")
    same.check(
        sentencepiece_kind.config,
        ["text=hf://owner/name?split=train&column=story"],
        ["held=hf://owner/name?split=validation&column=story"],
    )
    assert asked == [
        ("owner/name", "train", "c0ffee"),
        ("owner/name", "validation", "c0ffee"),
    ]


@pytest.mark.parametrize(("dtype", "first"), [("int16", 40_000), ("int64", 70_000)])
def test_tensors_of_the_babylm_guide(
    dtype: str,
    first: int,
    make_large_kind: Callable[[int], Kind],
    same: Same,
    corpus: Path,
) -> None:
    """Six files of documents, whose ids from 32,768 on became negative in int16."""
    torch = pytest.importorskip("torch")
    kind = make_large_kind(first)
    numbers = []

    def write(folder: Path, texts: Sequence[str]) -> list[Path]:
        num_files = 6 if folder.name == "text" else 1
        for part in range(num_files):
            begin, end = (len(texts) * n // num_files for n in (part, part + 1))
            tensors = [
                torch.tensor(kind.encode(text)).to(getattr(torch, dtype))
                for text in texts[begin:end]
            ]
            numbers.extend(i for tensor in tensors for i in tensor.tolist())
            torch.save(tensors, folder / f"file{part + 1}_tokenized.bin")
        return [folder]

    paths = _write_both(corpus, write, DOCUMENTS, HELD_OUT)
    assert (min(numbers) < 0) == (dtype == "int16")
    same.check(kind.config, **paths)


def test_a_file_that_torch_wrote_elsewhere(
    make_large_kind: Callable[[int], Kind], same: Same, corpus: Path
) -> None:
    """Where there is no torch: a file with the ids 5, 6, 7 and 8, 40000."""
    (corpus / "held.txt").write_text("cab")
    same.check(
        make_large_kind(40_000).config,
        [f"text={TWO_DOCUMENTS}"],
        [f"held={corpus / 'held.txt'}"],
        texts=["abc", "de"],
        held_out=["cab"],
    )


def _write_decimal(ids: Sequence[Sequence[int]], eos: int, layout: str) -> str:
    match layout:
        case "one line":
            return " ".join(str(i) for document in ids for i in (*document, eos))
        case "an id per line":
            return "".join(f"{i}\n" for document in ids for i in (*document, eos))
        case "a document per line":
            return "".join(" ".join(map(str, document)) + "\n" for document in ids)
    raise ValueError(layout)


@pytest.mark.parametrize(
    "layout", ["one line", "an id per line", "a document per line"]
)
def test_ids_in_decimal_of_the_cs336_guide(
    layout: str, gpt2_kind: Kind, same: Same, corpus: Path
) -> None:
    def write(folder: Path, texts: Sequence[str]) -> list[Path]:
        ids = list(map(gpt2_kind.encode, texts))
        (folder / "tokens.txt").write_text(_write_decimal(ids, gpt2_kind.eos, layout))
        return [folder / "tokens.txt"]

    same.check(gpt2_kind.config, **_write_both(corpus, write, DOCUMENTS, HELD_OUT))


def _write_raw(
    kind: Kind, dtype: str, *, bos: Sequence[int] = (), sidecar: str = ""
) -> Write:
    """train.bin or val.bin, each document between BOS, if there is one, and EOS."""

    def write(folder: Path, texts: Sequence[str]) -> list[Path]:
        name = "train.bin" if folder.name == "text" else "val.bin"
        ids = [i for text in texts for i in (*bos, *kind.encode(text), kind.eos)]
        np.array(ids, dtype).tofile(folder / name)
        # What else stands there.
        (folder / "meta.pkl").write_bytes(pickle.dumps({"vocab_size": 300}))
        if sidecar:
            (folder / f"{name}.json").write_text(json.dumps({"dtype": sidecar}))
        return [folder]

    return write


def test_raw_ids_of_nanogpt(gpt2_kind: Kind, same: Same, corpus: Path) -> None:
    write = _write_raw(gpt2_kind, "uint16")
    same.check(gpt2_kind.config, **_write_both(corpus, write, DOCUMENTS, HELD_OUT))


def test_raw_ids_of_the_rscalm_guide(
    sentencepiece_kind: Kind, same: Same, corpus: Path
) -> None:
    write = _write_raw(sentencepiece_kind, "uint16", bos=[1])
    paths = _write_both(corpus, write, DOCUMENTS, HELD_OUT)
    same.check(sentencepiece_kind.config, **paths)


@pytest.mark.parametrize("sidecar", ["uint32", ""])
def test_raw_ids_of_32_bits(
    sidecar: str, make_large_kind: Callable[[int], Kind], same: Same, corpus: Path
) -> None:
    kind = make_large_kind(70_000)
    write = _write_raw(kind, "uint32", sidecar=sidecar)
    paths = _write_both(corpus, write, DOCUMENTS, HELD_OUT)
    dtype = TokenDtype.AUTO if sidecar else TokenDtype.UINT32
    prepared = same.check(kind.config, **paths, token_dtype=dtype)
    assert prepared.layout.token_dtype == "<u4"


def test_a_tokenizer_as_the_rscalm_guide_trains_it(
    same: Same, corpus: Path, tmp_path: Path
) -> None:
    """SentencePiece with its defaults, which rewrite blanks and know no mask.

    Bytes differ: the blank that it puts before a document is not in the text.
    """
    model = io.BytesIO()
    lines = [
        f"the {a} {b} sees a {c}"
        for a, b, c in itertools.product(
            ("small", "old", "red"), ("cat", "dog", "bird"), ("tree", "house", "river")
        )
    ]
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(lines),
        model_writer=model,
        model_type="bpe",
        vocab_size=60,
        unk_id=0,
        bos_id=1,
        eos_id=2,
        pad_id=3,
        minloglevel=2,
    )
    file = tmp_path / "tokenizer.model"
    file.write_bytes(model.getvalue())
    processor = sentencepiece.SentencePieceProcessor(model_file=str(file))
    kind = Kind(TokenizerConfig(path=str(file)), processor.encode, 2)
    write = _write_raw(kind, "uint16", bos=[1])
    same.check(
        kind.config,
        **_write_both(corpus, write, lines[:-3], lines[-3:]),
        texts=lines[:-3],
        held_out=lines[-3:],
        fields=[field for field in FIELDS if field != "bytes"],
        shard_bytes=100_000,  # shards are cut by bytes
    )


@pytest.mark.parametrize("name", ["sentencepiece", "bytes", "huggingface", "gpt2"])
def test_every_tokenizer(
    name: str, same: Same, corpus: Path, request: pytest.FixtureRequest
) -> None:
    """Text for training, ids for validation: one corpus may mix them."""
    kind: Kind = request.getfixturevalue(f"{name}_kind")
    (corpus / "train.txt").write_bytes("\n\n".join(BLOCKS).encode())
    ids = map(kind.encode, HELD_OUT)
    text = _write_decimal(list(ids), kind.eos, "one line")
    (corpus / "valid.txt").write_text(text)
    same.check(
        kind.config,
        [f"text={corpus / 'train.txt'}"],
        [f"held={corpus / 'valid.txt'}"],
        texts=BLOCKS,
    )
