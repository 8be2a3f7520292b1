"""Every kind of file that comes from elsewhere: valid ones, their damage, their reader.

A case is a number: it draws one of the examples of a kind, damages one of its files,
and reads the folder as lmjax would. Libraries are imported where they are used, so that
a process that fuzzes one kind holds little.
"""

import dataclasses
import functools
import io
import json
import shutil
import tarfile
import tempfile
import zlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from tests.faults import mutations
from tests.faults.mutations import Mutation, bytes_of, json_lines_of, json_of, mixture

Files = Mapping[str, bytes]

_SENTENCES = (
    "The small dog sees a cat.",
    "She has two books, and he has 13!",
    "Élan: naïve cafés — \U0001f600 \u8a9e.",
    "It's raining\tagain.",
)
TEXT = "\n\n".join(f"{sentence} {i}" for i in range(9) for sentence in _SENTENCES)
_TWO_DOCUMENTS = Path(__file__).parents[1] / "data/reading/fixtures/two_documents.bin"


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Kind:
    """A kind of file.

    Attributes:
      examples: makes valid ones, each a folder of files.
      read: reads a folder as lmjax does; the generator chooses among settings.
      damage: the mutation of a file, by how its name ends; "" is any other.
      share: how many cases of a run over all kinds are of this one.
    """

    name: str
    examples: Callable[[], Sequence[Files]]
    read: Callable[[Path, np.random.Generator], Any]
    damage: Mapping[str, Mutation]
    share: float

    def case(self, number: int, seed: int) -> tuple[dict[str, bytes], Any]:
        """The files of a case, and the generator that its reader goes on with."""
        key = zlib.crc32(self.name.encode())
        rng = np.random.default_rng([seed, key, number])
        files = dict(mutations.pick(rng, examples_of(self)))
        names = sorted(files)
        for _ in range(1 + int(rng.integers(6) == 0)):
            name = mutations.pick(rng, names)
            ending = max((e for e in self.damage if name.endswith(e)), key=len)
            if rng.integers(100) == 0:
                files.pop(name, None)
            elif name in files:
                files[name] = self.damage[ending](rng, files[name])
        return files, rng


@functools.cache
def examples_of(kind: Kind) -> Sequence[Files]:
    """Made once."""
    return kind.examples()


def write(files: Files, folder: Path) -> None:
    """Makes the folder hold these files, and no others."""
    for path in folder.iterdir():
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink()
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)


def _folder_of(fill: Callable[[Path], None]) -> dict[str, bytes]:
    """The files that something writes into an empty folder."""
    with tempfile.TemporaryDirectory() as name:
        fill(Path(name))
        return {
            path.relative_to(name).as_posix(): path.read_bytes()
            for path in sorted(Path(name).rglob("*"))
            if path.is_file()
        }


# Configs, and what a run folder holds.
def _configs() -> list[Files]:
    from lmjax.config import schema, serialize

    knows_time = schema.ModelConfig(backbone=schema.Backbone.DIT)
    knows_time.time_conditioning = True
    configs = (
        schema.Config(),
        schema.Config(objective=schema.AutoregressiveConfig()),
        schema.Config(objective=schema.UniformDiffusionConfig(), model=knows_time),
    )
    texts = [serialize.to_json(config) for config in configs]
    return [{"config.json": text.encode()} for text in texts]


def _read_config(folder: Path, rng: np.random.Generator) -> None:
    from lmjax.config import checks
    from lmjax.config.load import load_config

    checks.check(load_config(str(folder / "config.json")), num_devices=1)


def _ledgers() -> list[Files]:
    counts = {"words": 1_000_100, "tokens": 1_400_000, "step": 12, "overshoot": 100}
    entries = [{"name": "chck_1M", "milestone": 1_000_000} | counts]
    return [{"ledger.json": json.dumps(entries).encode()}]


def _read_ledger(folder: Path, rng: np.random.Generator) -> None:
    from lmjax.train.milestones import read_ledger

    for entry in read_ledger(folder):
        assert isinstance(entry["name"], str) and isinstance(entry["words"], int)


