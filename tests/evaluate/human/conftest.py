"""A tiny model of bytes, and what it says of one row at a time."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
import pytest

from lmjax.config.schema import ParallelConfig
from lmjax.data.tokenization.byte_tokenizer import ByteTokenizer
from lmjax.evaluate.probes import Prober
from lmjax.parallel.mesh import build_mesh

LENGTH = 32


@dataclasses.dataclass(frozen=True)
class ByteModel:
    """A model with random parameters; `log_p` is float64 [V] of a row at a place."""

    params: Any
    prober: Prober
    log_p: Callable[[Sequence[int], int], np.ndarray]


@pytest.fixture(scope="session")
def make_byte_model(make_model: Any, random_params: Any) -> Callable[[bool], ByteModel]:
    """Makes the model, causal or not; on two devices, and row by row without a mesh."""

    def make(causal: bool) -> ByteModel:
        tokenizer = ByteTokenizer()
        model = make_model(
            causal=causal,
            vocab_size=tokenizer.vocab_size,
            unpredictable=tuple(tokenizer.unpredictable),
            max_length=LENGTH,
        )
        params = random_params(model)

        @jax.jit
        def logits(params: Any, tokens: jax.Array, lengths: jax.Array) -> jax.Array:
            bound = model.bind(params)
            return bound.logits(bound(tokens, lengths_B=lengths))

        def log_p(row: Sequence[int], place: int) -> np.ndarray:
            tokens = np.full((1, LENGTH), tokenizer.special.pad, np.int32)
            tokens[0, : len(row)] = row
            found = logits(params, tokens, np.array([len(row)], np.int32))
            found = np.asarray(found, np.float64)[0, place]
            return found - np.log(np.exp(found).sum())

        prober = Prober(
            model.bind,
            build_mesh(ParallelConfig(), jax.devices()[:2]),
            max_length=LENGTH,
            pad_id=tokenizer.special.pad,
            causal=causal,
        )
        return ByteModel(params, prober, log_p)

    return make
