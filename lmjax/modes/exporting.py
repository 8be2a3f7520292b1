"""Mode export: models of a run as folders that transformers loads, and to the hub."""

import pathlib

from lmjax import experiment
from lmjax.config.schema import Config
from lmjax.export.folder import ExportedModel, export_model
from lmjax.export.tokenizer_files import tokenizer_files
from lmjax.modes.checkpoints import FINAL, exact_system, open_checkpoints
from lmjax.run_folder import RunFolder


def export(config: Config, workdir: pathlib.Path) -> None:
    """Writes every checkpoint that is asked for, each checked against the model."""
    options = config.export
    parent = pathlib.Path(options.folder or workdir / "export").expanduser()
    written: dict[str, pathlib.Path] = {}
    names, field = options.checkpoints, "export.checkpoints"
    for folder in open_checkpoints(config, workdir, names, field):
        alone = names.strip() == FINAL
        target = parent if alone else parent / folder.label
        found = _export(config, folder, target)
        written[folder.label] = target
        print(
            f"{target}: {found.architecture.value}, {found.num_params:,} parameters, "
            f"{found.num_bytes / 1e6:,.1f} MB; {found.check.describe()}"
        )


def _export(config: Config, folder: RunFolder, target: pathlib.Path) -> ExportedModel:
    system = exact_system(config, folder, one_device=True)
    opening = experiment.text_opening(config, system.tokenizer.special)
    files = tokenizer_files(
        system.tokenizer, opening_id=opening, max_length=config.model.max_length
    )
    return export_model(
        system.model,
        config.objective,
        folder.restore_params(system),
        system.tokenizer,
        target,
        opening_id=opening,
        architecture=config.export.architecture,
        dtype=config.export.dtype,
        overwrite=config.export.overwrite,
        files=files,
    )