def _metrics() -> list[Files]:
    lines = [{"step": step, "split": "train", "loss": 2.5} for step in range(6)]
    samples = [{"step": step, "prompt": "", "text": "a\u2028b"} for step in (2, 4)]
    return [
        {
            "metrics.jsonl": "".join(json.dumps(x) + "\n" for x in lines).encode(),
            "samples.jsonl": "".join(json.dumps(x) + "\n" for x in samples).encode(),
        }
    ]


def _read_metrics(folder: Path, rng: np.random.Generator) -> None:
    from lmjax.config.schema import LogConfig
    from lmjax.train.loggers import RunLogger

    config = LogConfig(tensorboard=False)
    logger = RunLogger(
        folder, config, total_steps=9, start_step=3, stream=io.StringIO()
    )
    logger.close()


# Tokenizers.
def _sentencepiece_models() -> list[Files]:
    from lmjax.config.schema import SentencePieceModel, TokenizerConfig
    from lmjax.data.tokenization.training import train_tokenizer

    import sentencepiece  # isort: skip

    models = []
    for model in SentencePieceModel:
        config = TokenizerConfig(vocab_size=320, model=model)
        models.append(train_tokenizer(config, iter(TEXT.split("\n\n"))))
    # As others train theirs: text is normalised, bytes have no pieces.
    out = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(TEXT.split("\n\n")),
        model_writer=out,
        vocab_size=70,
        hard_vocab_limit=False,
        minloglevel=2,
    )
    return [{"tokenizer.model": model} for model in (*models, out.getvalue())]


def _use(tokenizer: Any) -> None:
    """What lmjax asks of a tokenizer, on a few texts."""
    texts = [TEXT[:200], "", " a\u2581b <s> </s>\n", "\x00\U0001f600"]
    for text, ids in zip(texts, tokenizer.encode_ids(texts), strict=True):
        aligned, sizes = tokenizer.encode_aligned(text)
        assert sizes.sum() == len(text.encode()) and len(aligned) == len(sizes)
        tokenizer.decode(ids)
        assert not len(ids) or 0 <= ids.min() <= ids.max() < tokenizer.vocab_size
    assert len(tokenizer.piece_bytes) == tokenizer.vocab_size


def _read_tokenizer(kind: str, file: str) -> Callable[[Path, Any], None]:
    def read(folder: Path, rng: np.random.Generator) -> None:
        from lmjax.config.schema import TokenizerConfig, TokenizerKind
        from lmjax.data.tokenization.tokenizers import load_tokenizer

        config = TokenizerConfig(kind=TokenizerKind(kind), path=str(folder / file))
        _use(load_tokenizer(config))

    return read


def _tokenizer_jsons() -> list[Files]:
    import tokenizers
    from tokenizers import decoders, models, normalizers, pre_tokenizers, trainers

    special = ["<unk>", "<s>", "</s>", "<pad>", "<mask>"]
    byte_level = tokenizers.Tokenizer(models.BPE(unk_token="<unk>"))
    byte_level.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    byte_level.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=300,
        special_tokens=special,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    byte_level.train_from_iterator(TEXT.split("\n\n"), trainer)
    pieces = tokenizers.Tokenizer(models.WordPiece(unk_token="<unk>"))
    pieces.normalizer = normalizers.BertNormalizer()
    pieces.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    pieces.decoder = decoders.WordPiece()
    trainer = trainers.WordPieceTrainer(
        vocab_size=120, special_tokens=special, show_progress=False
    )
    pieces.train_from_iterator(TEXT.split("\n\n"), trainer)
    vocabulary = [("<unk>", 0.0), ("</s>", 0.0), ("\u2581", -2.0), ("a", -3.0)]
    vocabulary += [("\u2581a", -3.5), *((f"<0x{i:02X}>", -9.0) for i in range(256))]
    unigram = tokenizers.Tokenizer(models.Unigram(vocabulary, 0, byte_fallback=True))
    unigram.normalizer = normalizers.Sequence(
        [normalizers.NFKC(), normalizers.Replace(tokenizers.Regex(" {2,}"), " ")]
    )
    unigram.pre_tokenizer = pre_tokenizers.Metaspace()
    unigram.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Metaspace()])
    made = (byte_level, pieces, unigram)
    return [{"tokenizer.json": tokenizer.to_str().encode()} for tokenizer in made]


