"""Schedules of a diffusion process: the noise rate m(t), and what follows from it.

t runs from 0 (clean) to 1 (all noise); m(t) is the probability that a token is noise
at time t, and m(0) = 0 exactly. Where m(1) = 1 the prior is all noise and the bound has
no further term; where it is a little less, the prior's divergence belongs to the bound
(`process.MaskProcess.prior_nats`). Everything is float32. In continuous time the bound
does not depend on the schedule, only its variance and the training signal do: a
schedule is a choice of how densely each rate is visited.
"""

import dataclasses
import math
from collections.abc import Callable
from typing import Protocol

import jax
import jax.numpy as jnp
from jax.scipy.special import ndtr

MAX_SIGMA = 20.0  # -log(1 - m) of an all-masked row is infinite; this stands for it
MIN_PRIOR_RATE = 0.99  # a process that leaves more than this visible is refused
_BISECTIONS = 40  # halvings that leave no digit of a float32 in (0, 1] open


class Schedule(Protocol):
    """A noise rate m(t), increasing from 0.

    Attributes:
      end: m(1).
    """

    end: float

    def mask_rate(self, t: jax.Array) -> jax.Array:
        """m(t): the probability that a token is noise at time t."""
        ...

    def derivative(self, t: jax.Array) -> jax.Array:
        """m'(t)."""
        ...

    def weight(self, t: jax.Array) -> jax.Array:
        """m'(t) / m(t): weight of a masked token's cross-entropy in the bound."""
        ...

    def time(self, mask_rate: jax.Array) -> jax.Array:
        """The inverse of `mask_rate`."""
        ...

    def at(self, progress: jax.Array | float) -> "Schedule":
        """The schedule when `progress` in [0, 1] of the training run is done."""
        ...


class _Fixed:
    """A schedule that ends in pure noise and is the same all through training."""

    end = 1.0

    def at(self, progress: jax.Array | float) -> "_Fixed":
        del progress
        return self


@dataclasses.dataclass(frozen=True)
class LinearSchedule(_Fixed):
    """m(t) = t, called log-linear in MDLM (Sahoo et al. 2024); mean rate 1/2."""

    def mask_rate(self, t: jax.Array) -> jax.Array:
        return t

    def derivative(self, t: jax.Array) -> jax.Array:
        return jnp.ones_like(t)

    def weight(self, t: jax.Array) -> jax.Array:
        return 1.0 / t

    def time(self, mask_rate: jax.Array) -> jax.Array:
        return mask_rate


@dataclasses.dataclass(frozen=True)
class LightCosineSchedule(_Fixed):
    """m(t) = 1 - cos(pi t / 2), MDLM's cosine; mean rate 1 - 2/pi = 0.363."""

    def mask_rate(self, t: jax.Array) -> jax.Array:
        # 1 - cos(x) = 2 sin^2(x/2), which keeps its digits near 0.
        return 2.0 * jnp.square(jnp.sin(jnp.pi / 4 * t))

    def derivative(self, t: jax.Array) -> jax.Array:
        return jnp.pi / 2 * jnp.sin(jnp.pi / 2 * t)

    def weight(self, t: jax.Array) -> jax.Array:
        # (pi/2) sin(x) / (1 - cos(x)) = (pi/2) cot(x/2).
        return jnp.pi / 2 / jnp.tan(jnp.pi / 4 * t)

    def time(self, mask_rate: jax.Array) -> jax.Array:
        return 4 / jnp.pi * jnp.arcsin(jnp.sqrt(mask_rate / 2.0))


@dataclasses.dataclass(frozen=True)
class HeavyCosineSchedule(_Fixed):
    """m(t) = sin(pi t / 2), the cosine of MD4 and Duo; mean rate 2/pi = 0.637."""

    def mask_rate(self, t: jax.Array) -> jax.Array:
        return jnp.sin(jnp.pi / 2 * t)

    def derivative(self, t: jax.Array) -> jax.Array:
        return jnp.pi / 2 * _at_least_0(jnp.cos(jnp.pi / 2 * t))

    def weight(self, t: jax.Array) -> jax.Array:
        return jnp.pi / 2 * _at_least_0(1 / jnp.tan(jnp.pi / 2 * t))

    def time(self, mask_rate: jax.Array) -> jax.Array:
        return 2 / jnp.pi * jnp.arcsin(mask_rate)


@dataclasses.dataclass(frozen=True)
class SquaredCosineSchedule(_Fixed):
    """m(t) = sin^2(pi t / 2): what stays visible is a squared cosine; mean rate 1/2."""

    def mask_rate(self, t: jax.Array) -> jax.Array:
        return jnp.square(jnp.sin(jnp.pi / 2 * t))

    def derivative(self, t: jax.Array) -> jax.Array:
        return jnp.pi / 2 * _at_least_0(jnp.sin(jnp.pi * t))

    def weight(self, t: jax.Array) -> jax.Array:
        return jnp.pi * _at_least_0(1 / jnp.tan(jnp.pi / 2 * t))

    def time(self, mask_rate: jax.Array) -> jax.Array:
        return 2 / jnp.pi * jnp.arcsin(jnp.sqrt(mask_rate))


