"""Preparation on many machines, by an Apache Beam pipeline.

The jobs are those of one machine, and so are the files: the same shards, the same
manifest, the same hash, whatever runs the pipeline. Every worker must see the corpus
and the cache folder under the same paths (NFS, Filestore, gcsfuse), and have lmjax.
"""

import hashlib
import pickle
import shutil
import uuid
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

from lmjax.core.extras import require
from lmjax.data.preparation.workers import Item, Job, Result, one_job


class BeamWorkers:
    """Runs jobs as `Workers` does, each `run` as one pipeline.

    Args:
      options: of the pipeline, as on Beam's command line: "--runner=DirectRunner".
      folder: seen by all workers; results pass through it.

    Raises:
      UserError: the extra is not installed.
    """

    def __init__(self, options: Sequence[str], folder: Path):
        self._beam = require(
            "apache_beam",
            extra="beam",
            what="data.beam",
            remedy="pip install 'lmjax[beam]' in an environment of its own: it wants "
            "older versions of what the other extras share.",
        )
        self._options, self._folder = list(options), folder.absolute()

    def __enter__(self) -> "BeamWorkers":
        return self

    def __exit__(self, *_: object) -> None:
        """Nothing stays open between pipelines."""

    def run(
        self,
        function: Callable[[Job], Result],
        items: Iterable[Item],
        *,
        expand: Callable[[Item], Iterable[Job]] = one_job,
    ) -> Iterator[Result]:
        """Yields all results when the pipeline has ended.

        Args:
          expand: makes the jobs of an item, on a worker.
        """
        beam = self._beam
        from apache_beam.options.pipeline_options import PipelineOptions

        results = self._folder / f".beam-{uuid.uuid4().hex}"
        results.mkdir(parents=True)
        try:
            with beam.Pipeline(options=PipelineOptions(self._options)) as pipeline:
                _ = (
                    pipeline
                    | beam.Create(list(items))
                    | beam.FlatMap(expand)
                    # Jobs of one item go to different workers.
                    | beam.Reshuffle()
                    | beam.Map(_run_and_keep, function, str(results))
                )
            for file in sorted(results.glob("*.pickle")):
                yield pickle.loads(file.read_bytes())
        finally:
            shutil.rmtree(results, ignore_errors=True)


def _run_and_keep(job: Job, function: Callable[[Job], Result], folder: str) -> None:
    """Beam may run a job twice; then the results are equal, and one is kept."""
    result = pickle.dumps(function(job))
    temporary = Path(folder) / f"{uuid.uuid4().hex}.tmp"
    temporary.write_bytes(result)
    name = hashlib.sha256(result).hexdigest()
    temporary.rename(temporary.with_name(f"{name}.pickle"))
