"""Which weights of a run a mode works on: the newest, milestones, or all of them."""

import dataclasses
import pathlib
from collections.abc import Iterator

import jax

from lmjax import experiment
from lmjax.config.schema import Config, ParallelConfig, Precision
from lmjax.core.errors import ConfigError
from lmjax.data.tokenization.tokenizers import tokenizer_from_bytes
from lmjax.experiment import System
from lmjax.run_folder import RunFolder, weights_of

FINAL, ALL = "final", "all"


def open_checkpoints(
    config: Config, workdir: pathlib.Path, names: str, field: str
) -> Iterator[RunFolder]:
    """Opens the run folder once for each of the weights that are asked for.

    Args:
      names: "final", which is what `checkpoint.resume` names; "all", which adds every
        milestone before it; or names of milestones and steps, separated by commas.
      field: that holds them, for errors.

    Raises:
      ConfigError: there are no such weights.
    """
    wanted = [name.strip() for name in names.split(",") if name.strip()]
    if not wanted:
        raise ConfigError(
            "no checkpoint is named",
            where=f"{field}={names!r}",
            remedy=f"write {FINAL}, {ALL}, or milestones such as chck_1M,chck_10M",
        )
    if wanted == [ALL]:
        kept = [saved.path.name for saved in weights_of(workdir)]
        wanted = [name for name in kept if name.startswith("chck_")] + [FINAL]
    chosen = []
    for name in dict.fromkeys(wanted):
        resume = config.checkpoint.resume if name == FINAL else name
        checkpoint = dataclasses.replace(config.checkpoint, resume=resume)
        chosen.append(dataclasses.replace(config, checkpoint=checkpoint))
        with RunFolder.read(workdir, chosen[-1]):
            pass  # a name that is wrong is told before any work
    for each in chosen:
        with RunFolder.read(workdir, each) as folder:
            yield folder


def exact_system(config: Config, folder: RunFolder, *, one_device: bool) -> System:
    """The model of a run in float32, whatever it was trained in: scores are exact.

    Args:
      one_device: rather than all.
    """
    train = dataclasses.replace(config.train, precision=Precision.FLOAT32)
    config = dataclasses.replace(config, train=train)
    if one_device:
        config = dataclasses.replace(config, parallel=ParallelConfig())
    devices = jax.local_devices()[:1] if one_device else None
    tokenizer = tokenizer_from_bytes(folder.tokenizer_model())
    return experiment.build_system(config, tokenizer, devices)
