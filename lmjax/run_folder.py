"""A run folder: its config, its checkpoints, and whether they belong to this run."""

import dataclasses
import functools
import pathlib
import re
from typing import Any

import jax

from lmjax.config import serialize
from lmjax.config.schema import Config
from lmjax.core import trees
from lmjax.core.errors import ConfigError, UserError
from lmjax.core.types import PyTree
from lmjax.data.preparation.manifest import Prepared
from lmjax.experiment import System
from lmjax.parallel import rules
from lmjax.train import milestones
from lmjax.train.checkpoints import (
    COUNTS,
    Checkpoints,
    SavedStep,
    on_first_device,
)
from lmjax.train.milestones import Milestones
from lmjax.train.progress import Progress
from lmjax.train.state import TrainState
from lmjax.train.weights import SavedWeights

MILESTONES = "milestones"  # folder of weights that are kept for good
IMPORTED = "imported"  # the milestone that a model from elsewhere begins with

# Fields that say what the parameters and the data position mean.
FIXED_FIELDS = re.compile(
    r"seed|objective\.(kind|parameterization|first_input)|tokenizer\.vocab_size"
    r"|data\.(sequence_length|document_mask|weights|max_epochs)"
    r"|model\.(num_layers|width|num_heads|num_kv_heads|head_width|mlp|mlp_width"
    r"|positions|rope_theta|backbone|norm|norm_epsilon|norm_bias|qk_norm"
    r"|attention_bias|mlp_bias|head_bias|tied_embeddings|vocab_size"
    r"|time_conditioning|condition_width)"
    r"|train\.batch_size|optim\.ema_decay"
)


