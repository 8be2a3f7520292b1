"""The transformer: who sees whom, the cache, heads, embeddings and precision."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lmjax.config.schema import Backbone
from lmjax.core import trees
from lmjax.models.attention_kernels import chunked_attention
from lmjax.models.build import Model
from lmjax.models.decoder import Decoder, take_apart

MakeModel = Callable[..., Model]
RandomParams = Callable[..., Any]

UNPREDICTABLE = (0, 1, 2, 31)  # of the fixture's vocabulary of 32
PREDICTABLE = np.setdiff1d(np.arange(32), UNPREDICTABLE)
TOKENS = np.random.default_rng(0).integers(3, 31, size=(2, 9)).astype(np.int32)
SIGMA = np.array([0.3, 1.5], np.float32)
BIASES = dict(attention_bias=True, mlp_bias=True, head_bias=True)


def _fields(backbone: Backbone) -> dict[str, Any]:
    return dict(backbone=backbone, time_conditioning=backbone is Backbone.DIT)


def _change(tokens: np.ndarray, start: int) -> np.ndarray:
    """Other tokens from position `start` on."""
    changed = tokens.copy()
    changed[:, start:] = 3 + (changed[:, start:] - 3 + 5) % 28
    return changed


def _hidden(model: Model) -> Callable[..., jax.Array]:
    def run(params: Any, tokens: jax.Array, lengths: jax.Array | None = None):
        return model.bind(params)(tokens, lengths_B=lengths, sigma_B=SIGMA)

    return jax.jit(run)


def _logits(model: Model) -> Callable[..., jax.Array]:
    def run(params: Any, tokens: jax.Array) -> jax.Array:
        module = model.bind(params)
        return module.logits(module(tokens, sigma_B=SIGMA))

    return jax.jit(run)


def test_future_tokens_do_not_change_causal_logits(
    make_model: MakeModel, random_params: RandomParams
) -> None:
    model = make_model(causal=True, qk_norm=True)
    params, logits = random_params(model), _logits(model)
    expected = logits(params, TOKENS)
    for position in (0, 3, 7):
        changed = logits(params, _change(TOKENS, position + 1))
        np.testing.assert_array_equal(
            changed[:, : position + 1], expected[:, : position + 1]
        )
        gap = np.abs(changed - expected)[:, position + 1 :, PREDICTABLE]
        assert gap.max(axis=-1).min() > 1e-3


@pytest.mark.parametrize("backbone", list(Backbone))
def test_future_tokens_change_bidirectional_logits(
    make_model: MakeModel, random_params: RandomParams, backbone: Backbone
) -> None:
    model = make_model(causal=False, **_fields(backbone))
    params, logits = random_params(model), _logits(model)
    gap = np.abs(logits(params, _change(TOKENS, 8)) - logits(params, TOKENS))
    assert gap[..., PREDICTABLE].max(axis=-1).min() > 1e-4


@pytest.mark.parametrize("causal", [True, False])
def test_no_gradient_flows_back_from_the_future_when_causal(
    make_model: MakeModel, random_params: RandomParams, causal: bool
) -> None:
    """Each id of the row occurs once: gradients of table rows are per position."""
    model, position = make_model(causal=causal), 4
    params = random_params(model)
    tokens = np.arange(5, 14, dtype=np.int32)[None]

    @jax.jit
    def table_gradient(params: Any) -> jax.Array:
        def one_position(params: Any) -> jax.Array:
            module = model.bind(params)
            logits = module.logits(module(tokens))[0, position]
            return jnp.sum(jnp.sin(jnp.where(jnp.isfinite(logits), logits, 0.0)))

        return jax.grad(one_position)(params)["vocabulary"]["table"]

    norms = np.abs(table_gradient(params)[tokens[0]]).max(axis=-1)
    assert norms[: position + 1].min() > 1e-6
    if causal:
        np.testing.assert_array_equal(norms[position + 1 :], 0.0)
    else:
        assert norms[position + 1 :].min() > 1e-6


@pytest.mark.parametrize("backbone", list(Backbone))
def test_padding_does_not_change_hidden_states_of_real_tokens(
    make_model: MakeModel, random_params: RandomParams, backbone: Backbone
) -> None:
    model = make_model(causal=False, **_fields(backbone))
    params, hidden = random_params(model), _hidden(model)
    lengths = np.array([9, 5], np.int32)
    expected = hidden(params, TOKENS, lengths)
    changed = hidden(params, _change(TOKENS, 5), lengths)
    np.testing.assert_array_equal(changed[1, :5], expected[1, :5])
    assert np.abs(changed[0, :5] - expected[0, :5]).max() > 1e-3  # no padding there
    cut = hidden(params, TOKENS[:, :5], np.array([5, 5], np.int32))
    np.testing.assert_allclose(cut[1], expected[1, :5], rtol=2e-5, atol=1e-5)


@pytest.mark.parametrize("scan", [False, True])
def test_extending_a_cache_gives_the_states_of_the_full_forward(
    make_model: MakeModel, random_params: RandomParams, scan: bool
) -> None:
    """Prompts of 6 and 3 tokens share a batch; then one token at a time.

    The shorter one has padding in front, which changes nothing whatever it is.
    """
    model = make_model(causal=True, scan=scan, qk_norm=True, **BIASES)
    params = random_params(model)
    expected = _hidden(model)(params, TOKENS)
    pads = np.array([0, 3], np.int32)

    @jax.jit
    def read(params: Any, tokens: Any) -> Any:
        return Decoder(model.bind, take_apart(params)).read(tokens, pads, 9)

    @jax.jit
    def extend(params: Any, token: Any, slot: Any, cache: Any) -> Any:
        decoder = Decoder(model.bind, take_apart(params))
        return decoder.extend(token, slot, pads, cache)

    rows = np.arange(2)
    for padding in (1, 5):
        shorter = [*[padding] * 3, *TOKENS[1, :3]]
        states, cache = read(params, np.array([TOKENS[0, :6], shorter], np.int32))
        np.testing.assert_allclose(states[0], expected[0, :6], rtol=2e-5, atol=1e-5)
        np.testing.assert_allclose(states[1, 3:], expected[1, :3], rtol=2e-5, atol=1e-5)
        for slot in range(6, 9):
            token = TOKENS[rows, slot - pads]
            states, cache = extend(params, token, slot, cache)
            np.testing.assert_allclose(
                states, expected[rows, slot - pads], rtol=2e-5, atol=1e-5
            )


def test_grouped_queries_equal_full_heads_with_repeated_keys_and_values(
    make_model: MakeModel, random_params: RandomParams
) -> None:
    grouped, full = make_model(num_kv_heads=2), make_model(num_kv_heads=0)
    params = random_params(grouped)
    repeated = jax.tree.map(lambda leaf: leaf, params)
    attention = repeated["blocks"]["attention"]
    for name in ("key", "value"):
        kernel = np.repeat(attention[name]["kernel"], 2, axis=2)
        attention[name] = {"kernel": kernel}
    assert jax.tree.map(np.shape, repeated) == jax.tree.map(
        lambda leaf: leaf.shape, full.shapes
    )
    np.testing.assert_allclose(
        _hidden(full)(repeated, TOKENS),
        _hidden(grouped)(params, TOKENS),
        rtol=2e-5,
        atol=1e-5,
    )


def test_a_chunked_model_equals_a_plain_one(
    make_model: MakeModel, random_params: RandomParams
) -> None:
    tokens = np.random.default_rng(1).integers(3, 31, (1, 150)).astype(np.int32)
    plain, chunked = make_model(), make_model(attend=chunked_attention)
    params = random_params(plain)
    states = [
        jax.jit(lambda params, model=model: model.bind(params)(tokens))(params)
        for model in (plain, chunked)
    ]
    np.testing.assert_allclose(*states, rtol=2e-5, atol=1e-5)


@pytest.mark.parametrize("backbone", list(Backbone))
def test_a_fresh_model_predicts_the_uniform_distribution(
    make_model: MakeModel, backbone: Backbone
) -> None:
    """The head starts at zero; ids that are never predicted have no probability."""
    model = make_model(causal=False, **_fields(backbone))
    logits = np.asarray(_logits(model)(jax.jit(model.init)(jax.random.key(0)), TOKENS))
    np.testing.assert_array_equal(logits[..., PREDICTABLE], 0.0)
    np.testing.assert_array_equal(logits[..., UNPREDICTABLE], -np.inf)


def test_unpredictable_ids_stay_impossible_whatever_the_parameters(
    make_model: MakeModel, random_params: RandomParams
) -> None:
    model = make_model()
    logits = np.asarray(_logits(model)(random_params(model), TOKENS))
    np.testing.assert_array_equal(np.isneginf(logits[0, 0]).nonzero()[0], UNPREDICTABLE)
    assert np.isfinite(logits[..., PREDICTABLE]).all()


def test_a_bias_of_the_head_adds_to_the_logits_and_starts_at_zero(
    make_model: MakeModel, random_params: RandomParams
) -> None:
    biased, plain = make_model(head_bias=True), make_model()
    params = random_params(biased)
    vocabulary = dict(params["vocabulary"])
    bias = vocabulary.pop("head_bias")
    logits = _logits(plain)(params | {"vocabulary": vocabulary}, TOKENS)
    found = np.asarray(_logits(biased)(params, TOKENS))
    np.testing.assert_allclose(found, logits + bias, rtol=1e-6, atol=1e-6)
    np.testing.assert_array_equal(found[..., UNPREDICTABLE], -np.inf)
    fresh = jax.jit(biased.init)(jax.random.key(0))
    np.testing.assert_array_equal(fresh["vocabulary"]["head_bias"], 0.0)


@pytest.mark.parametrize("which", ["attention", "mlp", "head"])
def test_each_bias_has_its_own_switch(make_model: MakeModel, which: str) -> None:
    shapes = make_model(**{f"{which}_bias": True}).shapes
    found = {
        "attention": trees.count(shapes, "attention/.*bias$"),
        "mlp": trees.count(shapes, "mlp/.*bias$"),
        "head": trees.count(shapes, "vocabulary/head_bias$"),
    }
    assert {name for name, count in found.items() if count} == {which}
    assert trees.count(shapes, "bias$") == found[which]


def test_a_model_may_predict_every_id(make_model: MakeModel) -> None:
    model = make_model(unpredictable=())
    logits = _logits(model)(jax.jit(model.init)(jax.random.key(0)), TOKENS)
    np.testing.assert_array_equal(logits, 0.0)


def test_tied_embeddings_share_one_table(
    make_model: MakeModel, random_params: RandomParams
) -> None:
    tied, untied = make_model(tied_embeddings=True), make_model()
    assert set(tied.shapes["vocabulary"]) == {"table"}
    params = random_params(tied)
    table = params["vocabulary"]["table"]
    copied = params | {"vocabulary": {"table": table, "head": table}}
    np.testing.assert_array_equal(
        _logits(tied)(params, TOKENS), _logits(untied)(copied, TOKENS)
    )


@pytest.mark.parametrize("backbone", list(Backbone))
def test_bfloat16_compute_gives_float32_logits_near_the_exact_ones(
    make_model: MakeModel, random_params: RandomParams, backbone: Backbone
) -> None:
    fields = dict(causal=False) | _fields(backbone)
    exact, coarse = (
        make_model(**fields),
        make_model(**fields, dtype=jnp.dtype("bfloat16")),
    )
    params = random_params(exact)
    assert _hidden(coarse)(params, TOKENS).dtype == jnp.bfloat16
    logits = _logits(coarse)(params, TOKENS)
    assert logits.dtype == jnp.float32
    expected = _logits(exact)(params, TOKENS)
    gap = np.abs(logits - expected)[..., PREDICTABLE]
    spread = np.std(expected[..., PREDICTABLE])
    assert 1e-4 * spread < gap.mean() < 0.05 * spread


def test_dropout_needs_a_key_and_follows_it(
    make_model: MakeModel, random_params: RandomParams
) -> None:
    model, plain = make_model(dropout=0.5), make_model()
    params = random_params(model)

    @jax.jit
    def dropped(params: Any, key: jax.Array) -> jax.Array:
        return model.bind(params)(TOKENS, dropout_key=key)

    one = dropped(params, jax.random.key(0))
    np.testing.assert_array_equal(one, dropped(params, jax.random.key(0)))
    assert np.abs(one - dropped(params, jax.random.key(1))).max() > 0.1
    np.testing.assert_array_equal(
        _hidden(model)(params, TOKENS), _hidden(plain)(params, TOKENS)
    )


def test_residual_branches_are_dropped_too(
    make_model: MakeModel, random_params: RandomParams
) -> None:
    """With an embedding of zeros only the branches, fed by biases, have anything."""
    model = make_model(dropout=0.5, **BIASES)
    params = random_params(model)
    params["vocabulary"]["table"] = np.zeros_like(params["vocabulary"]["table"])

    @jax.jit
    def dropped(params: Any, key: jax.Array) -> jax.Array:
        return model.bind(params)(TOKENS, dropout_key=key)

    one, other = (dropped(params, jax.random.key(seed)) for seed in (0, 1))
    assert np.abs(one - other).max() > 0.1
    assert np.abs(one[0] - one[1]).max() > 0.1, "rows share their mask"
