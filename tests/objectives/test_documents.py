"""A document costs in a window of several what it costs alone."""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lmjax.config.schema import Backbone
from lmjax.data.batch import Batch
from lmjax.diffusion.process import MaskProcess
from lmjax.diffusion.schedules import LinearSchedule
from lmjax.models.attention_kernels import chunked_attention, library_attention
from lmjax.models.build import Model
from lmjax.objectives.autoregressive import Autoregressive
from lmjax.objectives.masked_diffusion import MaskDraws, MaskedDiffusion

BOS, MASK, EOS = 1, 2, 3
AUTOREGRESSIVE = Autoregressive(bos_id=BOS, chunk_tokens=64)
DIFFUSION = MaskedDiffusion(
    process=MaskProcess(
        mask_id=MASK, schedule=LinearSchedule(), predictable=np.arange(3, 31)
    ),
    chunk_tokens=64,
)
MODELS = {
    "causal": dict(causal=True),
    "both ways": dict(causal=False),
    "dit": dict(causal=False, backbone=Backbone.DIT, time_conditioning=True),
}
SIGMA = np.array([0.4, 1.1, 0.8], np.float32)
WEIGHT = np.array([1.5, 2.0, 3.0], np.float32)

Document = np.ndarray  # its tokens, the EOS that ends it included


def _documents(*lengths: int) -> list[Document]:
    generator = np.random.default_rng(len(lengths))
    return [
        np.append(generator.integers(4, 31, size=length - 1), EOS).astype(np.int32)
        for length in lengths
    ]


def _windows(
    rows: Sequence[Sequence[Document]], length: int, *, document_mask: bool = True
) -> Batch:
    """One window per row of documents, side by side, then padding."""
    tokens, segments, positions = np.zeros((3, len(rows), length), np.int32)
    for row, documents in enumerate(rows):
        start = 0
        for number, document in enumerate(documents, start=1):
            span = slice(start, start + len(document))
            tokens[row, span], segments[row, span] = document, number
            positions[row, span] = np.arange(len(document))
            start += len(document)
    zeros = np.zeros_like(tokens)
    return Batch(
        tokens=tokens,
        weights=(segments > 0).astype(np.float32),
        words=zeros,
        bytes=zeros,
        source=zeros[:, 0],
        segments=segments if document_mask else None,
        positions=positions if document_mask else None,
    )


@dataclasses.dataclass(frozen=True)
class Case:
    """A model, its parameters and its objective."""

    model: Model
    params: Any
    objective: Autoregressive | MaskedDiffusion

    @functools.cached_property
    def _nll(self) -> Callable[..., jax.Array]:
        def run(params: Any, batch: Batch, draws: Any) -> jax.Array:
            return self.objective.nll_B(self.model.bind(params), batch, draws)

        return jax.jit(run)

    def nll(self, batch: Batch, draws: Any = None) -> np.ndarray:
        return np.asarray(self._nll(self.params, batch, draws))

    def nll_and_gradients(
        self, batch: Batch, draws: Any = None, row: int = 0
    ) -> tuple[jax.Array, Any]:
        """Nats of each row, and gradients of one row's."""

        @jax.jit
        def run(params: Any, batch: Batch, draws: Any) -> Any:
            def chosen(params: Any) -> tuple[jax.Array, jax.Array]:
                nll_B = self._nll(params, batch, draws)
                return nll_B[row], nll_B

            return jax.grad(chosen, has_aux=True)(params)

        gradients, nll_B = run(self.params, batch, draws)
        return nll_B, gradients

    def draws(self, batch: Batch) -> MaskDraws | None:
        """Half of the tokens masked, each row with its own noise."""
        if self.objective.causal:
            return None
        generator = np.random.default_rng(7)
        masked = generator.random(batch.tokens.shape) < 0.5
        rows = len(batch.tokens)
        return MaskDraws(masked & (batch.weights > 0), WEIGHT[:rows], SIGMA[:rows])

    def alone(self, window: Sequence[Document], draws: Any, row: int) -> np.ndarray:
        """Nats of each document of a window in a row of its own, without segments."""
        after_eos = self
        if draws is None:
            objective = dataclasses.replace(self.objective, bos_id=EOS)
            after_eos = dataclasses.replace(self, objective=objective)
        longest, start, costs = max(map(len, window)), 0, []
        for number, document in enumerate(window):
            case, mine = (after_eos if number else self), None
            if draws is not None:
                masked = np.zeros((1, longest), bool)
                span = slice(start, start + len(document))
                masked[0, : len(document)] = draws.masked_BL[row, span]
                mine = MaskDraws(masked, WEIGHT[[row]], SIGMA[[row]])
            batch = _windows([[document]], longest, document_mask=False)
            costs.append(case.nll(batch, mine)[0])
            start += len(document)
        return np.array(costs)


