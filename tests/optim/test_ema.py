"""The moving average follows its formula, and forgets its start in a short run."""

import numpy as np
import pytest

from lmjax.optim.ema import update_ema


@pytest.mark.parametrize(
    ("step", "decay"), [(0, 0.1), (8, 0.5), (80, 0.9), (990, 0.99), (10**6, 0.99)]
)
def test_the_decay_grows_with_the_number_of_updates_up_to_its_limit(
    step: int, decay: float
) -> None:
    """(1 + n) / (10 + n): 1/10, 9/18, 81/90, 991/1000, then the limit."""
    ema = {"w": np.float32([1.0, 0.0])}
    params = {"w": np.float32([0.0, 1.0])}
    updated = update_ema(ema, params, np.int32(step), 0.99)
    np.testing.assert_allclose(updated["w"], [decay, 1 - decay], rtol=1e-5)


def test_parameters_that_stand_still_are_their_own_average() -> None:
    params = {"w": np.float32([3.0, -2.0])}
    updated = update_ema(params, params, np.int32(5), 0.999)
    np.testing.assert_allclose(updated["w"], params["w"], rtol=1e-6)