def _gpt2_files() -> list[Files]:
    content = json.loads(_tokenizer_jsons()[0]["tokenizer.json"])["model"]
    merges = ["#version: 0.2", *(" ".join(pair) for pair in content["merges"])]
    return [
        {
            "vocab.json": json.dumps(content["vocab"]).encode(),
            "merges.txt": "\n".join(merges).encode(),
        }
    ]


# Corpora.
def _read_corpus(folder: Path, rng: np.random.Generator) -> None:
    from lmjax.config import schema
    from lmjax.data.reading.formats import IdRules, ReadOptions, open_reader
    from lmjax.data.reading.sources import find_sources
    from lmjax.data.tokenization.byte_tokenizer import ByteTokenizer

    tokenizer = ByteTokenizer()
    rules = IdRules(tokenizer.vocab_size, tokenizer.special, tokenizer.unpredictable)
    formats = [schema.DataFormat.AUTO] * 12 + list(schema.DataFormat)
    options = ReadOptions(
        format=mutations.pick(rng, formats),
        documents=mutations.pick(rng, list(schema.DocumentUnit)),
        replace_invalid_utf8=bool(rng.integers(2)),
        prompt_field=mutations.pick(rng, ("", "", "", "prompt")),
        token_dtype=mutations.pick(rng, list(schema.TokenDtype)),
        ids=mutations.pick(rng, (rules, rules, rules, None)),
    )
    for source in find_sources([str(folder)], "train"):
        for file in source.files:
            reader = open_reader(file, options)
            reader.describe()
            for document in reader.read():
                assert isinstance(
                    document.content, np.ndarray if reader.holds_ids else str
                )


def _texts() -> list[Files]:
    headings = "= = = One = = =\nabc\n\n= = = Two = = =\ndef\n"
    encoded = (TEXT.encode(), b"\xef\xbb\xbf" + TEXT.encode(), headings.encode())
    return [{"a.train": text} for text in encoded]


def _json_lines() -> list[Files]:
    records = [{"text": s, "prompt": "Say:", "id": i} for i, s in enumerate(_SENTENCES)]
    lines = "".join(json.dumps(record) + "\n" for record in records)
    return [{"a.jsonl": lines.encode()}, {"a.jsonl": json.dumps(records[0]).encode()}]


def _packed() -> list[Files]:
    lines = _json_lines()[0]["a.jsonl"]
    ids = np.array([5 + b for b in b"ids"] + [2], "<u2").tobytes() * 50
    return [{"a.txt.gz": TEXT.encode()}, {"a.jsonl.zst": lines}, {"a.bin.gz": ids}]


def _ids() -> list[Files]:
    ids = np.array([5 + b for b in TEXT.encode()[:900]] + [2])
    decimal = " ".join(map(str, ids.tolist())).encode()
    sidecar = json.dumps({"dtype": "uint16", "count": len(ids)}).encode()
    return [
        {"a.bin": ids.astype("<u2").tobytes()},
        {"a.u32": ids.astype("<u4").tobytes()},
        {"a.bin": ids.astype("<u2").tobytes(), "a.bin.json": sidecar},
        {"a.txt": decimal},
        {"a.txt": decimal.replace(b" ", b"\n")},
    ]


def _torch_lists() -> list[Files]:
    return [{"a.bin": _TWO_DOCUMENTS.read_bytes()}]


