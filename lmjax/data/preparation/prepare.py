"""Corpus files -> packed records in ArrayRecord shards and a manifest.

The result stands in `<cache_dir>/<name>-<hash>/`: the shards, notes about them,
`tokenizer.model` and, written last, `manifest.json`. The hash is over everything that
shaped it, so a result is never out of date, and a second run finds it. Every file
appears whole or not at all, and every shard is a pure function of the corpus: who is
interrupted goes on with the shards that are missing, and who comes second waits.
"""

import dataclasses
import itertools
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

from absl import logging

from lmjax.config.schema import (
    CleaningConfig,
    DataConfig,
    Packing,
    TokenizerConfig,
)
from lmjax.core.errors import UserError
from lmjax.core.files import replacing, sweep
from lmjax.data.preparation import manifest, shards, statistics
from lmjax.data.preparation.cache import (
    corpus_name,
    explained_write_errors,
    locked,
    short_hash,
)
from lmjax.data.preparation.cleaning import Cleaner
from lmjax.data.preparation.corpus import Corpus, open_corpus
from lmjax.data.preparation.corpus_tokenizer import CorpusTokenizer, check_tokenizer
from lmjax.data.preparation.manifest import FORMAT_VERSION, Prepared, load_prepared
from lmjax.data.preparation.packing import PackingRule, RecordLayout
from lmjax.data.preparation.progress import Progress
from lmjax.data.preparation.scanning import Scan, scan
from lmjax.data.preparation.sharding import (
    SourceJob,
    check_counts,
    gather,
    plan_source,
    shard_jobs,
)
from lmjax.data.preparation.shards import (
    Recipe,
    cached_tokenizer,
    finished_shard,
    notes,
    write_shard,
    write_text,
)
from lmjax.data.preparation.splits import Assignment, HoldOut, assign, check_not_empty
from lmjax.data.preparation.workers import Workers, num_cores
from lmjax.data.reading.files import file_size
from lmjax.data.reading.formats import IdRules, ReadOptions
from lmjax.data.reading.sources import Source
from lmjax.data.tokenization.tokenizers import Tokenizer

# Below this much text, starting processes takes longer than the work.
_BYTES_WORTH_PROCESSES = 4_000_000


