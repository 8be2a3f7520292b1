"""The small layers agree with their formulas in float64."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from lmjax.config.schema import MLPKind, ModelConfig, NormKind
from lmjax.models.linear import Linear, dropout, wide_product
from lmjax.models.mlp import MLP
from lmjax.models.norms import LayerNorm, RMSNorm, make_norm

FLOAT32 = jnp.dtype("float32")


def _normal(*shape: int) -> np.ndarray:
    generator = np.random.default_rng(sum(shape))
    return generator.normal(size=shape).astype(np.float32)


@pytest.mark.parametrize("epsilon", [1e-6, 0.5])
def test_rms_norm_agrees_with_its_formula(epsilon: float) -> None:
    norm = RMSNorm(8, epsilon=epsilon)
    scale, x = _normal(8), 3 * _normal(2, 5, 8)
    norm.scale[...] = jnp.asarray(scale)
    x64 = x.astype(np.float64)
    expected = x64 / np.sqrt(np.mean(x64**2, axis=-1, keepdims=True) + epsilon) * scale
    np.testing.assert_allclose(norm(x), expected, atol=2e-6)


def test_rms_norm_takes_its_statistics_in_float32() -> None:
    x = jnp.full((1, 64), 300.0, jnp.float16)  # the square overflows float16
    output = RMSNorm(64, epsilon=1e-6)(x)
    assert output.dtype == jnp.float16
    np.testing.assert_allclose(output, np.ones((1, 64)), rtol=1e-3)


@pytest.mark.parametrize("epsilon", [1e-5, 0.5])
def test_layer_norm_agrees_with_its_formula(epsilon: float) -> None:
    norm = LayerNorm(8, epsilon=epsilon)
    scale, x = _normal(8), 3 * _normal(2, 5, 8) + 4
    norm.scale[...] = jnp.asarray(scale)
    x64 = x.astype(np.float64)
    deviation = np.sqrt(x64.var(axis=-1, keepdims=True) + epsilon)
    expected = (x64 - x64.mean(axis=-1, keepdims=True)) / deviation * scale
    np.testing.assert_allclose(norm(x), expected, atol=2e-6)


@pytest.mark.parametrize("use_bias", [False, True])
def test_layer_norm_agrees_with_torch(use_bias: bool) -> None:
    torch = pytest.importorskip("torch")
    scale, x, bias = _normal(8), 3 * _normal(2, 5, 8) + 4, None
    norm = LayerNorm(8, epsilon=1e-5, use_bias=use_bias)
    norm.scale[...] = jnp.asarray(scale)
    if use_bias:
        np.testing.assert_array_equal(norm.bias[...], 0.0)
        bias = torch.from_numpy(_normal(2, 4)).reshape(8)
        norm.bias[...] = jnp.asarray(bias.numpy())
    expected = torch.nn.functional.layer_norm(
        torch.from_numpy(x), (8,), torch.from_numpy(scale), bias, eps=1e-5
    )
    np.testing.assert_allclose(norm(x), expected.numpy(), atol=2e-6)


def test_layer_norm_takes_its_statistics_in_float32() -> None:
    """The mean square of these overflows float16, and their spread is 1 in 30,000."""
    x = np.tile(np.array([30_000, 30_016], np.float16), 32)[None]
    output = LayerNorm(64, epsilon=1e-5)(jnp.asarray(x))
    assert output.dtype == jnp.float16
    np.testing.assert_allclose(output, np.tile([-1.0, 1.0], 32)[None], rtol=1e-3)


@pytest.mark.parametrize(
    ("kind", "norm"), [(NormKind.RMS, RMSNorm), (NormKind.LAYER, LayerNorm)]
)
def test_the_config_names_the_norm(kind: NormKind, norm: type) -> None:
    found = make_norm(ModelConfig(norm=kind, width=6, norm_epsilon=0.25))
    assert type(found) is norm
    assert (found.scale.shape, found.epsilon) == ((6,), 0.25)


@pytest.mark.parametrize("use_bias", [True, False])
@pytest.mark.parametrize("kind", list(MLPKind))
def test_mlp_agrees_with_its_formula(kind: MLPKind, use_bias: bool) -> None:
    mlp = MLP(
        kind,
        width=4,
        mlp_width=6,
        use_bias=use_bias,
        output_scale=0.5,
        dtype=FLOAT32,
        rngs=nnx.Rngs(0),
    )
    if use_bias:
        mlp.up.bias[...], mlp.down.bias[...] = _normal(6), _normal(4)
    x = _normal(3, 4)

    def project(layer: Linear, x: np.ndarray) -> np.ndarray:
        bias = 0.0 if layer.bias is None else np.asarray(layer.bias[...], np.float64)
        return x @ np.asarray(layer.kernel[...], np.float64) + bias

    up = project(mlp.up, x.astype(np.float64))
    if kind is MLPKind.SWIGLU:
        gate = project(mlp.gate, x.astype(np.float64))
        inner = gate / (1 + np.exp(-gate)) * up
    else:
        inner = (
            0.5 * up * (1 + np.tanh(math.sqrt(2 / math.pi) * (up + 0.044715 * up**3)))
        )
    np.testing.assert_allclose(mlp(x), project(mlp.down, inner), atol=1e-6)


def test_gelu_has_a_gradient_wherever_float16_has_numbers() -> None:
    """Its cube leaves their range from 41 on, and the gradient's factors from 148."""
    mlp = MLP(
        MLPKind.GELU,
        width=1,
        mlp_width=1,
        use_bias=False,
        output_scale=1.0,
        dtype=jnp.dtype("float16"),
        rngs=nnx.Rngs(0),
    )
    mlp.up.kernel[...] = mlp.down.kernel[...] = jnp.ones((1, 1))
    x = jnp.float16([[-3000.0], [-200.0], [50.0], [200.0], [3000.0]])
    gradient = jax.grad(lambda x: jnp.sum(mlp(x).astype(jnp.float32)))(x)
    np.testing.assert_array_equal(gradient[:, 0], [0.0, 0.0, 1.0, 1.0, 1.0])


