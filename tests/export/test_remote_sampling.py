"""The sampler in torch that exported diffusion models carry, against exact laws."""

import importlib.util
import itertools
import math
from types import ModuleType
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest

from lmjax.assembly import build_schedule
from lmjax.config.schema import MaskedDiffusionConfig, ScheduleKind
from lmjax.diffusion.schedules import MAX_SIGMA, sigma
from lmjax.export import remote
from tests import toys
from tests.sampling import laws
from tests.sampling.laws import SIGNIFICANCE, Kernel, State, Ways
from tests.toys import MASK, L, V

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

COUNT = 20_000
SCHEDULES = {
    "linear": ScheduleKind.LINEAR,
    "light": ScheduleKind.COSINE_LIGHT,
    "heavy": ScheduleKind.COSINE_HEAVY,
    "geometric": ScheduleKind.GEOMETRIC,
}


@pytest.fixture(scope="module")
def code(tmp_path_factory: pytest.TempPathFactory) -> ModuleType:
    """The file that an export carries, as a module."""
    ((name, content),) = remote.modeling_files().items()
    path = tmp_path_factory.mktemp("code") / name
    path.write_bytes(content)
    spec = importlib.util.spec_from_file_location("modeling_lmjax_under_test", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _schedule(name: str) -> dict[str, Any]:
    """As config.json has it; the numbers are those of `laws.SCHEDULES`."""
    objective = MaskedDiffusionConfig(
        schedule=SCHEDULES[name], sigma_min=0.1, sigma_max=5.0
    )
    return remote.process_json(objective)["schedule"]


def _model(code: ModuleType, table: np.ndarray, **config: Any) -> Any:
    """A model whose logits are those of a table, times 3/2 - m."""
    mask_is_predicted = config.get("parameterization") == "d3pm"
    config = code.LmjaxConfig(
        vocab_size=V + 1,
        mask_token_id=MASK,
        bos_token_id=0,
        eos_token_id=None,
        unpredictable_token_ids=() if mask_is_predicted else (MASK,),
        tie_word_embeddings=False,
        **config,
    )
    entries = torch.tensor(table)
    sizes = {len(toys.SEQUENCES[0]): [16, 4, 1], 2: [V, 1]}
    places = torch.tensor(sizes[table.shape[1]])

    class Table(code.LmjaxForMaskedLM):
        calls = 0

        def forward(
            self, input_ids: Any, attention_mask: Any = None, *, sigma: Any, **_: Any
        ) -> Any:
            self.calls += 1
            logits = entries[input_ids @ places]
            logits = logits * (0.5 + torch.exp(-sigma))[:, None, None]
            missing = V + 1 - logits.shape[-1]
            logits = torch.nn.functional.pad(logits, (0, missing), value=-1e30)
            return code.MaskedLMOutput(logits=logits)

    return Table(config)


def _fill(model: Any, given: dict[int, int], steps: int, **draw: Any) -> np.ndarray:
    length = 2 if model.config.process == "uniform" else L
    canvas = torch.full((COUNT, length), MASK)
    for place, token in given.items():
        canvas[:, place] = token
    generator = torch.Generator().manual_seed(steps)
    return model.generate_diffusion(
        canvas, steps=steps, generator=generator, **draw
    ).numpy()


@pytest.mark.parametrize("kind", ScheduleKind)
def test_noise_rates_are_those_of_the_schedule(
    code: ModuleType, kind: ScheduleKind
) -> None:
    objective = MaskedDiffusionConfig(schedule=kind, schedule_power=3.0)
    times = np.linspace(0, 1, 41)
    rates = code.noise_rate(
        remote.process_json(objective)["schedule"], torch.tensor(times)
    ).numpy()
    expected = build_schedule(objective).mask_rate(jnp.asarray(times, jnp.float32))
    np.testing.assert_allclose(rates, expected, rtol=1e-4, atol=1e-6)
    noise = code.sigma_of(torch.tensor([*rates[:-1], 1.0]))
    # In single precision a rate may fall a little short of 1.
    np.testing.assert_allclose(noise[:-1], sigma(expected[:-1]), rtol=2e-4, atol=1e-6)
    assert noise[-1] == MAX_SIGMA


@pytest.mark.parametrize("given", [{}, {1: 2}])
@pytest.mark.parametrize(
    ("schedule", "steps"), [("linear", 1), ("light", 3), ("heavy", 2), ("geometric", 3)]
)
def test_masked_samples_follow_the_law_of_ancestral_sampling(
    code: ModuleType, schedule: str, steps: int, given: dict[int, int]
) -> None:
    table = toys.random_table(1)
    found = _fill(_model(code, table, schedule=_schedule(schedule)), given, steps)
    start = laws.start_law(given, laws.SCHEDULES[schedule].end)
    law = laws.run(start, laws.ancestral(table, laws.RATES[schedule], steps))
    assert laws.p_value(found, law) > SIGNIFICANCE


@pytest.mark.parametrize("given", [{}, {0: 1}])
def test_samples_of_d3pm_follow_their_own_law(
    code: ModuleType, given: dict[int, int]
) -> None:
    table = toys.random_table(2, mask_logit=True)
    model = _model(code, table, parameterization="d3pm", schedule=_schedule("light"))
    law = laws.d3pm(table, laws.RATES["light"], 3, given)
    found = _fill(model, given, 3)
    assert laws.p_value(found, laws.run(laws.start_law(given), law)) > SIGNIFICANCE


@pytest.mark.parametrize("given", [{}, {1: 2}])
@pytest.mark.parametrize(("schedule", "steps"), [("linear", 1), ("light", 3)])
def test_uniform_samples_follow_the_posterior_of_each_step(
    code: ModuleType, schedule: str, steps: int, given: dict[int, int]
) -> None:
    """Two tokens, by the posterior in full: a sum over what the token may become."""
    draws = np.random.default_rng(5).normal(size=(V**2, 2, V))
    table = (1.5 * draws).astype(np.float32)

    def kernel(m_t: float, m_s: float) -> Kernel:
        alpha_t, alpha_s = 1 - m_t, 1 - m_s

        def ways_of(state: State) -> list[Ways]:
            logits = table[state[0] * V + state[1]].astype(np.float64)
            clean = laws.softmax(logits * (0.5 + alpha_t))
            ways: list[Ways] = []
            for place, token in enumerate(state):
                if place in given:
                    ways.append([(token, 1.0)])
                    continue
                # Of x_s for each x_0, by Bayes with the mixture that UDLM states.
                top = np.zeros(V)
                for j in range(V):
                    same = j == token
                    top[j] += V * alpha_t * clean[place, j] * same
                    top[j] += (alpha_t / alpha_s - alpha_t) * same
                    top[j] += (alpha_s - alpha_t) * clean[place, j]
                    top[j] += (1 - alpha_t / alpha_s) * (1 - alpha_s) / V
                ways.append(list(enumerate(top / top.sum())))
            return ways

        return laws.independent(ways_of)

    rates = [laws.RATES[schedule](j / steps) for j in range(steps + 1)]
    prior = [
        [(given[i], 1.0)] if i in given else [(v, 1 / V) for v in range(V)]
        for i in range(2)
    ]
    start = laws.run({(): 1.0}, [laws.independent(lambda _: prior)])
    pairs = reversed(list(itertools.pairwise(rates)))
    law = laws.run(start, [kernel(m_t, m_s) for m_s, m_t in pairs])
    model = _model(code, table, process="uniform", schedule=_schedule(schedule))
    assert laws.p_value(_fill(model, given, steps), law) > SIGNIFICANCE


@pytest.mark.parametrize(
    ("draw", "kept"),
    [
        ({"temperature": 0.5}, None),
        ({"top_k": 2}, 2),
        ({"top_p": 0.8}, 2),
        ({"temperature": 0.0}, 1),
    ],
)
def test_draws_are_restricted_as_they_are_asked_to(
    code: ModuleType, draw: dict[str, Any], kept: int | None
) -> None:
    logits = np.array([0.2, 1.4, 0.9])
    model = _model(code, np.tile(logits.astype(np.float32), (4**L, L, 1)))
    options = {"temperature": 1.0, "top_k": 0, "top_p": 1.0} | draw
    sampler = code._Draw(**options, generator=None)
    law = sampler.law(torch.tensor(logits)[None])[0].numpy()
    order = np.argsort(-logits)[:kept]
    expected = np.zeros(V)
    # The time makes these logits 1/2 + 1 - m times as large: at m = 1 by half.
    warmth = draw.get("temperature") or 1.0
    expected[order] = np.exp(logits[order] / warmth)
    np.testing.assert_allclose(law, expected / expected.sum(), atol=1e-6)
    found = _fill(model, {}, 1, **draw)
    seen = np.bincount(found.ravel(), minlength=V) / found.size
    expected = np.zeros(V)
    expected[order] = np.exp(0.5 * logits[order] / warmth)
    if "top_p" not in draw:  # half the logits keep another set
        error = 4 * math.sqrt(0.25 / found.size)
        np.testing.assert_allclose(seen, expected / expected.sum(), atol=error)


def test_a_prompt_stays_and_its_masks_are_filled(code: ModuleType) -> None:
    config = code.LmjaxConfig(
        vocab_size=9,
        mask_token_id=4,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=0,
        unpredictable_token_ids=(0, 1, 4),
        schedule=_schedule("light"),
    )
    torch.manual_seed(0)
    model = code.LmjaxForMaskedLM(config).eval()
    prompt = torch.tensor([[0, 1, 5, 4, 6], [1, 2, 7, 7, 4]])
    mask = (prompt != 0).long()
    likely_eos = torch.tensor([0.0, 0, 1, 0, 0, 0, 0, 0, 0])
    model.lm_head.bias = torch.nn.Parameter(likely_eos)

    def fill(**options: Any) -> Any:
        generator = torch.Generator().manual_seed(1)
        return model.generate_diffusion(prompt, mask, generator=generator, **options)

    found = fill(max_new_tokens=6, steps=20)
    free = fill(max_new_tokens=6, steps=20, stop_at_eos=False)
    given = prompt != 4
    assert found.shape == (2, 11)
    assert torch.equal(found[:, :5][given], prompt[given])
    assert not (found == 4).any()
    after = []
    for row, other, last in zip(found.tolist(), free.tolist(), (4, 3), strict=True):
        end = other.index(2, last + 1)  # not the EOS in the prompt
        assert row == other[:end] + [2] * (11 - end)
        after += other[end:]
    assert set(after) != {2}, "another seed: nothing else stands behind an EOS"
    fresh = model.generate_diffusion(num_samples=3, max_new_tokens=4, steps=4)
    assert fresh.shape == (3, 5) and (fresh[:, 0] == 1).all()
    assert torch.equal(fill(steps=9), fill(steps=9))


def test_the_network_is_called_only_where_something_is_revealed(
    code: ModuleType,
) -> None:
    model = _model(code, toys.random_table(), schedule=_schedule("linear"))
    model.generate_diffusion(torch.full((1, L), MASK), steps=1000)
    assert 1 <= model.calls <= L
