"""Numbers going wrong: which updates are left out, and what is said of them.

A step's loss and gradients are judged inside the compiled step, from sums over the
whole batch: so all devices and processes come to the same verdict. Where it is bad, the
state stays as it was and the run goes on with the next batch.
"""

import dataclasses
import math
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from lmjax.core import trees
from lmjax.core.types import PyTree

Metrics = dict[str, jax.Array]

# Loss scale of float16, as is usual (Micikevicius et al. 2018, arXiv 1710.03740): as
# large as the gradients allow, searched from above.
FIRST_SCALE = 2.0**15
LEAST_SCALE = 1.0
LARGEST_SCALE = 2.0**24
GROWTH_STEPS = 2000  # without an overflow, before the scale is doubled


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Memory:
    """What a guard remembers of the steps so far: small arrays, on every device.

    Parts that a run does not need are empty dicts.

    Attributes:
      bad_in_a_row: int32, steps up to here that were bad, one after another.
      skipped: int32, steps whose update was left out, in all.
      losses: float32 [window], the last finite mean losses, newest at the end; where
        there are spikes to be seen.
      num_losses: int32, how many of them there are.
      scale: float32, what the loss is multiplied by; in float16 alone.
      good_steps: int32, steps since the scale changed.
    """

    bad_in_a_row: jax.Array
    skipped: jax.Array
    losses: PyTree
    num_losses: PyTree
    scale: PyTree
    good_steps: PyTree


class Verdict(NamedTuple):
    """What a guard makes of one step.

    Attributes:
      good: bool, whether the update is made.
      memory: with this step.
      metrics: what the log and `explain` need of it.
    """

    good: jax.Array
    memory: Memory
    metrics: Metrics


@dataclasses.dataclass(frozen=True, kw_only=True)
class Guard:
    """Decides which updates are left out.

    Always those whose loss or gradient is not finite. With `spike_deviations`, also
    those whose loss lies so many standard deviations above the mean of the last
    `spike_window`: the rule by which OLMo 2 (arXiv 2501.00656) and MaxText skip steps,
    with 6 of 128. A spike enters the window too, so that a lasting shift is accepted in
    the end; what is not finite never does, or it would stay there for a window.

    With `scales_loss`, gradients are those of the loss times a scale, for the small
    ones vanish in float16. It is halved when they overflow and the loss does not: such
    a step is left out, but it is not bad before the scale is as low as it gets.
    """

    spike_deviations: float = 0.0
    spike_window: int = 128
    scales_loss: bool = False

    def start(self) -> Memory:
        """The memory of a run that begins."""
        zero = jnp.zeros((), jnp.int32)
        spikes, scales = self.spike_deviations > 0, self.scales_loss
        return Memory(
            bad_in_a_row=zero,
            skipped=zero,
            losses=jnp.zeros(self.spike_window, jnp.float32) if spikes else {},
            num_losses=zero if spikes else {},
            scale=jnp.float32(FIRST_SCALE) if scales else {},
            good_steps=zero if scales else {},
        )

    def judge(
        self, memory: Memory, loss_sum: jax.Array, weight: jax.Array, norm: jax.Array
    ) -> Verdict:
        """The verdict on a step.

        Args:
          loss_sum: over the counted tokens of the whole batch, of which there are
            `weight`.
          norm: of all its gradients, which is finite only where they are.
        """
        loss = loss_sum / jnp.maximum(weight, 1.0)
        finite = jnp.isfinite(loss)
        good = finite & jnp.isfinite(norm)
        bad, metrics, changes = ~good, {}, {}
        if self.scales_loss:
            overflow = finite & ~good
            bad = bad & ~(overflow & (memory.scale > LEAST_SCALE))
            changes |= _next_scale(memory, good, overflow)
            metrics |= {"loss_scale": changes["scale"]}
        if self.spike_deviations:
            mean, deviation = _mean_and_deviation(memory.losses)
            full = memory.num_losses == self.spike_window
            spike = full & (loss > mean + self.spike_deviations * deviation)
            good, bad = good & ~spike, bad | spike
            changes |= _next_losses(memory, loss, finite & (weight > 0))
            metrics |= {"window_mean": mean, "window_deviation": deviation}
        memory = dataclasses.replace(
            memory,
            bad_in_a_row=jnp.where(
                bad, memory.bad_in_a_row + 1, jnp.where(good, 0, memory.bad_in_a_row)
            ),
            skipped=memory.skipped + ~good,
            **changes,
        )
        metrics |= {
            "skipped": (~good).astype(jnp.int32),
            "bad_in_a_row": memory.bad_in_a_row,
        }
        return Verdict(good, memory, metrics)


def carried_over(saved: Mapping[str, Any], wanted: Memory | dict) -> Memory | dict:
    """A saved memory as a run needs it that has another config, or other hardware.

    What it does not need is forgotten; what was not saved begins anew; a window of
    another length keeps the newest losses.

    Args:
      saved: arrays by name; {} of a run that had no guard.
      wanted: shapes, dtypes and shardings, see `StateMaker.abstract`.
    """
    if isinstance(wanted, dict):
        return {}
    found = {name: leaf for name, leaf in saved.items() if not isinstance(leaf, dict)}
    if "losses" in found and not isinstance(wanted.losses, dict):
        window = wanted.losses.shape[0]
        losses = np.concatenate([np.zeros(window), np.asarray(found["losses"])])
        found["losses"] = losses[-window:]
        found["num_losses"] = np.minimum(np.asarray(found["num_losses"]), window)

    def carry(name: str, like: Any) -> Any:
        if isinstance(like, dict):
            return {}
        fresh = FIRST_SCALE if name == "scale" else 0
        value = np.asarray(found.get(name, fresh), like.dtype)
        value = np.broadcast_to(value, like.shape)
        return jax.make_array_from_callback(
            like.shape, like.sharding, lambda place: value[place]
        )

    names = [field.name for field in dataclasses.fields(Memory)]
    return Memory(**{name: carry(name, getattr(wanted, name)) for name in names})


