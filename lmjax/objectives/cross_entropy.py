"""Costs of tokens in float32, whose logits never exist for the whole batch."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from lmjax.core.types import LanguageModel, PyTree

# More than the caches of a CPU hold wait for the memory; fewer waste more on adding up
# the head's gradients, which takes one pass over it per chunk.
CPU_CHUNK_TOKENS = 512
CHUNK_TOKENS = 8192  # of any other device


def default_chunk_tokens(platform: str) -> int:
    """Tokens per device whose logits exist at once, where the config does not say."""
    return CPU_CHUNK_TOKENS if platform == "cpu" else CHUNK_TOKENS


@dataclasses.dataclass(frozen=True, kw_only=True)
class TokenCosts:
    """What the tokens of a batch cost, as a function of their hidden states.

    Runs over slices of the length, so that at most about `chunk_tokens` rows of logits
    exist at once. Where a token is not counted its target may be any id, also one that
    is never predicted.

    Attributes:
      model: gives the logits.
      cost: from logits [b, l, V], targets and `further_BL`, each [b, l], to nats,
        float32 [b, l].
      hidden_BLD: hidden states.
      targets_BL: ids, int32.
      counted_BL: bool; the others cost nothing.
      weights_BL: what each cost is multiplied by in sums, float32.
      further_BL: what else the cost depends on.
      chunk_tokens: tokens, over all devices, whose logits exist at once.
    """

    model: LanguageModel
    cost: Callable[..., jax.Array]
    hidden_BLD: jax.Array
    targets_BL: jax.Array
    counted_BL: jax.Array
    weights_BL: jax.Array
    further_BL: tuple[jax.Array, ...] = ()
    chunk_tokens: int

    def of_tokens(self) -> jax.Array:
        """Nats of each token, float32 [B, L]; 0 if not counted. Not for gradients."""

        def costs(arrays: tuple[jax.Array, ...]) -> jax.Array:
            hidden, _, *rest = arrays
            return self._costs(self.model.logits(hidden), *rest)

        return self._join(jax.lax.map(costs, self._slices()))

    def of_rows(self) -> jax.Array:
        """Weighted nats of each row, float32 [B]. Not for gradients."""
        return jnp.sum(self.of_tokens() * self.weights_BL, axis=1)

    def total(self) -> jax.Array:
        """Weighted nats of all rows, float32, for the gradients that training follows.

        A slice's gradients are taken as soon as its logits exist, and the backward
        pass only scales them: logits are neither kept nor computed twice (as in Liger
        Kernel, Hsu et al. 2024, arXiv 2410.10989). Gradients go to the hidden states
        and the parameters of the logits.
        """
        hidden_bld, *others = self._slices()
        logits, head = jax.closure_convert(self.model.logits, hidden_bld[0])

        def slice_total(
            hidden: jax.Array, head: PyTree, weights: jax.Array, *rest: jax.Array
        ) -> jax.Array:
            return jnp.sum(self._costs(logits(hidden, *head), *rest) * weights)

        def forward(hidden_bld: jax.Array, head: PyTree) -> tuple[jax.Array, Any]:
            def add(carry: PyTree, arrays: tuple[jax.Array, ...]) -> Any:
                hidden, *rest = arrays
                value, (by_hidden, by_head) = jax.value_and_grad(
                    slice_total, argnums=(0, 1)
                )(hidden, head, *rest)
                return jax.tree.map(jnp.add, carry, (value, by_head)), by_hidden

            zeros = (jnp.zeros(()), jax.tree.map(jnp.zeros_like, head))
            (value, by_head), by_hidden = jax.lax.scan(
                add, zeros, (hidden_bld, *others)
            )
            return value, (by_hidden, by_head)

        def backward(gradients: PyTree, scale: jax.Array) -> PyTree:
            return jax.tree.map(
                lambda leaf: (leaf * scale).astype(leaf.dtype), gradients
            )

        total = jax.custom_vjp(lambda hidden, head: forward(hidden, head)[0])
        total.defvjp(forward, backward)
        return total(hidden_bld, head)

    def _costs(
        self,
        logits: jax.Array,
        counted: jax.Array,
        targets: jax.Array,
        *further: jax.Array,
    ) -> jax.Array:
        # The target of a token that is not counted may have logit -inf, whose gradient
        # is NaN even when multiplied by 0: aim at an id that is predicted instead, as
        # the likeliest of any token is.
        predicted = jnp.argmax(logits[0, 0])
        safe = jnp.where(counted, targets, predicted)
        return jnp.where(counted, self.cost(logits, safe, *further), 0.0)

    def _slices(self) -> tuple[jax.Array, ...]:
        """Hidden states, weights, counted, targets and further: [slices, B, l, ...].

        What fills up the last slice is not counted.
        """
        batch_size, length = self.targets_BL.shape
        size = max(1, min(length, self.chunk_tokens // batch_size))
        count = -(-length // size)

        def cut(x: jax.Array) -> jax.Array:
            padding = ((0, 0), (0, count * size - length), *[(0, 0)] * (x.ndim - 2))
            x = jnp.pad(x, padding).reshape(batch_size, count, size, *x.shape[2:])
            return jnp.swapaxes(x, 0, 1)

        arrays = (self.hidden_BLD, self.weights_BL, self.counted_BL, self.targets_BL)
        return tuple(cut(array) for array in (*arrays, *self.further_BL))

    def _join(self, slices: jax.Array) -> jax.Array:
        """[slices, B, l] -> [B, L]."""
        batch_size, length = self.targets_BL.shape
        return jnp.swapaxes(slices, 0, 1).reshape(batch_size, -1)[:, :length]


def cross_entropy(logits: jax.Array, targets: jax.Array) -> jax.Array:
    """-log softmax(logits)[target] in nats, float32 [...]."""
    target_logits = jnp.take_along_axis(logits, targets[..., None], axis=-1)[..., 0]
    return jax.nn.logsumexp(logits, axis=-1) - target_logits
