"""From logits to tokens: temperature, top-k, top-p, and an unbiased draw."""

import dataclasses

import jax
import jax.numpy as jnp


@dataclasses.dataclass(frozen=True, kw_only=True)
class TokenSampler:
    """Draws tokens from float32 logits [..., V].

    Attributes:
      temperature: divides the logits; 0 takes the most probable token.
      top_k: keeps the k most probable tokens; 0 keeps all.
      top_p: keeps the smallest set of tokens whose mass reaches p, at least one.

    Tokens exactly as probable as the last one that is kept stay too.
    """

    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0

    def __call__(self, key: jax.Array, logits: jax.Array) -> jax.Array:
        """One token for each row of logits, int32 [...]."""
        if self.temperature == 0.0:
            return jnp.argmax(logits, axis=-1).astype(jnp.int32)
        logits = self.restrict(logits.astype(jnp.float32) / self.temperature)
        # The default noise has too few bits for probabilities below about 1e-7.
        return jax.random.categorical(key, logits, mode="high").astype(jnp.int32)

    def law(self, logits: jax.Array) -> jax.Array:
        """Log-probabilities that the draws follow, float32 [..., V]."""
        if self.temperature == 0.0:
            best = jax.nn.one_hot(jnp.argmax(logits, axis=-1), logits.shape[-1])
            return jnp.log(best)
        logits = self.restrict(logits.astype(jnp.float32) / self.temperature)
        return jax.nn.log_softmax(logits, axis=-1)

    def restrict(self, logits: jax.Array) -> jax.Array:
        """Logits with the tokens outside top-k and top-p at -inf."""
        if self.top_k and self.top_k < logits.shape[-1]:
            kth = jax.lax.top_k(logits, self.top_k)[0][..., -1:]
            logits = jnp.where(logits < kth, -jnp.inf, logits)
        if self.top_p < 1.0:
            ordered = jnp.sort(logits, axis=-1, descending=True)
            probabilities = jax.nn.softmax(ordered, axis=-1)
            before = jnp.cumsum(probabilities, axis=-1) - probabilities
            # A token stays while the mass before it has not reached p.
            smallest = jnp.min(
                jnp.where(before < self.top_p, ordered, jnp.inf), axis=-1, keepdims=True
            )
            logits = jnp.where(logits < smallest, -jnp.inf, logits)
        return logits
