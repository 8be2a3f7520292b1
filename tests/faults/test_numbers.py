"""Numbers that go wrong cost the updates of their steps, and nothing else."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from lmjax.data.batch import Batch
from lmjax.train.guard import Guard, Memory, Verdict
from lmjax.train.state import TrainState
from tests.faults.faulty import NAN, SPIKE, STEEP, Faulty, spoil

WINDOW = 4
GUARD = Guard(spike_deviations=6.0, spike_window=WINDOW)
CASES = {  # objective, mesh, microbatches
    "autoregressive": ("autoregressive", (1, 1, 1), 1),
    "autoregressive on 8 devices": ("autoregressive", (2, 2, 2), 2),
    "masked diffusion": ("masked_diffusion", (1, 1, 1), 4),
    "masked diffusion on 8 devices": ("masked_diffusion", (2, 2, 2), 1),
}


class Blind(Guard):
    """Finds every step good."""

    def judge(self, memory: Memory, *args: jax.Array) -> Verdict:
        return super().judge(memory, *args)._replace(good=jnp.bool_(True))


@dataclasses.dataclass
class Steps:
    """A compiled step whose batches may be faulty, from a state that stays."""

    training: Any
    beginning: TrainState

    def __call__(self, state: TrainState, batch: Batch) -> tuple[TrainState, Any]:
        state = jax.tree.map(jnp.copy, state)  # the step's own, to be donated
        state, metrics = self.training.compiled(state, batch)
        return state, jax.device_get(metrics)

    def run(
        self, faults: dict[int, int], count: int
    ) -> tuple[list[TrainState], list[Any]]:
        """States before and after every step, and the figures of each."""
        states, figures = [self.beginning], []
        for number in range(count):
            batch = self.training.batch(number)
            if number in faults:
                batch = spoil(batch, faults[number])
            state, metrics = self(states[-1], batch)
            states.append(state)
            figures.append(metrics)
        return states, figures


@pytest.fixture(scope="module")
def make_steps(make_training: Callable[..., Any]) -> Callable[..., Steps]:
    def make(case: str, guard: Guard = GUARD) -> Steps:
        objective, mesh, num_microbatches = CASES[case]
        training = make_training(
            objective,
            mesh=mesh,
            num_layers=2,  # the second is to blame
            num_microbatches=num_microbatches,
            guard=guard,
            schedule=optax.linear_schedule(0.01, 0.001, 7),
        )
        step = dataclasses.replace(
            training.step, objective=Faulty(training.step.objective)
        )
        training = dataclasses.replace(training, step=step)
        return Steps(training, training.start())

    return make


@pytest.fixture(scope="module", params=CASES)
def steps(request: pytest.FixtureRequest, make_steps: Callable[..., Steps]) -> Steps:
    return make_steps(request.param)


def _assert_same_bits(found: Any, expected: Any) -> None:
    def check(a: jax.Array, b: jax.Array) -> None:
        assert np.asarray(a).tobytes() == np.asarray(b).tobytes()

    jax.tree.map(check, found, expected)


def _moved_on(state: TrainState) -> TrainState:
    """A state as it is one step later, if nobody updates it."""
    count = state.opt_state[1][2].count
    schedule = optax.ScaleByScheduleState(count=count + 1)
    adamw = (*state.opt_state[1][:2], schedule)
    return dataclasses.replace(
        state, step=state.step + 1, opt_state=(state.opt_state[0], adamw)
    )


@pytest.mark.parametrize("fault", [NAN, STEEP])
def test_a_bad_batch_leaves_the_state_as_it_was_but_for_the_schedule(
    fault: int, steps: Steps
) -> None:
    states, figures = steps.run({1: fault}, 3)
    assert [int(each["skipped"]) for each in figures] == [0, 1, 0]
    assert [int(each["bad_in_a_row"]) for each in figures] == [0, 1, 0]
    assert int(states[-1].guard.skipped) == 1
    rates = [float(each["learning_rate"]) for each in figures]
    assert rates == pytest.approx([0.01, 0.01 - 0.009 / 7, 0.01 - 0.018 / 7])

    untouched = _moved_on(states[1])
    parts = [
        (state.step, state.params, state.opt_state, state.ema)
        for state in (states[2], untouched)
    ]
    _assert_same_bits(*parts)
    assert int(states[2].opt_state[1][0].count) == 1, "of Adam"
    never_seen, _ = steps(untouched, steps.training.batch(2))
    _assert_same_bits(
        (states[3].params, states[3].opt_state, states[3].ema),
        (never_seen.params, never_seen.opt_state, never_seen.ema),
    )


def test_the_culprit_is_named(steps: Steps) -> None:
    explain = steps.training.step.explain
    _, figures = steps.run({0: NAN, 1: STEEP}, 3)
    assert explain(figures[0]) == "the loss is nan, though all parameters are finite"
    gradient = "the gradient of blocks/mlp/up/kernel[1] is not finite"
    assert explain(figures[1]) == gradient
    assert np.isfinite(figures[1]["loss_sum"])
    with pytest.raises(ValueError, match="not left out"):
        explain(figures[2])


def test_a_parameter_that_is_not_finite_is_named(steps: Steps) -> None:
    state = steps.beginning
    table = state.params["vocabulary"]["table"]
    broken = jax.device_put(table.at[5, 3].set(jnp.inf), table.sharding)
    params = state.params | {"vocabulary": state.params["vocabulary"]}
    params["vocabulary"] = params["vocabulary"] | {"table": broken}
    _, figures = steps(
        dataclasses.replace(state, params=params), steps.training.batch(0)
    )
    told = "the loss is nan, and the parameter vocabulary/table is not finite"
    assert steps.training.step.explain(figures) == told


def test_a_spike_is_left_out_once_the_window_is_full(steps: Steps) -> None:
    states, figures = steps.run({WINDOW - 1: SPIKE}, WINDOW)
    assert not any(each["skipped"] for each in figures), "the window was not full"
    states, figures = steps.run({WINDOW: SPIKE}, WINDOW + 1)
    assert [int(each["skipped"]) for each in figures] == [0] * WINDOW + [1]
    assert figures[-1]["bad_in_a_row"] == 1
    _assert_same_bits(states[-1].params, states[-2].params)

    losses = np.array([each["loss_sum"] / each["weight"] for each in figures])
    window, spike = losses[:WINDOW], losses[WINDOW]
    mean, deviation = window.mean(), window.std(ddof=1)
    assert steps.training.step.explain(figures[-1]) == (
        f"the loss {spike:.4g} lies {(spike - mean) / deviation:.1f} standard "
        f"deviations above the mean {mean:.4g} of the last {WINDOW} steps"
    )
    np.testing.assert_allclose(states[-1].guard.losses, losses[1:], rtol=1e-5)


def test_bad_steps_in_a_row_are_counted_and_a_good_one_ends_them(steps: Steps) -> None:
    _, figures = steps.run({0: NAN, 1: STEEP, 2: NAN, 4: STEEP}, 5)
    assert [int(each["bad_in_a_row"]) for each in figures] == [1, 2, 3, 0, 1]


def test_a_guard_changes_no_good_step(make_steps: Callable[..., Steps]) -> None:
    """To rounding: the compiler joins the operations of an update as it sees fit."""
    guarded, blind = (
        make_steps("masked diffusion", guard) for guard in (Guard(), Blind())
    )
    state, figures = guarded.run({}, 4)
    expected, blind_figures = blind.run({}, 4)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6),
        (state[-1], figures),
        (expected[-1], blind_figures),
    )
    broken, _ = blind.run({0: NAN}, 1)
    assert np.isnan(np.asarray(broken[-1].params["vocabulary"]["table"])).any()
