"""Ways to score a candidate: which probes it takes, and what each of them weighs."""

import dataclasses
import functools
from collections.abc import Iterator, Sequence
from typing import NamedTuple, Protocol

import numpy as np

from lmjax.config.schema import EvaluateConfig, ZeroShotBackend
from lmjax.core.errors import ConfigError
from lmjax.diffusion.schedules import sigma
from lmjax.evaluate.probes import Probe
from lmjax.evaluate.zero_shot.encoding import EncodedCandidate


class Term(NamedTuple):
    """A part of a score: `weight` times the log-probabilities of a probe, summed."""

    probe: Probe
    weight: float = 1.0


class Backend(Protocol):
    """A way to score the candidates of an item.

    Attributes:
      name: in reports, and the folder of their predictions.
      reads_last: whether the last id of a row is an input, or just a target.
    """

    name: str
    reads_last: bool

    def terms(
        self, candidates: Sequence[EncodedCandidate], number: int
    ) -> list[list[Term]]:
        """Terms of each candidate of the item with this number in its task."""
        ...

    def scored(self, candidate: EncodedCandidate) -> int:
        """How many of the candidate's ids count."""
        ...


@dataclasses.dataclass(frozen=True)
class Causal:
    """log p of each id given those before it.

    What stands at the very beginning, where there is no opening, is not scored, as in
    BabyLM's pipeline: nothing predicts it.
    """

    name: str = "causal"
    reads_last: bool = False

    def terms(
        self, candidates: Sequence[EncodedCandidate], number: int
    ) -> list[list[Term]]:
        del number
        return [self._terms(candidate) for candidate in candidates]

    def scored(self, candidate: EncodedCandidate) -> int:
        return len(candidate.ids) - max(candidate.start, 1)

    def _terms(self, candidate: EncodedCandidate) -> list[Term]:
        ids, start = candidate.ids, max(candidate.start, 1)
        if start >= len(ids):
            return []
        places = np.arange(start - 1, len(ids) - 1)
        return [Term(Probe(ids[:-1], places, ids[start:]))]


@dataclasses.dataclass(frozen=True)
class Pseudo:
    """log p of each id given all others (Salazar et al. 2020), one row for each.

    Other ids of the same word stay visible. With a shift of 1 the prediction is read
    one position before the mask (masked next-token prediction), and what stands at the
    very beginning is not scored, as in BabyLM's pipeline.

    Attributes:
      mask_id: what hides an id.
      timed: whether the model is told the noise level of one mask in the row, opening
        included; else it is told 0.
      shift: positions between the mask and where it is predicted.
    """

    mask_id: int
    timed: bool = True
    shift: int = 0
    name: str = "mlm"
    reads_last: bool = True

    def terms(
        self, candidates: Sequence[EncodedCandidate], number: int
    ) -> list[list[Term]]:
        del number
        return [list(self._terms(candidate)) for candidate in candidates]

    def scored(self, candidate: EncodedCandidate) -> int:
        return len(candidate.ids) - max(candidate.start, self.shift)

    def _terms(self, candidate: EncodedCandidate) -> Iterator[Term]:
        ids = candidate.ids
        masked = np.arange(max(candidate.start, self.shift), len(ids))
        rows = np.tile(ids, (len(masked), 1))
        rows[np.arange(len(masked)), masked] = self.mask_id
        places, targets = masked - self.shift, ids[masked]
        noise = noise_level(1, len(ids)) if self.timed else 0.0
        for i, row in enumerate(rows):
            yield Term(Probe(row, places[i : i + 1], targets[i : i + 1], noise))


@dataclasses.dataclass(frozen=True)
class Chain:
    """log p of each id given those before it, with all after it masked.

    What a masked-diffusion model gives to the text when it writes it from left to
    right: a likelihood, though of one order among many.
    """

    mask_id: int
    name: str = "chain"
    reads_last: bool = True

    def terms(
        self, candidates: Sequence[EncodedCandidate], number: int
    ) -> list[list[Term]]:
        del number
        return [list(self._terms(candidate)) for candidate in candidates]

    def scored(self, candidate: EncodedCandidate) -> int:
        return len(candidate.ids) - candidate.start

    def _terms(self, candidate: EncodedCandidate) -> Iterator[Term]:
        ids, n = candidate.ids, len(candidate.ids)
        places = np.arange(candidate.start, n)
        rows = np.where(np.arange(n) < places[:, None], ids, np.int32(self.mask_id))
        for i, (place, row) in enumerate(zip(places.tolist(), rows, strict=True)):
            noise = noise_level(n - place, n)
            yield Term(Probe(row, places[i : i + 1], ids[place : place + 1], noise))


