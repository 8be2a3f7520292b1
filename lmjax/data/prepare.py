"""Corpus files -> packed records in ArrayRecord shards and a manifest.

The result stands in `<cache_dir>/<name>-<hash>/`: `manifest.json`,
`tokenizer.model` and the shards. The hash is over everything that shaped it, so a
result is never out of date, and a second run finds it. It is written to a
temporary folder beside it and renamed, so half a result is never found.
"""

import contextlib
import dataclasses
import errno
import hashlib
import itertools
import json
import os
import re
import shutil
import uuid
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

import tqdm
from absl import logging
from array_record.python import array_record_module

from lmjax.config.schema import DataConfig, TokenizerConfig
from lmjax.core.errors import UserError
from lmjax.data.manifest import (
    FORMAT_VERSION,
    Counts,
    Prepared,
    Records,
    Shard,
    Split,
    load_prepared,
)
from lmjax.data.packing import RecordLayout, pack
from lmjax.data.readers import Document
from lmjax.data.splits import Corpus, Part, hash_file
from lmjax.data.tokenizer_training import TRAINER_VERSION, train_sentencepiece
from lmjax.data.tokenizers import (
    Encoding,
    SentencePieceTokenizer,
    Tokenizer,
    load_tokenizer,
)

WINDOWS_PER_SHARD = 65_536

# One record per chunk, which Grain needs to read at random; compressing each by
# itself saves little of the space and makes writing six times as slow.
_WRITER_OPTIONS = "group_size:1,uncompressed"
_BATCH_CHARACTERS = 2_000_000  # encoded at once
_GENERIC_NAMES = ("train", "text", "data", "")  # of folders; say little of a corpus
_DISK_FULL = (errno.ENOSPC, errno.EDQUOT)


def prepare(
    data: DataConfig,
    tokenizer_config: TokenizerConfig,
    *,
    seed: int,
    train_files: Sequence[Path],
    valid_files: Sequence[Path] = (),
    progress: bool = True,
) -> Prepared:
    """Returns the prepared corpus, which is made if it is not in the cache.

    Args:
      seed: chooses the held-out documents; unused when there are `valid_files`.
      train_files: the corpus; its documents that are not held out train the tokenizer
        too, when `tokenizer_config` names none.
      valid_files: held-out text; without it, documents of each source are held out.
      progress: whether a terminal shows a progress bar.

    Raises:
      UserError: the corpus, the tokenizer or the disk does not allow it.
    """
    corpus = Corpus.of_files(
        train_files, valid_files, fraction=data.valid_fraction, seed=seed
    )
    description = corpus.describe()
    num_bytes = sum(file.stat().st_size for file in (*train_files, *valid_files))
    cache_dir = Path(data.cache_dir).expanduser()
    with _explained_write_errors(cache_dir, num_bytes):
        tokenizer = _find_tokenizer(tokenizer_config, corpus, description, cache_dir)
        shaped_by = {
            "format": FORMAT_VERSION,
            "corpus": description,
            "tokenizer": tokenizer.identity,
            "sequence_length": data.sequence_length,
        }
        folder = cache_dir / f"{_corpus_name(train_files)}-{_hash(shaped_by)}"
        prepared = load_prepared(folder)
        if prepared is None:
            logging.info("Preparing %s bytes of text in %s", f"{num_bytes:,}", folder)
            bar = tqdm.tqdm(
                desc="Preparing",
                total=num_bytes,
                unit="B",
                unit_scale=True,
                disable=None if progress else True,  # None: only on a terminal
            )
            with _temporary_folder(cache_dir) as temporary, bar:
                _write(temporary, corpus, tokenizer, shaped_by, bar.update)
                _install(temporary, folder)
            prepared = load_prepared(folder)
    if prepared is None:
        raise UserError(
            "The prepared corpus changed while it was made.",
            where=str(folder),
            remedy="delete this folder and start again.",
        )
    for name in ("train", "valid"):
        logging.info("%s: %s (%s)", name, _say(prepared.split(name).counts), folder)
    return prepared


