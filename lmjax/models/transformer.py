"""The transformer, causal or bidirectional: pre-norm, grouped queries."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from lmjax.config.schema import Backbone, ModelConfig, PositionKind, Remat
from lmjax.core.types import KeyValueCache
from lmjax.models.attention import Attention, Rows
from lmjax.models.attention_kernels import AttentionFunction
from lmjax.models.linear import dropout, wide_product
from lmjax.models.mlp import MLP
from lmjax.models.norms import make_norm
from lmjax.models.positions import LearnedPositions, Rotation, make_positions
from lmjax.models.stack import make_stack, run_stack
from lmjax.parallel.rules import ONE_DEVICE, Layout


@dataclasses.dataclass(frozen=True, kw_only=True)
class Setting:
    """What a model needs beyond its config section: facts of data and machine.

    Attributes:
      vocab_size: rows of the embedding, padding included.
      num_ids: rows without padding, which starts at zero and stays there; 0: all.
      unpredictable: ids that are never predicted.
      causal: whether a position sees only those before it.
      attend: implementation of attention.
      scan: whether layers run as one scanned layer.
      remat: what the backward pass computes again.
      dtype: dtype of matrix products and activations.
      layout: where activations lie; by default on one device.
    """

    vocab_size: int
    unpredictable: tuple[int, ...]
    causal: bool
    attend: AttentionFunction
    scan: bool = False
    remat: Remat = Remat.NONE
    num_ids: int = 0
    dtype: jnp.dtype = dataclasses.field(default_factory=lambda: jnp.dtype("float32"))
    layout: Layout = ONE_DEVICE


def head_width(config: ModelConfig) -> int:
    """H, the numbers of one head of attention."""
    return config.head_width or config.width // config.num_heads


def make_attention(config: ModelConfig, setting: Setting, rngs: nnx.Rngs) -> Attention:
    """The attention of one layer."""
    return Attention(
        width=config.width,
        num_heads=config.num_heads,
        num_kv_heads=config.num_kv_heads or config.num_heads,
        head_width=head_width(config),
        causal=setting.causal,
        attend=setting.attend,
        qk_norm=config.qk_norm,
        norm_epsilon=config.norm_epsilon,
        use_bias=config.attention_bias,
        output_scale=(2 * config.num_layers) ** -0.5,
        dtype=setting.dtype,
        layout=setting.layout,
        rngs=rngs,
    )


def make_mlp(config: ModelConfig, setting: Setting, rngs: nnx.Rngs) -> MLP:
    """The feed-forward block of one layer."""
    return MLP(
        config.mlp,
        width=config.width,
        mlp_width=config.mlp_width,
        use_bias=config.mlp_bias,
        output_scale=(2 * config.num_layers) ** -0.5,
        dtype=setting.dtype,
        layout=setting.layout,
        rngs=rngs,
    )


class Vocabulary(nnx.Module):
    """Embedding and output head, tied or not; the head of an untied one starts at zero.

    With a zero head the first loss is ln(number of predictable ids) exactly. A bias of
    the head starts at zero too.
    """

    def __init__(self, config: ModelConfig, setting: Setting, rngs: nnx.Rngs):
        shape = (setting.vocab_size, config.width)
        key = rngs.params()
        if config.backbone is Backbone.DIT:  # as in MDLM: deviation 1 / sqrt(3 D)
            table = jax.random.uniform(key, shape, jnp.float32, -1.0, 1.0)
        else:
            table = jax.random.normal(key, shape, jnp.float32)
        if setting.num_ids:
            table = table.at[setting.num_ids :].set(0.0)
        self.table = nnx.Param(table * config.width**-0.5, names=("vocab", "embed"))
        zeros = jnp.zeros(shape, jnp.float32)
        untied = nnx.Param(zeros, names=("vocab", "embed"))
        self.head = None if config.tied_embeddings else untied
        bias = nnx.Param(jnp.zeros(setting.vocab_size, jnp.float32), names=("vocab",))
        self.head_bias = bias if config.head_bias else None
        self.unpredictable = setting.unpredictable
        self.dtype, self.layout = setting.dtype, setting.layout

    def embed(self, tokens: jax.Array) -> jax.Array:
        """Token ids [...] to vectors [..., D].

        Cast after they are looked up, so that gradients of a token that comes often are
        summed in float32: in bfloat16 a sum of ones ends at 256.
        """
        rows_VD = self.layout(self.table[...], "vocab", None)
        return rows_VD[tokens].astype(self.dtype)

    def logits(self, hidden: jax.Array) -> jax.Array:
        """Float32 logits; -inf on ids that are never predicted."""
        head = self._whole(self.table if self.head is None else self.head)
        logits = wide_product(hidden.astype(self.dtype), head)
        if self.head_bias is not None:
            logits = logits + self.head_bias[...]
        never = jnp.array(self.unpredictable, jnp.int32)
        never_V = jnp.zeros(head.shape[0], bool).at[never].set(True)
        logits = jnp.where(never_V, -jnp.inf, logits)
        return self.layout(logits, "batch", *[None] * (logits.ndim - 2), "vocab")

    def _whole(self, rows: nnx.Param) -> jax.Array:
        """Rows [V, D] as the products read them, their width not split."""
        return self.layout(rows[...].astype(self.dtype), "vocab", None)


class Block(nnx.Module):
    """x + attention(norm(x)), then x + mlp(norm(x))."""

    def __init__(self, config: ModelConfig, setting: Setting, rngs: nnx.Rngs):
        self.attention_norm, self.mlp_norm = make_norm(config), make_norm(config)
        self.attention = make_attention(config, setting, rngs)
        self.mlp = make_mlp(config, setting, rngs)
        self.dropout_rate = config.dropout

    def __call__(
        self,
        x_BLD: jax.Array,
        rows: Rows,
        *,
        dropout_key: jax.Array | None,
    ) -> jax.Array:
        keys = (None, None) if dropout_key is None else jax.random.split(dropout_key)
        y_BLD = self.attention(self.attention_norm(x_BLD), rows)
        x_BLD = x_BLD + dropout(y_BLD, self.dropout_rate, keys[0])
        y_BLD = self.mlp(self.mlp_norm(x_BLD))
        return x_BLD + dropout(y_BLD, self.dropout_rate, keys[1])

    def read(
        self, x_BLD: jax.Array, rows: Rows
    ) -> tuple[jax.Array, jax.Array, jax.Array]:
        """The layer over prompts; also their keys and values, see `Attention.read`."""
        y_BLD, keys, values = self.attention.read(self.attention_norm(x_BLD), rows)
        x_BLD = x_BLD + y_BLD
        return x_BLD + self.mlp(self.mlp_norm(x_BLD)), keys, values

    def extend(
        self,
        x_B1D: jax.Array,
        rotation: Rotation | None,
        pads_B: jax.Array,
        slot: jax.Array,
        cache: KeyValueCache,
    ) -> tuple[jax.Array, KeyValueCache]:
        """The layer over one more token of each row, see `Attention.extend`."""
        y_B1D, cache = self.attention.extend(
            self.attention_norm(x_B1D), rotation, pads_B, slot, cache
        )
        x_B1D = x_B1D + y_B1D
        return x_B1D + self.mlp(self.mlp_norm(x_B1D)), cache


class Transformer(nnx.Module):
    """Token ids [B, L] to hidden states [B, L, D]; see `core.types.LanguageModel`."""

    def __init__(self, config: ModelConfig, setting: Setting, rngs: nnx.Rngs):
        self.vocabulary = Vocabulary(config, setting, rngs)
        self.positions = make_positions(config, setting.dtype, rngs)
        self.blocks = make_stack(
            lambda rngs: Block(config, setting, rngs), config.num_layers, rngs
        )
        self.final_norm = make_norm(config)
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
        del sigma_B  # only a DiT is told the noise level
        rotation = make_rotation(self.config, tokens_BL, positions_BL)
        rows = Rows(lengths_B, segments_BL, rotation)
        x_BLD = embed(self.vocabulary, self.positions, tokens_BL, positions_BL)
        x_BLD, keys = drop_embedding(x_BLD, self.config, dropout_key)
        x_BLD, _ = run_stack(
            self.blocks,
            lambda block, x, key: (block(x, rows, dropout_key=key), None),
            x_BLD,
            keys,
            scan=self.setting.scan,
            remat=self.setting.remat,
        )
        return self.vocabulary.layout(self.final_norm(x_BLD), "batch", None, None)

    def logits(self, hidden: jax.Array) -> jax.Array:
        """See `Vocabulary.logits`."""
        return self.vocabulary.logits(hidden)


def embed(
    vocabulary: Vocabulary,
    positions: LearnedPositions | None,
    tokens_BL: jax.Array,
    positions_BL: jax.Array | None,
) -> jax.Array:
    """Vectors [B, L, D] of the tokens and, where they are learned, of the positions."""
    layout = vocabulary.layout
    x_BLD = vocabulary.embed(layout(tokens_BL, "batch", None))
    if positions is not None:
        x_BLD = positions(x_BLD, positions_BL)
    return layout(x_BLD, "batch", "sequence", None)


def make_rotation(
    config: ModelConfig, tokens_BL: jax.Array, positions_BL: jax.Array | None
) -> Rotation | None:
    """How queries and keys are turned, by default at 0 to L - 1; None: not at all."""
    match config.positions:
        case PositionKind.LEARNED:
            return None
        case PositionKind.ROPE:
            if positions_BL is None:
                positions_BL = np.arange(tokens_BL.shape[1])[None]
            return Rotation.at(
                positions_BL, head_width=head_width(config), theta=config.rope_theta
            )


def drop_embedding(
    x_BLD: jax.Array, config: ModelConfig, dropout_key: jax.Array | None
) -> tuple[jax.Array, jax.Array | None]:
    """Embedded tokens, and one dropout key per layer where a key is given."""
    if dropout_key is None or config.dropout == 0.0:
        return x_BLD, None
    embedding_key, layers_key = jax.random.split(dropout_key)
    x_BLD = dropout(x_BLD, config.dropout, embedding_key)
    return x_BLD, jax.random.split(layers_key, config.num_layers)
