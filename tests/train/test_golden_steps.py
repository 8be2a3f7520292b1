"""Three steps of each objective, to the number.

These figures hold a whole step together: initial values, draws, loss, gradients,
optimizer. When one of them moves and you did not mean to change what a seed gives, you
have found a bug. When you did mean to, update the figures here and say in the commit
what changed them.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from lmjax.config.schema import Backbone

MODELS = {
    "autoregressive": dict(num_layers=2),
    "masked_diffusion": dict(
        num_layers=2, backbone=Backbone.DIT, time_conditioning=True
    ),
}
# Summed loss in nats, and gradient norm, of the first and of the third step.
GOLDEN = {
    "autoregressive": {
        "loss_sum": (556.47882, 532.81842),
        "gradient_norm": (0.45933223, 0.68108719),
    },
    "masked_diffusion": {
        "loss_sum": (534.39642, 575.81927),
        "gradient_norm": (0.9087944, 0.99850851),
    },
}


@pytest.mark.parametrize("objective", GOLDEN)
def test_three_steps_give_the_pinned_figures(
    objective: str, make_training: Callable[..., Any]
) -> None:
    _, figures = make_training(objective, **MODELS[objective]).run(3)
    found = {name: figures[name][[0, 2]].tolist() for name in GOLDEN[objective]}
    for name, expected in GOLDEN[objective].items():
        np.testing.assert_allclose(
            found[name],
            expected,
            rtol=1e-4,
            err_msg=f"{objective}: a seed gives other figures. Make GOLDEN {found} "
            "only if this change is meant to alter initial values, randomness, loss, "
            "gradients or the optimizer.",
        )
