"""The optimizer: optax does the work."""

import jax
import optax

from lmjax.config.schema import OptimConfig
from lmjax.core import trees

# Weight decay acts on matrices alone: gains, biases and embeddings are left out.
NO_DECAY = r"(scale|bias|table)$"


def build_optimizer(
    config: OptimConfig, schedule: optax.Schedule
) -> optax.GradientTransformation:
    """Clipping by global norm, then AdamW (Loshchilov and Hutter 2019)."""

    def decayed(params: optax.Params) -> optax.Params:
        return jax.tree.map(lambda left_out: not left_out, trees.mask(params, NO_DECAY))

    adamw = optax.adamw(
        schedule,
        b1=config.beta1,
        b2=config.beta2,
        eps=config.epsilon,
        weight_decay=config.weight_decay,
        mask=decayed,
    )
    clip = optax.identity()  # its state is that of clipping: either may be resumed
    if config.clip_norm:
        clip = optax.clip_by_global_norm(config.clip_norm)
    return optax.chain(clip, adamw)
