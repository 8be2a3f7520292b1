"""Log-probabilities at chosen places, against one row at a time without padding."""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lmjax.config.schema import Backbone, ParallelConfig
from lmjax.evaluate.probes import Probe, Prober, padded_lengths
from lmjax.models.build import Model
from lmjax.parallel.mesh import build_mesh

PAD, V = 0, 32
KINDS = {
    "causal": {"causal": True},
    "both ways": {"causal": False},
    "told the time": {
        "causal": False,
        "backbone": Backbone.DIT,
        "time_conditioning": True,
    },
}


LENGTHS = (1, 7, 9, 16)
CLOSE = {"rtol": 1e-5, "atol": 5e-5}


def _probes(seed: int = 0, count: int = 40) -> list[Probe]:
    """Rows of several lengths, with some places each, in any order, or none."""
    generator = np.random.default_rng(seed)
    probes = []
    for i in range(count):
        length = LENGTHS[i % len(LENGTHS)]
        places = generator.permutation(length)[: generator.integers(0, length + 1)]
        probes.append(
            Probe(
                generator.integers(3, 31, length),
                places,
                generator.integers(3, 31, len(places)),
                float(generator.random()),
            )
        )
    return probes


@dataclasses.dataclass(frozen=True, eq=False)
class Tiny:
    model: Model
    params: Any

    def prober(self, *, devices: int = 1, **changes: Any) -> Prober:
        parallel = changes.pop("parallel", ParallelConfig())
        settings = {"max_length": 16, "batch_tokens": 64, "chunk_tokens": 3} | changes
        return Prober(
            self.model.bind,
            build_mesh(parallel, jax.devices()[:devices]),
            pad_id=PAD,
            causal=self.model.setting.causal,
            **settings,
        )

    @functools.cached_property
    def _logits(self) -> Callable[..., jax.Array]:
        def logits(params: Any, tokens: jax.Array, sigma: jax.Array) -> jax.Array:
            bound = self.model.bind(params)
            return bound.logits(bound(tokens[None], sigma_B=jnp.asarray(sigma)[None]))[
                0
            ]

        return jax.jit(logits)

    def alone(self, probe: Probe, silent: Sequence[int] = ()) -> np.ndarray:
        """In float64, from the logits of the whole row and nothing beside it."""
        tokens = np.array(probe.inputs, np.int32)
        logits = np.array(self._logits(self.params, tokens, probe.sigma), np.float64)
        logits[:, list(silent)] = -np.inf
        top = logits.max(axis=-1, keepdims=True)
        total = np.log(np.exp(logits - top).sum(axis=-1, keepdims=True)) + top
        return (logits - total)[np.array(probe.places, int), probe.targets]


@pytest.fixture(scope="module", params=list(KINDS))
def tiny(
    request: pytest.FixtureRequest,
    make_model: Callable[..., Model],
    random_params: Callable[..., Any],
) -> Tiny:
    model = make_model(**KINDS[request.param])
    return Tiny(model, random_params(model))


def test_a_probe_is_what_the_model_says_of_its_row_alone(tiny: Tiny) -> None:
    probes = _probes()
    found = tiny.prober()(tiny.params, probes)
    for probe, values in zip(probes, found, strict=True):
        assert values.dtype == np.float32
        np.testing.assert_allclose(values, tiny.alone(probe), **CLOSE)


@pytest.mark.parametrize(
    "parallel", [ParallelConfig(), ParallelConfig(fsdp=2, tensor=2)], ids=str
)
def test_a_mesh_of_devices_finds_the_same(tiny: Tiny, parallel: ParallelConfig) -> None:
    probes = _probes(seed=1, count=100)
    one = tiny.prober()(tiny.params, probes)
    many = tiny.prober(devices=8, parallel=parallel)(tiny.params, probes)
    for a, b in zip(one, many, strict=True):
        np.testing.assert_allclose(a, b, **CLOSE)


def test_the_other_probes_of_a_call_do_not_matter(tiny: Tiny) -> None:
    probes, prober = _probes(seed=2), tiny.prober()
    found = prober(tiny.params, probes)
    for i in (0, 7, 30):
        alone = prober(tiny.params, [probes[i]])[0]
        np.testing.assert_allclose(alone, found[i], **CLOSE)
    backwards = prober(tiny.params, probes[::-1])[::-1]
    for a, b in zip(backwards, found, strict=True):
        np.testing.assert_allclose(a, b, **CLOSE)


