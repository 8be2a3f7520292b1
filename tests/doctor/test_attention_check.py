"""A kernel that computes something else, or nothing at all, is found out."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import pytest

from lmjax.doctor.attention_check import AttentionCheck
from lmjax.models.attention_kernels import chunked_attention, library_attention


def _check(**changes: Any) -> AttentionCheck:
    setting = dict(causal=True, head_width=8, dtype="bfloat16", segments=False)
    setting |= changes
    return AttentionCheck(**setting | {"dtype": jnp.dtype(setting["dtype"])})


@pytest.mark.parametrize("segments", [False, True])
def test_what_agrees_with_xla_passes(segments: bool) -> None:
    assert _check(segments=segments)(chunked_attention) == ""


def _wrong_scale(q: jax.Array, *rest: jax.Array, **keywords: Any) -> jax.Array:
    return library_attention(q * 1.5, *rest, **keywords)


def _no_lengths(*arrays: jax.Array, lengths_B: jax.Array, **rest: Any) -> jax.Array:
    return library_attention(*arrays, **rest)


def _wrong_gradient(q: jax.Array, *rest: jax.Array, **keywords: Any) -> jax.Array:
    return library_attention(jax.lax.stop_gradient(q), *rest, **keywords)


def _nothing(q: jax.Array, *rest: jax.Array, **keywords: Any) -> jax.Array:
    return q * jnp.nan


@pytest.mark.parametrize(
    ("attend", "causal", "what"),
    [
        (_wrong_scale, True, "values"),
        (_no_lengths, False, "values"),
        (_wrong_gradient, True, "gradients"),
        (_nothing, True, "values"),
    ],
)
def test_what_differs_from_xla_is_named(attend: Any, causal: bool, what: str) -> None:
    fault = _check(causal=causal)(attend)
    assert fault.startswith(f"its {what} differ from XLA's by ")


def test_a_kernel_that_does_not_run_says_why() -> None:
    cudnn = functools.partial(library_attention, implementation="cudnn")
    fault = _check()(cudnn)  # there is no GPU
    assert "Error: " in fault and "\n" not in fault