def prepare(
    data: DataConfig,
    tokenizer_config: TokenizerConfig,
    cleaning: CleaningConfig | None = None,
    *,
    seed: int,
    train: Sequence[Source],
    valid: Sequence[Source] = (),
    progress: bool = True,
    repair: bool = False,
) -> Prepared:
    """Returns the prepared corpus, which is made if it is not in the cache.

    Args:
      seed: chooses the held-out documents; unused when there are `valid` sources.
      train: the corpus; its documents that are not held out train the tokenizer too,
        when `tokenizer_config` names none.
      valid: held-out text; without it, documents of each source are held out.
      progress: whether progress is shown.
      repair: whether shards that are wrong are written again, rather than an error.

    Raises:
      UserError: the corpus, the tokenizer or the disk does not allow it.
    """
    cleaner = Cleaner(cleaning or CleaningConfig())
    cache_dir = Path(data.cache_dir).expanduser()
    tokenizer = CorpusTokenizer(tokenizer_config, cache_dir)
    corpus = open_corpus(train, valid, _read_options(data, tokenizer.named))
    with explained_write_errors(cache_dir, corpus.num_bytes):
        preparation = _Preparation(
            data=data,
            tokenizer=tokenizer,
            cleaner=cleaner,
            corpus=corpus,
            contents=_shaped_by(corpus, cleaner, data, seed),
            hold_out=HoldOut(
                fraction=data.valid_fraction, words=data.valid_words, seed=seed
            ),
            cache_dir=cache_dir,
            progress=progress,
        )
        prepared = preparation.run(repair)
    for name in ("train", "valid"):
        counts = prepared.split(name).counts
        logging.info("%s: %s (%s)", name, statistics.say(counts), prepared.folder)
    return prepared


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Preparation:
    """One corpus on its way into the cache."""

    data: DataConfig
    tokenizer: CorpusTokenizer
    cleaner: Cleaner
    corpus: Corpus
    contents: dict[str, Any]
    hold_out: HoldOut
    cache_dir: Path
    progress: bool

    def run(self, repair: bool) -> Prepared:
        """Finds what is there, makes the rest."""
        tokenizer = self.tokenizer.find(self.contents)
        if tokenizer is not None and not repair:
            found = load_prepared(self._folder(tokenizer))
            if found is not None:
                return found
        with locked(self.cache_dir, short_hash(self.contents)):
            # Whoever held the lock may have made it meanwhile.
            tokenizer = self.tokenizer.find(self.contents)
            if tokenizer is not None:
                folder = self._folder(tokenizer)
                if repair:
                    _remove_wrong(folder)
                found = load_prepared(folder)
                if found is not None:
                    return found
            return self._make(tokenizer)

    def _make(self, tokenizer: Tokenizer | None) -> Prepared:
        logging.info("Preparing %s bytes", f"{self.corpus.num_bytes:,}")
        if tokenizer is not None:  # before anything that takes long
            self._check_tokenizer(tokenizer)
        with self._workers() as workers:
            scans = self._scan(workers, tokenizer)
            places = assign(scans, self.cleaner, self.hold_out)
            check_not_empty(places, self.corpus.paths())
            if tokenizer is None:
                tokenizer = self.tokenizer.train(
                    self.contents, self.corpus, places, self.cleaner
                )
                self._check_tokenizer(tokenizer)
            folder = self._folder(tokenizer)
            folder.mkdir(parents=True, exist_ok=True)
            for each in (folder, folder / shards.NOTES, self.cache_dir / "datasets"):
                sweep(each)
            recipe = self._recipe(tokenizer)
            jobs = self._plan(folder, recipe, scans, places)
            self._write(workers, jobs, scans)
        splits = gather(jobs)
        check_counts(splits, scans, places)
        with replacing(folder / manifest.TOKENIZER) as temporary:
            temporary.write_bytes(tokenizer.model_bytes)
        text = manifest.to_json(
            shaped_by=self._shaped_by(tokenizer),
            tokenizer=tokenizer,
            layout=recipe.layout,
            sources=self.corpus.sources,
            splits=splits,
            statistics=statistics.gather(scans, places, splits),
        )
        write_text(folder / manifest.MANIFEST, text)
        prepared = load_prepared(folder)
        assert prepared is not None, "the manifest was just written"
        return prepared

    def _check_tokenizer(self, tokenizer: Tokenizer) -> None:
        for sources in self.corpus.splits.values():
            check_tokenizer(tokenizer, sources)

    def _workers(self) -> Workers:
        """Processes on this machine, or a Beam pipeline."""
        if self.data.beam:
            from lmjax.data.preparation.beam import BeamWorkers

            return BeamWorkers(self.data.beam, self.cache_dir)
        processes = self.data.workers or (
            num_cores() if self.corpus.num_bytes >= _BYTES_WORTH_PROCESSES else 1
        )
        return Workers(processes)

    def _scan(
        self, workers: Workers, tokenizer: Tokenizer | None
    ) -> dict[str, dict[str, list[Scan]]]:
        """The first pass over all files, by split and source."""
        model = tokenizer.model_bytes if tokenizer is not None else b""
        jobs = [
            _ScanJob(split, source, number, reader, self.cleaner, model)
            for split, sources in self.corpus.splits.items()
            for source, readers in sources.items()
            for number, reader in enumerate(readers)
        ]
        found = {}
        with Progress("Reading", self.corpus.num_bytes, shown=self.progress) as bar:
            for job, result in workers.run(_scan, jobs):
                found[job.split, job.source, job.number] = result
                bar.add(file_size(job.reader.path))
        return {
            split: {
                source: [found[split, source, n] for n in range(len(readers))]
                for source, readers in sources.items()
            }
            for split, sources in self.corpus.splits.items()
        }

    def _plan(
        self,
        folder: Path,
        recipe: Recipe,
        scans: dict[str, dict[str, list[Scan]]],
        assignment: Assignment,
    ) -> list[SourceJob]:
        """One job per source and split it was given for; knows what is finished."""
        sources = self.corpus.sources
        jobs = []
        for split, readers in self.corpus.splits.items():
            for source, files in readers.items():
                job = plan_source(
                    scans=scans[split][source],
                    places=assignment.places[split][source],
                    shard_bytes=self.data.shard_bytes,
                    folder=folder,
                    source=source,
                    prefix=f"{sources.index(source):03d}",
                    readers=files,
                    recipe=recipe,
                )
                names = itertools.chain.from_iterable(job.shard_names().values())
                finished = {n for n in names if finished_shard(folder, n) is not None}
                jobs.append(dataclasses.replace(job, finished=frozenset(finished)))
        return jobs

    def _write(
        self,
        workers: Workers,
        jobs: list[SourceJob],
        scans: dict[str, dict[str, list[Scan]]],
    ) -> None:
        total = sum(
            int(result.sizes.sum())
            for sources in scans.values()
            for files in sources.values()
            for result in files
        )
        finished = sum(len(job.finished) for job in jobs)
        if finished:
            logging.info("%d shards are there already", finished)
        with Progress("Preparing", total, shown=self.progress) as bar:
            for job in jobs:
                for name in job.finished:
                    bar.add(finished_shard(job.folder, name).counts.bytes)
            for _, shard in workers.run(write_shard, jobs, expand=shard_jobs):
                bar.add(shard.counts.bytes)

    def _recipe(self, tokenizer: Tokenizer) -> Recipe:
        longest = max(map(len, tokenizer.piece_bytes), default=0)
        return Recipe(
            tokenizer_model=tokenizer.model_bytes,
            packing=_packing_rule(self.data),
            layout=RecordLayout(
                length=self.data.sequence_length,
                token_dtype="<u2" if tokenizer.vocab_size <= 2**16 else "<u4",
                # Where a model drops text, a token stands for any length.
                count_dtype="|u1" if tokenizer.lossless and longest < 256 else "<u4",
            ),
            cleaner=self.cleaner,
        )

    def _shaped_by(self, tokenizer: Tokenizer) -> dict[str, Any]:
        rule = dataclasses.asdict(_packing_rule(self.data))
        rule["kind"] = self.data.packing.value
        if self.data.packing is Packing.BEST_FIT:
            rule["grain"] = metadata.version("grain")
        return self.contents | {
            "format": FORMAT_VERSION,
            "tokenizer": tokenizer.identity,
            "packing": rule,
            "shard_bytes": self.data.shard_bytes,
        }

    def _folder(self, tokenizer: Tokenizer) -> Path:
        files = [
            reader.path for readers in self.corpus.train.values() for reader in readers
        ]
        key = short_hash(self._shaped_by(tokenizer))
        # The name is for people: the same corpus may have been prepared under another.
        found = sorted(self.cache_dir.glob(f"*-{key}"))
        return found[0] if found else self.cache_dir / f"{corpus_name(files)}-{key}"