def _parquets() -> list[Files]:
    import pyarrow
    from pyarrow import parquet

    found: list[Files] = []
    texts = [*_SENTENCES, None, ""] * 3
    for kind, compression, rows in (
        (pyarrow.string(), "none", 9),
        (pyarrow.large_string(), "zstd", 100),
        (pyarrow.dictionary(pyarrow.int32(), pyarrow.string()), "snappy", 100),
    ):
        columns = {"text": pyarrow.array(texts, pyarrow.string()).cast(kind)}
        columns["n"] = pyarrow.array(range(len(texts)))
        out = io.BytesIO()
        parquet.write_table(
            pyarrow.table(columns), out, compression=compression, row_group_size=rows
        )
        found.append({"a.parquet": out.getvalue()})
    return found


# Prepared corpora.
def _prepared() -> list[Files]:
    from lmjax.config import schema
    from lmjax.data.preparation.prepare import prepare
    from lmjax.data.reading.sources import Source

    def fill(folder: Path) -> None:
        text = folder / "a.txt"
        text.write_text(TEXT)
        data = schema.DataConfig(
            sequence_length=16, cache_dir=str(folder / "cache"), workers=1
        )
        tokenizer = schema.TokenizerConfig(kind=schema.TokenizerKind.BYTES)
        prepared = prepare(
            data, tokenizer, seed=0, train=[Source("a", (text,))], progress=False
        )
        for path in prepared.folder.iterdir():
            if path.is_file():
                path.rename(folder / path.name)
        shutil.rmtree(folder / "cache")
        text.unlink()

    return [_folder_of(fill)]


def _read_prepared(folder: Path, rng: np.random.Generator) -> None:
    from lmjax.data.pipeline import Windows
    from lmjax.data.preparation import manifest, statistics

    if rng.integers(2):
        _agree_on_sizes(folder)
    prepared = manifest.load_prepared(folder)
    if prepared is None:
        return
    manifest.check_shards(prepared)
    statistics.table(prepared)
    for split in ("train", "valid"):
        windows = Windows(prepared, split, document_mask=True)
        if len(windows):
            windows.batch([0, len(windows) - 1, -1])


def _agree_on_sizes(folder: Path) -> None:
    """Writes the true sizes of shards into a manifest, so that they are opened."""
    try:
        content = json.loads((folder / "manifest.json").read_bytes())
        for records in content["splits"]["train"]:
            for shard in records["shards"]:
                shard["bytes"] = (folder / shard["file"]).stat().st_size
    except (OSError, ValueError, LookupError, TypeError, RecursionError):
        return
    (folder / "manifest.json").write_text(json.dumps(content), "utf-8", "replace")


# Models of Hugging Face.
def _models() -> list[Files]:
    import jax

    from lmjax.config import schema
    from lmjax.core import trees
    from lmjax.export import importing, names, remote, weights
    from lmjax.export.architectures import BY_KIND
    from lmjax.models.attention_kernels import library_attention
    from lmjax.models.build import build_model, padded_vocab_size
    from lmjax.models.transformer import Setting

    tokenizer = _tokenizer_jsons()[0]
    num_ids = max(json.loads(tokenizer["tokenizer.json"])["model"]["vocab"].values())
    num_ids += 1
    sizes = dict(num_layers=2, width=8, num_heads=2, mlp_width=8, max_length=8)
    sizes["dropout"] = 0.0
    own = schema.ModelConfig(**sizes, num_kv_heads=1)
    llama = schema.ModelConfig(**sizes, num_kv_heads=1, mlp=schema.MLPKind.SWIGLU)
    gpt2 = schema.ModelConfig(
        **sizes,
        positions=schema.PositionKind.LEARNED,
        norm=schema.NormKind.LAYER,
        norm_bias=True,
        attention_bias=True,
        mlp_bias=True,
    )
    found: list[Files] = []
    for model, kind in (
        (llama, schema.Architecture.LLAMA),
        (gpt2, schema.Architecture.GPT2),
        (own, None),
    ):
        setting = Setting(
            vocab_size=padded_vocab_size(num_ids),
            unpredictable=(),
            causal=True,
            attend=library_attention,
        )
        shapes = build_model(model, setting).shapes
        params = trees.map_named(
            lambda _, leaf: np.zeros(leaf.shape, np.float32), shapes
        )
        if kind is None:
            from lmjax.data.tokenization.vocabulary import SpecialIds

            table = remote.TABLE
            config = remote.config_json(
                model,
                schema.MaskedDiffusionConfig(),
                special=SpecialIds(unk=0, bos=1, eos=2, pad=3, mask=4),
                opening_id=1,
                vocab_size=num_ids,
                unpredictable=(1, 3, 4),
            )
        else:
            table = BY_KIND[kind].table
            config = BY_KIND[kind].config_json(model, num_ids=num_ids)
        for shard_bytes in (10**9, 5000):

            def fill(folder: Path) -> None:
                weights.write_weights(
                    folder,
                    names.to_tensors(table, params, num_ids=num_ids),  # noqa: B023
                    names.tensor_shapes(table, params, num_ids=num_ids),  # noqa: B023
                    schema.ExportDtype.FLOAT32,
                    shard_bytes=shard_bytes,  # noqa: B023
                )

            files = _folder_of(fill) | tokenizer
            found.append(files | {importing.CONFIG: json.dumps(config).encode()})
    jax.clear_caches()
    return found