@dataclasses.dataclass(frozen=True)
class PolynomialSchedule(_Fixed):
    """m(t) = t^power (MD4, Shi et al. 2024); mean rate 1 / (1 + power)."""

    power: float

    def __post_init__(self) -> None:
        if not 0 < self.power < math.inf:
            raise ValueError(f"the power of t^power must be above 0, not {self.power}")

    def mask_rate(self, t: jax.Array) -> jax.Array:
        return jnp.power(t, self.power)

    def derivative(self, t: jax.Array) -> jax.Array:
        return self.power * jnp.power(t, self.power - 1)

    def weight(self, t: jax.Array) -> jax.Array:
        return self.power / t

    def time(self, mask_rate: jax.Array) -> jax.Array:
        return jnp.power(mask_rate, 1.0 / self.power)


@dataclasses.dataclass(frozen=True)
class GeometricSchedule:
    """sigma(t) grows geometrically (SEDD, Lou et al. 2024), m = 1 - exp(-sigma).

    sigma(t) = sigma_min ((sigma_max / sigma_min)^t - 1): the shift by sigma_min makes
    t = 0 clean. m(1) is a little below 1, for which the bound pays.
    """

    sigma_min: float
    sigma_max: float

    def __post_init__(self) -> None:
        if not 0 < self.sigma_min < self.sigma_max:
            raise ValueError(
                "0 < sigma_min < sigma_max must hold, not "
                f"sigma_min={self.sigma_min}, sigma_max={self.sigma_max}"
            )
        if self.end < MIN_PRIOR_RATE:
            raise ValueError(
                f"sigma_max={self.sigma_max} ends at m(1)={self.end:.3f}: the prior is "
                f"not all mask; it must reach {MIN_PRIOR_RATE}, as 7 and more do"
            )

    @property
    def end(self) -> float:
        return -math.expm1(-(self.sigma_max - self.sigma_min))

    @property
    def _log_ratio(self) -> float:
        return math.log(self.sigma_max / self.sigma_min)

    def _sigma(self, t: jax.Array) -> jax.Array:
        return self.sigma_min * jnp.expm1(t * self._log_ratio)

    def _sigma_derivative(self, t: jax.Array) -> jax.Array:
        return self.sigma_min * self._log_ratio * jnp.exp(t * self._log_ratio)

    def mask_rate(self, t: jax.Array) -> jax.Array:
        return -jnp.expm1(-self._sigma(t))

    def derivative(self, t: jax.Array) -> jax.Array:
        return self._sigma_derivative(t) * jnp.exp(-self._sigma(t))

    def weight(self, t: jax.Array) -> jax.Array:
        return self._sigma_derivative(t) / jnp.expm1(self._sigma(t))

    def time(self, mask_rate: jax.Array) -> jax.Array:
        noise = sigma(mask_rate)
        return jnp.log1p(noise / self.sigma_min) / self._log_ratio

    def at(self, progress: jax.Array | float) -> "GeometricSchedule":
        del progress
        return self


@dataclasses.dataclass(frozen=True, kw_only=True)
class BimodalGaussianSchedule:
    """Rates from a mixture of two Gaussians, of which the upper one moves in training.

    After the masking of the BabyLM 2025 submission with bimodal Gaussian rates. m(t) is
    the quantile function of the mixture, so that uniform times give its rates. Two
    things differ, which make it a process with a bound: both Gaussians are cut off at 0
    and 1, and a share of the rates is uniform, since otherwise the bound's weight
    1 / (m f(m)), f the density of rates, is as good as infinite between the modes.

    Attributes:
      low_mean, low_std, low_share: the lower component.
      high_mean_start, high_mean_end, high_std: the upper one; its mean moves linearly.
      uniform_share: of uniform rates, in (0, 1].
      progress: share of the run that is done, in [0, 1].
    """

    low_mean: float
    low_std: float
    low_share: float
    high_mean_start: float
    high_mean_end: float
    high_std: float
    uniform_share: float
    progress: jax.Array | float = 1.0
    end: float = dataclasses.field(default=1.0, init=False)

    def __post_init__(self) -> None:
        if not (self.low_std > 0 and self.high_std > 0):
            raise ValueError(
                f"both deviations must be above 0, not low_std={self.low_std}, "
                f"high_std={self.high_std}"
            )
        if not 0 < self.uniform_share <= 1:
            raise ValueError(
                "uniform_share must lie in (0, 1], or some rates are never visited; "
                f"not {self.uniform_share}"
            )

    def mask_rate(self, t: jax.Array) -> jax.Array:
        return _invert(self.time, t)

    def derivative(self, t: jax.Array) -> jax.Array:
        return 1.0 / self._density(self.mask_rate(t))

    def weight(self, t: jax.Array) -> jax.Array:
        rate = self.mask_rate(t)
        return 1.0 / (self._density(rate) * rate)

    def time(self, mask_rate: jax.Array) -> jax.Array:
        """The distribution function of the rates."""
        total = self.uniform_share * mask_rate
        for share, mean, std in self._components():
            low, high = ndtr(-mean / std), ndtr((1 - mean) / std)
            below = ndtr((mask_rate - mean) / std)
            total = total + share * (below - low) / (high - low)
        return total

    def at(self, progress: jax.Array | float) -> "BimodalGaussianSchedule":
        return dataclasses.replace(self, progress=progress)

    def _density(self, rate: jax.Array) -> jax.Array:
        total = jnp.full_like(rate, self.uniform_share)
        for share, mean, std in self._components():
            inside = ndtr((1 - mean) / std) - ndtr(-mean / std)
            height = share / (inside * std * math.sqrt(2 * math.pi))
            total = total + height * jnp.exp(-jnp.square((rate - mean) / std) / 2)
        return total

    def _components(self) -> list[tuple[float, jax.Array, float]]:
        """(share, mean, deviation) of each."""
        rest = 1 - self.uniform_share
        moved = self.high_mean_end - self.high_mean_start
        high_mean = jnp.asarray(self.high_mean_start + moved * self.progress)
        low = (rest * self.low_share, jnp.asarray(self.low_mean), self.low_std)
        return [low, (rest * (1 - self.low_share), high_mean, self.high_std)]


