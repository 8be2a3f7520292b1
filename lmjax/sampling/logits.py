"""From logits to tokens: temperature, top-k, top-p, min-p, and an unbiased draw."""

import dataclasses

import jax
import jax.numpy as jnp


@dataclasses.dataclass(frozen=True, kw_only=True)
class TokenSampler:
    """Draws tokens from float32 logits [..., V].

    Attributes:
      temperature: divides the logits; 0 takes the most probable token.
      top_k: keeps the k most probable tokens; 0 keeps all.
      top_p: then keeps the smallest set of tokens whose mass reaches p, at least one.
      min_p: then keeps tokens at least p times as probable as the most probable one
        (Nguyen et al. 2024); 0 keeps all.

    Tokens exactly as probable as the last one that is kept stay too.
    """

    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0

    def __call__(self, key: jax.Array, logits: jax.Array) -> jax.Array:
        """One token for each row of logits, int32 [...]."""
        if self.temperature == 0.0:
            return _most_probable(logits)
        logits = self.restrict(logits.astype(jnp.float32) / self.temperature)
        return _draw(key, logits)

    def law(self, logits: jax.Array) -> jax.Array:
        """Log-probabilities that the draws follow, float32 [..., V]."""
        if self.temperature == 0.0:
            best = jax.nn.one_hot(_most_probable(logits), logits.shape[-1])
            return jnp.log(best)
        logits = self.restrict(logits.astype(jnp.float32) / self.temperature)
        return jax.nn.log_softmax(logits, axis=-1)

    def restrict(self, logits: jax.Array) -> jax.Array:
        """Logits with the tokens outside top-k, top-p and min-p at -inf."""
        if self.top_k and self.top_k < logits.shape[-1]:
            logits = _keep_best(logits, jnp.ones_like(logits), float(self.top_k))
        if self.top_p < 1.0:
            probabilities = jax.nn.softmax(logits, axis=-1)
            logits = _keep_best(logits, probabilities, self.top_p)
        if self.min_p > 0.0:
            best = jnp.max(logits, axis=-1, keepdims=True)
            logits = jnp.where(logits < best + jnp.log(self.min_p), -jnp.inf, logits)
        return logits


def penalize(logits: jax.Array, seen: jax.Array, penalty: float) -> jax.Array:
    """Makes tokens less probable that have been seen (Keskar et al. 2019).

    Divides their logits by `penalty`, or multiplies those below 0, as Hugging Face's
    transformers does: the paper divides all, which makes tokens below 0 more probable.

    Args:
      logits: [..., V], before any temperature.
      seen: bool [..., V].
      penalty: above 1 against repetition, below 1 for it.
    """
    changed = jnp.where(logits < 0, logits * penalty, logits / penalty)
    return jnp.where(seen, changed, logits)


def _most_probable(logits: jax.Array) -> jax.Array:
    """The first of the largest logits; as XLA on CPU has it, argmax is much slower."""
    best = jnp.max(logits, axis=-1, keepdims=True)
    ids_V = jnp.arange(logits.shape[-1], dtype=jnp.int32)
    last = logits.shape[-1] - 1  # where nothing equals the best, which is NaN
    return jnp.min(jnp.where(logits == best, ids_V, last), axis=-1)


def _draw(key: jax.Array, logits: jax.Array) -> jax.Array:
    """A token in proportion to exp(logits): first its block, then it; int32 [...].

    Each choice is by Gumbel noise. Noise is what a draw costs, and two times the root
    of V is much less of it than V.
    """
    block_key, token_key = jax.random.split(key)
    size = 1 << (logits.shape[-1].bit_length() // 2)
    missing = -logits.shape[-1] % size
    room = [(0, 0)] * (logits.ndim - 1) + [(0, missing)]
    logits = jnp.pad(logits, room, constant_values=-jnp.inf)
    logits = logits.reshape(*logits.shape[:-1], -1, size)
    blocks = jax.nn.logsumexp(logits, axis=-1)
    # The default noise has too few bits for probabilities below about 1e-7.
    block = jax.random.categorical(block_key, blocks, mode="high")
    chosen = jnp.take_along_axis(logits, block[..., None, None], axis=-2)[..., 0, :]
    token = jax.random.categorical(token_key, chosen, mode="high")
    return (block * size + token).astype(jnp.int32)


def _keep_best(logits: jax.Array, weights: jax.Array, wanted: float) -> jax.Array:
    """The largest logits whose weights sum to what is wanted; the others are -inf.

    Bisects the bits of float32 numbers, so changed that integers stand in their order:
    exact, and many times faster than to sort a vocabulary. All stay where rounding
    leaves too little weight.
    """
    bits = jax.lax.bitcast_convert_type(logits.astype(jnp.float32), jnp.uint32)
    negative = bits >> 31 == 1
    place = jnp.where(negative, ~bits, bits | jnp.uint32(1 << 31))

    def halve(_: int, ends: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        low, high = ends  # at low there is enough, at high there is not
        middle = low + (high - low) // 2
        kept = jnp.sum(weights, axis=-1, keepdims=True, where=place >= middle)
        return (
            jnp.where(kept >= wanted, middle, low),
            jnp.where(kept >= wanted, high, middle),
        )

    low = jnp.zeros((*logits.shape[:-1], 1), jnp.uint32)
    high = jnp.full_like(low, 2**32 - 1)
    low, _ = jax.lax.fori_loop(0, 32, halve, (low, high))
    return jnp.where(place < low, -jnp.inf, logits)
