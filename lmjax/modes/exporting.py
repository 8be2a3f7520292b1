"""Mode export: models of a run as folders that transformers loads, and to the hub."""

import json
import pathlib
import re
from typing import Any

import jax
from absl import logging

from lmjax import experiment
from lmjax.config import serialize
from lmjax.config.fields import kind_name
from lmjax.config.schema import Architecture, AutoregressiveConfig, Config, Push
from lmjax.core import trees
from lmjax.core.errors import UserError
from lmjax.experiment import System
from lmjax.export import card, hub
from lmjax.export.architectures import choose_architecture
from lmjax.export.folder import ExportedModel, export_model
from lmjax.export.tokenizer_files import tokenizer_files
from lmjax.modes.checkpoints import FINAL, exact_system, open_checkpoints
from lmjax.run_folder import MILESTONES, RunFolder
from lmjax.train.milestones import read_ledger

# Fields that say what was trained, and how; no folders of this machine.
_SHAPING = re.compile(
    r"seed|tokenizer\.(?!path)|data\.(?!train|valid|cache_dir|default_folder)|cleaning"
    r"|model\.|objective|optim\.|train\."
)
_COUNTED = ("name", "documents", "words", "tokens")


def export(config: Config, workdir: pathlib.Path) -> None:
    """Writes every checkpoint that is asked for, each checked against the model."""
    if jax.process_count() > 1:
        raise UserError(
            "models are exported by one process",
            where="--mode export",
            remedy="run it on one machine alone: it needs no accelerator",
        )
    parent = pathlib.Path(config.export.folder or workdir / "export").expanduser()
    revisions = []
    names, field = config.export.checkpoints, "export.checkpoints"
    for folder in open_checkpoints(config, workdir, names, field):
        alone = names.strip() == FINAL
        target = parent if alone else parent / folder.label
        found = _export(config, workdir, folder, target)
        revisions.append(hub.Revision(folder.label, target))
        if config.export.push is Push.UPLOAD and found.check.what != "logits":
            raise UserError(
                "a model is not pushed unless its logits were compared",
                where="export.push=upload",
                remedy="install torch and transformers (the extra judge)",
            )
        print(
            f"{target}: {found.architecture.value}, {found.num_params:,} parameters, "
            f"{found.num_bytes / 1e6:,.1f} MB; {found.check.describe()}"
        )
    match config.export.push:
        case Push.DRY_RUN:
            print("\n".join(hub.describe(config.export.hub_repo, revisions)))
        case Push.UPLOAD:
            written = hub.push(config.export.hub_repo, revisions)
            logging.info("pushed to %s: %s", config.export.hub_repo, ", ".join(written))


def _export(
    config: Config, workdir: pathlib.Path, folder: RunFolder, target: pathlib.Path
) -> ExportedModel:
    system = exact_system(config, folder, one_device=True)
    opening = experiment.text_opening(config, system.tokenizer.special)
    files = tokenizer_files(
        system.tokenizer, opening_id=opening, max_length=config.model.max_length
    )
    text = card.model_card(_facts(config, workdir, folder, system))
    return export_model(
        system.model,
        config.objective,
        folder.restore_params(system),
        system.tokenizer,
        target,
        opening_id=opening,
        architecture=config.export.architecture,
        dtype=config.export.dtype,
        # Pushed again, after an interruption or a dry run: the same files come out.
        overwrite=config.export.overwrite or config.export.push is not Push.OFF,
        files=files | {"README.md": text.encode()},
    )


def _facts(
    config: Config, workdir: pathlib.Path, folder: RunFolder, system: System
) -> card.CardFacts:
    """What the run knows of these weights."""
    causal = isinstance(config.objective, AutoregressiveConfig)
    kind = choose_architecture(config.export.architecture, config.model, causal=causal)
    seen, report = folder.counts(), _read(workdir / "report.json", {})
    corpus = report.get("corpus", {})
    plain = Config(objective=type(config.objective)())
    changed = serialize.differences(plain, config)
    return card.CardFacts(
        name=config.export.hub_repo or workdir.resolve().name,
        objective="next-token prediction"
        if causal
        else kind_name(type(config.objective)).replace("_", " "),
        causal=causal,
        own_code=kind is Architecture.REMOTE,
        samples=kind is Architecture.REMOTE and not causal,
        num_params=trees.count(system.model.shapes),
        max_length=config.model.max_length,
        steps=seen.step,
        tokens=seen.tokens,
        words=seen.words,
        changed={
            each.field: each.new for each in changed if _SHAPING.match(each.field)
        },
        sources=[
            card.Source(**{name: each[name] for name in _COUNTED})
            for each in corpus.get("sources", ())
        ],
        corpus_sha256=corpus.get("sha256", ""),
        tokenizer_sha256=system.tokenizer.identity,
        figures=report.get("figures", ()) if report.get("steps") == seen.step else (),
        zero_shot=_zero_shot(workdir, folder.label, seen.step),
        revisions={
            entry["name"]: entry["words"] for entry in read_ledger(workdir / MILESTONES)
        },
    )


def _zero_shot(
    workdir: pathlib.Path, label: str, step: int
) -> list[card.ZeroShotScore]:
    """The scores of one checkpoint that `--mode evaluate` wrote."""
    found, name = [], workdir.resolve().name
    for entry in _read(workdir / "results" / "results.json", []):
        stamp = entry["stamp"]
        found_for = entry["model"], entry["revision"], entry.get("step")
        if found_for == (name, label, step):
            scorer = f"{stamp['scorer']}, {stamp['backend']}, ties {stamp['tie_rule']}"
            found.append(
                card.ZeroShotScore(
                    task=entry["dataset"],
                    percent=entry["accuracy"],
                    standard_error=entry["standard_error"],
                    scorer=f"{scorer}, {stamp['dtype']}",
                )
            )
    return found


def _read(file: pathlib.Path, missing: Any) -> Any:
    return json.loads(file.read_text(encoding="utf-8")) if file.exists() else missing
