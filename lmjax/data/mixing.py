"""The order in which training draws windows, a pure function of the seed."""

import dataclasses
import difflib
import functools
import math
from collections.abc import Iterator, Sequence

import numpy as np

from lmjax.core.errors import ConfigError

_LARGEST = 2**28  # sum of draws in a ratio; times a position it stays below 2**63


@dataclasses.dataclass(frozen=True, kw_only=True)
class Mixture:
    """How often each source is drawn, and how many passes over it there are at most.

    Attributes:
      weights: float64 [sources]; 1 draws a source as often as its size says, 2 twice
        as often, 0 never.
      max_epochs: float64 [sources], inf where there is no limit.
    """

    weights: np.ndarray
    max_epochs: np.ndarray

    @classmethod
    def parse(
        cls, weights: Sequence[str], max_epochs: Sequence[str], sources: Sequence[str]
    ) -> "Mixture":
        """From config values such as "childes=2"; a number alone is for all sources.

        Raises:
          ConfigError: a source is unknown, or a value no number or out of range.
        """
        mixture = cls(
            weights=_per_source(weights, sources, "data.weights", 1.0),
            max_epochs=_per_source(max_epochs, sources, "data.max_epochs", math.inf),
        )
        if not mixture.weights.any():
            raise ConfigError(
                "No source has a weight above 0.",
                where=f"data.weights={tuple(weights)}",
                remedy="give one of them a weight above 0.",
            )
        if not mixture.max_epochs.all():
            raise ConfigError(
                "A source is read less than once.",
                where=f"data.max_epochs={tuple(max_epochs)}",
                remedy="to leave a source out, set its weight to 0 in data.weights.",
            )
        return mixture

    @classmethod
    def plain(cls, num_sources: int) -> "Mixture":
        """Every window alike, as often as needed."""
        return cls(
            weights=np.ones(num_sources), max_epochs=np.full(num_sources, math.inf)
        )

    def shares(self, windows: np.ndarray) -> np.ndarray:
        """Share of each source in what is drawn while none is used up, [sources]."""
        drawn = self.weights * windows
        return drawn / drawn.sum()

    def draws(self, windows: np.ndarray, total: int) -> np.ndarray:
        """How often each source is drawn in the first `total` draws, to within one."""
        counts = np.zeros(len(windows))
        for phase in _phases(windows, self):
            length = min(total, phase.size)
            ratio = phase.proportions / phase.proportions.sum()
            counts[phase.sources] += length * ratio
            total -= length
        return counts

    def num_windows(self, windows: np.ndarray) -> float:
        """Windows there are to draw before all limits are reached; may be inf."""
        used = self.weights > 0
        return float(np.floor(self.max_epochs[used] * windows[used]).sum())


class DrawOrder:
    """Which window is drawn at each position of training.

    Within a pass over a source each of its windows is drawn once, in an order of its
    own. The first n draws hold each source in its share, to within one; when one
    reaches its limit, the others go on in their shares.

    Args:
      windows: int64 [sources], how many each has; they are numbered source by source.
    """

    def __init__(self, windows: np.ndarray, mixture: Mixture, seed: int):
        self._windows, self._seed = windows, seed
        self._starts = np.cumsum(windows) - windows
        self._phases = list(_phases(windows, mixture))
        sizes = [phase.size for phase in self._phases]
        self._phase_ends = np.cumsum(np.array(sizes, np.float64))
        # Two passes of each source: a batch may reach from one into the next.
        self._order = functools.lru_cache(2 * len(windows))(self._make_order)

    def __call__(self, positions: np.ndarray) -> np.ndarray:
        """Indices of windows for positions int64 [n], each from 0."""
        indices = np.zeros(len(positions), np.int64)
        which = np.searchsorted(self._phase_ends, positions, side="right")
        for number in np.unique(which):
            phase, chosen = self._phases[number], which == number
            begin = int(self._phase_ends[number - 1]) if number else 0
            source, draw = phase.find(positions[chosen] - begin)
            epoch = draw // self._windows[source]
            place = draw % self._windows[source]
            for s, e in {*zip(source.tolist(), epoch.tolist(), strict=True)}:
                same = (source == s) & (epoch == e)
                place[same] = self._order(s, e)[place[same]]
            indices[chosen] = self._starts[source] + place
        return indices

    def _make_order(self, source: int, epoch: int) -> np.ndarray:
        """The windows of a source as one pass over it draws them, int64 [windows].

        From the raw bits of Philox, which no version of NumPy changes.
        """
        key = [self._seed, source << 32 | epoch]
        bits = np.random.Philox(key=key).random_raw(int(self._windows[source]))
        return np.argsort(bits, kind="stable")


