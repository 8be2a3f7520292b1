"""A toy that can be enumerated: V = 3 tokens, L = 3 positions, a table for a model.

The table holds arbitrary logits for each of the 4^3 partly masked inputs, so its
conditionals contradict each other, as a network's do. All sums here are in float64 and
written from the definitions, not with the code they check.
"""

import dataclasses
import itertools
import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

V, L = 3, 3
MASK = V
SEQUENCES = np.array(list(itertools.product(range(V), repeat=L)), np.int32)
SUBSETS = np.array(list(itertools.product([False, True], repeat=L)))[1:]
_PLACES = np.array([16, 4, 1], np.int32)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class TableModel:
    """Looks up the logits of a partly masked input.

    Attributes:
      table: [(V + 1)^L, L, V], or V + 1 with a logit for the mask; -inf without.
    """

    table: jax.Array

    def __call__(self, tokens_BL: jax.Array, **_: object) -> jax.Array:
        return self.table[tokens_BL @ _PLACES]

    def logits(self, hidden: jax.Array) -> jax.Array:
        missing = V + 1 - hidden.shape[-1]
        mask_logit = jnp.full((*hidden.shape[:-1], missing), -jnp.inf)
        return jnp.concatenate([hidden, mask_logit], axis=-1)


def random_table(seed: int = 0, *, mask_logit: bool = False) -> np.ndarray:
    """Logits with a deviation of 1.5, float32."""
    shape = ((V + 1) ** L, L, V + mask_logit)
    return (1.5 * np.random.default_rng(seed).normal(size=shape)).astype(np.float32)


def row(tokens: np.ndarray) -> int:
    """Row of the table for a partly masked input."""
    return int(np.asarray(tokens) @ _PLACES)


def log_softmax(logits: np.ndarray) -> np.ndarray:
    logits = np.asarray(logits, np.float64)
    return logits - np.log(np.exp(logits).sum(axis=-1, keepdims=True))


def any_order_likelihood(
    log_scores: np.ndarray, x: np.ndarray, rates: np.ndarray | None = None
) -> float:
    """p(x) of revealing one position after another in continuous time.

    A sum over orders. Position i becomes token u at a rate exp(log_scores) times the
    rate k_u; without rates each of the L! orders is as probable as any other.
    """
    rates = np.ones(V) if rates is None else rates
    total = 0.0
    for order in itertools.permutations(range(L)):
        seen, chance = np.full(L, MASK), 1.0
        for position in order:
            jumps = np.exp(log_scores[row(seen)]) * rates
            chance *= jumps[position, x[position]] / jumps[seen == MASK].sum()
            seen[position] = x[position]
        total += chance
    return total


def subset_weight(subset: np.ndarray) -> float:
    """(|S| - 1)! (L - |S|)! / L!: how much a set of masks weighs in the bound."""
    size = int(subset.sum())
    return math.factorial(size - 1) * math.factorial(L - size) / math.factorial(L)


def bound(cost: np.ndarray, x: np.ndarray) -> float:
    """Sum over masked sets S of weight times cost[row, i, x_i], i in S."""
    total = 0.0
    for subset in SUBSETS:
        seen = row(np.where(subset, MASK, x))
        costs = sum(cost[seen, i, x[i]] for i in np.flatnonzero(subset))
        total += subset_weight(subset) * costs
    return total


def step_law(
    probabilities: np.ndarray,
    reveal: Callable[[int, int, int], float],
    steps: int,
    start: tuple[int, ...] = (MASK,) * L,
) -> dict[tuple[int, ...], float]:
    """Law of all partly masked states after T steps of independent reveals.

    Args:
      probabilities: [(V + 1)^L, L, V], of the tokens once a position is revealed.
      reveal: chance in step j (T to 1) that position i of table row r is revealed.
    """
    law = {start: 1.0}
    for j in range(steps, 0, -1):
        after: dict[tuple[int, ...], float] = {}
        for state, chance in law.items():
            r = row(np.array(state))
            ways = []
            for i, token in enumerate(state):
                if token != MASK:
                    ways.append([(token, 1.0)])
                    continue
                share = reveal(j, r, i)
                drawn = [(v, share * probabilities[r, i, v]) for v in range(V)]
                ways.append([(MASK, 1 - share), *drawn])
            for way in itertools.product(*ways):
                target = tuple(token for token, _ in way)
                part = chance * math.prod(q for _, q in way)
                after[target] = after.get(target, 0.0) + part
        law = after
    return law


def true_conditionals(joint: np.ndarray) -> np.ndarray:
    """Logits [(V + 1)^L, L, V] of what a joint law of SEQUENCES says of each input."""
    table = np.zeros(((V + 1) ** L, L, V), np.float32)
    for seen in itertools.product(range(V + 1), repeat=L):
        visible = np.array(seen) != MASK
        agrees = (SEQUENCES[:, visible] == np.array(seen)[visible]).all(axis=1)
        for i, token in itertools.product(range(L), range(V)):
            mass = joint[agrees & (SEQUENCES[:, i] == token)].sum()
            table[row(np.array(seen)), i, token] = math.log(mass) if mass > 0 else -50.0
    return table
