"""The diffusion transformer (DiT; Peebles and Xie 2023), as in MDLM.

Every block modulates its norms by a shift and a scale, and its branches by a gate,
all linear in one embedding of sigma and zero at the start: each block begins as the
identity. Masked diffusion can do without the time (Sahoo et al. 2024): then sigma is
always 0, and what modulates is a learned constant of each layer.
"""

import math

import jax
import jax.numpy as jnp
from flax import nnx

from lmjax.config.schema import ModelConfig
from lmjax.models.attention import Rows
from lmjax.models.linear import Linear, dropout
from lmjax.models.norms import Norm, make_norm
from lmjax.models.positions import make_positions
from lmjax.models.stack import make_stack, run_stack
from lmjax.models.transformer import (
    Setting,
    Vocabulary,
    embed,
    make_attention,
    make_mlp,
    make_rotation,
)
from lmjax.parallel.rules import Layout

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
    """Condition [B, E] -> `parts` float32 vectors [B, 1, D]; zero at the start."""

    def __init__(
        self,
        parts: int,
        config: ModelConfig,
        *,
        layout: Layout,
        rngs: nnx.Rngs,
    ):
        self.layout = layout
        self.linear = Linear(
            (config.condition_width,),
            (parts, config.width),
            names=(None, None, "embed"),
            scale=0.0,
            use_bias=True,
            dtype=jnp.dtype("float32"),
            rngs=rngs,
        )

    def __call__(self, condition_BE: jax.Array) -> list[jax.Array]:
        values = self.layout(self.linear(condition_BE), "batch", None, None)
        return [values[:, part, None] for part in range(values.shape[1])]


def modulated(
    norm: Norm, x_BLD: jax.Array, shift: jax.Array, scale: jax.Array
) -> jax.Array:
    """norm(x) * (1 + scale) + shift, in x's dtype.

    In float32 up to there: in bfloat16 a small scale would be lost in 1 + scale.
    """
    y_BLD = norm(x_BLD.astype(jnp.float32)) * (1 + scale) + shift
    return y_BLD.astype(x_BLD.dtype)


class DiTBlock(nnx.Module):
    """x + gate * attention(modulated norm(x)), then the same with the mlp."""

    def __init__(self, config: ModelConfig, setting: Setting, rngs: nnx.Rngs):
        self.attention_norm, self.mlp_norm = make_norm(config), make_norm(config)
        self.attention = make_attention(config, setting, rngs)
        self.mlp = make_mlp(config, setting, rngs)
        self.modulation = Modulation(6, config, layout=setting.layout, rngs=rngs)
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
        shift1, scale1, gate1, shift2, scale2, gate2 = self.modulation(condition_BE)
        gate1, gate2 = gate1.astype(x_BLD.dtype), gate2.astype(x_BLD.dtype)
        y_BLD = modulated(self.attention_norm, x_BLD, shift1, scale1)
        y_BLD = self.attention(y_BLD, rows)
        x_BLD = x_BLD + gate1 * dropout(y_BLD, self.dropout_rate, keys[0])
        y_BLD = self.mlp(modulated(self.mlp_norm, x_BLD, shift2, scale2))
        return x_BLD + gate2 * dropout(y_BLD, self.dropout_rate, keys[1])


class DiT(nnx.Module):
    """Noised tokens [B, L] and sigma [B] to hidden states [B, L, D].

    Implements `core.types.LanguageModel`. With time conditioning `sigma_B` must be
    given; without it changes nothing. Only the residual branches are dropped, not the
    embedding.
    """

    def __init__(self, config: ModelConfig, setting: Setting, rngs: nnx.Rngs):
        self.vocabulary = Vocabulary(config, setting, rngs)
        self.positions = make_positions(config, setting.dtype, rngs)
        self.noise_embedding = NoiseEmbedding(config.condition_width, rngs)
        self.blocks = make_stack(
            lambda rngs: DiTBlock(config, setting, rngs), config.num_layers, rngs
        )
        self.final_norm = make_norm(config)
        self.final_modulation = Modulation(2, config, layout=setting.layout, rngs=rngs)
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
        if not self.config.time_conditioning:
            sigma_B = jnp.zeros(1)  # one condition for all rows
        elif sigma_B is None:
            raise ValueError(
                "a DiT with time conditioning needs sigma_B, the noise level of each "
                "row"
            )
        rotation = make_rotation(self.config, tokens_BL, positions_BL)
        rows = Rows(lengths_B, segments_BL, rotation)
        condition_BE = self.noise_embedding(sigma_B)
        keys = None
        if dropout_key is not None and self.config.dropout > 0.0:
            keys = jax.random.split(dropout_key, self.config.num_layers)
        x_BLD, _ = run_stack(
            self.blocks,
            lambda block, x, key: (block(x, condition_BE, rows, dropout_key=key), None),
            embed(self.vocabulary, self.positions, tokens_BL, positions_BL),
            keys,
            scan=self.setting.scan,
            remat=self.setting.remat,
        )
        shift, scale = self.final_modulation(condition_BE)
        x_BLD = modulated(self.final_norm, x_BLD, shift, scale)
        return self.vocabulary.layout(x_BLD, "batch", None, None)

    def logits(self, hidden: jax.Array) -> jax.Array:
        """See `Vocabulary.logits`."""
        return self.vocabulary.logits(hidden)
