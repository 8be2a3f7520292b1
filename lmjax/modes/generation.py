"""Mode generate: texts from a checkpoint."""

import json
import os
import pathlib
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from typing import TextIO

import jax

from lmjax import experiment
from lmjax.config.schema import Config
from lmjax.core import rng
from lmjax.core.errors import ConfigError
from lmjax.data.tokenization.tokenizers import tokenizer_from_bytes
from lmjax.experiment import System
from lmjax.run_folder import RunFolder
from lmjax.sampling.left_to_right import Watch
from lmjax.sampling.prompt_files import read_prompts
from lmjax.sampling.prompts import Generator, Sample

STANDARD_OUTPUT = "-"
_RULE = "-" * 40  # between texts


def generate(config: Config, workdir: pathlib.Path) -> None:
    """Writes texts with the newest (or chosen) checkpoint; needs no corpus.

    A terminal shows them while they are written. `generate.output` makes records of
    them, which also go to a file as they are finished.
    """
    _check_output(config.generate.output)
    with RunFolder.read(workdir, config) as folder:
        step = folder.counts().step
        tokenizer = tokenizer_from_bytes(folder.tokenizer_model())
        system = experiment.build_system(config, tokenizer)
        generator = build_generator(config, system)
        prompts = list(config.generate.prompts)
        if config.generate.prompt_file:
            prompts += read_prompts(config.generate.prompt_file)
        generator.check(prompts, config.generate.max_new_tokens)
        params = folder.restore_params(system)

    def write(watch: Watch | None = None) -> Iterator[Sample]:
        return generator.write(
            params,
            rng.stream(config.seed, "generate"),
            prompts,
            num_samples=config.generate.num_samples,
            max_new_tokens=config.generate.max_new_tokens,
            watch=watch,
        )

    if jax.process_index() > 0:
        for _ in write():
            pass
    elif config.generate.output:
        _write_records(write(), config, step)
    elif sys.stdout.isatty():
        show = Show(sys.stdout, prompts, config.generate.num_samples)
        for number, sample in enumerate(write(show)):
            if number >= show.finished:  # diffusion does not write from the left
                _print(sample)
    else:
        for sample in write():
            _print(sample)


def build_generator(config: Config, system: System) -> Generator:
    """What writes texts as this config says."""
    return experiment.build_generator(
        config.generate, config.data, system, max_length=config.model.max_length
    )


def check_prompts(config: Config, system: System) -> None:
    """Says now, rather than when the first text is written, what is wrong with one."""
    build_generator(config, system).check(
        config.generate.prompts, config.generate.max_new_tokens
    )


def record(sample: Sample, config: Config, step: int) -> str:
    """One line of JSON: a text, and what it takes to write it again."""
    fields = {
        "prompt": sample.prompt,
        "text": sample.text,
        "continuation": sample.continuation,
        "tokens": sample.num_tokens,
        "finish_reason": sample.ending.value,
        "sample": sample.number,
        "seed": config.seed,
        "step": step,
    }
    return json.dumps(fields, ensure_ascii=False)


class Show:
    """Texts on a terminal while they are written, one after another.

    They are written in batches: one is shown as it grows, and what is written beside it
    meanwhile appears when its turn comes.

    Attributes:
      finished: texts that are shown whole.
    """

    def __init__(self, stream: TextIO, prompts: Sequence[str], num_samples: int):
        self._stream, self._num_samples = stream, num_samples
        self._prompts = prompts or ("",)
        self.finished = 0
        self._pieces: dict[int, list[str]] = {}
        self._ended: set[int] = set()
        self._begun = False

    def __call__(self, number: int, piece: str, ended: bool) -> None:
        """Takes what is new behind the prompt of a text, and whether it ends."""
        self._pieces.setdefault(number, []).append(piece)
        if ended:
            self._ended.add(number)
        while self.finished in self._pieces:
            turn = self.finished
            if not self._begun:
                self._stream.write(self._prompts[turn // self._num_samples])
            self._begun = turn not in self._ended
            self._stream.write("".join(self._pieces.pop(turn)))
            if turn in self._ended:
                self._stream.write(f"\n{_RULE}\n")
                self.finished += 1
        self._stream.flush()


def _print(sample: Sample) -> None:
    for number, state in enumerate(sample.states, 1):
        print(f"[{number}/{len(sample.states)}] {state}")
    print(sample.text)
    print(_RULE)


def _write_records(samples: Iterable[Sample], config: Config, step: int) -> None:
    """Writes each text as it is finished, in the order of the prompts."""
    if config.generate.output == STANDARD_OUTPUT:
        for sample in samples:
            print(record(sample, config, step), flush=True)
        return
    file = pathlib.Path(config.generate.output).expanduser()
    texts = tokens = 0
    began = time.perf_counter()
    with file.open("w", encoding="utf-8") as stream:
        for sample in samples:
            print(record(sample, config, step), file=stream, flush=True)
            texts, tokens = texts + 1, tokens + sample.num_tokens
    seconds = time.perf_counter() - began
    print(
        f"written: {file} ({texts:,} texts, {tokens:,} new tokens, "
        f"{tokens / seconds:,.0f} a second)"
    )


def _check_output(output: str) -> None:
    """Says before the work that a file can't be written after it."""
    if output in ("", STANDARD_OUTPUT):
        return
    file = pathlib.Path(output).expanduser()
    place = file if file.exists() else file.parent
    if file.is_dir() or not os.access(place, os.W_OK):
        raise ConfigError(
            "this is no file that can be written",
            where=f"generate.output={output!r}",
            remedy="name a file in a folder that exists, such as texts.jsonl, or - for "
            "standard output",
        )
