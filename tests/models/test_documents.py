"""Documents side by side in a row know nothing of each other."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lmjax.config.schema import Backbone, PositionKind
from lmjax.models.attention_kernels import chunked_attention
from lmjax.models.build import Model

KINDS = {
    "causal": dict(causal=True),
    "both ways": dict(causal=False),
    "learned positions": dict(causal=True, positions=PositionKind.LEARNED),
    "dit": dict(causal=False, backbone=Backbone.DIT, time_conditioning=True),
}
# Row 0 has two documents and padding, row 1 has one, row 2 is padding alone.
SEGMENTS = np.array([[1] * 4 + [2] * 5 + [0] * 2, [1] * 11, [0] * 11], np.int32)
POSITIONS = np.array([[*range(4), *range(5), 0, 1], range(11), range(11)], np.int32)
TOKENS = np.where(
    SEGMENTS > 0, np.random.default_rng(0).integers(15, 31, SEGMENTS.shape), 0
).astype(np.int32)
# Ids of the first document that occur nowhere else, so that rows of the embedding's
# gradient tell of it alone.
TOKENS[0, :4] = [3, 4, 5, 6]
OTHER = TOKENS.copy()
OTHER[0, :4] = [7, 8, 9, 10]


@dataclasses.dataclass(frozen=True)
class Packed:
    """A model with its parameters, and what tokens turn into in it."""

    model: Model
    params: Any

    @functools.cached_property
    def _compiled(self) -> Callable[..., Any]:
        """Compiled once for each shape, whatever the documents and positions."""

        def projected(
            params: Any, tokens: jax.Array, chosen_L1: jax.Array, further: Any
        ) -> tuple[jax.Array, jax.Array]:
            hidden = self.model.bind(params)(tokens, **further)
            return jnp.sum(jnp.where(chosen_L1, jnp.sin(3 * hidden[0]), 0.0)), hidden

        return jax.jit(jax.grad(projected, has_aux=True))

    def run(
        self,
        tokens: np.ndarray,
        segments: np.ndarray | None = SEGMENTS,
        positions: np.ndarray | None = POSITIONS,
        start: int = 0,
        end: int | None = None,
    ) -> tuple[np.ndarray, Any]:
        """Hidden states, and gradients of a function of row 0's, `start` to `end`."""
        sigma = np.linspace(0.3, 1.5, len(tokens), dtype=np.float32)
        chosen = np.zeros((tokens.shape[1], 1), bool)
        chosen[start:end] = True
        further = dict(segments_BL=segments, positions_BL=positions, sigma_B=sigma)
        gradients, hidden = self._compiled(self.params, tokens, chosen, further)
        return np.asarray(hidden), gradients