@dataclasses.dataclass(frozen=True)
class _Phase:
    """Draws during which the same sources are active.

    Attributes:
      sources: int64 [active].
      proportions: int64 [active], draws of each in `sum(proportions)` draws.
      used: int64 [active], draws of each before the phase.
      size: draws in the phase; may be inf.
    """

    sources: np.ndarray
    proportions: np.ndarray
    used: np.ndarray
    size: float

    def find(self, positions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The source at each position of the phase, and which of its draws it is.

        Splits the sequence again and again in two, one source against all others: of
        the first k draws of p against r, floor(k r / (p + r)) are the others'.
        """
        source = np.full(len(positions), -1)
        draw = np.zeros(len(positions), np.int64)
        left, k = np.arange(len(positions)), positions.astype(np.int64)
        remaining = int(self.proportions.sum())
        for number, proportion in enumerate(self.proportions.tolist()):
            others = k * (remaining - proportion) // remaining
            mine = (k + 1) * (remaining - proportion) // remaining == others
            source[left[mine]] = self.sources[number]
            draw[left[mine]] = self.used[number] + (k - others)[mine]
            left, k = left[~mine], others[~mine]
            remaining -= proportion
        return source, draw


def _phases(windows: np.ndarray, mixture: Mixture) -> Iterator[_Phase]:
    used = np.zeros(len(windows), np.int64)
    limits = np.floor(mixture.max_epochs * windows)
    while True:
        active = np.flatnonzero((mixture.weights > 0) & (limits > used))
        if not len(active):
            return
        shares = (mixture.weights * windows)[active]
        shares = shares / shares.sum()
        left = (limits - used)[active]
        if np.isinf(left).all():
            ratio = _integers(mixture, windows, active)
            yield _Phase(active, ratio, used[active], math.inf)
            return
        # As long as the source lasts that is used up first.
        length = np.min(left / shares)
        counts = np.minimum(np.round(length * shares), left).astype(np.int64)
        drawn = counts > 0
        yield _Phase(
            active[drawn], counts[drawn], used[active][drawn], float(counts.sum())
        )
        used[active] += counts


def _integers(mixture: Mixture, windows: np.ndarray, active: np.ndarray) -> np.ndarray:
    """Draws of each active source in the ratio of their shares, as integers.

    Exact for whole weights, so that an epoch without weights draws every window once.
    """
    weighted = (mixture.weights * windows)[active]
    if (weighted == np.round(weighted)).all() and weighted.sum() < _LARGEST:
        return weighted.astype(np.int64)
    return np.maximum(weighted / weighted.sum() * _LARGEST, 1).astype(np.int64)


def _per_source(
    values: Sequence[str], sources: Sequence[str], field: str, default: float
) -> np.ndarray:
    numbers = np.full(len(sources), default)
    # What is for all sources first, so that it does not undo what is for one.
    for value in sorted(values, key=lambda value: "=" in value):
        name, _, text = value.rpartition("=")
        try:
            number = float(text)
        except ValueError:
            number = math.nan
        if not 0 <= number < math.inf:
            raise ConfigError(
                f"{text!r} is not a number of 0 or more.",
                where=f"{field}: {value!r}",
                remedy='write "SOURCE=NUMBER", such as "childes=2", or a number alone '
                "for all sources.",
            )
        numbers[_find(name, sources, field, value) if name else slice(None)] = number
    return numbers


def _find(name: str, sources: Sequence[str], field: str, value: str) -> int:
    """A source by its name, or by its name without suffixes where that is enough."""
    if name in sources:
        return sources.index(name)
    stems = [source.split(".")[0] for source in sources]
    if stems.count(name) == 1:
        return stems.index(name)
    near = difflib.get_close_matches(name, [*sources, *stems], n=1)
    hint = f"did you mean {near[0]!r}? " if near else ""
    raise ConfigError(
        f"There is no source {name!r}, or more than one.",
        where=f"{field}: {value!r}",
        remedy=f"{hint}the sources are {', '.join(sources)}.",
    )
