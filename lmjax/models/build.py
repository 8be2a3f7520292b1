"""The one place that turns a model section into a module."""

import dataclasses
import math
from typing import Any

import jax
from flax import nnx

from lmjax.config.schema import Backbone, ModelConfig
from lmjax.core.types import PyTree
from lmjax.models.attention_tpu import SplashAttention
from lmjax.models.dit import DiT
from lmjax.models.transformer import Setting, Transformer
from lmjax.parallel.rules import Layout

VOCABULARY_MULTIPLE = 128  # rows of the embedding are padded to this, for the hardware


def padded_vocab_size(vocab_size: int) -> int:
    """The vocabulary rounded up to a multiple of 128."""
    return math.ceil(vocab_size / VOCABULARY_MULTIPLE) * VOCABULARY_MULTIPLE


def build_module(
    config: ModelConfig, setting: Setting, rngs: nnx.Rngs
) -> Transformer | DiT:
    """A freshly initialised module."""
    match config.backbone:
        case Backbone.TRANSFORMER:
            return Transformer(config, setting, rngs)
        case Backbone.DIT:
            return DiT(config, setting, rngs)


@dataclasses.dataclass(frozen=True)
class Model:
    """A module apart from its parameters, which are a plain nested dict of arrays.

    Attributes:
      graph: the module's structure.
      template: its state with shapes in place of arrays.
      shapes: the parameters' shapes and dtypes, as a nested dict.
      names: logical dimension names of each parameter, in the same dict.
    """

    config: ModelConfig
    setting: Setting
    graph: Any
    template: Any
    shapes: PyTree
    names: PyTree

    def init(self, key: jax.Array) -> PyTree:
        """Fresh parameters."""
        module = build_module(self.config, self.setting, nnx.Rngs(key))
        return nnx.to_pure_dict(nnx.state(module))

    def bind(self, params: PyTree) -> Transformer | DiT:
        """The module with these parameters; cheap, meant for use inside jit."""
        state = jax.tree.map(lambda leaf: leaf, self.template)
        nnx.replace_by_pure_dict(state, params)
        return nnx.merge(self.graph, state)

    def on(self, layout: Layout) -> "Model":
        """The same model with its activations laid out over a mesh, as `bind` gives it.

        It reads batches whose rows lie there.
        """
        if not layout.is_split:
            return self
        attend = self.setting.attend
        if isinstance(attend, SplashAttention):
            attend = dataclasses.replace(attend, layout=layout)
        setting = dataclasses.replace(self.setting, attend=attend, layout=layout)
        return build_model(self.config, setting)


def build_model(config: ModelConfig, setting: Setting) -> Model:
    """The model of a config section; allocates nothing."""
    module = nnx.eval_shape(lambda: build_module(config, setting, nnx.Rngs(0)))
    graph, template = nnx.split(module)
    names = nnx.to_pure_dict(
        jax.tree.map(
            _dimension_names,
            template,
            is_leaf=lambda leaf: isinstance(leaf, nnx.Variable),
        )
    )
    shapes = nnx.to_pure_dict(template)
    return Model(config, setting, graph, template, shapes, names)


class DimensionNames(tuple):
    """Names of one parameter's dimensions; a leaf of the tree of names."""


def _dimension_names(param: nnx.Param) -> DimensionNames:
    names, num_dims = tuple(param.get_metadata()["names"]), len(param.shape)
    if num_dims == len(names) + 1:  # a stack of layers
        names = ("layers", *names)
    return DimensionNames(names)
