"""Learning-rate schedules over the run's real length."""

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import optax

from lmjax.config.schema import LearningRateKind, OnExtend, OptimConfig
from lmjax.core.errors import ConfigError


def learning_rate(
    config: OptimConfig, *, total_steps: int, warmup_steps: int, decay_steps: int
) -> optax.Schedule:
    """Linear warm-up to `learning_rate`, then the configured shape down to the minimum.

    The step after the run's last would have the minimum: even when it is 0, no step is
    lost. `decay_steps` is the length of the final linear decay of a
    warmup_stable_decay run.
    """
    peak, minimum = config.learning_rate, config.min_learning_rate
    warmup = optax.linear_schedule(peak / max(1, warmup_steps), peak, warmup_steps - 1)
    remaining = max(1, total_steps - warmup_steps)
    match config.schedule:
        case LearningRateKind.COSINE:
            after = optax.cosine_decay_schedule(peak, remaining, alpha=minimum / peak)
        case LearningRateKind.LINEAR:
            after = optax.linear_schedule(peak, minimum, remaining)
        case LearningRateKind.CONSTANT:
            after = optax.constant_schedule(peak)
        case LearningRateKind.WARMUP_STABLE_DECAY:
            stable = max(0, remaining - decay_steps)
            after = optax.linear_schedule(peak, minimum, decay_steps, stable)
    if warmup_steps == 0:
        return after
    return optax.join_schedules([warmup, after], [warmup_steps])


def over_lengths(
    make: Callable[[int], optax.Schedule],
    lengths: Sequence[Sequence[int]],
    on_extend: OnExtend,
    warmup_steps: int,
) -> optax.Schedule:
    """The learning rate of a run that was given several lengths, one after another.

    Args:
      make: the schedule of a run of so many steps.
      lengths: pairs of the step from which on a length holds, and the length in steps.
      warmup_steps: of a run of the last length.

    Raises:
      ConfigError: when the learning rate would jump, and nobody said that it may.
    """
    (_, first), *later = lengths
    match on_extend:
        case OnExtend.HOLD:
            return make(first)
        case OnExtend.REWARM:
            schedule = make(first)
            for start, total in later:
                again = make(max(1, total - start))
                schedule = _rewarmed(schedule, again, start, warmup_steps)
            return schedule
        case OnExtend.REFUSE if later:
            _refuse_jump(make, lengths[-2][1], *lengths[-1])
    return make(lengths[-1][1])


def _rewarmed(
    before: optax.Schedule, again: optax.Schedule, start: int, warmup_steps: int
) -> optax.Schedule:
    """`before` up to a step, then `again`, whose warm-up rises from what was before."""
    low, high = before(start), again(warmup_steps)

    def risen(step: jax.Array) -> jax.Array:
        share = jnp.minimum((step + 1) / max(warmup_steps, 1), 1.0)
        rise = low + (high - low) * share
        return jnp.where(step < warmup_steps, rise, again(step))

    return optax.join_schedules([before, risen], [start])


def _refuse_jump(
    make: Callable[[int], optax.Schedule], old: int, start: int, total: int
) -> None:
    before, after = float(make(old)(start)), float(make(total)(start))
    if abs(before - after) <= 1e-6 * max(before, after):
        return
    raise ConfigError(
        f"a run of {old:,} steps goes on at step {start:,} as one of {total:,}: the "
        f"learning rate would jump from {before:.2e} to {after:.2e}",
        where="train.budget, optim.on_extend=refuse",
        remedy="say what it should do: --config.optim.on_extend=rescale (as if the run "
        "had been this long from the start), hold (stay at the minimum), or rewarm "
        "(warm up and decay once more)",
    )
