"""Every implementation of attention is attention, and the right one is chosen."""

import functools
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental.pallas.ops.tpu import splash_attention as splash

from lmjax.config.schema import AttentionKind
from lmjax.core.errors import ConfigError
from lmjax.models.attention_kernels import (
    CHUNK,
    AttentionChoice,
    AttentionFunction,
    choose_attention,
    chunked_attention,
    library_attention,
    splash_attention,
)


def _reference(
    q: np.ndarray,
    k: np.ndarray,
    v: np.ndarray,
    causal: bool,
    lengths: list[int],
    segments: np.ndarray | None = None,
) -> np.ndarray:
    """Attention row by row and head by head, in float64."""
    q, k, v = (np.asarray(x, np.float64) for x in (q, k, v))
    batch_size, length, num_heads, head_width = q.shape
    queries_per_key = num_heads // k.shape[2]
    output = np.zeros_like(q)
    for b in range(batch_size):
        for n in range(num_heads):
            keys, values = (x[b, :, n // queries_per_key] for x in (k, v))
            scores = q[b, :, n] @ keys.T / np.sqrt(head_width)
            seen = np.arange(len(keys))[None] < lengths[b]
            if segments is not None:  # padding sees padding
                real = np.where(seen[0], segments[b], 0)
                seen = real[:, None] == real
            if causal:
                seen = seen & np.tri(length, dtype=bool)
            scores = np.where(seen, scores, -np.inf)
            weights = np.exp(scores - scores.max(axis=1, keepdims=True))
            output[b, :, n] = weights / weights.sum(axis=1, keepdims=True) @ values
    return output


def _inputs(length: int, kv_heads: int, head_width: int = 8) -> list[np.ndarray]:
    generator = np.random.default_rng(length)
    return [
        generator.normal(size=(2, length, heads, head_width)).astype(np.float32)
        for heads in (4, kv_heads, kv_heads)
    ]


@pytest.mark.parametrize("lengths", [None, [300, 37]])
@pytest.mark.parametrize(
    ("attend", "causal"),
    [(library_attention, True), (library_attention, False), (chunked_attention, True)],
)
def test_attention_agrees_with_a_float64_reference(
    attend: AttentionFunction, causal: bool, lengths: list[int] | None
) -> None:
    q, k, v = _inputs(300, kv_heads=2)  # two whole chunks and a part of one
    output = jax.jit(attend, static_argnames="causal")(
        q, k, v, causal=causal, lengths_B=None if lengths is None else np.int32(lengths)
    )
    expected = _reference(q, k, v, causal, lengths or [300, 300])
    np.testing.assert_allclose(output, expected, atol=2e-6)


@pytest.mark.parametrize(
    ("attend", "causal"), [(library_attention, False), (chunked_attention, True)]
)
def test_attention_in_float16_is_near_the_exact_one(
    attend: AttentionFunction, causal: bool
) -> None:
    """Also its gradients, whose products are of other types."""
    q, k, v = (x.astype(np.float16) for x in _inputs(140, kv_heads=2))

    @functools.partial(jax.grad, argnums=(0, 1, 2), has_aux=True)
    def total(*inputs: jax.Array) -> tuple[jax.Array, jax.Array]:
        output = attend(*inputs, causal=causal)
        return jnp.sum(jnp.sin(output.astype(jnp.float32))), output

    gradients, output = jax.jit(total)(q, k, v)
    assert output.dtype == jnp.float16
    expected = _reference(q, k, v, causal, [140, 140])
    np.testing.assert_allclose(output, expected, atol=2e-3)
    exact, _ = jax.jit(total)(*(x.astype(np.float32) for x in (q, k, v)))
    for found, wanted in zip(gradients, exact, strict=True):
        assert found.dtype == jnp.float16
        np.testing.assert_allclose(found, wanted, rtol=2e-2, atol=2e-3)


# Three documents; one that fills no chunk, one that crosses chunks, and padding.
SEGMENTS = np.array(
    [[1] * 100 + [2] * 150 + [3] * 50, [1] * 7 + [2] * 125 + [0] * 168], np.int32
)


@pytest.mark.parametrize("lengths", [None, [300, 37]])
@pytest.mark.parametrize(
    ("attend", "causal"),
    [
        (library_attention, True),
        (library_attention, False),
        (chunked_attention, True),
        (chunked_attention, False),
    ],
)
def test_a_query_sees_the_keys_of_its_own_segment_alone(
    attend: AttentionFunction, causal: bool, lengths: list[int] | None
) -> None:
    q, k, v = _inputs(300, kv_heads=2)
    output = jax.jit(attend, static_argnames="causal")(
        q,
        k,
        v,
        causal=causal,
        lengths_B=None if lengths is None else np.int32(lengths),
        segments_BL=SEGMENTS,
    )
    expected = _reference(q, k, v, causal, lengths or [300, 300], SEGMENTS)
    np.testing.assert_allclose(output, expected, atol=2e-6)


@pytest.mark.parametrize("length", [1, CHUNK, CHUNK + 1])
@pytest.mark.parametrize("kv_heads", [1, 4])
def test_chunks_fit_any_length_and_any_grouping(length: int, kv_heads: int) -> None:
    q, k, v = _inputs(length, kv_heads, head_width=2)
    output = jax.jit(chunked_attention, static_argnames="causal")(q, k, v, causal=True)
    expected = _reference(q, k, v, True, [length, length])
    np.testing.assert_allclose(output, expected, atol=2e-6)


def test_chunked_attention_without_a_causal_mask_sees_everything() -> None:
    q, k, v = _inputs(CHUNK + 1, kv_heads=1, head_width=2)
    output = jax.jit(chunked_attention, static_argnames="causal")(q, k, v, causal=False)
    expected = _reference(q, k, v, False, [CHUNK + 1] * 2)
    np.testing.assert_allclose(output, expected, atol=2e-6)


@pytest.mark.parametrize("causal", [True, False])
def test_the_tpu_kernel_agrees_with_the_reference_when_interpreted(
    causal: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_kernel = functools.partial(splash.make_splash_mha, interpret=True)
    monkeypatch.setattr(splash, "make_splash_mha", make_kernel)
    q, k, v = _inputs(256, kv_heads=2, head_width=128)
    lengths = [256, 130]
    output = jax.jit(splash_attention, static_argnames="causal")(
        q, k, v, causal=causal, lengths_B=np.int32(lengths)
    )
    expected = _reference(q, k, v, causal, lengths)
    for row, length in enumerate(lengths):  # queries of padding see padding there
        np.testing.assert_allclose(
            output[row, :length], expected[row, :length], atol=2e-5
        )


@pytest.mark.parametrize("lengths", [None, [256, 130]])
def test_the_tpu_kernel_keeps_to_segments_when_interpreted(
    lengths: list[int] | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_kernel = functools.partial(splash.make_splash_mha, interpret=True)
    monkeypatch.setattr(splash, "make_splash_mha", make_kernel)
    q, k, v = _inputs(256, kv_heads=2, head_width=128)
    segments = SEGMENTS[:, :256]
    output = jax.jit(splash_attention, static_argnames="causal")(
        q,
        k,
        v,
        causal=True,
        lengths_B=None if lengths is None else np.int32(lengths),
        segments_BL=segments,
    )
    expected = _reference(q, k, v, True, lengths or [256, 256], segments)
    np.testing.assert_allclose(output, expected, atol=2e-5)


def test_lengths_the_tpu_kernel_does_not_take_keep_to_segments_too() -> None:
    q, k, v = _inputs(300, kv_heads=2)
    output = splash_attention(q, k, v, causal=True, segments_BL=SEGMENTS)
    expected = _reference(q, k, v, True, [300, 300], SEGMENTS)
    np.testing.assert_allclose(output, expected, atol=2e-6)


CPU = types.SimpleNamespace(platform="cpu", device_kind="cpu")
TPU = types.SimpleNamespace(platform="tpu", device_kind="TPU v5 lite")
GPU = types.SimpleNamespace(
    platform="gpu", device_kind="NVIDIA A100", compute_capability="8.0"
)
OLD_GPU = types.SimpleNamespace(
    platform="gpu", device_kind="Tesla V100", compute_capability="7.0"
)


def _choose(
    device: types.SimpleNamespace,
    kind: AttentionKind = AttentionKind.AUTO,
    *,
    causal: bool = True,
    head_width: int = 64,
    length: int = 1024,
    dtype: str = "bfloat16",
    segments: bool = False,
) -> AttentionChoice:
    return choose_attention(
        kind,
        device=device,
        causal=causal,
        head_width=head_width,
        length=length,
        dtype=jnp.dtype(dtype),
        segments=segments,
    )


@pytest.mark.parametrize(
    ("device", "fields", "expected"),
    [
        (CPU, {}, AttentionKind.CHUNKED),
        (CPU, {"causal": False}, AttentionKind.XLA),
        (CPU, {"length": CHUNK}, AttentionKind.XLA),
        (GPU, {}, AttentionKind.CUDNN),
        (GPU, {"dtype": "float16", "causal": False}, AttentionKind.CUDNN),
        (GPU, {"dtype": "float32"}, AttentionKind.XLA),
        (GPU, {"head_width": 12}, AttentionKind.XLA),
        (GPU, {"head_width": 256}, AttentionKind.XLA),
        (OLD_GPU, {}, AttentionKind.XLA),
        (TPU, {}, AttentionKind.SPLASH),
        (TPU, {"length": 1000}, AttentionKind.XLA),
        (CPU, {"segments": True}, AttentionKind.CHUNKED),
        (GPU, {"segments": True}, AttentionKind.XLA),
        (TPU, {"segments": True}, AttentionKind.SPLASH),
    ],
)
def test_auto_takes_the_fused_kernel_where_it_runs(
    device: types.SimpleNamespace, fields: dict, expected: AttentionKind
) -> None:
    choice = _choose(device, **fields)
    assert choice.kind is expected
    assert choice.reason


def test_the_choice_comes_with_its_own_function() -> None:
    assert _choose(CPU).function is chunked_attention
    assert _choose(TPU).function is splash_attention
    assert _choose(GPU).function.keywords == {"implementation": "cudnn"}
    assert _choose(CPU, causal=False).function is library_attention


@pytest.mark.parametrize(
    ("device", "kind", "fields", "reason"),
    [
        (CPU, AttentionKind.CUDNN, {}, "NVIDIA GPU"),
        (CPU, AttentionKind.SPLASH, {}, "TPU"),
        (GPU, AttentionKind.SPLASH, {}, "TPU"),
        (GPU, AttentionKind.CUDNN, {"dtype": "float32"}, "bfloat16"),
        (GPU, AttentionKind.CUDNN, {"head_width": 256}, "head width"),
        (OLD_GPU, AttentionKind.CUDNN, {}, "compute capability 8.0"),
        (TPU, AttentionKind.SPLASH, {"length": 1000}, "128"),
        (GPU, AttentionKind.CUDNN, {"segments": True}, "document_mask"),
    ],
)
def test_an_implementation_that_cannot_run_is_refused_with_the_reason(
    device: types.SimpleNamespace, kind: AttentionKind, fields: dict, reason: str
) -> None:
    with pytest.raises(ConfigError, match=reason) as caught:
        _choose(device, kind, **fields)
    assert device.device_kind in str(caught.value)
    assert "auto" in caught.value.remedy


@pytest.mark.parametrize("kind", [AttentionKind.XLA, AttentionKind.CHUNKED])
def test_what_runs_everywhere_can_be_forced(kind: AttentionKind) -> None:
    assert _choose(TPU, kind).kind is kind
