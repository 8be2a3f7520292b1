"""BabyLM's zero-shot tasks, reading times and ages of acquisition of a run's models."""

import dataclasses
import pathlib
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from absl import logging

from lmjax import experiment
from lmjax.config.schema import AutoregressiveConfig, Config, UniformDiffusionConfig
from lmjax.core.errors import ConfigError
from lmjax.core.types import PyTree
from lmjax.evaluate import figures
from lmjax.evaluate.figures import Figure
from lmjax.evaluate.human import results as human_results
from lmjax.evaluate.human.acquisition_data import (
    AcquisitionQuestions,
    Milestone,
    find_acquisition_data,
    read_acquisition_data,
    tokens_of_words,
)
from lmjax.evaluate.human.age_of_acquisition import score_acquisition
from lmjax.evaluate.human.next_word import build_next_word
from lmjax.evaluate.human.reading import (
    ReadingQuestions,
    find_reading_times,
    read_reading_times,
    score_reading,
)
from lmjax.evaluate.probes import Prober
from lmjax.evaluate.zero_shot.files import Revision, results_table, write_results
from lmjax.evaluate.zero_shot.readers import load_tasks
from lmjax.evaluate.zero_shot.scoring import ZeroShot
from lmjax.experiment import System
from lmjax.export.architectures import is_stock
from lmjax.models.build import Model, build_model
from lmjax.modes.checkpoints import exact_system, open_checkpoints
from lmjax.run_folder import RunFolder
from lmjax.train.milestones import words_of

READING, ACQUISITION = "reading", "aoa"


def evaluate_tasks(config: Config, workdir: pathlib.Path) -> None:
    """Scores `evaluate.tasks` with every checkpoint that is asked for."""
    names = [name.strip() for part in config.evaluate.tasks for name in part.split(",")]
    tasks = load_tasks(
        [name for name in names if name not in (READING, ACQUISITION)],
        config.evaluate.data,
    )
    evaluation: _Evaluation | None = None
    revisions: list[Revision] = []
    field = "evaluate.checkpoints"
    chosen = config.evaluate.checkpoints
    for folder in open_checkpoints(config, workdir, chosen, field):
        if evaluation is None:
            evaluation = _Evaluation(config, workdir, folder, names)
            for task in tasks:  # an item that does not fit is told before any work
                evaluation.zero_shot.encoded(task)
        with jax.default_matmul_precision("highest"):
            revisions.append(evaluation.score(folder, tasks))
        if tasks and jax.process_index() == 0:  # who is interrupted keeps these
            written = write_results(evaluation.results, revisions[-1:])
    if tasks and jax.process_index() == 0:
        print(results_table(revisions))
        print(f"written: {', '.join(map(str, written))}")
    evaluation.finish()