@pytest.fixture(scope="module")
def make_case(
    make_model: Callable[..., Model], random_params: Callable[..., Any]
) -> Callable[..., Case]:
    def make(kind: str, **fields: Any) -> Case:
        model = make_model(**MODELS[kind], **fields)
        objective = AUTOREGRESSIVE if kind == "causal" else DIFFUSION
        return Case(model, random_params(model), objective)

    return make


@pytest.fixture(scope="module", params=MODELS)
def case(request: pytest.FixtureRequest, make_case: Callable[..., Case]) -> Case:
    return make_case(request.param)


@pytest.mark.parametrize("scan", [False, True], ids=["unrolled", "scanned"])
@pytest.mark.parametrize("kind", MODELS)
@pytest.mark.parametrize(
    ("attend", "lengths", "window"),
    [(library_attention, (5, 7), 14), (chunked_attention, (90, 60), 160)],
    ids=["plain", "chunked"],
)
def test_a_window_costs_the_sum_of_its_documents(
    kind: str,
    scan: bool,
    attend: Any,
    lengths: tuple[int, int],
    window: int,
    make_case: Callable[..., Case],
) -> None:
    """In either order; padding follows, and a row of nothing else."""
    case = make_case(kind, scan=scan, attend=attend)
    one, other = _documents(*lengths)
    rows = [[one, other], [other, one], []]
    batch = _windows(rows, window)
    draws = case.draws(batch)
    found = case.nll(batch, draws)
    for row in (0, 1):
        expected = case.alone(rows[row], draws, row)
        assert expected.min() > 1
        np.testing.assert_allclose(found[row], expected.sum(), rtol=1e-5)
    assert found[2] == 0
    unmasked = case.nll(_windows(rows, window, document_mask=False), draws)
    assert np.abs(unmasked - found)[:2].min() > 1e-3 * found[:2].max()


def test_a_document_costs_the_same_after_any_other(case: Case) -> None:
    """And teaches the same. The EOS that ends the other is all that is seen of it."""
    one, other, last = _documents(5, 5, 7)
    batches = [_windows([[first, last], [last]], 14) for first in (one, other)]
    draws = case.draws(batches[0])
    if draws is not None:  # of the other nothing is counted
        draws.masked_BL[0, :5] = False
    counted = np.float32(batches[0].segments == 2)
    counted[1, :7] = 1
    batches = [dataclasses.replace(batch, weights=counted) for batch in batches]
    (nll, gradients), (again, same) = (
        case.nll_and_gradients(batch, draws) for batch in batches
    )
    np.testing.assert_array_equal(again, nll)
    jax.tree.map(np.testing.assert_array_equal, same, gradients)
    seen = [
        dataclasses.replace(batch, segments=None, positions=None) for batch in batches
    ]
    assert abs(np.subtract(*(case.nll(batch, draws)[0] for batch in seen))) > 1e-3


