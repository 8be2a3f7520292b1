"""The diffusion transformer starts as the identity and is conditioned on sigma."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lmjax.config.schema import Backbone, MLPKind, NormKind
from lmjax.models.build import Model
from lmjax.models.dit import modulated
from lmjax.models.norms import LayerNorm

MakeModel = Callable[..., Model]
RandomParams = Callable[..., Any]

TOKENS = np.random.default_rng(0).integers(3, 31, size=(2, 6)).astype(np.int32)
PREDICTABLE = np.setdiff1d(np.arange(32), [0, 1, 2, 31])  # of the fixture's ids
NUM_HEADS = 4
GUIDE = dict(  # as in the sizes of the guide
    causal=False,
    backbone=Backbone.DIT,
    num_heads=NUM_HEADS,
    num_kv_heads=0,
    mlp=MLPKind.GELU,
    norm=NormKind.LAYER,
    norm_epsilon=1e-5,
    mlp_bias=True,
    head_bias=True,
)


@pytest.fixture(scope="module")
def model(make_model: MakeModel) -> Model:
    return make_model(**GUIDE, time_conditioning=True)


@pytest.fixture(scope="module")
def untimed(make_model: MakeModel) -> Model:
    return make_model(**GUIDE, time_conditioning=False)


@pytest.fixture(scope="module")
def hidden(model: Model) -> Callable[..., jax.Array]:
    run = jax.jit(lambda params, sigma: model.bind(params)(TOKENS, sigma_B=sigma))
    return lambda params, sigma: run(params, np.array(sigma, np.float32))


def _silu(x: np.ndarray) -> np.ndarray:
    return x / (1 + np.exp(-x))


def _gelu(x: np.ndarray) -> np.ndarray:
    return 0.5 * x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)))


def _layer_norm(x: np.ndarray, scale: np.ndarray | float = 1.0) -> np.ndarray:
    centred = x - x.mean(axis=-1, keepdims=True)
    return centred / np.sqrt((centred**2).mean(axis=-1, keepdims=True) + 1e-5) * scale


def _rotary(x_BNLH: np.ndarray) -> np.ndarray:
    length, width = x_BNLH.shape[-2:]
    angles = np.arange(length)[:, None] * 1e4 ** (-2 * np.arange(width // 2) / width)
    cos, sin = (np.tile(f(angles), 2) for f in (np.cos, np.sin))
    first, second = x_BNLH[..., : width // 2], x_BNLH[..., width // 2 :]
    return x_BNLH * cos + np.concatenate([-second, first], axis=-1) * sin


def _attention(x_BLD: np.ndarray, kernels: dict[str, np.ndarray]) -> np.ndarray:
    q, k, v = (
        np.einsum("bld,dnh->bnlh", x_BLD, kernels[name])
        for name in ("query", "key", "value")
    )
    scores = np.einsum("bnlh,bnsh->bnls", _rotary(q), _rotary(k))
    weights = np.exp(scores / np.sqrt(q.shape[-1]))
    weights /= weights.sum(axis=-1, keepdims=True)
    return np.einsum("bnls,bnsh,nhd->bld", weights, v, kernels["output"])


def _modulations(condition: np.ndarray, linear: dict[str, np.ndarray]) -> np.ndarray:
    """[parts, B, 1, D]."""
    parts = np.einsum("be,epd->pbd", condition, linear["kernel"])
    return (parts + linear["bias"][:, None])[:, :, None]


def _reference(params: Any, sigma_B: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Hidden states and logits by the formulas of MDLM's network, in float64."""
    params = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), params)
    angles = sigma_B[:, None] * np.exp(-np.log(1e4) * np.arange(128) / 128)
    condition = np.concatenate([np.cos(angles), np.sin(angles)], axis=-1)
    for layer in (params["noise_embedding"][name] for name in ("first", "second")):
        condition = _silu(condition @ layer["kernel"] + layer["bias"])

    x = params["vocabulary"]["table"][TOKENS]
    for number in range(2):
        block = jax.tree.map(lambda leaf, number=number: leaf[number], params["blocks"])
        shift1, scale1, gate1, shift2, scale2, gate2 = _modulations(
            condition, block["modulation"]["linear"]
        )
        y = _layer_norm(x, block["attention_norm"]["scale"]) * (1 + scale1) + shift1
        kernels = {name: leaf["kernel"] for name, leaf in block["attention"].items()}
        x = x + gate1 * _attention(y, kernels)
        y = _layer_norm(x, block["mlp_norm"]["scale"]) * (1 + scale2) + shift2
        up, down = block["mlp"]["up"], block["mlp"]["down"]
        inner = _gelu(y @ up["kernel"] + up["bias"])
        x = x + gate2 * (inner @ down["kernel"] + down["bias"])

    shift, scale = _modulations(condition, params["final_modulation"]["linear"])
    x = _layer_norm(x, params["final_norm"]["scale"]) * (1 + scale) + shift
    head = params["vocabulary"]
    return x, x @ head["head"].T + head["head_bias"]