@dataclasses.dataclass(frozen=True)
class _ScanJob:
    split: str
    source: str
    number: int
    reader: Any
    cleaner: Cleaner
    tokenizer_model: bytes


def _scan(job: _ScanJob) -> tuple[_ScanJob, Scan]:
    model = job.tokenizer_model
    tokenizer = cached_tokenizer(model) if model else None
    result = scan(job.reader, job.cleaner, tokenizer)
    return dataclasses.replace(job, tokenizer_model=b""), result


def _read_options(data: DataConfig, tokenizer: Tokenizer | None) -> ReadOptions:
    rules = None
    if tokenizer is not None:
        rules = IdRules(
            vocab_size=tokenizer.vocab_size,
            special=tokenizer.special,
            unpredictable=tokenizer.unpredictable,
        )
    return ReadOptions(
        format=data.format,
        documents=data.documents,
        text_field=data.text_field,
        prompt_field=data.prompt_field,
        token_dtype=data.token_dtype,
        replace_invalid_utf8=data.replace_invalid_utf8,
        ids=rules,
    )


def _packing_rule(data: DataConfig) -> PackingRule:
    return PackingRule(
        kind=data.packing,
        length=data.sequence_length,
        stride=data.stride,
        bos=data.bos,
    )


def _shaped_by(
    corpus: Corpus, cleaner: Cleaner, data: DataConfig, seed: int
) -> dict[str, Any]:
    """What decides which text is in which split, and how it is written."""
    shaped = {"corpus": corpus.describe(), "cleaning": cleaner.describe()}
    if corpus.valid:
        return shaped
    if data.valid_words:
        return shaped | {"valid_words": data.valid_words, "seed": seed}
    return shaped | {"valid_fraction": data.valid_fraction, "seed": seed}


def _remove_wrong(folder: Path) -> None:
    """Takes what is not as it should be out of a prepared folder."""
    wrong = []
    for note in notes(folder):
        shard = finished_shard(folder, note.stem)
        problem = f"{note.stem} is not whole"
        if shard is not None:
            problem = manifest.look_into(folder, shard)
        if problem:
            logging.warning("Writing a shard again: %s.", problem)
            wrong.append(note)
    try:
        prepared = load_prepared(folder)
        whole = prepared is not None and not manifest.check_shards(prepared)
    except UserError:
        whole = False
    if not whole:
        # First of all: without a manifest nothing is believed any more.
        (folder / manifest.MANIFEST).unlink(missing_ok=True)
    for note in wrong:
        note.unlink()
