"""Datasets of the Hugging Face hub, each fetched once into a Parquet file."""

import contextlib
import dataclasses
import hashlib
import importlib
import json
import os
import re
import sys
import time
import urllib.parse
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from absl import logging

from lmjax.core.errors import UserError
from lmjax.core.extras import require
from lmjax.core.files import replacing
from lmjax.data.reading.record_readers import (
    DATASET_COLUMN,
    DATASET_KEY,
    DATASET_PROMPT_COLUMN,
)
from lmjax.data.reading.sources import DATASET_SCHEME

REVISION_KEY = b"lmjax.revision"  # in the metadata: the commit that was fetched

_WAITS = (2.0, 10.0, 30.0)  # seconds before each further attempt
_BATCH_ROWS = 1000
_SECONDS_PER_LOG = 10
_NAME = re.compile(r"[\w.-]+(/[\w.-]+)?")
# Classes of libraries that are imported late, if at all.
_NOT_THERE = (
    "DatasetNotFoundError",
    "DataFilesNotFoundError",
    "RepositoryNotFoundError",
    "RevisionNotFoundError",
)
_TRANSPORT_ERRORS = (
    ("httpx", "HTTPError"),
    ("httpx2", "HTTPError"),
    ("requests", "RequestException"),
    ("aiohttp", "ClientError"),
)


@dataclasses.dataclass(frozen=True)
class DatasetSpec:
    """What "hf://name?revision=..&config=..&split=..&column=.." says."""

    name: str
    revision: str = ""  # branch, tag or commit; empty is the newest
    config: str = ""
    split: str = "train"
    column: str = "text"
    prompt: str = ""  # column of prompts; empty if they are not fetched

    @classmethod
    def parse(cls, spec: str) -> "DatasetSpec":
        """Raises UserError if it is not written like that."""
        name, _, query = spec.removeprefix(DATASET_SCHEME).partition("?")
        known = [
            field.name for field in dataclasses.fields(cls) if field.name != "name"
        ]
        options = dict(urllib.parse.parse_qsl(query, keep_blank_values=True))
        unknown = sorted(set(options) - set(known))
        if unknown:
            problem = f"has the unknown option {unknown[0]!r}"
        elif not _NAME.fullmatch(name):
            problem = f"has no name of a dataset but {name!r}"
        else:
            given = {key: value for key, value in options.items() if value}
            return cls(name, **given)
        raise UserError(
            f"The dataset {spec!r} {problem}.",
            where="data.train or data.valid",
            remedy=f"write {DATASET_SCHEME}owner/name?split=train&column=text; known "
            f"options are {', '.join(known)}.",
        )

    def describe(self) -> dict[str, str]:
        described = dataclasses.asdict(self)
        if not self.prompt:
            del described["prompt"]
        return described

    @property
    def file_name(self) -> str:
        key = json.dumps(self.describe(), sort_keys=True)
        digest = hashlib.sha256(key.encode()).hexdigest()[:16]
        return f"{re.sub(r'[^A-Za-z0-9_.-]', '--', self.name)}-{digest}.parquet"


def fetch_dataset(spec: str, cache_dir: Path, prompt_field: str = "") -> Path:
    """Returns a Parquet file with the text of a dataset, fetched if it is not there.

    Its only column is named "text", whatever it was called on the hub, and there is
    one more if prompts are wanted, "prompt"; the metadata hold the spec and, where the
    hub tells, the commit.

    Args:
      spec: such as "hf://roneneldan/TinyStories?split=train"; see DatasetSpec.
      cache_dir: the file stands in its folder `datasets`.
      prompt_field: column of prompts, where the spec names no other; empty if none are
        wanted.

    Raises:
      UserError: the dataset is not known, can't be reached, or can't be written.
    """
    parsed = DatasetSpec.parse(spec)
    if parsed.prompt and not prompt_field:
        raise _wrong(parsed, "Prompts are named, but data.prompt_field is empty.")
    parsed = dataclasses.replace(parsed, prompt=parsed.prompt or prompt_field)
    file = Path(cache_dir).expanduser() / "datasets" / parsed.file_name
    if file.exists():
        return file
    require("datasets", extra="hf", what=f"The dataset {spec}")
    require("pyarrow.parquet", extra="hf", what=f"The dataset {spec}")
    logging.info("Fetching %s to %s", spec, file)
    for wait in (*_WAITS, None):
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
            with replacing(file) as temporary:
                rows = _write(temporary, parsed)
            logging.info("Fetched %s: %s rows", spec, f"{rows:,}")
            return file
        except _Unreachable as error:
            if wait is None or error.offline:
                raise _unreachable(spec, error) from error
            logging.warning("%s: %s; again in %g s", spec, error, wait)
            time.sleep(wait)
        except OSError as error:
            raise UserError(
                f"The dataset can't be written: {error.strerror or error}.",
                where=str(file.parent),
                remedy="free some space there, or set data.cache_dir to another "
                "folder.",
            ) from error
    raise AssertionError("the last attempt returns or raises")


