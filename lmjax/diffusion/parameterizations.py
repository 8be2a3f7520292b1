"""What the logits of a masked diffusion model stand for.

Both give scores of the tokens that may stand under a mask: the rate at which a mask
becomes the token, over the rate at which masks are revealed at all. In the bound a
masked token v costs sum_u s_u - log s_v - 1 at these scores (score entropy: Lou et al.
2024, equation 5; the weight m'/m stands before it), and -log s_v where they sum to 1.
"""

import dataclasses
import math

import jax
import jax.numpy as jnp


@dataclasses.dataclass(frozen=True)
class Subs:
    """Scores are probabilities, which sum to 1 (MDLM, Sahoo et al. 2024)."""

    normalized = True

    def log_scores(self, logits: jax.Array) -> jax.Array:
        """log s of every id, float32 [..., V]; -inf for what is never predicted."""
        return jax.nn.log_softmax(logits, axis=-1)

    def cost(self, logits: jax.Array, targets: jax.Array) -> jax.Array:
        """Nats of the targets [...], each under a mask."""
        return jax.nn.logsumexp(logits, axis=-1) - _at(logits, targets)


@dataclasses.dataclass(frozen=True)
class Sedd:
    """Scores are free ratios, exp(logit) / V for V predictable ids.

    The ratio of SEDD is q(x_t with this token) / q(x_t) = s / (exp(sigma) - 1): the
    known function of time is divided out, so a zero head costs ln V, and the same
    scores hold at all times.
    """

    num_predictable: int
    normalized = False

    def log_scores(self, logits: jax.Array) -> jax.Array:
        """log s of every id, float32 [..., V]; -inf for what is never predicted."""
        return logits - math.log(self.num_predictable)

    def cost(self, logits: jax.Array, targets: jax.Array) -> jax.Array:
        """Nats of the targets [...], each under a mask."""
        log_total = jax.nn.logsumexp(logits, axis=-1) - math.log(self.num_predictable)
        target = _at(logits, targets) - math.log(self.num_predictable)
        return jnp.expm1(log_total) - target


Parameterization = Subs | Sedd


def rated_cost(
    parameterization: Parameterization,
    logits: jax.Array,
    targets: jax.Array,
    rates: jax.Array,
) -> jax.Array:
    """`cost` where token u is masked at its own rate m(t)^k_u: float32 [...].

    sum_u k_u s_u - k_v (log s_v + 1), before which the weight m'/m stands unchanged.
    The last terms are what -k_v log s_v lacks: a process whose rates depend on the
    token tells of the token by when it masks it, and without them the figure is no
    bound (as for state-dependent schedules in MD4, Shi et al. 2024).

    Args:
      rates: k of every id, float32 [..., V].
    """
    log_scores = parameterization.log_scores(logits)
    total = jnp.sum(rates * jnp.exp(log_scores), axis=-1)
    return total - _at(rates, targets) * (_at(log_scores, targets) + 1.0)


def _at(values: jax.Array, targets: jax.Array) -> jax.Array:
    return jnp.take_along_axis(values, targets[..., None], axis=-1)[..., 0]