@dataclasses.dataclass
class RunFolder:
    """An open run folder; use as a context manager.

    Attributes:
      path: the folder.
      config: the config of this start.
      checkpoints: what is saved to go on from.
      saved: the weights that `checkpoint.resume` names, or None at the beginning.
      start_step: the step this start goes on from; 0 is the beginning.
      label: what the weights are called: "main" for the newest, or for those imported
        where nothing was trained; a milestone's name, or "step_" and a step.
    """

    path: pathlib.Path
    config: Config
    prepared: Prepared | None
    checkpoints: Checkpoints
    saved: SavedStep | SavedWeights | None
    start_step: int
    label: str = "main"

    @classmethod
    def open(
        cls, path: pathlib.Path, config: Config, prepared: Prepared
    ) -> "RunFolder":
        """Opens or makes the folder of a training run; `begin` makes it this start's.

        Raises:
          ConfigError: when the folder is another run's, or lacks the checkpoint that is
            asked for.
          UserError: when it cannot be written to.
        """
        _check_same_run(path, config, read_only=False)
        config = dataclasses.replace(
            config, checkpoint=dataclasses.replace(config.checkpoint)
        )
        try:
            checkpoints = Checkpoints(
                path / "checkpoints", keep=config.checkpoint.keep, read_only=False
            )
        except OSError as error:
            raise UserError(
                f"the run folder cannot be written: {error.strerror or error}",
                where=str(path),
                remedy="choose another folder with --workdir",
            ) from error
        start = _start_step(config.checkpoint.resume, checkpoints, path)
        if not start:
            _check_unfinished(path)
        # What is saved goes on from its end, wherever this start begins.
        config.checkpoint.resume = "latest"
        saved = checkpoints.at(start) if start else None
        folder = cls(path, config, prepared, checkpoints, saved, start)
        if saved is not None:
            folder.check_corpus(prepared)
        return folder

    @classmethod
    def read(cls, path: pathlib.Path, config: Config) -> "RunFolder":
        """Opens a run folder for its weights, and never writes to it.

        Those are of the newest checkpoint, of the step or the milestone that
        `checkpoint.resume` names, or what was imported where nothing was trained.

        Raises:
          ConfigError: when the folder is another run's, or there is no such weights.
        """
        _check_same_run(path, config, read_only=True)
        name, folder = config.checkpoint.resume, path / "checkpoints"
        kept = {saved.path.name: saved for saved in weights_of(path)}
        checkpoints = Checkpoints(folder, read_only=True) if folder.is_dir() else None
        steps = checkpoints.steps() if checkpoints else []
        saved: SavedStep | SavedWeights | None = kept.get(name)
        if name.isdecimal() and int(name) in steps:
            saved = checkpoints.at(int(name))
        elif name in ("latest", "none"):
            saved = checkpoints.at(steps[-1]) if steps else kept.get(IMPORTED)
        if saved is None:
            known = [*map(str, steps), *kept]
            raise ConfigError(
                "there is no such checkpoint to read"
                if known
                else "there is no whole checkpoint to read",
                where=f"{path}, checkpoint.resume={name}",
                remedy=f"choose one of {', '.join(known)}"
                if known
                else "name the folder of a run with --workdir, or train this one "
                "first: leave --mode out",
            )
        step = saved.step if isinstance(saved, SavedStep) else 0
        folder = cls(path, config, None, checkpoints, saved, step)
        last = steps[-1] if steps else 0
        if isinstance(saved, SavedWeights) and saved.path.name != IMPORTED:
            folder.label = saved.path.name
        elif step != last:
            folder.label = f"step_{step}"
        return folder

    def __enter__(self) -> "RunFolder":
        return self

    def __exit__(self, *_: object) -> None:
        if self.checkpoints is not None:
            self.checkpoints.close()

    @functools.cached_property
    def meta(self) -> dict[str, Any]:
        """What was saved with the weights: counts, config, tokenizer, mask id."""
        return self.saved.meta()

    def tokenizer_model(self) -> bytes:
        """The tokenizer the weights were trained with."""
        return self.meta["tokenizer"]

    def counts(self) -> Progress:
        """Steps, tokens and words that the weights have seen."""
        return Progress(**{name: self.meta[name] for name in COUNTS})

    def progress(self) -> Progress:
        """Where the run stands; the beginning where nothing is saved."""
        if self.saved is None:
            return Progress()
        return Progress(**self.checkpoints.meta(self.start_step)["progress"])

    def restore(self, abstract: TrainState) -> TrainState:
        """State of the checkpoint this start goes on from."""
        self._check_shapes(abstract.params)
        return self.checkpoints.restore(self.start_step, abstract)

    def restore_params(self, system: System, *, on_mesh: bool = False) -> PyTree:
        """What evaluation and generation use: the average where there is one.

        Args:
          on_mesh: whether they are spread over all devices; else they lie on the first.
        """
        shapes = system.model.shapes
        self._check_shapes(shapes)
        self._check_mask(system.tokenizer.special.mask)
        target = _target(system) if on_mesh else on_first_device(shapes)
        return self.saved.params(target)

    def begin(self) -> None:
        """Leaves behind what came after the start step, and writes the config."""
        self.checkpoints.drop_after(self.start_step)
        if jax.process_index() == 0:
            serialize.save(self.config, self.path / "config.json")

    def open_milestones(self, words: tuple[int, ...]) -> Milestones:
        """The milestones of a run on this folder, from its start step on."""
        kept = Milestones(
            words,
            self.path / MILESTONES,
            {
                "config": serialize.to_dict(self.config),
                "tokenizer": self.prepared.tokenizer.model_bytes,
                "mask_id": self.prepared.tokenizer.special.mask,
                "corpus": self.prepared.sha256,
            },
        )
        kept.drop_after(self.start_step)
        return kept

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
        saved = self.meta.get("mask_id", mask_id)
        if saved != mask_id:
            raise ConfigError(
                f"the checkpoint was trained with mask id {saved}, and the tokenizer "
                f"now has {mask_id}",
                where=str(self.saved.path),
                remedy="use the tokenizer that the run was trained with",
            )

    def check_corpus(self, prepared: Prepared) -> None:
        """Raises ConfigError unless the weights were trained on this corpus."""
        meta = self.meta
        self._check_mask(prepared.tokenizer.special.mask)
        if meta["tokenizer"] != prepared.tokenizer.model_bytes:
            what = "the tokenizer is not the checkpoint's"
        elif meta["corpus"] != prepared.sha256:
            what = "the corpus, or how it is split, is not what this run began with"
        else:
            return
        raise ConfigError(
            what,
            where=f"{self.saved.path}; prepared: {prepared.folder}",
            remedy="restore the corpus and the tokenizer this run began with, or train "
            "into another --workdir",
        )

    def _check_shapes(self, params: PyTree) -> None:
        check_shapes(
            self.saved.param_shapes(),
            params,
            where=str(self.saved.path),
            remedy="use the config of that run (leave --config out), or another "
            "--workdir",
        )