class _Unreachable(Exception):
    """The hub did not answer as it should; another time it may."""

    def __init__(self, error: BaseException):
        super().__init__(str(error) or type(error).__name__)
        self.offline = type(error).__name__ == "OfflineModeIsEnabled"


def _write(file: Path, spec: DatasetSpec) -> int:
    """Writes the texts of a dataset, and returns the number of rows."""
    pyarrow = importlib.import_module("pyarrow")
    parquet = importlib.import_module("pyarrow.parquet")
    with _explained(spec):
        commit = _resolve(spec)
        pinned = dataclasses.replace(spec, revision=commit or spec.revision)
        batches = _batches(pinned)
    metadata = {DATASET_KEY: json.dumps(spec.describe()).encode()}
    if commit:
        metadata[REVISION_KEY] = commit.encode()
    names = [DATASET_COLUMN] + [DATASET_PROMPT_COLUMN] * bool(spec.prompt)
    schema = pyarrow.schema(
        [(name, pyarrow.large_string()) for name in names], metadata=metadata
    )
    rows = 0
    with parquet.ParquetWriter(file, schema, compression="zstd") as writer:
        while True:
            with _explained(spec):
                columns = next(batches, None)
            if columns is None:
                return rows
            arrays = []
            for name, texts in zip(_columns(spec), columns, strict=True):
                try:
                    arrays.append(pyarrow.array(texts, schema.types[0]))
                except (TypeError, ValueError) as error:
                    raise _wrong(
                        spec, f"The column {name!r} does not hold text: {error}."
                    ) from error
            writer.write_table(pyarrow.table(arrays, schema))
            rows += len(columns[0])
            logging.log_every_n_seconds(
                logging.INFO, "%s: %s rows", _SECONDS_PER_LOG, spec.name, f"{rows:,}"
            )


def _columns(spec: DatasetSpec) -> list[str]:
    """What is fetched, by its name on the hub: the text and, if wanted, the prompt."""
    return [spec.column] + [spec.prompt] * bool(spec.prompt)


def _batches(spec: DatasetSpec) -> Iterator[list[list[str | None]]]:
    """Yields the texts of each column, some rows at a time."""
    dataset = _load(spec)
    known = dataset.column_names
    if known is not None:  # None: to be seen in the rows
        _check_columns(spec, known)
        dataset = dataset.select_columns(_columns(spec))
    for batch in dataset.iter(batch_size=_BATCH_ROWS):
        _check_columns(spec, list(batch))
        yield [batch[name] for name in _columns(spec)]


def _check_columns(spec: DatasetSpec, known: list[str]) -> None:
    for name in _columns(spec):
        if name not in known:
            raise _wrong(
                spec,
                f"There is no column {name!r}; there are "
                f"{', '.join(map(repr, known))}.",
            )


def _load(spec: DatasetSpec) -> Any:
    """Returns the datasets.IterableDataset."""
    datasets = importlib.import_module("datasets")
    return datasets.load_dataset(
        spec.name,
        spec.config or None,
        split=spec.split,
        revision=spec.revision or None,
        streaming=True,
    )


def _resolve(spec: DatasetSpec) -> str:
    """Returns the commit that a revision is now; "" if the hub does not tell."""
    hub = importlib.import_module("huggingface_hub")
    info = hub.HfApi().dataset_info(spec.name, revision=spec.revision or None)
    return info.sha or ""


@contextlib.contextmanager
def _explained(spec: DatasetSpec) -> Iterator[None]:
    """Tells what is wrong with the spec from what is wrong with the network."""
    transport = tuple(
        getattr(sys.modules[module], name)
        for module, name in _TRANSPORT_ERRORS
        if module in sys.modules
    )
    datasets_error = importlib.import_module("datasets.exceptions").DatasetsError
    try:
        yield
    except UserError:
        raise
    except (ValueError, RuntimeError, OSError, datasets_error, *transport) as error:
        kinds = {kind.__name__ for kind in type(error).__mro__}
        if kinds.intersection(_NOT_THERE):
            raise _wrong(spec, f"There is no such dataset: {error}") from error
        if isinstance(error, (OSError, *transport)):
            raise _Unreachable(error) from error
        raise _wrong(spec, str(error)) from error


def _wrong(spec: DatasetSpec, what: str) -> UserError:
    options = {k: v for k, v in spec.describe().items() if k != "name"}
    return UserError(
        what,
        where=f"the dataset {spec.name!r} on the Hugging Face hub, "
        + ", ".join(f"{name}={value!r}" for name, value in options.items()),
        remedy=f"correct it: {DATASET_SCHEME}owner/name?split=..&column=..&config=.."
        "&revision=..; a private dataset needs HF_TOKEN.",
    )


def _unreachable(spec: str, error: Exception) -> UserError:
    endpoint = os.environ.get("HF_ENDPOINT", "https://huggingface.co")
    return UserError(
        f"The dataset {spec} can't be fetched: {error}",
        where=endpoint,
        remedy="check the name and the network (and HF_HUB_OFFLINE), or download it "
        "elsewhere and give the Parquet file as the path.",
    )
