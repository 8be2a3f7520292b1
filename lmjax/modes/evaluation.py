"""Mode evaluate: what a checkpoint is worth."""

import os
import pathlib
from typing import Any

import jax

from lmjax import experiment, report
from lmjax.config import serialize
from lmjax.config.schema import AutoregressiveConfig, Config, ParallelConfig
from lmjax.core import rng
from lmjax.core.errors import ConfigError
from lmjax.data.tokenization.tokenizers import tokenizer_from_bytes
from lmjax.evaluate import figures
from lmjax.evaluate.generated_text import (
    GenerativePerplexity,
    Judge,
    evaluate_texts,
)
from lmjax.evaluate.judges import HuggingFaceJudge, LmjaxJudge
from lmjax.evaluate.likelihood import Scorer
from lmjax.experiment import System
from lmjax.modes.generation import build_generator, check_prompts
from lmjax.modes.zero_shot import evaluate_tasks
from lmjax.run_folder import RunFolder


def evaluate(config: Config, workdir: pathlib.Path) -> None:
    """Scores the newest (or chosen) checkpoint on the held-out text, or on tasks."""
    if config.evaluate.tasks:
        evaluate_tasks(config, workdir)
        return
    _check_output(config.evaluate.json)
    judge = _judge(config.evaluate.judge) if config.evaluate.judge else None
    prepared = experiment.prepare_corpus(config)
    system = experiment.build_system(config, prepared.tokenizer, prepared=prepared)
    with RunFolder.read(workdir, config) as folder:
        folder.check_corpus(prepared)
        params = folder.restore_params(system, on_mesh=True)
        scorer = Scorer(system.on_mesh.bind, system.objective, system.mesh)
        if judge is not None:
            check_prompts(config, system)
        counts = folder.counts()
        summary = report.make(config, prepared, system, scorer, params, counts)
        print(report.table(summary))
        # The report in a run folder is that of its end.
        name = "report" if folder.label == "main" else f"report-{folder.label}"
        file = workdir / f"{name}.json"
        print(f"written: {report.write_json(summary, file)}")
        if judge is not None:
            found = _judge_samples(config, system, params, judge)
            summary["figures"] += [figure.to_json() for figure in found.figures()]
            summary["generated"] = found.to_json()
            print(f"\n{figures.table(found.figures())}")
            report.write_json(summary, file)
        if config.evaluate.json:
            file = pathlib.Path(config.evaluate.json).expanduser()
            print(f"figures: {report.write_json(summary['figures'], file)}")


def _check_output(file: str) -> None:
    """Says before the work that a file can't be written after it."""
    path = pathlib.Path(file).expanduser()
    if file and (path.is_dir() or (path.exists() and not os.access(path, os.W_OK))):
        raise ConfigError(
            "this is no file that can be written",
            where=f"evaluate.json={file!r}",
            remedy="name a file, such as figures.json",
        )


def _judge(name: str) -> Judge:
    """The causal model that reads generated texts: a run folder, or Hugging Face's."""
    path = pathlib.Path(name).expanduser()
    if not (path / "checkpoints").is_dir():
        return HuggingFaceJudge(name)
    config = serialize.load(path / "config.json")
    if not isinstance(config.objective, AutoregressiveConfig):
        raise ConfigError(
            "a judge must be an autoregressive run, whose likelihood is exact",
            where=f"evaluate.judge={name!r}",
            remedy="name the folder of a run of the variant ar, or a Hugging Face one",
        )
    with RunFolder.read(path, config) as folder:
        tokenizer = tokenizer_from_bytes(folder.tokenizer_model())
        config.parallel = ParallelConfig()  # it reads on one device
        system = experiment.build_system(config, tokenizer, jax.local_devices()[:1])
        params = folder.restore_params(system)
    special = tokenizer.special
    first_id = experiment.first_input(config.objective, special)
    return LmjaxJudge(
        Scorer(system.on_mesh.bind, system.objective, system.mesh),
        params,
        tokenizer,
        name=name,
        opening=experiment.document_opening(config.data, special, first_id),
        max_length=config.model.max_length,
        document_mask=config.data.document_mask,
    )


def _judge_samples(
    config: Config, system: System, params: Any, judge: Judge
) -> GenerativePerplexity:
    """Writes texts from scratch, or from prompts, and has what is new in them read."""
    prompts = config.generate.prompts
    samples = build_generator(config, system)(
        params,
        rng.stream(config.seed, "judge"),
        prompts,
        num_samples=-(-config.evaluate.judge_samples // max(len(prompts), 1)),
        max_new_tokens=config.generate.max_new_tokens,
    )
    texts = [sample.text.removeprefix(sample.prompt) for sample in samples]
    ids = system.tokenizer.encode_ids(texts)
    return evaluate_texts(judge, texts, ids)