def test_linear_contracts_the_trailing_dimensions() -> None:
    layer = Linear(
        (2, 3),
        (4, 5),
        names=("heads", None, "embed", None),
        dtype=FLOAT32,
        rngs=nnx.Rngs(0),
    )
    x = _normal(7, 2, 3)
    expected = np.einsum("bij,ijkl->bkl", x, np.asarray(layer.kernel[...], np.float64))
    np.testing.assert_allclose(layer(x), expected, atol=1e-6)


def test_linear_starts_with_the_stated_deviation() -> None:
    def kernel(scale: float) -> np.ndarray:
        layer = Linear(
            (64,),
            (256,),
            names=("embed", "mlp"),
            scale=scale,
            dtype=FLOAT32,
            rngs=nnx.Rngs(0),
        )
        return np.asarray(layer.kernel[...])

    assert np.std(kernel(0.5)) == pytest.approx(0.5 / 8, rel=0.05)
    assert not kernel(0.0).any()


def test_linear_refuses_names_that_do_not_fit() -> None:
    with pytest.raises(ValueError, match="must name the 2 dimensions"):
        Linear((2,), (3,), names=("embed",), dtype=FLOAT32, rngs=nnx.Rngs(0))


@pytest.mark.parametrize(("dtype", "error"), [("float32", 1e-5), ("bfloat16", 0.03)])
def test_wide_products_have_float32_values_and_the_gradients_of_a_product(
    dtype: str, error: float
) -> None:
    generator = np.random.default_rng(0)
    x = jnp.asarray(generator.normal(size=(2, 3, 5)), dtype)
    kernel = jnp.asarray(generator.normal(size=(7, 5)), dtype)
    pull = generator.normal(size=(2, 3, 7))
    values, transposed = jax.vjp(wide_product, x, kernel)
    by_x, by_kernel = transposed(jnp.asarray(pull, jnp.float32))
    assert values.dtype == jnp.float32
    assert by_x.dtype == by_kernel.dtype == dtype
    exact_x, exact_kernel = np.asarray(x, float), np.asarray(kernel, float)
    np.testing.assert_allclose(values, exact_x @ exact_kernel.T, atol=1e-5)
    np.testing.assert_allclose(by_x, pull @ exact_kernel, rtol=error, atol=error)
    expected = np.einsum("blv,bld->vd", pull, exact_x)
    np.testing.assert_allclose(by_kernel, expected, rtol=error, atol=error)


def test_wide_products_go_back_through_products_of_their_own_dtype() -> None:
    x, kernel = jnp.ones((3, 5), jnp.bfloat16), jnp.ones((7, 5), jnp.bfloat16)
    back = jax.make_jaxpr(lambda g: jax.vjp(wide_product, x, kernel)[1](g))
    program = back(jnp.ones((3, 7), jnp.float32))
    products = [e for e in program.eqns if e.primitive.name == "dot_general"]
    read = {str(v.aval.dtype) for e in products for v in e.invars}
    assert len(products) >= 2
    assert read == {"bfloat16"}


def test_dropout_keeps_the_mean_and_drops_the_stated_share() -> None:
    x = jnp.ones((100, 100))
    dropped = np.asarray(dropout(x, 0.25, jax.random.key(0)))
    assert set(np.unique(dropped)) == {0.0, np.float32(1 / 0.75)}
    assert np.mean(dropped == 0) == pytest.approx(0.25, abs=0.02)  # four deviations


def test_dropout_without_key_or_rate_is_the_identity() -> None:
    x = jnp.ones(3)
    assert dropout(x, 0.5, None) is x
    assert dropout(x, 0.0, jax.random.key(0)) is x