def _find_tokenizer(
    config: TokenizerConfig, corpus: Corpus, description: dict, cache_dir: Path
) -> Tokenizer:
    """Loads the tokenizer of the config, or one trained before, or trains one."""
    if config.path:
        return load_tokenizer(config.path)
    key = _hash([description, config.vocab_size, TRAINER_VERSION])
    file = cache_dir / "tokenizers" / f"{config.vocab_size}-{key}.model"
    if file.exists():
        with contextlib.suppress(UserError):  # damaged: train again
            return load_tokenizer(file)
    texts = (
        document.text for part in corpus.parts["train"] for document in part.read()
    )
    model = train_sentencepiece(texts, config.vocab_size)
    with _temporary_folder(cache_dir) as temporary:
        (temporary / file.name).write_bytes(model)
        file.parent.mkdir(exist_ok=True)
        os.replace(temporary / file.name, file)
    logging.info("Trained the tokenizer %s", file)
    return SentencePieceTokenizer(model)


def _warn_if_lossy(tokenizer: Tokenizer, parts: Iterable[Part]) -> None:
    """Says so when decoding does not give back the first documents of the corpus."""
    for part in parts:
        for document in itertools.islice(part.read(), 3):
            text = document.text[:2000]
            decoded = tokenizer.decode(tokenizer.encode(text))
            if decoded != text:
                pairs = enumerate(zip(text, decoded, strict=False))
                at = next((i for i, (a, b) in pairs if a != b), len(decoded))
                logging.warning(
                    "The tokenizer does not keep the text of %s: %r becomes %r. Words "
                    "and bytes are counted in the text itself.",
                    part.source,
                    text[max(at - 10, 0) : at + 20],
                    decoded[max(at - 10, 0) : at + 20],
                )
                return


def _write(
    folder: Path,
    corpus: Corpus,
    tokenizer: Tokenizer,
    shaped_by: dict,
    advance: Callable[[int], object],
) -> None:
    """Writes shards, tokenizer and, last, the manifest."""
    _warn_if_lossy(tokenizer, corpus.parts["train"])
    layout = RecordLayout(
        length=shaped_by["sequence_length"],
        token_dtype="<u2" if tokenizer.vocab_size <= 2**16 else "<u4",
        # Pieces are short, but where a model drops text, a token stands for any length.
        count_dtype="|u1" if tokenizer.lossless else "<u2",
    )
    sources = sorted({p.source for parts in corpus.parts.values() for p in parts})
    splits: dict[str, Split] = {}
    for split, parts in corpus.parts.items():
        written = []
        for part in parts:
            prefix = folder / f"{split}-{sources.index(part.source):03d}"
            records = _write_part(part, prefix, tokenizer, layout, advance)
            logging.info("%s, %s: %s", part.source, split, _say(records.counts))
            written.append(records)
        splits[split] = Split(records=tuple(written))
    (folder / "tokenizer.model").write_bytes(tokenizer.model_bytes)
    manifest = {
        "shaped_by": shaped_by,
        "tokenizer": {
            "identity": tokenizer.identity,
            "vocab_size": tokenizer.vocab_size,
            "special": dataclasses.asdict(tokenizer.special),
        },
        "layout": dataclasses.asdict(layout),
        "sources": sources,
        "totals": {name: dataclasses.asdict(s.counts) for name, s in splits.items()},
        "splits": {
            name: [dataclasses.asdict(records) for records in split.records]
            for name, split in splits.items()
        },
    }
    text = json.dumps(manifest, indent=1, ensure_ascii=False)
    (folder / "manifest.json").write_text(text + "\n", "utf-8")


