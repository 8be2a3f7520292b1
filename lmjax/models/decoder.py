"""A causal model that writes: its prompts are read at once, then token by token.

Rows of a batch stand side by side at their ends: a shorter prompt has padding in front.
So every row goes on at the same slot of the cache, which is then changed in place.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from lmjax.core.types import KeyValueCache, PyTree
from lmjax.models.attention import Rows
from lmjax.models.positions import Rotation
from lmjax.models.stack import unstack
from lmjax.models.transformer import Transformer, embed, make_rotation


def take_apart(params: PyTree) -> PyTree:
    """Parameters with those of each layer by themselves, as a `Decoder` reads them.

    In a loop over tokens it would cost more to take them apart than to use them.
    """
    return {**params, "blocks": tuple(unstack(params["blocks"]))}


class Decoder:
    """A transformer with its layers one by one, whatever its layout in training.

    Args:
      bind: parameters -> `Transformer`.
      params: what `take_apart` returned.
    """

    def __init__(self, bind: Callable[[PyTree], Transformer], params: PyTree):
        # Layers are alike: any of them stands in the place of the whole stack.
        models = [bind({**params, "blocks": layer}) for layer in params["blocks"]]
        self._model, self._blocks = models[0], [model.blocks for model in models]

    def read(
        self, tokens_BL: jax.Array, pads_B: jax.Array, length: int
    ) -> tuple[jax.Array, tuple[KeyValueCache, ...]]:
        """Final hidden states [B, L, D] of prompts, and a cache that holds them.

        Args:
          tokens_BL: prompts, with `pads_B` ids in front that are not looked at.
          length: slots of the cache, L or more.
        """
        slots_L = jnp.arange(tokens_BL.shape[1])
        positions_BL = jnp.maximum(slots_L - pads_B[:, None], 0)
        segments_BL = (slots_L >= pads_B[:, None]).astype(jnp.int32)
        x_BLD, rotation = self._embed(tokens_BL, positions_BL)
        rows, caches = Rows(segments_BL=segments_BL, rotation=rotation), []
        for block in self._blocks:
            x_BLD, keys, values = block.read(x_BLD, rows)
            room = ((0, 0), (0, 0), (0, length - tokens_BL.shape[1]), (0, 0))
            caches.append(KeyValueCache(jnp.pad(keys, room), jnp.pad(values, room)))
        return self._model.final_norm(x_BLD), tuple(caches)

    def extend(
        self,
        token_B: jax.Array,
        slot: jax.Array,
        pads_B: jax.Array,
        caches: tuple[KeyValueCache, ...],
    ) -> tuple[jax.Array, tuple[KeyValueCache, ...]]:
        """Final hidden state [B, D] of one more token, and the cache with it at `slot`.

        All slots before it must be filled.
        """
        positions_B1 = slot - pads_B[:, None]
        x_BLD, rotation = self._embed(token_B[:, None], positions_B1)
        extended = []
        for block, cache in zip(self._blocks, caches, strict=True):
            x_BLD, cache = block.extend(x_BLD, rotation, pads_B, slot, cache)
            extended.append(cache)
        return self._model.final_norm(x_BLD)[:, 0], tuple(extended)

    def logits(self, hidden: jax.Array) -> jax.Array:
        """See `LanguageModel.logits`."""
        return self._model.logits(hidden)

    def _embed(
        self, tokens_BL: jax.Array, positions_BL: jax.Array
    ) -> tuple[jax.Array, Rotation | None]:
        """Vectors of the tokens, and how their queries and keys are turned."""
        model = self._model
        x_BLD = embed(model.vocabulary, model.positions, tokens_BL, positions_BL)
        return x_BLD, make_rotation(model.config, tokens_BL, positions_BL)