class _Evaluation:
    """What all checkpoints share: programs, items in ids, and where results go."""

    def __init__(
        self,
        config: Config,
        workdir: pathlib.Path,
        folder: RunFolder,
        names: Sequence[str],
    ):
        self.config, self.results = config, workdir / "results"
        self.name = workdir.resolve().name
        self.system = exact_system(config, folder, one_device=False)
        special = self.system.tokenizer.special
        opening = (experiment.text_opening(config, special),)
        causal = isinstance(config.objective, AutoregressiveConfig)
        if isinstance(config.objective, UniformDiffusionConfig):
            raise ConfigError(
                "a model of uniform noise has no probability of a token given others",
                where="evaluate.tasks",
                remedy="score tasks with a causal or a masked-diffusion run",
            )
        self.prober = Prober(
            scored_model(config, self.system).bind,
            self.system.mesh,
            max_length=config.model.max_length,
            pad_id=special.pad,
            causal=causal,
        )
        shared = dict(
            tokenizer=self.system.tokenizer,
            max_length=config.model.max_length,
            opening=opening,
            causal=causal,
            mask_id=special.mask,
        )
        self.zero_shot = ZeroShot(
            config.evaluate,
            self.prober,
            **shared,
            dtype=self.system.dtype.name,
            seed=config.seed,
        )
        self.stamp = {
            "backend": self.zero_shot.backend.name,
            "dtype": self.system.dtype.name,
        }
        self.reading = self.acquisition = None
        if READING in names:
            data = read_reading_times(find_reading_times(config.evaluate.data))
            read = build_next_word(config.evaluate, **shared)
            self.reading = (data, ReadingQuestions(data, read))
        if ACQUISITION in names:
            data = read_acquisition_data(find_acquisition_data(config.evaluate.data))
            asked = AcquisitionQuestions(config.evaluate, data, opening)
            self.acquisition = (data, asked)
        self.milestones: list[tuple[Milestone, np.ndarray]] = []
        self.figures: list[Figure] = []

    def score(self, folder: RunFolder, tasks: Sequence[Any]) -> Revision:
        """Everything that one checkpoint is asked."""
        params = folder.restore_params(self.system, on_mesh=True)
        label = folder.label
        found = []
        for task in tasks:
            result = self.zero_shot.evaluate(params, task)
            share = result.average()
            logging.info(
                "%s %s: %.2f %% of %d items (%.2f to %.2f)",
                label,
                task.dataset,
                100 * share.value,
                share.count,
                100 * share.low,
                100 * share.high,
            )
            found.append(result)
        if self.reading:
            self._read(params, label)
        if self.acquisition:
            _, asked = self.acquisition
            nats = asked(self.zero_shot.scores, params)
            words = words_of(label) or folder.counts().words  # as officially
            self.milestones.append((Milestone(label, words), nats))
        seen = folder.counts()
        return Revision(self.name, label, found, seen.step, seen.words)

    def finish(self) -> None:
        """What is known once all checkpoints were scored: when words were acquired."""
        if self.acquisition and jax.process_index() == 0:
            data, asked = self.acquisition
            # The end of a run is its last milestone, if it has any.
            kept = [each for each in self.milestones if words_of(each[0].revision)]
            kept = kept or self.milestones
            milestones = [each for each, _ in kept]
            nats_PC = np.stack([nats for _, nats in kept])
            tokenizer = self.system.tokenizer
            result = score_acquisition(
                data,
                milestones,
                nats_PC,
                edition=asked.edition,
                vocab_size=tokenizer.vocab_size,
                num_tokens=tokens_of_words(tokenizer, list(data.contexts)),
                resamples=self.config.evaluate.bootstrap,
                seed=self.config.seed,
            )
            path = human_results.write_acquisition(
                self._folder("main"),
                data,
                milestones,
                nats_PC,
                result,
                model_name=self.name,
                stamp=self.stamp,
            )
            self.figures += result.figures()
            for note in result.notes:
                print(note)
            print(f"written: {path}")
        if self.figures:
            print(figures.table(self.figures))

    def _read(self, params: PyTree, label: str) -> None:
        data, ask = self.reading
        found = ask(self.prober, params)
        if jax.process_index() > 0:
            return
        result = score_reading(
            data, found, resamples=self.config.evaluate.bootstrap, seed=self.config.seed
        )
        stamp = self.stamp | {"revision": label}
        path = human_results.write_reading(
            self._folder(label), data, found, result, stamp
        )
        self.figures += result.figures(f"{label}/reading")
        print(f"written: {path}")

    def _folder(self, revision: str) -> pathlib.Path:
        backend = self.zero_shot.backend.name
        return self.results / self.name / revision / "zero_shot" / backend


def scored_model(config: Config, system: System) -> Model:
    """The model as its export is scored: a stock class gives all ids a probability.

    A class of transformers knows no ids that are never predicted, but for the rows
    that pad the vocabulary, which are not exported. Diffusion models and others that
    bring their own code leave them out, as in training.
    """
    causal = isinstance(config.objective, AutoregressiveConfig)
    if not (causal and is_stock(config.model)):
        return system.model
    setting = system.model.setting
    padding = tuple(range(setting.num_ids, setting.vocab_size))
    setting = dataclasses.replace(setting, unpredictable=padding)
    return build_model(config.model, setting)