def _write_part(
    part: Part,
    prefix: Path,
    tokenizer: Tokenizer,
    layout: RecordLayout,
    advance: Callable[[int], object],
) -> Records:
    """Writes the windows of one source in one split, and counts."""
    counts: Counter[str] = Counter()

    def encodings() -> Iterator[Encoding]:
        for texts in _batches(part.read()):
            for encoding in tokenizer.encode_batch(texts):
                counts["documents"] += 1
                counts["words"] += int(encoding.words.sum())
                counts["bytes"] += int(encoding.bytes.sum())
                counts["tokens"] += len(encoding.tokens) + 1
                yield encoding
            advance(sum(len(text.encode()) for text in texts))

    special = tokenizer.special
    windows = pack(encodings(), length=layout.length, eos=special.eos, pad=special.pad)
    shards: list[Shard] = []
    while (first := next(windows, None)) is not None:
        group = itertools.chain(
            [first], itertools.islice(windows, WINDOWS_PER_SHARD - 1)
        )
        file = prefix.with_name(f"{prefix.name}-{len(shards):05d}.array_record")
        try:
            shards.append(_write_shard(file, map(layout.to_bytes, group)))
        except OverflowError as error:
            raise UserError(
                f"The tokenizer does not fit the corpus: {error}.",
                where=part.source,
                remedy="leave tokenizer.path empty to train one on this corpus.",
            ) from error
    counts["windows"] = sum(shard.windows for shard in shards)
    return Records(source=part.source, counts=Counts(**counts), shards=tuple(shards))


def _write_shard(file: Path, records: Iterable[bytes]) -> Shard:
    """Raises OSError if it can't be written, for which ArrayRecord has no type."""
    num_records = 0
    try:
        writer = array_record_module.ArrayRecordWriter(str(file), _WRITER_OPTIONS)
        for num_records, record in enumerate(records, start=1):  # noqa: B007
            writer.write(record)
        writer.close()
    except RuntimeError as error:
        full = os.strerror(errno.ENOSPC) in str(error)
        raise OSError(errno.ENOSPC if full else errno.EIO, str(error)) from error
    return Shard(
        file=file.name,
        bytes=file.stat().st_size,
        windows=num_records,
        sha256=hash_file(file),
    )


def _batches(documents: Iterable[Document]) -> Iterator[list[str]]:
    """Groups texts, so that each group is worth a call and none fills the memory."""
    texts: list[str] = []
    size = 0
    for document in documents:
        texts.append(document.text)
        size += len(document.text)
        if size >= _BATCH_CHARACTERS:
            yield texts
            texts, size = [], 0
    if texts:
        yield texts


@contextlib.contextmanager
def _temporary_folder(parent: Path) -> Iterator[Path]:
    """A folder that is gone afterwards, also after an error or an interrupt."""
    folder = parent / f".tmp-{uuid.uuid4().hex}"
    folder.mkdir(parents=True)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _install(temporary: Path, folder: Path) -> None:
    """Renames; keeps what another process put there meanwhile, if it is whole."""
    for _ in range(3):
        try:
            os.replace(temporary, folder)
            return
        except OSError as error:
            if error.errno not in (errno.EEXIST, errno.ENOTEMPTY, errno.ENOTDIR):
                raise
        if load_prepared(folder) is not None:
            return
        with _temporary_folder(folder.parent) as aside:
            os.replace(folder, aside / "damaged")


@contextlib.contextmanager
def _explained_write_errors(cache_dir: Path, corpus_bytes: int) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno in _DISK_FULL:
            what = (
                "The disk is full: the prepared corpus needs about "
                f"{max(2 * corpus_bytes // 10**6, 1)} MB."
            )
        else:
            what = f"The prepared corpus can't be written: {error.strerror or error}."
        raise UserError(
            what,
            where=str(cache_dir.absolute()),
            remedy="set data.cache_dir to a folder with space that you may write to.",
        ) from error


def _corpus_name(files: Sequence[Path]) -> str:
    """A name for people: the file, or the folder that holds all files."""
    files = [file.resolve() for file in files]
    path = files[0].with_suffix("")
    if len(files) > 1:
        path = Path(os.path.commonpath([file.parent for file in files]))
    while path.name in _GENERIC_NAMES and path != path.parent:
        path = path.parent
    return re.sub(r"[^\w.-]+", "-", path.name, flags=re.ASCII).strip(".-") or "corpus"


def _hash(value: object) -> str:
    text = json.dumps(value, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def _say(counts: Counts) -> str:
    return ", ".join(
        f"{number:,} {name}" for name, number in dataclasses.asdict(counts).items()
    )
