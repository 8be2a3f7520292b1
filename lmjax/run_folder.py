"""A run folder: its config, its checkpoints, and whether they belong to this run."""

import contextlib
import dataclasses
import functools
import pathlib
import re
from collections.abc import Callable
from typing import Any

import jax
from absl import logging

from lmjax.config import serialize
from lmjax.config.schema import Config
from lmjax.core.errors import ConfigError, UserError
from lmjax.core.types import PyTree
from lmjax.data.preparation.manifest import Prepared
from lmjax.experiment import System
from lmjax.parallel import rules
from lmjax.train import integrity, milestones, resuming, storage
from lmjax.train.checkpoints import COUNTS, Checkpoints, SavedStep, on_first_device
from lmjax.train.lock import Lock
from lmjax.train.milestones import MILESTONES, Milestones
from lmjax.train.progress import Progress
from lmjax.train.state import TrainState
from lmjax.train.weights import SavedWeights, check_shapes
from lmjax.train.writing import bytes_on_disk, free_bytes

IMPORTED = "imported"  # the milestone that a model from elsewhere begins with

# Fields that say what the parameters and the data position mean.
FIXED_FIELDS = re.compile(
    r"seed|objective\.(kind|parameterization|first_input)|tokenizer\.vocab_size"
    r"|data\.(sequence_length|document_mask|weights|max_epochs)"
    r"|model\.(num_layers|width|num_heads|num_kv_heads|head_width|mlp|mlp_width"
    r"|positions|rope_theta|backbone|norm|norm_epsilon|norm_bias|qk_norm"
    r"|attention_bias|mlp_bias|head_bias|tied_embeddings|vocab_size"
    r"|time_conditioning|condition_width)"
    r"|train\.batch_size|optim\.(kind|ema_decay)"
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
      notices: what was noticed at opening, a line each, until `report` tells it.
      held: what is let go of at the end: milestones, checkpoints and the lock.
    """

    path: pathlib.Path
    config: Config
    prepared: Prepared | None
    checkpoints: Checkpoints | None
    saved: SavedStep | SavedWeights | None
    start_step: int
    label: str = "main"
    notices: list[str] = dataclasses.field(default_factory=list)
    held: contextlib.ExitStack = dataclasses.field(default_factory=contextlib.ExitStack)

    def __post_init__(self) -> None:
        self._tell: Callable[[str], None] = self.notices.append

    @classmethod
    def open(
        cls,
        path: pathlib.Path,
        config: Config,
        prepared: Prepared,
        *,
        keep_every: int = 0,
    ) -> "RunFolder":
        """Opens or makes the folder of a training run; `begin` makes it this start's.

        A damaged checkpoint is set aside, and the one before is used.

        Args:
          keep_every: checkpoints at multiples of so many steps stay for good.

        Raises:
          ConfigError: when the folder is another run's, or lacks the checkpoint that is
            asked for.
          UserError: when it cannot be written to, another run is at work in it, or none
            of its checkpoints is whole.
        """
        storage.refuse_addresses(path)
        notices = _check_same_run(path, config, read_only=False)
        checkpoint = dataclasses.replace(config.checkpoint)
        config = dataclasses.replace(config, checkpoint=checkpoint)
        with contextlib.ExitStack() as undo, storage.unwritable_explained(path):

            def begin() -> int:
                lock = undo.enter_context(Lock.take(path))
                notices.extend([lock.notice] if lock.notice else [])
                return resuming.first_step(checkpoint.resume, path, notices)

            start = resuming.agreed_step(begin, path)
            checkpoints = Checkpoints(
                path / "checkpoints",
                keep=checkpoint.keep,
                keep_every=keep_every,
                keep_best=checkpoint.keep_best,
            )
            undo.callback(checkpoints.close)
            if not start:
                _check_unfinished(path)
            # What is saved goes on from its end, wherever this start begins.
            checkpoint.resume = "latest"
            saved = checkpoints.at(start) if start else None
            folder = cls(path, config, prepared, checkpoints, saved, start)
            if start:
                folder.check_corpus(prepared)
            folder.notices += notices + storage.notices(path)
            folder.held = undo.pop_all()
        return folder

    @classmethod
    def read(cls, path: pathlib.Path, config: Config) -> "RunFolder":
        """Opens a run folder for its weights, and never writes to it.

        Those are of the newest whole checkpoint, of the step or the milestone that
        `checkpoint.resume` names, or what was imported where nothing was trained.

        Raises:
          ConfigError: when the folder is another run's, or there is no such weights.
          UserError: the weights that are named are damaged.
        """
        storage.refuse_addresses(path)
        _check_same_run(path, config, read_only=True)
        name, folder = config.checkpoint.resume, path / "checkpoints"
        kept = {saved.path.name: saved for saved in weights_of(path)}
        checkpoints = Checkpoints(folder, read_only=True) if folder.is_dir() else None
        steps = checkpoints.steps() if checkpoints else []
        saved: SavedStep | SavedWeights | None = kept.get(name)
        notices: list[str] = []
        if saved is not None:
            integrity.require_whole(saved.path)
        elif name.isdecimal() and int(name) in steps:
            saved = checkpoints.at(int(name))
            if wrong := checkpoints.damage(int(name)):
                raise resuming.damaged(saved.path, wrong)
        elif name in ("latest", "none") and steps:
            step, notices = resuming.whole_step(checkpoints)
            saved = checkpoints.at(step)
        elif name in ("latest", "none"):
            saved = kept.get(IMPORTED)
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
        folder = cls(path, config, None, checkpoints, saved, step, notices=notices)
        if checkpoints is not None:
            folder.held.callback(checkpoints.close)
        for line in notices:
            logging.warning("%s", line)
        last = steps[-1] if steps else 0
        if isinstance(saved, SavedWeights) and saved.path.name != IMPORTED:
            folder.label = saved.path.name
        elif step != last:
            folder.label = f"step_{step}"
        return folder

    def __enter__(self) -> "RunFolder":
        return self

    def __exit__(self, kind: object, error: BaseException | None, _: object) -> None:
        if kind is KeyboardInterrupt:
            # A second signal: who insists does not wait for what is being written. The
            # process ends, and what is half-written has another name.
            return
        try:
            self.held.close()
        except UserError as failure:
            if error is None:
                raise
            # What ended the run is told by its own error, and this beside it.
            logging.error("%s", failure)

    def report(self, tell: Callable[[str], None]) -> None:
        """Tells what was noticed so far, and from here on."""
        self._tell = tell
        notices, self.notices[:] = list(self.notices), []
        for line in notices:
            tell(line)

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
        return self.checkpoints.restore_state(self.start_step, abstract)

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
        self.held.callback(kept.close)
        for line in kept.drop_after(self.start_step):
            self._tell(line)
        return kept

    def foresee_space(self, abstract: TrainState) -> None:
        """Tells early when fewer than two checkpoints fit the disk."""
        needed, free = bytes_on_disk(abstract), free_bytes(self.path)
        if free < 2 * needed:
            self._tell(
                f"{free / 1e9:.1f} GB are free where the run folder stands, and a "
                f"checkpoint takes {needed / 1e9:.1f} GB: free some space, or lower "
                "checkpoint.keep or checkpoint.keep_best"
            )

    def save(
        self, state: TrainState, progress: Progress, *, score: float | None = None
    ) -> None:
        """Starts writing a checkpoint.

        Args:
          score: negative log-likelihood per token of held-out text at this very step,
            where it was measured.

        Raises:
          UserError: when it cannot be written, or an earlier one could not.
        """
        self.checkpoints.save(
            state,
            step=progress.step,
            progress=progress.to_json(),
            config=serialize.to_dict(self.config),
            tokenizer_model=self.prepared.tokenizer.model_bytes,
            mask_id=self.prepared.tokenizer.special.mask,
            corpus=self.prepared.sha256,
            score=score,
        )
        self._pass_on()

    def wait(self) -> None:
        """Returns once every checkpoint is on disk and verified."""
        self.checkpoints.wait()
        self._pass_on()

    def _pass_on(self) -> None:
        while self.checkpoints.notices:
            self._tell(self.checkpoints.notices.pop(0))

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


def _check_same_run(path: pathlib.Path, config: Config, read_only: bool) -> list[str]:
    """Refuses a config that would give the folder's parameters another meaning.

    A mode that only reads may draw with another seed; to train on needs the same.

    Returns:
      A line for each of the other fields that differ from those of the last start.
    """
    file, folder = path / "config.json", path / "checkpoints"
    begun = folder.is_dir() and any(folder.iterdir())
    if not file.exists() or not (begun or _milestones_of(path)):
        return []
    differences = serialize.differences(serialize.load(file), config)
    changed = [
        difference
        for difference in differences
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
    return [
        f"another config than at the last start: {difference.describe()}"
        for difference in differences
        if difference.field != "checkpoint.resume"
    ]
