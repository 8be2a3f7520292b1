"""What a training step keeps in the memory of one device, part by part."""

import dataclasses
import math
from typing import Any

import jax

from lmjax.doctor.memory import format_bytes
from lmjax.parallel.rules import HOST


@dataclasses.dataclass(frozen=True, kw_only=True)
class Needs:
    """Bytes on the device that has most.

    Attributes:
      parameters, moments, average: of the training state; `moments` is all that the
        optimizer keeps.
      gradients: float32; with several passes per step there are two of them, the sum
        and the one that is added.
      activations: all else that lives between the start and the end of a step.
      logits: of one chunk of the loss, a part of `activations`.
      peak: in all.
      how: where the peak is from, such as "compiled for TPU v5 lite".
    """

    parameters: float
    moments: float
    average: float
    gradients: float
    activations: float
    logits: float
    peak: float
    how: str

    @property
    def state(self) -> float:
        return self.parameters + self.moments + self.average

    def rows(self) -> list[tuple[str, str]]:
        """The table: a name and an amount each."""
        return [
            ("parameters", format_bytes(self.parameters)),
            ("moments", format_bytes(self.moments)),
            ("moving average", format_bytes(self.average)),
            ("gradients", format_bytes(self.gradients)),
            ("activations", f"{format_bytes(self.activations)} and temporaries"),
            ("of them, logits", format_bytes(self.logits)),
            ("peak", f"{format_bytes(self.peak)} per device, {self.how}"),
        ]


def make_needs(
    state: Any,
    *,
    passes: int,
    logits: float,
    how: str,
    peak: float = 0.0,
    activations: float = 0.0,
) -> Needs:
    """Needs of a step over an abstract state.

    Args:
      state: `TrainState` of shapes with shardings.
      passes: forward passes per step.
      logits: of one chunk.
      peak: as compiled, which leaves the activations; 0: the sum of what is known.
      activations: as estimated, without logits, where there is no peak.
    """
    parameters, moments, average = (
        device_bytes_of(part) for part in (state.params, state.opt_state, state.ema)
    )
    fixed = parameters + moments + average
    gradients = parameters * (2 if passes > 1 else 1)
    if peak:
        # The compiler may use up gradients of one layer before it makes the next.
        gradients = min(gradients, max(0.0, peak - fixed))
        activations = max(0.0, peak - fixed - gradients)
        logits = min(logits, activations)
    else:
        activations += logits
        peak = fixed + gradients + activations
    return Needs(
        parameters=parameters,
        moments=moments,
        average=average,
        gradients=gradients,
        activations=activations,
        logits=logits,
        peak=peak,
        how=how,
    )


def device_bytes_of(tree: Any) -> float:
    """Bytes of a tree of shapes with shardings on one device, not on its host."""
    return sum(
        math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize
        for leaf in jax.tree.leaves(tree)
        if leaf.sharding.memory_kind != HOST
    )
