"""Modes on the corpus alone: prepare it, and check what was prepared."""

import pathlib

from lmjax import experiment
from lmjax.config.schema import Config
from lmjax.core.errors import UserError
from lmjax.data.preparation import statistics
from lmjax.data.preparation.manifest import check_shards, damaged, shards
from lmjax.train.stopping import StopSignal


def prepare(config: Config, workdir: pathlib.Path) -> None:
    """Prepares the corpus, repairs what is damaged, and says what it holds.

    Raises:
      Stopped: when it was asked to stop; what is finished stays.
    """
    del workdir
    with StopSignal() as stop, stop.interruptible("preparing the corpus"):
        prepared = experiment.prepare_corpus(config, repair=True)
    print(statistics.table(prepared))
    picture = prepared.folder / "statistics.png"
    try:
        statistics.plot(prepared, picture)
        print(f"picture: {picture}")
    except UserError as error:  # the extra is not there; the figures are
        print(error)
    print(f"prepared corpus: {prepared.folder} (sha256 {prepared.sha256})")


def check(config: Config, workdir: pathlib.Path) -> None:
    """Reads every shard of the prepared corpus and compares checksums."""
    del workdir
    prepared = experiment.prepare_corpus(config)
    problems = check_shards(prepared)
    if problems:
        raise damaged(prepared.folder, "; ".join(problems))
    number = sum(1 for _ in shards(prepared))
    print(f"{prepared.folder}: all {number} shards are as they were written")
