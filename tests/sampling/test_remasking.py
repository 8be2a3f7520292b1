"""Remasking keeps the marginals of the process, and the law of independent tokens."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lmjax.config.choices import Remasking
from lmjax.diffusion.process import MaskProcess
from lmjax.sampling.logits import TokenSampler
from lmjax.sampling.masked_diffusion import MaskedDiffusionSampler
from lmjax.sampling.remasking import Remask
from tests.sampling import laws
from tests.sampling.laws import SCHEDULES, SIGNIFICANCE, FixedModel
from tests.toys import MASK, V


def _sampler(rule: Remask) -> MaskedDiffusionSampler:
    process = MaskProcess(
        mask_id=MASK, schedule=SCHEDULES["heavy"], predictable=np.arange(V)
    )
    return MaskedDiffusionSampler(
        bind=FixedModel, process=process, rule=rule, draw=TokenSampler()
    )


def _stage(
    kind: Remasking, strength: float, steps: int, number: int
) -> MaskedDiffusionSampler:
    """Only the first calls of a remasking sampler, whose masks are left."""

    @dataclasses.dataclass(frozen=True, kw_only=True)
    class First(Remask):
        def num_calls(self, state: Any) -> int:
            return number

    return _sampler(First(kind=kind, strength=strength, steps=steps))


@pytest.mark.parametrize("kind", list(Remasking))
def test_remasking_keeps_the_rate_of_masks(kind: Remasking) -> None:
    """The marginal of "is masked" is m(s) after every step, with the true posterior.

    By confidence the chances depend on the canvas, which keeps it but roughly.
    """
    steps, shape = 8, (300, 64)
    strength = 0.15 if kind is Remasking.LOOP else 0.4
    law = np.array([0.5, 0.3, 0.2])
    fixed = jnp.append(jnp.log(jnp.array(law, jnp.float32)), -jnp.inf)
    rule = Remask(kind=kind, strength=strength, steps=steps)
    rates, sigmas = rule.grid(SCHEDULES["heavy"])
    assert max(sigmas[1:-1]) > 0.05
    canvas = np.full(shape, MASK, np.int32)
    for number in (3, 6):
        fill = jax.jit(_stage(kind, strength, steps, number))
        found = fill(fixed, jax.random.key(number), canvas, canvas < 0)
        tokens = np.asarray(found.tokens_BL)
        share, rate = (tokens == MASK).mean(), rates[steps - number]
        error = np.sqrt(rate * (1 - rate) / tokens.size)
        assert abs(share - rate) < (0.02 if kind is Remasking.CONFIDENCE else 4 * error)


@pytest.mark.parametrize("kind", [Remasking.CAP, Remasking.RESCALE, Remasking.LOOP])
def test_of_independent_tokens_remasking_writes_the_law_itself(
    kind: Remasking,
) -> None:
    """Whatever sigma: every mask is drawn from the same law again."""
    law = np.array([0.6, 0.3, 0.1])
    fixed = jnp.append(jnp.log(jnp.array(law, jnp.float32)), -jnp.inf)
    fill = _sampler(Remask(kind=kind, strength=0.4, steps=8))
    canvas = np.full((10_000, 2), MASK, np.int32)
    found = jax.jit(fill)(fixed, jax.random.key(1), canvas, canvas < 0)
    exact = {(u, v): law[u] * law[v] for u in range(V) for v in range(V)}
    assert laws.p_value(found.tokens_BL, exact) > SIGNIFICANCE