def keep_good(good: jax.Array, after: PyTree, before: PyTree) -> PyTree:
    """`after` where an update is good, else `before`, bit for bit.

    Counts of learning-rate schedules move on whatever happens: the rate stays a
    function of the step. Those of Adam's moments do not.
    """

    def is_schedule(node: Any) -> bool:
        return isinstance(node, optax.ScaleByScheduleState)

    def keep(new: Any, old: Any) -> Any:
        return new if is_schedule(new) else jnp.where(good, new, old)

    return jax.tree.map(keep, after, before, is_leaf=is_schedule)


def find_culprits(gradients: PyTree, params: PyTree, names: PyTree) -> Metrics:
    """Which gradients and parameters are not finite: bools [parameters, layers].

    Looked for after good steps too, for a branch would have the host of a GPU wait.

    Args:
      names: logical dimension names of each parameter.
    """
    return {
        "gradients_not_finite": _not_finite(gradients, names),
        "params_not_finite": _not_finite(params, names),
    }


def explain(metrics: Mapping[str, Any], names: PyTree, *, num_losses: int) -> str:
    """In one sentence, why the update of a step was left out.

    Args:
      metrics: of that step; they are read from the device.
      names: logical dimension names of each parameter.
      num_losses: length of the window of losses.

    Raises:
      ValueError: when it was not.
    """
    if not int(metrics["skipped"]):
        raise ValueError("the update of this step was not left out")
    loss = float(metrics["loss_sum"]) / max(float(metrics["weight"]), 1.0)
    gradients = list(_culprits(metrics["gradients_not_finite"], names))
    if not math.isfinite(loss):
        params = list(_culprits(metrics["params_not_finite"], names))
        told = f"the loss is {loss}"
        if params:
            return f"{told}, and the parameter {_first_of(params)} is not finite"
        return f"{told}, though all parameters are finite"
    if not math.isfinite(float(metrics["gradient_norm"])):
        where = "the norm of the gradient"
        if gradients:
            where = f"the gradient of {_first_of(gradients)}"
        told = f"{where} is not finite"
        if "loss_scale" in metrics:
            scale = float(metrics["loss_scale"])
            return f"float16 overflow, {told}: loss scale lowered to {scale:g}"
        return told
    mean, deviation = (
        float(metrics[name]) for name in ("window_mean", "window_deviation")
    )
    distance = (loss - mean) / deviation if deviation else math.inf
    return (
        f"the loss {loss:.4g} lies {distance:.1f} standard deviations above the mean "
        f"{mean:.4g} of the last {num_losses} steps"
    )


def _next_scale(
    memory: Memory, good: jax.Array, overflow: jax.Array
) -> dict[str, jax.Array]:
    """The scale after a step, and good steps since it changed."""
    steps = memory.good_steps + good
    grows = steps >= GROWTH_STEPS
    scale = jnp.where(
        overflow,
        jnp.maximum(memory.scale / 2, LEAST_SCALE),
        jnp.where(grows, jnp.minimum(memory.scale * 2, LARGEST_SCALE), memory.scale),
    )
    return {"scale": scale, "good_steps": jnp.where(overflow | grows, 0, steps)}


def _next_losses(
    memory: Memory, loss: jax.Array, enters: jax.Array
) -> dict[str, jax.Array]:
    """The window after a step, and how many losses it holds."""
    window = memory.losses.shape[0]
    moved = jnp.roll(memory.losses, -1).at[-1].set(loss)
    count = jnp.minimum(memory.num_losses + enters, window)
    return {"losses": jnp.where(enters, moved, memory.losses), "num_losses": count}


def _mean_and_deviation(losses: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Mean and standard deviation (of a sample) of a full window."""
    return jnp.mean(losses), jnp.std(losses, ddof=1)


def _not_finite(tree: PyTree, names: PyTree) -> jax.Array:
    """Which leaves are not finite: bool [leaves, layers].

    A leaf of a stack of layers has a figure for each; any other one, which comes first.
    """

    def look(leaf: jax.Array, dimensions: tuple[str | None, ...]) -> jax.Array:
        axes = range(_is_stack(dimensions), leaf.ndim)
        return jnp.atleast_1d(~jnp.all(jnp.isfinite(leaf), axis=tuple(axes)))

    rows = jax.tree.leaves(jax.tree.map(look, tree, names))
    most = max(row.size for row in rows)
    return jnp.stack([jnp.pad(row, (0, most - row.size)) for row in rows])


def _is_stack(dimensions: tuple[str | None, ...]) -> bool:
    return tuple(dimensions[:1]) == ("layers",)


def _culprits(found: Any, names: PyTree) -> Iterator[str]:
    """Names of what `_not_finite` found, with the layer in brackets."""
    leaves = jax.tree_util.tree_flatten_with_path(
        names, is_leaf=lambda node: isinstance(node, tuple)
    )[0]
    for (path, dimensions), row in zip(leaves, np.asarray(found), strict=True):
        for layer in np.flatnonzero(row):
            number = f"[{layer}]" if _is_stack(dimensions) else ""
            yield trees.path_name(path) + number


def _first_of(culprits: list[str]) -> str:
    further = len(culprits) - 1
    return culprits[0] + (f" (and of {further} more)" if further else "")
