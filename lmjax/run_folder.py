"""A run folder: its config, its checkpoints, and whether they belong to this run."""

import dataclasses
import pathlib
import re

import jax

from lmjax.config import serialize
from lmjax.config.schema import Config
from lmjax.core import trees
from lmjax.core.errors import ConfigError, UserError
from lmjax.core.types import PyTree
from lmjax.data.preparation.manifest import Prepared
from lmjax.experiment import System
from lmjax.train.checkpoints import Checkpoints
from lmjax.train.progress import Progress
from lmjax.train.state import TrainState

# Fields that say what the parameters and the data position mean.
FIXED_FIELDS = re.compile(
    r"seed|objective\.(kind|parameterization)|tokenizer\.vocab_size|data\.sequence_length"
    r"|data\.(document_mask|weights|max_epochs)"
    r"|model\.(num_layers|width|num_heads|num_kv_heads|mlp|mlp_width|rope_theta"
    r"|backbone|norm|norm_epsilon|qk_norm|attention_bias|mlp_bias|head_bias"
    r"|tied_embeddings|time_conditioning|condition_width)"
    r"|train\.batch_size|optim\.ema_decay"
)


@dataclasses.dataclass
class RunFolder:
    """An open run folder; use as a context manager.

    Attributes:
      path: the folder.
      config: the config of this start.
      checkpoints: what is saved.
      start_step: the step this start goes on from; 0 is the beginning.
    """

    path: pathlib.Path
    config: Config
    prepared: Prepared | None
    checkpoints: Checkpoints
    start_step: int

    @classmethod
    def open(
        cls,
        path: pathlib.Path,
        config: Config,
        prepared: Prepared | None,
        *,
        read_only: bool = False,
    ) -> "RunFolder":
        """Opens or makes a run folder.

        Args:
          prepared: corpus and tokenizer of this start, or None when there is none and
            the checkpoint's tokenizer is used.
          read_only: the folder must hold a checkpoint, and nothing is written.

        Raises:
          ConfigError: when the folder is another run's, or has no checkpoint that is
            asked for.
          UserError: when it cannot be written to.
        """
        checkpoint_folder = path / "checkpoints"
        if read_only and not checkpoint_folder.is_dir():
            raise ConfigError(
                "there is no checkpoint to read",
                where=str(checkpoint_folder),
                remedy="name the folder of a run with --workdir, or train one first",
            )
        _check_same_run(path, config, read_only)
        try:
            checkpoints = Checkpoints(
                checkpoint_folder, keep=config.checkpoint.keep, read_only=read_only
            )
        except OSError as error:
            raise UserError(
                f"the run folder cannot be written: {error.strerror or error}",
                where=str(path),
                remedy="choose another folder with --workdir",
            ) from error
        start_step = _start_step(config.checkpoint.resume, checkpoints, path, read_only)
        folder = cls(path, config, prepared, checkpoints, start_step)
        if start_step and prepared is not None:
            folder._check_corpus(prepared)
        if not read_only:
            checkpoints.drop_after(start_step)
            if jax.process_index() == 0:
                serialize.save(config, path / "config.json")
        return folder

    def __enter__(self) -> "RunFolder":
        return self

    def __exit__(self, *_: object) -> None:
        self.checkpoints.close()

    def tokenizer_model(self) -> bytes:
        """The tokenizer the checkpoint was trained with."""
        return self.checkpoints.meta(self.start_step)["tokenizer"]

    def restore(self, abstract: TrainState) -> tuple[TrainState, Progress]:
        """State and progress of the checkpoint this start goes on from."""
        self._check_shapes(abstract.params)
        progress = Progress(**self.checkpoints.meta(self.start_step)["progress"])
        return self.checkpoints.restore(self.start_step, abstract), progress

    def restore_params(self, system: System) -> PyTree:
        """What evaluation and generation use: the average where there is one."""
        self._check_shapes(system.model.shapes)
        self._check_mask(system.tokenizer.special.mask)
        return self.checkpoints.restore_params(self.start_step, system.model.shapes)

    def save(self, state: TrainState, progress: Progress) -> None:
        """Starts writing a checkpoint."""
        self.checkpoints.save(
            state,
            step=progress.step,
            progress=progress.to_json(),
            config=serialize.to_dict(self.config),
            tokenizer_model=self.prepared.tokenizer.model_bytes,
            mask_id=self.prepared.tokenizer.special.mask,
            corpus=self.prepared.sha256,
        )

    def wait(self) -> None:
        """Returns once every checkpoint is on disk."""
        self.checkpoints.wait()

    def _check_mask(self, mask_id: int) -> None:
        saved = self.checkpoints.meta(self.start_step).get("mask_id", mask_id)
        if saved != mask_id:
            raise ConfigError(
                f"the checkpoint was trained with mask id {saved}, and the tokenizer "
                f"now has {mask_id}",
                where=f"{self.path}, step {self.start_step}",
                remedy="use the tokenizer that the run was trained with",
            )

    def _check_corpus(self, prepared: Prepared) -> None:
        meta = self.checkpoints.meta(self.start_step)
        self._check_mask(prepared.tokenizer.special.mask)
        if meta["tokenizer"] != prepared.tokenizer.model_bytes:
            what = "the tokenizer is not the checkpoint's"
        elif meta["corpus"] != prepared.sha256:
            what = "the corpus, or how it is split, is not what this run began with"
        else:
            return
        raise ConfigError(
            what,
            where=f"{self.path}, step {self.start_step}; prepared: {prepared.folder}",
            remedy="restore the corpus and the tokenizer this run began with, or train "
            "into another --workdir",
        )

    def _check_shapes(self, params: PyTree) -> None:
        saved = self.checkpoints.param_shapes(self.start_step)
        wanted: dict[str, tuple[int, ...]] = {}
        trees.map_named(lambda name, leaf: wanted.update({name: leaf.shape}), params)
        wrong = [
            f"{name} is {saved.get(name, 'absent')} there and "
            f"{wanted.get(name, 'absent')} here"
            for name in sorted(saved.keys() | wanted.keys())
            if saved.get(name) != wanted.get(name)
        ]
        if wrong:
            raise ConfigError(
                f"the checkpoint is of another model: {wrong[0]}"
                + (f" (and {len(wrong) - 1} more)" if len(wrong) > 1 else ""),
                where=f"{self.path}, step {self.start_step}",
                remedy="use the config of that run (leave --config out), or another "
                "--workdir",
            )