def _read_model(folder: Path, rng: np.random.Generator) -> None:
    from lmjax.data.tokenization.byte_tokenizer import ByteTokenizer
    from lmjax.export.importing import import_model

    # The reader of tokenizers has cases of its own.
    import_model(folder, ByteTokenizer() if rng.integers(4) else None)


# What models are asked, and what they go on from.
def _items() -> list[Files]:
    pair = {"sentence_good": "The dog sees.", "sentence_bad": "The dog see."}
    blimp = pair | {"field": "syntax", "UID": "a", "linguistics_term": "b"}
    ewok = {name: "x" for name in ("Context1", "Context2", "Target1", "Domain")}
    ewok |= {name: "y" for name in ("ContextType", "ContextDiff", "TargetDiff")}
    tracking = {"input_prefix": "Box 1", "options": [" a", " b"], "numops": 1}
    comps = {f"prefix_{name}": "A dog" for name in ("acceptable", "unacceptable")}
    comps["property_phrase"] = "barks."
    piqa = {"prompt": "Q", "solution0": "a", "solution1": "b", "label": 1}
    own = {"prefix": "A", "completions": [" b", " c"], "label": 0, "group": "g"}
    rows = {
        "blimp_fast": [blimp] * 3,
        "supplement_fast": [pair] * 3,
        "ewok_fast": [ewok],
        "entity_tracking_fast": [tracking] * 2,
        "comps": [comps],
        "global_piqa_parallel": [piqa],
        "own": [own, own | {"per_token": True}],
    }
    found: list[Files] = []
    for name, records in rows.items():
        lines = "".join(json.dumps(record) + "\n" for record in records).encode()
        found.append({f"{name}/part.jsonl": lines, f"{name}/second.jsonl": lines})
        if name != "own":
            found.append(
                {f"{name}.tar{packed}": _tar(lines, packed) for packed in ("",)}
            )
            found.append({f"{name}.tar.gz": _tar(lines, ".gz")})
            found.append({f"{name}.tar.xz": _tar(lines, ".xz")})
    return found


def _tar(lines: bytes, packed: str) -> bytes:
    out = io.BytesIO()
    mode = f"w:{packed[1:]}" if packed else "w"
    with tarfile.open(fileobj=out, mode=mode) as archive:
        for name in ("d/a.jsonl", "d/b.jsonl"):
            member = tarfile.TarInfo(name)
            member.size = len(lines)
            archive.addfile(member, io.BytesIO(lines))
    return out.getvalue()


def _read_items(folder: Path, rng: np.random.Generator) -> None:
    from lmjax.evaluate.zero_shot.readers import load_tasks

    names = [path.name.split(".")[0] for path in folder.iterdir()]
    for task in load_tasks([",".join(names) or "blimp"], str(folder)):
        task.ids()
        assert 0 <= task.chance() <= 1


