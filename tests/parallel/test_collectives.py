"""What devices send each other in a step: what the mesh is for, and nothing else.

XLA for CPU sums gradients whole where other backends scatter the sums, so a
reduce-scatter is an all-reduce here.
"""

from collections.abc import Callable
from typing import Any

import pytest

from lmjax.core import trees
from lmjax.doctor.collectives import Collective, collectives

LAYERS = 2
ACTIVATION = 16 * 12 * 16 * 4  # bytes of the residual stream of the whole batch

Sent = dict[str, Collective]


@pytest.fixture
def sent(make_training: Callable[..., Any]) -> Callable[..., tuple[Sent, int]]:
    """Compiles a step; gives its collectives by kind, and bytes of all parameters."""

    def compile_step(mesh: tuple[int, int, int], **fields: Any) -> tuple[Sent, int]:
        fields = {"scan": True, "num_layers": LAYERS, **fields}
        training = make_training("autoregressive", mesh=mesh, **fields)
        found = collectives(training.compiled.as_text())
        return {each.kind: each for each in found}, 4 * trees.count(
            training.model.shapes
        )

    return compile_step


@pytest.mark.parametrize("num_microbatches", [1, 2])
def test_replicas_send_their_gradients_once_a_step(
    num_microbatches: int, sent: Callable[..., tuple[Sent, int]]
) -> None:
    """However many passes and chunks of logits; beside them only sums to be shown."""
    found, params = sent((8, 1, 1), num_microbatches=num_microbatches)
    assert set(found) == {"all-reduce"}
    assert found["all-reduce"].count <= 3
    assert params < found["all-reduce"].num_bytes <= params + 64


def test_split_parameters_are_gathered_for_use(
    sent: Callable[..., tuple[Sent, int]],
) -> None:
    """Once forward and once backward, and their gradients are summed once.

    But for the table, whose rows are read by both ends of the model, and whose
    gradient is summed at every chunk of logits.
    """
    found, params = sent((1, 8, 1))
    table = 32 * 16 * 4
    assert set(found) == {"all-reduce", "all-gather"}
    assert params < found["all-gather"].num_bytes <= 2 * params + 2 * table
    assert 0.9 * params < found["all-reduce"].num_bytes <= params + 3 * table


def test_a_split_layer_gathers_and_sums_twice_each_way(
    sent: Callable[..., tuple[Sent, int]],
) -> None:
    """Attention and feed-forward: in by a gather, out by a sum, and back likewise.

    On the way back each of the projections that read the same input has a sum of its
    own: three of attention and two of the feed-forward block. At the end hidden states
    are gathered, and what the vocabulary is split for is summed.
    """
    found, _ = sent((1, 1, 4))
    assert set(found) <= {"all-reduce", "all-gather"}
    gathers = found["all-gather"].num_bytes / ACTIVATION
    assert 4 * LAYERS <= gathers <= 4 * LAYERS + 3
    sums = found["all-reduce"].num_bytes / ACTIVATION
    assert (2 + 3 + 2) * LAYERS <= sums <= (2 + 3 + 2) * LAYERS + 4


def test_on_all_axes_nothing_is_sent_crosswise(
    sent: Callable[..., tuple[Sent, int]],
) -> None:
    found, params = sent((2, 2, 2))
    assert "all-to-all" not in found
    moved = sum(each.num_bytes for each in found.values())
    # A quarter of the rows and half of the parameters are a device's part.
    assert moved < 12 * LAYERS * ACTIVATION / 4 + 4 * params