def _check_same_run(path: pathlib.Path, config: Config, read_only: bool) -> None:
    """Refuses a config that would give the folder's parameters another meaning.

    A mode that only reads may draw with another seed; to train on needs the same.
    """
    file = path / "config.json"
    if not file.exists() or not (path / "checkpoints").is_dir():
        return
    if not any((path / "checkpoints").iterdir()):
        return
    changed = [
        difference
        for difference in serialize.differences(serialize.load(file), config)
        if FIXED_FIELDS.fullmatch(difference.field)
        and not (read_only and difference.field == "seed")
    ]
    if changed:
        told = "; ".join(f"{d.field} was {d.old!r}, now {d.new!r}" for d in changed)
        raise ConfigError(
            f"the run folder is of another run: {told}",
            where=str(path),
            remedy="choose another --workdir, or leave --config out to go on with "
            "the run as it was configured",
        )


def _start_step(
    resume: str, checkpoints: Checkpoints, path: pathlib.Path, read_only: bool
) -> int:
    """The step that checkpoint.resume means here."""
    steps = checkpoints.steps()
    where = f"checkpoint.resume={resume}, {path}"
    if resume == "none" and not read_only:
        if steps:
            raise ConfigError(
                f"the run folder has checkpoints up to step {steps[-1]}",
                where=where,
                remedy="start anew in another --workdir, or delete this one",
            )
        return 0
    if resume in ("latest", "none"):
        if read_only and not steps:
            raise ConfigError(
                "there is no whole checkpoint to read",
                where=str(path),
                remedy="train this run first: leave --mode out",
            )
        return steps[-1] if steps else 0
    if int(resume) not in steps:
        raise ConfigError(
            f"there is no checkpoint of step {resume}",
            where=where,
            remedy=f"choose one of {', '.join(map(str, steps)) or 'none there are'}",
        )
    return int(resume)
