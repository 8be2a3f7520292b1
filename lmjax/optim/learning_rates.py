"""Learning-rate schedules over the run's real length."""

import optax

from lmjax.config.schema import LearningRateKind, OptimConfig


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