@dataclasses.dataclass(frozen=True)
class LogRateSchedule(_Fixed):
    """The logarithm of the rate is uniform: MDLM's change of variables.

    Every masked token weighs the same down to the rate `least`, below which rates are
    uniform: MDLM leaves those out, and its figure is a little too low for it.
    """

    least: float = 1e-3

    @property
    def _total(self) -> float:
        return 1.0 - math.log(self.least)

    def mask_rate(self, t: jax.Array) -> jax.Array:
        position = t * self._total
        above = jnp.minimum(self.least * jnp.exp(position - 1), 1.0)
        return jnp.where(position < 1, self.least * position, above)

    def derivative(self, t: jax.Array) -> jax.Array:
        return self._total * jnp.maximum(self.mask_rate(t), self.least)

    def weight(self, t: jax.Array) -> jax.Array:
        return self._total * jnp.maximum(1.0, 1 / (t * self._total))

    def time(self, mask_rate: jax.Array) -> jax.Array:
        ratio = mask_rate / self.least
        above = 1 + jnp.log(jnp.maximum(ratio, 1.0))
        return jnp.where(ratio < 1, ratio, above) / self._total


@dataclasses.dataclass(frozen=True)
class ImportanceSchedule(_Fixed):
    """Rates by importance: density ~ sqrt(1 + 1 / ((L - 1) m)).

    Of all densities this has the least variance for L tokens that cost the same
    wherever they are masked: the number of masked ones, n ~ Binomial(L, m), then gives
    n / m, whose second moment is L (L - 1) (1 + 1 / ((L - 1) m)).
    """

    length: int

    @property
    def _scale(self) -> float:
        return 1.0 / max(self.length - 1, 1)

    def _integral(self, rate: jax.Array) -> jax.Array:
        return jnp.sqrt(rate * (rate + self._scale)) + self._scale * jnp.arcsinh(
            jnp.sqrt(rate / self._scale)
        )

    def mask_rate(self, t: jax.Array) -> jax.Array:
        return _invert(self.time, t)

    def derivative(self, t: jax.Array) -> jax.Array:
        total = self._integral(jnp.float32(1.0))
        return total / jnp.sqrt(1.0 + self._scale / self.mask_rate(t))

    def weight(self, t: jax.Array) -> jax.Array:
        return self.derivative(t) / self.mask_rate(t)

    def time(self, mask_rate: jax.Array) -> jax.Array:
        return self._integral(mask_rate) / self._integral(jnp.float32(1.0))


def sigma(mask_rate: jax.Array) -> jax.Array:
    """Total noise -log(1 - m), at most `MAX_SIGMA`: what a DiT is conditioned on."""
    return jnp.minimum(-jnp.log1p(-mask_rate), MAX_SIGMA)


def _at_least_0(x: jax.Array) -> jax.Array:
    """What is 0 at t = 1, where float32 rounds to a little less."""
    return jnp.maximum(x, 0.0)


def _invert(function: Callable[[jax.Array], jax.Array], value: jax.Array) -> jax.Array:
    """x in (0, 1] with function(x) = value, for an increasing function onto (0, 1]."""
    value = jnp.asarray(value, jnp.float32)

    def halve(
        _: int, bounds: tuple[jax.Array, jax.Array]
    ) -> tuple[jax.Array, jax.Array]:
        low, high = bounds
        middle = (low + high) / 2
        below = function(middle) < value
        return jnp.where(below, middle, low), jnp.where(below, high, middle)

    bounds = (jnp.zeros_like(value), jnp.ones_like(value))
    found = jax.lax.fori_loop(0, _BISECTIONS, halve, bounds)[1]
    return jnp.select([value <= 0, value >= 1], [0.0, 1.0], found)
