"""Where a start goes on from: the newest checkpoint that is whole."""

import pathlib
from collections.abc import Callable

import jax

from lmjax.core.errors import ConfigError, UserError
from lmjax.parallel import hosts
from lmjax.train.checkpoints import Checkpoints
from lmjax.train.milestones import MILESTONES


def agreed_step(decide: Callable[[], int], path: pathlib.Path) -> int:
    """What the first process decides, told to all of this run's processes."""
    refused: UserError | OSError | None = None
    step = -1
    if jax.process_index() == 0:
        try:
            step = decide()
        except (UserError, OSError) as error:
            refused = error
    # The first process adds its number and one, so that an error adds nothing.
    step = hosts.sum_over_hosts(step + 1) - 1
    if refused is not None:
        raise refused
    if step < 0:
        raise UserError(
            "the first process could not open the run folder",
            where=str(path),
            remedy="its own message says why",
        )
    return step


def first_step(resume: str, path: pathlib.Path, notices: list[str]) -> int:
    """The step that checkpoint.resume means for training; damaged ones are set aside.

    Only the first process asks: it moves folders.
    """
    checkpoints = Checkpoints(path / "checkpoints", read_only=True)
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
        if not steps and not checkpoints.num_set_aside():
            return 0
        step, told = whole_step(checkpoints, set_aside=True)
        notices += told
        return step
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
    if wrong := checkpoints.damage(int(resume)):
        raise damaged(checkpoints.path(int(resume)), wrong)
    return int(resume)


def whole_step(
    checkpoints: Checkpoints, *, set_aside: bool = False
) -> tuple[int, list[str]]:
    """The newest step that is whole, and what is wrong with later ones, line by line.

    Args:
      set_aside: whether those are moved away.

    Raises:
      UserError: none is whole.
    """
    told: list[str] = []
    newest = checkpoints.latest() or 0
    for step in reversed(checkpoints.steps()):
        wrong, path = checkpoints.damage(step), checkpoints.path(step)
        if not wrong:
            if told:
                lost = newest - step
                told.append(f"step {step} is used instead: {lost} step(s) are lost")
            return step, told
        if not path.exists():
            continue  # deleted meanwhile, by the run that is at work
        told.append(f"the checkpoint {path} is damaged: {wrong}")
        if set_aside:
            told.append(f"it was set aside as {checkpoints.set_aside(step)}")
    raise UserError(
        "\n".join([*told, "there are checkpoints, and none of them is whole"]),
        where=str(checkpoints.folder),
        remedy="copy a whole one there from where there is one; milestones can be read "
        "by their names; to train anew, --config.checkpoint.resume=none",
    )


def damaged(path: pathlib.Path, wrong: str) -> UserError:
    """The error of a checkpoint that was asked for by name."""
    return UserError(
        f"the checkpoint is damaged: {wrong}",
        where=str(path),
        remedy="choose another with --config.checkpoint.resume; latest takes the "
        "newest whole one",
    )