def _assert_close(found: jax.Array, expected: np.ndarray) -> None:
    """To 1e-5 of the largest."""
    np.testing.assert_allclose(found, expected, atol=1e-5 * np.abs(expected).max())


@pytest.mark.parametrize("timed", [True, False])
def test_a_dit_agrees_with_the_formulas_in_float64(
    model: Model, untimed: Model, random_params: RandomParams, timed: bool
) -> None:
    params, sigma = random_params(model), np.array([0.2, 3.0], np.float32)

    @jax.jit
    def run(params: Any) -> tuple[jax.Array, jax.Array]:
        module = (model if timed else untimed).bind(params)
        hidden = module(TOKENS, sigma_B=sigma if timed else None)
        return hidden, module.logits(hidden)

    hidden, logits = run(params)
    expected = _reference(params, sigma if timed else np.zeros(2))
    _assert_close(hidden, expected[0])
    _assert_close(logits[..., PREDICTABLE], expected[1][..., PREDICTABLE])


@pytest.mark.parametrize("norm", list(NormKind))
@pytest.mark.parametrize("timed", [True, False])
def test_a_fresh_dit_is_the_normed_embedding(
    make_model: MakeModel, random_params: RandomParams, norm: NormKind, timed: bool
) -> None:
    """Whatever is in its attention and feed-forward blocks, and whatever sigma."""
    model = make_model(**GUIDE | dict(norm=norm), time_conditioning=timed)
    run = jax.jit(lambda params, sigma: model.bind(params)(TOKENS, sigma_B=sigma))
    params = jax.jit(model.init)(jax.random.key(0))
    embedded = np.asarray(params["vocabulary"]["table"], np.float64)[TOKENS]
    if norm is NormKind.RMS:
        rms = np.sqrt(np.mean(embedded**2, axis=-1, keepdims=True) + 1e-5)
        expected = embedded / rms
    else:
        expected = _layer_norm(embedded)
    other = random_params(model)["blocks"]
    blocks = params["blocks"] | {"attention": other["attention"], "mlp": other["mlp"]}
    for variant in (params, params | {"blocks": blocks}):
        for sigma in ([0.0, 0.0], [0.5, 20.0]):
            states = run(variant, np.array(sigma, np.float32))
            np.testing.assert_allclose(states, expected, atol=1e-5)


def test_logits_of_a_fresh_dit_are_zero(model: Model) -> None:
    params = jax.jit(model.init)(jax.random.key(0))

    @jax.jit
    def run(params: Any) -> jax.Array:
        module = model.bind(params)
        return module.logits(module(TOKENS, sigma_B=np.float32([0.1, 5])))

    logits = np.asarray(run(params))
    np.testing.assert_array_equal(logits[..., PREDICTABLE], 0.0)
    assert np.isneginf(np.delete(logits, PREDICTABLE, axis=-1)).all()