@dataclasses.dataclass(frozen=True)
class Bound:
    """The bound of masked diffusion on log p(completion | prefix), from few draws.

    Each draw masks an exact number l of the completion's n ids, which then weigh n / l
    (LLaDA, Nie et al. 2025, equation 6); the numbers of an item's draws are spread
    evenly over 1..n. The candidates of an item share their draws: the same shares of
    ids, and in what begins or ends all of them alike the same ids come first. So what
    they have in common adds little noise to how they compare.

    Attributes:
      draws: masks per candidate; a completion of one id takes one.
      seed: another gives other masks.
    """

    mask_id: int
    draws: int
    seed: int = 0
    name: str = "elbo"
    reads_last: bool = True

    def terms(
        self, candidates: Sequence[EncodedCandidate], number: int
    ) -> list[list[Term]]:
        generator = np.random.default_rng([self.seed, number])
        ends = [each.ids[each.start :] for each in candidates]
        head, tail = _common(ends), _common([end[::-1] for end in ends])
        shortest = min(map(len, ends))
        tail = min(tail, shortest - head)
        start = generator.random()
        places = (np.arange(self.draws) + start) / self.draws
        found: list[list[Term]] = [[] for _ in candidates]
        most = max(map(len, ends))
        for place in places:
            order = generator.random(most + tail)
            for terms, candidate in zip(found, candidates, strict=True):
                n = len(candidate.ids) - candidate.start
                if n > 1 or not terms:
                    ranks = np.concatenate([order[: n - tail], order[most:]])
                    draws = self.draws if n > 1 else 1
                    terms.append(self._term(candidate, ranks, place, draws))
        return found

    def scored(self, candidate: EncodedCandidate) -> int:
        return len(candidate.ids) - candidate.start

    def _term(
        self, candidate: EncodedCandidate, order: np.ndarray, place: float, draws: int
    ) -> Term:
        """One draw: the ids that come first in `order` are masked."""
        n = len(order)
        count = min(int(place * n) + 1, n)
        masked = candidate.start + np.argsort(order)[:count]
        row = candidate.ids.copy()
        row[masked] = self.mask_id
        probe = Probe(row, masked, candidate.ids[masked], noise_level(count, n))
        return Term(probe, n / count / draws)


def _common(rows: Sequence[np.ndarray]) -> int:
    """How many ids all rows begin with alike."""
    shortest = min(map(len, rows))
    first = rows[0][:shortest]
    alike = np.logical_and.reduce([row[:shortest] == first for row in rows])
    return shortest if alike.all() else int(np.argmin(alike))


@functools.cache
def noise_level(masks: int, tokens: int) -> float:
    """What a model is told where so many of a row's tokens are masks."""
    return float(sigma(np.float32(masks / tokens)))


def build_backend(
    config: EvaluateConfig, *, causal: bool, mask_id: int, seed: int = 0
) -> Backend:
    """The backend of a config for a model that is causal, or else masked diffusion.

    Raises:
      ConfigError: the model can't be scored this way.
    """
    kind = config.backend
    if kind is ZeroShotBackend.AUTO:
        kind = ZeroShotBackend.CAUSAL if causal else ZeroShotBackend.MLM
    if causal is not (kind is ZeroShotBackend.CAUSAL):
        says = "sees no later token" if causal else "sees later tokens, too"
        raise ConfigError(
            f"a model that {says} can't be scored this way",
            where=f"evaluate.backend={kind.value}",
            remedy="--config.evaluate.backend=auto takes one that fits",
        )
    match kind:
        case ZeroShotBackend.MLM:
            return Pseudo(mask_id)
        case ZeroShotBackend.MLM_UNTIMED:
            return Pseudo(mask_id, timed=False, name=kind.value)
        case ZeroShotBackend.MNTP:
            return Pseudo(mask_id, shift=1, name=kind.value)
        case ZeroShotBackend.ELBO:
            return Bound(mask_id, config.elbo_draws, seed)
        case ZeroShotBackend.CHAIN:
            return Chain(mask_id)
        case _:
            return Causal()