@pytest.fixture(scope="module", params=KINDS)
def kind(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(scope="module", params=[False, True], ids=["unrolled", "scanned"])
def packed(
    kind: str,
    request: pytest.FixtureRequest,
    make_model: Callable[..., Model],
    random_params: Callable[..., Any],
) -> Packed:
    model = make_model(scan=request.param, num_layers=1, **KINDS[kind])
    return Packed(model, random_params(model))


def test_a_document_does_not_depend_on_the_one_before_it(packed: Packed) -> None:
    """Neither its hidden states, nor the gradients that come from them."""
    hidden, gradients = packed.run(TOKENS, start=4, end=9)
    changed, changed_gradients = packed.run(OTHER, start=4, end=9)
    np.testing.assert_array_equal(changed[0, 4:], hidden[0, 4:])
    np.testing.assert_array_equal(changed[1:], hidden[1:])
    jax.tree.map(np.testing.assert_array_equal, changed_gradients, gradients)
    table = np.asarray(gradients["vocabulary"]["table"])
    np.testing.assert_array_equal(table[[3, 4, 5, 6, 0]], 0.0)
    assert np.abs(table[TOKENS[0, 4:9]]).max(axis=1).min() > 1e-4
    assert np.abs(changed[0, :4] - hidden[0, :4]).max(axis=1).min() > 1e-2


def test_without_segments_it_does(packed: Packed) -> None:
    hidden, gradients = packed.run(TOKENS, None, None, start=4, end=9)
    changed, _ = packed.run(OTHER, None, None, start=4, end=9)
    assert np.abs(changed[0, 4:9] - hidden[0, 4:9]).max(axis=1).min() > 1e-3
    table = np.asarray(gradients["vocabulary"]["table"])
    assert np.abs(table[[3, 4, 5, 6]]).max(axis=1).min() > 1e-5


def test_nothing_flows_back_from_the_next_document_or_from_padding(
    packed: Packed,
) -> None:
    hidden, gradients = packed.run(TOKENS, start=0, end=4)
    changed = TOKENS.copy()
    changed[0, 4:] = 15 + (changed[0, 4:] - 15 + 7) % 16
    found, found_gradients = packed.run(changed, start=0, end=4)
    np.testing.assert_array_equal(found[0, :4], hidden[0, :4])
    jax.tree.map(np.testing.assert_array_equal, found_gradients, gradients)
    np.testing.assert_array_equal(gradients["vocabulary"]["table"][15:], 0.0)


def test_a_document_is_what_it_is_alone(packed: Packed) -> None:
    hidden, _ = packed.run(TOKENS)
    for document in (slice(0, 4), slice(4, 9)):
        alone, _ = packed.run(TOKENS[:, document], None, None)
        np.testing.assert_allclose(hidden[0, document], alone[0], rtol=2e-5, atol=2e-5)


def test_one_document_per_row_needs_no_segments(packed: Packed) -> None:
    hidden, _ = packed.run(TOKENS)
    plain, _ = packed.run(TOKENS, None, None)
    np.testing.assert_allclose(hidden[1], plain[1], rtol=2e-5, atol=2e-5)


def test_padding_is_finite_and_so_are_its_gradients(packed: Packed) -> None:
    """Also in a row of nothing else."""
    swapped = [x[::-1] for x in (TOKENS, SEGMENTS, POSITIONS)]
    hidden, gradients = packed.run(*swapped)  # gradients of padding alone
    assert np.isfinite(hidden).all()
    for leaf in jax.tree.leaves(gradients):
        assert np.isfinite(leaf).all()
    assert any(np.any(leaf != 0) for leaf in jax.tree.leaves(gradients))


def test_tokens_stand_where_positions_say(
    make_model: Callable[..., Model], random_params: Callable[..., Any]
) -> None:
    """Rotations are relative: a shift changes nothing, other distances do."""
    model = make_model(causal=False)
    packed = Packed(model, random_params(model))
    hidden, _ = packed.run(TOKENS)
    shifted, _ = packed.run(TOKENS, positions=POSITIONS + 5)
    np.testing.assert_allclose(shifted, hidden, rtol=2e-5, atol=2e-5)
    positions = POSITIONS.copy()
    positions[1] *= 2
    spread, _ = packed.run(TOKENS, positions=positions)
    np.testing.assert_array_equal(spread[0], hidden[0])
    assert np.abs(spread[1] - hidden[1]).max(axis=1).min() > 1e-3


@pytest.mark.parametrize("scan", [False, True])
def test_chunks_of_queries_keep_to_their_documents(
    scan: bool, make_model: Callable[..., Model], random_params: Callable[..., Any]
) -> None:
    """The second document begins in one chunk and ends in the next."""
    model = make_model(attend=chunked_attention, scan=scan, num_layers=1)
    packed = Packed(model, random_params(model))
    tokens = np.random.default_rng(1).integers(3, 31, (1, 160)).astype(np.int32)
    changed = tokens.copy()
    changed[0, :90] = 3 + (changed[0, :90] - 3 + 5) % 28
    segments = np.array([[1] * 90 + [2] * 60 + [0] * 10], np.int32)
    positions = np.array([[*range(90), *range(60), *range(10)]], np.int32)
    second = dict(start=90, end=150)
    hidden, gradients = packed.run(tokens, segments, positions, **second)
    found, found_gradients = packed.run(changed, segments, positions, **second)
    np.testing.assert_array_equal(found[0, 90:], hidden[0, 90:])
    jax.tree.map(np.testing.assert_array_equal, found_gradients, gradients)
    assert np.isfinite(hidden).all()
    alone, _ = packed.run(tokens[:, 90:150], None, None)
    np.testing.assert_allclose(hidden[0, 90:150], alone[0], rtol=2e-5, atol=2e-5)
    seen, _ = packed.run(tokens, None, None)
    found, _ = packed.run(changed, None, None)
    assert np.abs(found[0, 90:150] - seen[0, 90:150]).max(axis=1).min() > 1e-3