@pytest.fixture(scope="module")
def both_ways(
    make_model: Callable[..., Model], random_params: Callable[..., Any]
) -> Tiny:
    model = make_model(causal=False)
    return Tiny(model, random_params(model))


def test_silent_ids_leave_their_probability_to_the_others(both_ways: Tiny) -> None:
    probes = [probe for probe in _probes() if not {5, 9} & {*probe.targets}]
    found = both_ways.prober(silent=(9, 5))(both_ways.params, probes)
    for probe, values in zip(probes, found, strict=True):
        np.testing.assert_allclose(
            values, both_ways.alone(probe, silent=(5, 9)), **CLOSE
        )


def test_what_is_never_predicted_has_no_probability(both_ways: Tiny) -> None:
    (found,) = both_ways.prober()(both_ways.params, [Probe([4, 5], [0, 1], [31, 4])])
    assert found[0] == -np.inf
    assert np.isfinite(found[1])


def test_programs_are_few_and_serve_other_parameters_and_probes(
    both_ways: Tiny,
) -> None:
    prober = both_ways.prober(batch_tokens=128)
    prober(both_ways.params, _probes(count=400))
    programs = prober._score._cache_size()
    assert programs == len(prober.shapes) <= 3
    other = jax.tree.map(lambda leaf: 0.5 * leaf, both_ways.params)
    prober(other, _probes(seed=3, count=400))
    assert prober._score._cache_size() == programs


def test_lengths_that_share_a_program_waste_little() -> None:
    lengths = np.arange(1, 1025)
    padded = padded_lengths(lengths, 1024)
    assert np.all(padded >= lengths)
    assert len(np.unique(padded)) == 24
    assert np.all(padded - lengths < np.maximum(8, lengths / 4))
    np.testing.assert_array_equal(padded_lengths(np.array([5, 9, 12]), 12), [8, 12, 12])


def test_rows_of_padding_are_few(both_ways: Tiny) -> None:
    """Rests join longer rows, or take a smaller shape: most tokens are real."""
    prober = both_ways.prober(batch_tokens=128)
    generator = np.random.default_rng(0)
    lengths = generator.integers(1, 17, 500)
    plans = list(prober._plans(lengths, np.ones(500, int)))
    assert sorted(np.concatenate([plan.members for plan in plans])) == list(range(500))
    padded = sum(plan.num_rows * plan.length for plan in plans)
    assert padded < 1.45 * lengths.sum()
    assert all(lengths[plan.members].max() <= plan.length for plan in plans)
    single = next(prober._plans(np.array([3]), np.array([1])))
    assert (single.num_rows, single.length) == (2, 8)


@dataclasses.dataclass(frozen=True)
class Recorder:
    """A model whose logits are flat, and that notes how many exist at once."""

    sizes: list[int]

    def __call__(self, tokens_BL: jax.Array, **_: Any) -> jax.Array:
        return jnp.zeros((*tokens_BL.shape, 4))

    def logits(self, hidden: jax.Array) -> jax.Array:
        self.sizes.append(hidden.size // 4)
        return jnp.zeros((*hidden.shape[:-1], V))


def test_logits_exist_for_a_chunk_of_places_alone() -> None:
    recorder = Recorder([])
    mesh = build_mesh(ParallelConfig(), jax.devices()[:1])
    prober = Prober(
        lambda params: recorder,
        mesh,
        max_length=16,
        pad_id=PAD,
        causal=True,
        batch_tokens=256,
        chunk_tokens=8,
    )
    probes = [Probe([3] * 16, [15], [4])] * 40
    found = prober(None, probes)
    assert set(recorder.sizes) == {8}
    np.testing.assert_allclose(np.concatenate(found), -np.log(V), rtol=1e-6)


def test_no_probes_take_no_work(both_ways: Tiny) -> None:
    prober = both_ways.prober()
    assert prober(both_ways.params, []) == []
    assert [len(v) for v in prober(both_ways.params, [Probe([3], [], [])] * 3)] == [
        0
    ] * 3


@pytest.mark.parametrize(
    "probe",
    [
        Probe([], [], []),
        Probe([3] * 17, [0], [3]),
        Probe([3], [0, 0], [3, 3]),
        Probe([3, 4], [2], [3]),
        Probe([3, 4], [-1], [3]),
    ],
    ids=["empty", "too long", "too many places", "behind", "before"],
)
def test_what_is_no_probe_is_refused(both_ways: Tiny, probe: Probe) -> None:
    with pytest.raises(ValueError, match="probe"):
        both_ways.prober()(both_ways.params, [Probe([3], [0], [3]), probe])
