"""The right implementation of attention is chosen, and a faulty one is not."""

import types

import jax.numpy as jnp
import pytest

from lmjax.config.schema import AttentionKind
from lmjax.core.errors import ConfigError
from lmjax.models.attention_choice import (
    AttentionChoice,
    FindFault,
    choose_attention,
)
from lmjax.models.attention_cpu import blockwise_attention
from lmjax.models.attention_kernels import CHUNK, chunked_attention, library_attention
from lmjax.models.attention_tpu import SplashAttention

CPU = types.SimpleNamespace(platform="cpu", device_kind="cpu")
TPU = types.SimpleNamespace(platform="tpu", device_kind="TPU v5 lite")
GPU = types.SimpleNamespace(
    platform="gpu", device_kind="NVIDIA A100", compute_capability="8.0"
)
OLD_GPU = types.SimpleNamespace(
    platform="gpu", device_kind="Tesla V100", compute_capability="7.0"
)
SEVERAL = types.SimpleNamespace(size=8)  # a mesh of 8 devices


def _choose(
    device: types.SimpleNamespace,
    kind: AttentionKind = AttentionKind.AUTO,
    *,
    causal: bool = True,
    head_width: int = 64,
    length: int = 1024,
    dtype: str = "bfloat16",
    segments: bool = False,
    mesh: types.SimpleNamespace | None = None,
    find_fault: FindFault | None = None,
) -> AttentionChoice:
    return choose_attention(
        kind,
        device=device,
        causal=causal,
        head_width=head_width,
        length=length,
        dtype=jnp.dtype(dtype),
        segments=segments,
        mesh=mesh,
        find_fault=find_fault,
    )


@pytest.mark.parametrize(
    ("device", "fields", "expected"),
    [
        (CPU, {}, AttentionKind.BLOCKWISE),
        (CPU, {"causal": False}, AttentionKind.BLOCKWISE),
        (CPU, {"mesh": SEVERAL}, AttentionKind.CHUNKED),
        (CPU, {"mesh": SEVERAL, "causal": False}, AttentionKind.XLA),
        (CPU, {"length": CHUNK}, AttentionKind.XLA),
        (GPU, {}, AttentionKind.CUDNN),
        (GPU, {"dtype": "float16", "causal": False}, AttentionKind.CUDNN),
        (GPU, {"dtype": "float32"}, AttentionKind.XLA),
        (GPU, {"head_width": 12}, AttentionKind.XLA),
        (GPU, {"head_width": 256}, AttentionKind.XLA),
        (OLD_GPU, {}, AttentionKind.XLA),
        (TPU, {}, AttentionKind.SPLASH),
        (TPU, {"length": 1000}, AttentionKind.XLA),
        (CPU, {"segments": True}, AttentionKind.BLOCKWISE),
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
    assert _choose(CPU).function is blockwise_attention
    assert _choose(CPU, mesh=SEVERAL).function is chunked_attention
    assert _choose(TPU).function == SplashAttention()
    assert _choose(GPU).function.keywords == {"implementation": "cudnn"}
    assert _choose(CPU, length=CHUNK).function is library_attention


@pytest.mark.parametrize(
    ("device", "kind", "fields", "reason"),
    [
        (CPU, AttentionKind.CUDNN, {}, "NVIDIA GPU"),
        (CPU, AttentionKind.SPLASH, {}, "TPU"),
        (CPU, AttentionKind.BLOCKWISE, {"mesh": SEVERAL}, "single device"),
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


@pytest.mark.parametrize(("device", "kind"), [(GPU, "cudnn"), (TPU, "splash")])
def test_a_fused_kernel_that_fails_its_test_is_not_taken(
    device: types.SimpleNamespace, kind: str
) -> None:
    def fail(attend: object) -> str:
        return "its values differ"

    choice = _choose(device, find_fault=fail)
    assert choice.kind is AttentionKind.XLA
    assert choice.reason == f"{kind} failed its test here: its values differ"
    with pytest.raises(ConfigError, match="failed its test here: its values differ"):
        _choose(
            device, AttentionKind(kind), find_fault=lambda attend: "its values differ"
        )
    assert _choose(device, find_fault=lambda attend: "").kind is AttentionKind(kind)


@pytest.mark.parametrize(
    ("device", "kind"), [(CPU, AttentionKind.AUTO), (GPU, AttentionKind.XLA)]
)
def test_only_a_kernel_that_would_be_taken_is_tried(
    device: types.SimpleNamespace, kind: AttentionKind
) -> None:
    def fail(attend: object) -> str:
        raise AssertionError(f"{attend} was tried")

    assert _choose(device, kind, find_fault=fail).kind is not AttentionKind.CUDNN