def test_a_trained_dit_depends_on_the_sigma_of_its_own_row(
    model: Model, hidden: Callable[..., jax.Array], random_params: RandomParams
) -> None:
    params = random_params(model)
    low, high = hidden(params, [0.1, 0.1]), hidden(params, [0.1, 3.0])
    np.testing.assert_array_equal(low[0], high[0])
    assert np.abs(low[1] - high[1]).max() > 1e-2


def test_without_time_conditioning_every_sigma_is_zero(
    untimed: Model, hidden: Callable[..., jax.Array], random_params: RandomParams
) -> None:
    params = random_params(untimed)
    run = jax.jit(lambda params, sigma: untimed.bind(params)(TOKENS, sigma_B=sigma))
    expected = run(params, None)
    for sigma in ([0.1, 3.0], [20.0, 0.0]):
        np.testing.assert_array_equal(run(params, np.float32(sigma)), expected)
    np.testing.assert_allclose(hidden(params, [0.0, 0.0]), expected, atol=1e-5)


def test_both_ways_to_condition_have_the_same_parameters(
    model: Model, untimed: Model
) -> None:
    assert model.shapes == untimed.shapes
    assert model.names == untimed.names


def test_a_fresh_dit_learns_through_its_gates(model: Model) -> None:
    """Identity blocks must not be dead: the modulation has a gradient."""
    params = jax.jit(model.init)(jax.random.key(0))

    @jax.jit
    def gradients(params: Any) -> Any:
        def loss(params: Any) -> jax.Array:
            return (model.bind(params)(TOKENS, sigma_B=np.float32([1, 2])) ** 3).sum()

        return jax.grad(loss)(params)

    kernel = gradients(params)["blocks"]["modulation"]["linear"]["kernel"]
    gates = np.abs(np.asarray(kernel)[:, :, [2, 5]])
    assert gates.max(axis=(1, 3)).min() > 1e-6


def test_dropout_acts_on_the_branches_and_leaves_the_embedding(
    make_model: MakeModel, random_params: RandomParams
) -> None:
    """All gates of a fresh model are shut."""
    model = make_model(**GUIDE, dropout=0.5)

    @jax.jit
    def run(params: Any, key: jax.Array | None) -> jax.Array:
        return model.bind(params)(TOKENS, dropout_key=key)

    fresh, params = jax.jit(model.init)(jax.random.key(0)), random_params(model)
    np.testing.assert_allclose(
        run(fresh, jax.random.key(0)), run(fresh, None), atol=1e-6
    )
    one = run(params, jax.random.key(0))
    np.testing.assert_array_equal(one, run(params, jax.random.key(0)))
    assert np.abs(one - run(params, jax.random.key(1))).max() > 0.1
    assert np.abs(one - run(params, None)).max() > 0.1


def test_a_small_modulation_is_not_lost_in_bfloat16() -> None:
    """A thousandth is less than bfloat16 can add to 1, but on average it is there."""
    x = np.random.default_rng(0).normal(size=(1, 1, 16_384))
    x = jnp.asarray(x, jnp.bfloat16)
    norm, zero = LayerNorm(16_384, epsilon=1e-5), jnp.zeros((1, 1, 1))
    found = modulated(norm, x, zero, zero + 1e-3)
    assert found.dtype == jnp.bfloat16
    ratio = np.asarray(found, np.float64) / _layer_norm(np.asarray(x, np.float64))
    assert ratio.mean() == pytest.approx(1.001, abs=2e-4)


def test_a_dit_with_time_conditioning_refuses_to_run_without_sigma(
    model: Model,
) -> None:
    module = model.bind(jax.jit(model.init)(jax.random.key(0)))
    with pytest.raises(ValueError, match="needs sigma_B"):
        module(TOKENS)