def weights_of(path: pathlib.Path) -> list[SavedWeights]:
    """Milestones of a run folder in the order of their words, and what was imported."""
    found = SavedWeights.all_in(path / MILESTONES)
    return sorted(found, key=lambda saved: milestones.words_of(saved.path.name))


def check_shapes(
    saved: dict[str, tuple[int, ...]], params: PyTree, *, where: str, remedy: str
) -> None:
    """Raises ConfigError where saved parameters are not those that are wanted."""
    wanted: dict[str, tuple[int, ...]] = {}
    trees.map_named(lambda name, leaf: wanted.update({name: leaf.shape}), params)
    wrong = [
        f"{name} is {saved.get(name, 'absent')} there and "
        f"{wanted.get(name, 'absent')} here"
        for name in sorted(saved.keys() | wanted.keys())
        if saved.get(name) != wanted.get(name)
    ]
    if wrong:
        more = f" (and {len(wrong) - 1} more)" if len(wrong) > 1 else ""
        raise ConfigError(
            f"the checkpoint is of another model: {wrong[0]}{more}",
            where=where,
            remedy=remedy,
        )


def _milestones_of(path: pathlib.Path) -> list[SavedWeights]:
    """Those that the run itself wrote."""
    return [saved for saved in weights_of(path) if saved.path.name != IMPORTED]


def _check_unfinished(path: pathlib.Path) -> None:
    """Refuses to begin where a finished run left its milestones: they would go."""
    kept = _milestones_of(path)
    if kept and (path / "report.json").exists():
        raise ConfigError(
            f"the run is finished, its checkpoints are gone, and {len(kept)} "
            "milestones stand that a new run would write again",
            where=str(path),
            remedy="train into another --workdir; --mode evaluate, generate and export "
            "read milestones (--config.checkpoint.resume="
            f"{kept[-1].path.name})",
        )


def _target(system: System) -> PyTree:
    """Parameters in the shardings they are trained in."""
    shapes, model = system.model.shapes, system.model
    shardings = rules.param_shardings(shapes, model.names, system.mesh)
    return jax.tree.map(
        lambda leaf, sharding: jax.ShapeDtypeStruct(
            leaf.shape, leaf.dtype, sharding=sharding
        ),
        shapes,
        shardings,
    )


def _check_same_run(path: pathlib.Path, config: Config, read_only: bool) -> None:
    """Refuses a config that would give the folder's parameters another meaning.

    A mode that only reads may draw with another seed; to train on needs the same.
    """
    file, folder = path / "config.json", path / "checkpoints"
    begun = folder.is_dir() and any(folder.iterdir())
    if not file.exists() or not (begun or _milestones_of(path)):
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


def _start_step(resume: str, checkpoints: Checkpoints, path: pathlib.Path) -> int:
    """The step that checkpoint.resume means for training."""
    steps = checkpoints.steps()
    where = f"checkpoint.resume={resume}, {path}"
    if resume == "none":
        if steps:
            raise ConfigError(
                f"the run folder has checkpoints up to step {steps[-1]}",
                where=where,
                remedy="start anew in another --workdir, or delete this one",
            )
        return 0
    if resume == "latest":
        return steps[-1] if steps else 0
    if not resume.isdecimal():
        raise ConfigError(
            "a milestone holds weights alone: no run goes on from it",
            where=where,
            remedy="begin another run with its weights: --workdir NEW "
            f"--config.checkpoint.init_from={path / MILESTONES / resume}",
        )
    if int(resume) not in steps:
        raise ConfigError(
            f"there is no checkpoint of step {resume}",
            where=where,
            remedy=f"choose one of {', '.join(map(str, steps)) or 'none there are'}",
        )
    return int(resume)
