"""Mode import: a model from elsewhere becomes a run folder, to go on from."""

import dataclasses
import pathlib

from absl import logging

from lmjax.config import serialize
from lmjax.config.schema import Config
from lmjax.core import trees
from lmjax.core.errors import ConfigError
from lmjax.data.tokenization.tokenizers import load_tokenizer
from lmjax.export import importing
from lmjax.run_folder import IMPORTED, MILESTONES
from lmjax.train.checkpoints import COUNTS
from lmjax.train.weights import SavedWeights, WeightsWriter


def import_model(config: Config, workdir: pathlib.Path) -> None:
    """Makes a run folder of the Hugging Face folder that `checkpoint.init_from` names.

    Its config has the sections of that model, and begins with its weights: what is
    trained, evaluated, sampled or exported from the folder is that model.
    """
    source = pathlib.Path(config.checkpoint.init_from).expanduser()
    if not config.checkpoint.init_from:
        raise ConfigError(
            "no model is named",
            where="checkpoint.init_from is empty",
            remedy="--config.checkpoint.init_from=FOLDER, that holds config.json and "
            "model.safetensors",
        )
    target = workdir / MILESTONES / IMPORTED
    if SavedWeights.is_at(target) or (workdir / "checkpoints").exists():
        raise ConfigError(
            "the run folder is not empty",
            where=str(workdir),
            remedy="choose another --workdir, or delete this one",
        )
    found = importing.import_model(source)
    tokenizer = load_tokenizer(found.tokenizer)
    length = min(config.data.sequence_length, found.model.max_length)
    config = dataclasses.replace(
        config,
        model=found.model,
        objective=found.objective,
        tokenizer=found.tokenizer,
        data=dataclasses.replace(config.data, sequence_length=length),
        checkpoint=dataclasses.replace(config.checkpoint, init_from=str(target)),
        generate=dataclasses.replace(
            config.generate,
            max_new_tokens=min(config.generate.max_new_tokens, found.model.max_length),
        ),
    )
    writer = WeightsWriter()
    meta = dict.fromkeys(COUNTS, 0) | {
        "config": serialize.to_dict(config),
        "tokenizer": tokenizer.model_bytes,
        "mask_id": tokenizer.special.mask,
        "corpus": "",
    }
    writer.write(target, found.params, meta)
    writer.close()
    serialize.save(config, workdir / "config.json")
    logging.info(
        "imported %s: %s parameters, %d layers of %d, %s ids",
        source,
        f"{trees.count(found.params):,}",
        config.model.num_layers,
        config.model.width,
        f"{tokenizer.vocab_size:,}",
    )
    print(
        f"run folder: {workdir}; go on with: python -m lmjax.main --workdir {workdir} "
        "--mode generate, or --config.data.train=TEXT to train"
    )
