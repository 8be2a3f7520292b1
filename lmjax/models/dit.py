"""The diffusion transformer (DiT; Peebles and Xie 2023), conditioned on noise level.

Every block modulates its norms by a shift and a scale, and its branches by a gate,
all linear in an embedding of sigma and zero at the start: each block begins as the
identity, as in the reference system of MDLM (Sahoo et al. 2024).
"""

import math

import jax
import jax.numpy as jnp
from flax import nnx

from lmjax.config.schema import ModelConfig
from lmjax.models.attention import Rows
from lmjax.models.linear import Linear, dropout
from lmjax.models.norms import RMSNorm
from lmjax.models.stack import make_stack, run_stack
from lmjax.models.transformer import (
    Setting,
    Vocabulary,
    embed_with_dropout,
    make_attention,
    make_mlp,
)

FREQUENCIES = 256  # width of the sinusoidal embedding of sigma
MAX_PERIOD = 10_000.0


class NoiseEmbedding(nnx.Module):
    """sigma [B] -> sinusoid -> two-layer network -> condition [B, E], float32."""

    def __init__(self, width: int, rngs: nnx.Rngs):
        def layer(inputs: int) -> Linear:
            return Linear(
                (inputs,),
                (width,),
                names=(None, None),
                use_bias=True,
                dtype=jnp.dtype("float32"),
                rngs=rngs,
            )

        self.first, self.second = layer(FREQUENCIES), layer(width)

    def __call__(self, sigma_B: jax.Array) -> jax.Array:
        half = FREQUENCIES // 2
        frequencies = jnp.exp(-math.log(MAX_PERIOD) * jnp.arange(half) / half)
        angles = sigma_B[:, None].astype(jnp.float32) * frequencies
        wave = jnp.concatenate([jnp.cos(angles), jnp.sin(angles)], axis=-1)
        return nnx.silu(self.second(nnx.silu(self.first(wave))))


class Modulation(nnx.Module):
    """Condition [B, E] -> `parts` vectors [B, 1, D]; zero at the start."""

    def __init__(self, parts: int, *, width: int, condition_width: int, rngs: nnx.Rngs):
        self.linear = Linear(
            (condition_width,),
            (parts, width),
            names=(None, None, "embed"),
            scale=0.0,
            use_bias=True,
            dtype=jnp.dtype("float32"),
            rngs=rngs,
        )

    def __call__(self, condition_BE: jax.Array, dtype: jnp.dtype) -> list[jax.Array]:
        values = self.linear(condition_BE).astype(dtype)
        return [values[:, part, None] for part in range(values.shape[1])]


class DiTBlock(nnx.Module):
    """x + gate * attention(modulated norm(x)), then the same with the mlp."""

    def __init__(self, config: ModelConfig, setting: Setting, rngs: nnx.Rngs):
        def norm() -> RMSNorm:
            return RMSNorm(config.width, epsilon=config.norm_epsilon)

        self.attention_norm, self.mlp_norm = norm(), norm()
        self.attention = make_attention(config, setting, rngs)
        self.mlp = make_mlp(config, setting, rngs)
        self.modulation = Modulation(
            6, width=config.width, condition_width=config.condition_width, rngs=rngs
        )
        self.dropout_rate = config.dropout

    def __call__(
        self,
        x_BLD: jax.Array,
        condition_BE: jax.Array,
        rows: Rows,
        *,
        dropout_key: jax.Array | None,
    ) -> jax.Array:
        keys = (None, None) if dropout_key is None else jax.random.split(dropout_key)
        shift1, scale1, gate1, shift2, scale2, gate2 = self.modulation(
            condition_BE, x_BLD.dtype
        )
        y_BLD = self.attention_norm(x_BLD) * (1 + scale1) + shift1
        y_BLD = self.attention(y_BLD, rows)
        x_BLD = x_BLD + gate1 * dropout(y_BLD, self.dropout_rate, keys[0])
        y_BLD = self.mlp(self.mlp_norm(x_BLD) * (1 + scale2) + shift2)
        return x_BLD + gate2 * dropout(y_BLD, self.dropout_rate, keys[1])


class DiT(nnx.Module):
    """Noised tokens [B, L] and sigma [B] to hidden states [B, L, D].

    Implements `core.types.LanguageModel`; `sigma_B` must be given.
    """

    def __init__(self, config: ModelConfig, setting: Setting, rngs: nnx.Rngs):
        self.vocabulary = Vocabulary(config, setting, rngs)
        self.noise_embedding = NoiseEmbedding(config.condition_width, rngs)
        self.blocks = make_stack(
            lambda rngs: DiTBlock(config, setting, rngs), config.num_layers, rngs
        )
        self.final_norm = RMSNorm(config.width, epsilon=config.norm_epsilon)
        self.final_modulation = Modulation(
            2, width=config.width, condition_width=config.condition_width, rngs=rngs
        )
        self.config, self.setting = config, setting

    def __call__(
        self,
        tokens_BL: jax.Array,
        *,
        lengths_B: jax.Array | None = None,
        segments_BL: jax.Array | None = None,
        positions_BL: jax.Array | None = None,
        sigma_B: jax.Array | None = None,
        dropout_key: jax.Array | None = None,
    ) -> jax.Array:
        if sigma_B is None:
            raise ValueError("a DiT needs sigma_B, the noise level of each row")
        rows = Rows(lengths_B, segments_BL, positions_BL)
        condition_BE = self.noise_embedding(sigma_B)
        x_BLD, keys = embed_with_dropout(
            self.vocabulary, tokens_BL, self.config, dropout_key
        )
        x_BLD, _ = run_stack(
            self.blocks,
            lambda block, x, key: (block(x, condition_BE, rows, dropout_key=key), None),
            x_BLD,
            keys,
            scan=self.setting.scan,
            remat=self.setting.remat,
        )
        shift, scale = self.final_modulation(condition_BE, x_BLD.dtype)
        return self.final_norm(x_BLD) * (1 + scale) + shift

    def logits(self, hidden: jax.Array) -> jax.Array:
        """See `Vocabulary.logits`."""
        return self.vocabulary.logits(hidden)
