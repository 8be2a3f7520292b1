"""What the start-up plan says of the compute."""

import types
from collections.abc import Callable

import pytest

from lmjax import plan
from lmjax.config.schema import Backbone
from lmjax.models.build import Model


@pytest.mark.parametrize("backbone", list(Backbone))
@pytest.mark.parametrize("tied", [False, True])
def test_only_matrices_that_every_token_passes_count_as_compute(
    make_model: Callable[..., Model], backbone: Backbone, tied: bool
) -> None:
    """Two layers of attention and SwiGLU, and the head; no modulation, no norm."""
    attention = 2 * 16 * 16 + 2 * 16 * 8
    expected = 2 * (attention + 3 * 16 * 24) + 32 * 16
    biases = dict(attention_bias=True, mlp_bias=True, head_bias=True)
    model = make_model(backbone=backbone, tied_embeddings=tied, **biases)
    assert plan.matmul_params(types.SimpleNamespace(model=model)) == expected