def _prompts() -> list[Files]:
    lines = [json.dumps({"prompt": sentence}) for sentence in _SENTENCES]
    return [
        {"prompts.txt": "\n".join(_SENTENCES).encode()},
        {"prompts.jsonl": "\n".join(lines).encode()},
        {"prompts.txt": "\n".join(lines).encode()},
    ]


def _read_prompts(folder: Path, rng: np.random.Generator) -> None:
    from lmjax.sampling.prompt_files import read_prompts

    for name in ("prompts.txt", "prompts.jsonl"):
        if (folder / name).exists():
            assert all(
                isinstance(prompt, str) for prompt in read_prompts(str(folder / name))
            )


_JSON = mixture(json_of, json_of, json_of, bytes_of)
_LINES = mixture(json_lines_of, json_lines_of, bytes_of)
_ZIP = mixture(mutations.zip_of, mutations.zip_of, bytes_of)
_PROTOCOL_BUFFER = mixture(
    mutations.protocol_buffer_of, mutations.protocol_buffer_of, bytes_of
)
_TENSORS = mixture(mutations.safetensors_of, mutations.safetensors_of, bytes_of)

KINDS: Mapping[str, Kind] = {
    kind.name: kind
    for kind in (
        Kind(
            name="config",
            examples=_configs,
            read=_read_config,
            damage={"": _JSON},
            share=1,
        ),
        Kind(
            name="ledger",
            examples=_ledgers,
            read=_read_ledger,
            damage={"": _JSON},
            share=0.5,
        ),
        Kind(
            name="metrics",
            examples=_metrics,
            read=_read_metrics,
            damage={"": _LINES},
            share=0.5,
        ),
        Kind(
            name="sentencepiece",
            examples=_sentencepiece_models,
            read=_read_tokenizer("sentencepiece", "tokenizer.model"),
            damage={"": _PROTOCOL_BUFFER},
            share=1,
        ),
        Kind(
            name="tokenizer.json",
            examples=_tokenizer_jsons,
            read=_read_tokenizer("huggingface", "tokenizer.json"),
            damage={"": _JSON},
            share=1,
        ),
        Kind(
            name="vocab.json and merges.txt",
            examples=_gpt2_files,
            read=_read_tokenizer("gpt2", ""),
            damage={".json": _JSON, ".txt": bytes_of},
            share=0.5,
        ),
        Kind(
            name="text",
            examples=_texts,
            read=_read_corpus,
            damage={"": bytes_of},
            share=1,
        ),
        Kind(
            name="JSON Lines",
            examples=_json_lines,
            read=_read_corpus,
            damage={"": _LINES},
            share=1,
        ),
        Kind(
            name="gzip and zstd",
            examples=_packed,
            read=_read_corpus,
            damage={"": mutations.packed(_LINES)},
            share=0.7,
        ),
        Kind(
            name="token ids",
            examples=_ids,
            read=_read_corpus,
            damage={"": bytes_of, ".json": _JSON},
            share=1,
        ),
        Kind(
            name="torch lists",
            examples=_torch_lists,
            read=_read_corpus,
            damage={"": _ZIP},
            share=1.5,
        ),
        Kind(
            name="parquet",
            examples=_parquets,
            read=_read_corpus,
            damage={"": bytes_of},
            share=1,
        ),
        Kind(
            name="prepared corpus",
            examples=_prepared,
            read=_read_prepared,
            damage={"": bytes_of, ".json": _JSON},
            share=1,
        ),
        Kind(
            name="model folder",
            examples=_models,
            read=_read_model,
            damage={"": bytes_of, ".json": _JSON, ".safetensors": _TENSORS},
            share=0.2,
        ),
        Kind(
            name="zero-shot items",
            examples=_items,
            read=_read_items,
            damage={"": mixture(mutations.tar_of, bytes_of), ".jsonl": _LINES},
            share=1,
        ),
        Kind(
            name="prompts",
            examples=_prompts,
            read=_read_prompts,
            damage={"": _LINES},
            share=0.7,
        ),
    )
}
