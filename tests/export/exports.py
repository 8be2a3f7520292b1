"""Small models with random parameters, and what exporting them needs."""

import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np

from lmjax.config.schema import Architecture, MLPKind, NormKind, PositionKind
from lmjax.core import trees
from lmjax.data.tokenization.vocabulary import SpecialIds
from lmjax.models.build import Model, padded_vocab_size

BOS, EOS = 1, 2
SPECIAL = SpecialIds(unk=0, bos=BOS, eos=EOS, pad=3, mask=4)
NEVER = (BOS, 3, 4)
# The fields by which a model is of a class, and no other.
FIELDS: dict[Architecture, dict[str, Any]] = {
    Architecture.LLAMA: dict(mlp=MLPKind.SWIGLU),
    Architecture.QWEN3: dict(mlp=MLPKind.SWIGLU, qk_norm=True),
    Architecture.ARCEE: dict(mlp=MLPKind.GELU),
    Architecture.GPT2: dict(
        mlp=MLPKind.GELU,
        positions=PositionKind.LEARNED,
        norm=NormKind.LAYER,
        norm_bias=True,
        attention_bias=True,
        mlp_bias=True,
        num_kv_heads=0,
    ),
}


def tokenizer(vocab_size: int) -> Any:
    """What an export asks of a tokenizer."""
    return types.SimpleNamespace(
        vocab_size=vocab_size, special=SPECIAL, unpredictable=NEVER
    )


def build(
    make_model: Callable[..., Model], vocab_size: int = 37, **fields: Any
) -> Model:
    """A model with so many ids, in a vocabulary that is padded to 128 or more rows."""
    rows = padded_vocab_size(vocab_size)
    return make_model(
        vocab_size=rows,
        num_ids=vocab_size,
        unpredictable=(*NEVER, *range(vocab_size, rows)),
        **fields,
    )


def random_params(model: Model, seed: int = 0) -> Any:
    """Nothing is at zero or one, as in training, but for padding of the vocabulary."""
    generator = np.random.default_rng(seed)

    def draw(name: str, shape: jax.ShapeDtypeStruct) -> np.ndarray:
        values = 0.3 * generator.normal(size=shape.shape) + name.endswith("scale")
        if name.startswith("vocabulary/"):
            values[model.setting.num_ids :] = 0.0
        return values.astype(np.float32)

    return trees.map_named(draw, model.shapes)


def logits(model: Model, params: Any, tokens: np.ndarray) -> np.ndarray:
    """float32 [B, L, ids] of lmjax, compiled."""

    @jax.jit
    def run(params: Any) -> jax.Array:
        module = model.bind(params)
        return module.logits(module(tokens))

    return np.asarray(run(params))[..., : model.setting.num_ids]


def torch_logits(folder: Path, tokens: np.ndarray) -> np.ndarray:
    """The same of transformers, loaded as its users do."""
    import torch
    import transformers

    loaded = transformers.AutoModelForCausalLM.from_pretrained(str(folder)).eval()
    with torch.no_grad():
        return loaded(torch.tensor(tokens, dtype=torch.long)).logits.numpy()


def assert_same(found: Any, expected: Any) -> None:
    """Two trees of arrays, bit for bit."""
    for ours, theirs in zip(
        jax.tree.leaves_with_path(found),
        jax.tree.leaves_with_path(expected),
        strict=True,
    ):
        assert ours[0] == theirs[0]
        np.testing.assert_array_equal(ours[1], theirs[1], err_msg=str(ours[0]))
