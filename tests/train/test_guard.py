"""What the guard makes of figures, without a model; `tests/faults` has one."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lmjax.config.schema import ParallelConfig
from lmjax.parallel import rules
from lmjax.parallel.mesh import build_mesh
from lmjax.train import guard as guards
from lmjax.train.guard import Guard, Memory, Verdict

INF, NAN = float("inf"), float("nan")


def _judge(guard: Guard, memory: Memory, loss: float, norm: float = 1.0) -> Verdict:
    weight = jnp.float32(10.0)
    return guard.judge(memory, weight * loss, weight, jnp.float32(norm))


def _run(
    guard: Guard, losses: list[float], memory: Memory | None = None
) -> tuple[list[int], Memory]:
    """Which steps were left out, and the memory after them."""
    memory, skipped = memory or guard.start(), []
    for loss in losses:
        _, memory, metrics = _judge(guard, memory, loss)
        skipped.append(int(metrics["skipped"]))
    return skipped, memory


def _wanted(guard: Guard) -> Any:
    sharding = rules.replicated(build_mesh(ParallelConfig(), jax.devices()[:2]))
    return jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding),
        jax.eval_shape(guard.start),
    )


def test_a_guard_remembers_no_more_than_it_needs() -> None:
    assert len(jax.tree.leaves(Guard().start())) == 2
    assert len(jax.tree.leaves(Guard(spike_deviations=6.0).start())) == 4
    assert len(jax.tree.leaves(Guard(scales_loss=True).start())) == 4


@pytest.mark.parametrize(
    ("loss", "norm"), [(NAN, 1.0), (INF, 1.0), (-INF, 1.0), (2.0, NAN), (2.0, INF)]
)
def test_what_is_not_finite_is_bad(loss: float, norm: float) -> None:
    good, memory, metrics = _judge(Guard(), Guard().start(), loss, norm)
    assert not good
    assert metrics["skipped"] == 1
    assert memory.bad_in_a_row == memory.skipped == 1
    good, memory, metrics = _judge(Guard(), memory, 2.0)
    assert good
    assert metrics["skipped"] == 0
    assert (memory.bad_in_a_row, memory.skipped) == (0, 1)


def test_a_loss_is_a_spike_beyond_so_many_deviations() -> None:
    """1, 2, 3, 4: mean 2.5 and deviation 1.29, so the limit is 6.37."""
    guard = Guard(spike_deviations=3.0, spike_window=4)
    skipped, memory = _run(guard, [1.0, 2.0, 3.0, 4.0])
    assert not any(skipped)
    assert _judge(guard, memory, 6.35).good
    assert _judge(guard, memory, -90.0).good
    assert not _judge(guard, memory, 6.39).good


def test_a_lasting_shift_is_accepted_in_the_end() -> None:
    guard = Guard(spike_deviations=2.0, spike_window=4)
    skipped, memory = _run(guard, [1.0, 1.1, 0.9, 1.0] + [9.0] * 4)
    assert skipped == [0, 0, 0, 0, 1, 0, 0, 0]
    np.testing.assert_array_equal(memory.losses, [9.0] * 4)


def test_what_is_not_finite_never_enters_the_window() -> None:
    guard = Guard(spike_deviations=3.0, spike_window=4)
    skipped, memory = _run(guard, [1.0, 2.0, NAN, 3.0, INF, 4.0, 50.0])
    assert skipped == [0, 0, 1, 0, 1, 0, 1]
    np.testing.assert_array_equal(memory.losses, [2.0, 3.0, 4.0, 50.0])
    empty = guard.judge(memory, jnp.float32(0), jnp.float32(0), jnp.float32(0))
    np.testing.assert_array_equal(empty.memory.losses, memory.losses)


def test_an_overflow_halves_the_scale_and_is_bad_at_its_least_alone() -> None:
    guard = Guard(scales_loss=True)
    memory = dataclasses.replace(guard.start(), scale=jnp.float32(4.0))
    scales, in_a_row = [], []
    for _ in range(4):
        good, memory, metrics = _judge(guard, memory, 2.0, INF)
        assert not good
        scales.append(float(metrics["loss_scale"]))
        in_a_row.append(int(metrics["bad_in_a_row"]))
    assert scales == [2.0, 1.0, 1.0, 1.0]
    assert in_a_row == [0, 0, 1, 2]
    assert memory.skipped == 4


def test_an_overflow_does_not_end_a_row_of_bad_steps() -> None:
    guard = Guard(scales_loss=True)
    _, memory = _run(guard, [NAN])
    assert _judge(guard, memory, 2.0, INF).memory.bad_in_a_row == 1


def test_a_loss_that_is_not_finite_is_no_matter_of_the_scale() -> None:
    guard = Guard(scales_loss=True)
    _, memory, metrics = _judge(guard, guard.start(), NAN, NAN)
    assert metrics["loss_scale"] == guards.FIRST_SCALE
    assert memory.bad_in_a_row == 1


def test_the_scale_doubles_after_enough_good_steps_up_to_a_limit() -> None:
    guard, last = Guard(scales_loss=True), guards.GROWTH_STEPS - 1
    memory = dataclasses.replace(guard.start(), good_steps=jnp.int32(last - 1))
    memory = _judge(guard, memory, 2.0).memory
    assert (memory.scale, memory.good_steps) == (guards.FIRST_SCALE, last)
    grown = _judge(guard, memory, 2.0).memory
    assert (grown.scale, grown.good_steps) == (2 * guards.FIRST_SCALE, 0)
    assert _judge(guard, memory, 2.0, INF).memory.good_steps == 0
    memory = dataclasses.replace(memory, scale=jnp.float32(guards.LARGEST_SCALE))
    assert _judge(guard, memory, 2.0).memory.scale == guards.LARGEST_SCALE


@pytest.mark.parametrize(
    ("window", "losses", "count"),
    [(4, [2.0, 3.0, 4.0, 5.0], 4), (2, [4.0, 5.0], 2), (6, [0.0, 0, 2, 3, 4, 5], 4)],
)
def test_a_window_of_another_length_keeps_the_newest_losses(
    window: int, losses: list[float], count: int
) -> None:
    _, memory = _run(
        Guard(spike_deviations=99.0, spike_window=4), [1.0, 2.0, 3.0, 4.0, 5.0]
    )
    wanted = _wanted(Guard(spike_deviations=6.0, spike_window=window))
    carried = guards.carried_over(vars(memory), wanted)
    np.testing.assert_array_equal(carried.losses, losses)
    assert carried.num_losses == count
    assert carried.losses.sharding == wanted.losses.sharding


def test_what_another_config_did_not_remember_begins_anew() -> None:
    _, memory = _run(Guard(), [1.0, NAN, NAN])
    both = Guard(spike_deviations=6.0, spike_window=3, scales_loss=True)
    carried = guards.carried_over(vars(memory), _wanted(both))
    assert (carried.skipped, carried.bad_in_a_row) == (2, 2)
    assert (carried.scale, carried.num_losses) == (guards.FIRST_SCALE, 0)
    plain = guards.carried_over(vars(carried), _wanted(Guard()))
    assert len(jax.tree.leaves(plain)) == 2
    assert guards.carried_over({}, _wanted(Guard())).skipped == 0
    assert guards.carried_over({}, {}) == {}


NAMES = {
    "blocks": {"bias": ("layers", "mlp"), "kernel": ("layers", "embed", "mlp")},
    "head": ("vocab", "embed"),
}
NONE = np.zeros((3, 2), bool)


def _figures(**changes: Any) -> dict[str, Any]:
    return {
        "skipped": 1,
        "loss_sum": 60.0,
        "weight": 20.0,
        "gradient_norm": 1.0,
        "gradients_not_finite": NONE,
        "params_not_finite": NONE,
    } | changes


@pytest.mark.parametrize(
    ("figures", "told"),
    [
        (
            {"loss_sum": NAN, "gradients_not_finite": ~NONE},
            "the loss is nan, though all parameters are finite",
        ),
        (
            {"loss_sum": INF, "params_not_finite": np.array([[0, 0], [0, 1], [1, 0]])},
            "the loss is inf, and the parameter blocks/kernel[1] (and of 1 more) is "
            "not finite",
        ),
        (
            {"gradient_norm": NAN, "gradients_not_finite": np.array(3 * [[1, 0]])},
            "the gradient of blocks/bias[0] (and of 2 more) is not finite",
        ),
        ({"gradient_norm": INF}, "the norm of the gradient is not finite"),
        (
            {
                "gradient_norm": INF,
                "gradients_not_finite": np.array([[0, 0], [0, 0], [1, 0]]),
                "loss_scale": np.float32(16384.0),
            },
            "float16 overflow, the gradient of head is not finite: loss scale lowered "
            "to 16384",
        ),
        (
            {"window_mean": 1.8, "window_deviation": 0.4},
            "the loss 3 lies 3.0 standard deviations above the mean 1.8 of the last "
            "128 steps",
        ),
    ],
)
def test_why_is_told_in_one_sentence(figures: dict[str, Any], told: str) -> None:
    assert guards.explain(_figures(**figures), NAMES, num_losses=128) == told


def test_culprits_are_found_by_layer() -> None:
    tree = {
        "blocks": {"bias": jnp.ones((2, 4)), "kernel": jnp.ones((2, 3, 4))},
        "head": jnp.ones((5, 3)),
    }
    broken = {
        "blocks": {**tree["blocks"], "kernel": tree["blocks"]["kernel"].at[1].set(INF)},
        "head": tree["head"].at[4, 0].set(NAN),
    }
    found = guards.find_culprits(broken, tree, NAMES)
    np.testing.assert_array_equal(
        found["gradients_not_finite"], [[0, 0], [0, 1], [1, 0]]
    )
    assert not found["params_not_finite"].any()