def test_the_first_input_of_a_document_is_the_end_of_the_one_before(
    make_case: Callable[..., Case],
) -> None:
    """So its first token depends on whether that is EOS, as it always is, or not."""
    case = make_case("causal")
    one, other = _documents(5, 7)
    batch = _windows([[one, other]], 12)
    first = np.float32(np.arange(12) == 5)[None]
    batch = dataclasses.replace(batch, weights=first)
    cut = batch.tokens.copy()
    cut[0, 4] = 17
    changed = dataclasses.replace(batch, tokens=cut)
    assert abs(case.nll(batch)[0] - case.nll(changed)[0]) > 1e-3
    alone = dataclasses.replace(_windows([[other]], 7), segments=None, positions=None)
    alone.weights[0, 1:] = 0
    objective = dataclasses.replace(AUTOREGRESSIVE, bos_id=17)
    expected = dataclasses.replace(case, objective=objective).nll(alone)
    np.testing.assert_allclose(case.nll(changed), expected, rtol=1e-5)


@pytest.mark.parametrize("document", [1, 2])
def test_context_without_weight_is_seen_by_its_own_document(
    case: Case, document: int
) -> None:
    """The first two tokens of a document are given, as where windows overlap."""
    batch = _windows([_documents(5, 7)], 14)
    given = (batch.segments == document) & (batch.positions < 2)
    batch = dataclasses.replace(batch, weights=np.float32(batch.weights * ~given))
    draws = case.draws(batch)
    nll = case.nll(batch, draws)
    tokens = np.where(given, 4 + (batch.tokens - 4 + 5) % 27, batch.tokens)
    changed = dataclasses.replace(batch, tokens=tokens.astype(np.int32))
    assert abs(case.nll(changed, draws) - nll)[0] > 1e-3
    # Nothing of the other document depends on it.
    alone = np.float32(batch.weights * (batch.segments != document))
    if draws is not None:
        draws = draws._replace(masked_BL=draws.masked_BL & (alone > 0))
    np.testing.assert_array_equal(
        *(
            case.nll(dataclasses.replace(x, weights=alone), draws)
            for x in (batch, changed)
        )
    )


def test_context_and_the_rest_of_a_document_add_up(
    make_case: Callable[..., Case],
) -> None:
    """log p(x) - log p(context) = log p(rest | context), in a packed window too."""
    case, batch = make_case("causal"), _windows([_documents(5, 7)], 14)
    second = batch.segments == 2
    parts = [second, second & (batch.positions < 3), second & (batch.positions >= 3)]
    whole, context, rest = (
        case.nll(dataclasses.replace(batch, weights=np.float32(part))) for part in parts
    )
    np.testing.assert_allclose(whole - context, rest, rtol=1e-5)


def test_no_draw_masks_context_within_a_window() -> None:
    """Whichever document it stands in."""
    batch = _windows([_documents(5, 7)] * 64, 14)
    context = batch.positions < 2
    batch = dataclasses.replace(batch, weights=np.float32(batch.weights * ~context))
    key, positions = jax.random.key(0), jnp.linspace(0, 0.99, 64)
    for draws in (
        DIFFUSION.draw(batch, key),
        DIFFUSION.draw_evaluation(batch, key, positions),
    ):
        masked = np.asarray(draws.masked_BL).any(axis=0)
        np.testing.assert_array_equal(masked, batch.weights[0] > 0)


def test_gradients_of_padding_are_zeros_and_no_nan(case: Case) -> None:
    """Of a row of padding alone; and those of the other rows are finite."""
    batch = _windows([[], _documents(5, 7)], 14)
    draws = case.draws(batch)
    nll, gradients = case.nll_and_gradients(batch, draws, row=0)
    assert nll[0] == 0
    jax.tree.map(lambda leaf: np.testing.assert_array_equal(leaf, 0.0), gradients)
    _, gradients = case.nll_and_gradients(batch, draws, row=1)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(gradients))
