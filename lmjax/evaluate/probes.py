"""Log-probabilities of chosen tokens at chosen places of many rows, as one program.

What scores items needs nothing else of a model: a row as the model reads it, the places
whose prediction is read, and the id that is scored at each. Rows of about one length
share a batch, and only the states at the places meet the vocabulary: a row of a
pseudo-log-likelihood costs one row of logits, not one for each of its tokens.
"""

import collections
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from lmjax.core.types import LanguageModel, PyTree
from lmjax.parallel import hosts, rules

# Tokens of a batch per device, padding included, and logits that exist at once: what
# keeps a device busy, and on a CPU stays near its caches.
BATCH_TOKENS = {"cpu": 4_096}
CHUNK_TOKENS = {"cpu": 256}
MANY_TOKENS, MANY_CHUNK_TOKENS = 32_768, 4_096  # of any other device
SMALL_SHARE = 8  # a batch that is filled to less than 1/8 takes a shape of that size
LENGTH_MULTIPLE = 8
AHEAD = 1  # batches in the queue beyond the one that runs


class Probe(NamedTuple):
    """One row, and what is asked of it.

    Attributes:
      inputs: ids [l] of the row as the model reads it, without padding.
      places: positions [m] in the row whose hidden states are read; at most one for
        each input, in any order. May be empty.
      targets: ids [m], the one whose probability is asked for at each place.
      sigma: noise level, for a model that is conditioned on time.
    """

    inputs: Sequence[int] | np.ndarray
    places: Sequence[int] | np.ndarray
    targets: Sequence[int] | np.ndarray
    sigma: float = 0.0


class _Batch(NamedTuple):
    """Rows of one shape, with the places asked of each of N parts of the batch.

    Attributes:
      tokens_BL: int32.
      lengths_B: int32, at least 1.
      sigma_B: float32.
      row_NP: int32, the row within its part.
      place_NP, target_NP: int32. What is behind the places asked is never looked at,
        but for the rest of a chunk.
    """

    tokens_BL: Any
    lengths_B: Any
    sigma_B: Any
    row_NP: Any
    place_NP: Any
    target_NP: Any


class _Plan(NamedTuple):
    """Which probes a batch holds, and its shape: rows, and tokens of each."""

    members: np.ndarray
    num_rows: int
    length: int


class _Places(NamedTuple):
    """Where the places of a batch's probes are among those of its parts.

    Attributes:
      part, index: int [all places], in the order of the probes.
      counts: int [probes], places of each.
      most: places of the part that has most.
    """

    part: np.ndarray
    index: np.ndarray
    counts: np.ndarray
    most: int


class Prober:
    """Scores probes, compiled once for each shape of a batch.

    A row is one document: it attends to all of itself, or to what came before where
    the model is causal. That is what runs with a mask of documents ask for, too.

    Args:
      bind: parameters -> model.
      mesh: where batches go.
      max_length: most tokens of a row that the model takes.
      pad_id: what fills rows up; never seen by other tokens.
      causal: whether the model sees no later token.
      silent: ids that get no probability, besides those that the model never predicts.
      batch_tokens: tokens of a batch over all devices, padding included; 0: by device.
      chunk_tokens: tokens per device whose logits exist at once; 0: by device.

    Attributes:
      shapes: shapes of batches so far (rows, tokens of each): programs compiled.
    """

    def __init__(
        self,
        bind: Callable[[PyTree], LanguageModel],
        mesh: Mesh,
        *,
        max_length: int,
        pad_id: int,
        causal: bool,
        silent: Sequence[int] = (),
        batch_tokens: int = 0,
        chunk_tokens: int = 0,
    ):
        platform = mesh.devices.flat[0].platform
        self.max_length, self.mesh = max_length, mesh
        self.shapes: set[tuple[int, int]] = set()
        self._pad_id, self._causal = pad_id, causal
        self._parts = math.prod(mesh.shape[axis] for axis in rules.BATCH_AXES)
        each = BATCH_TOKENS.get(platform, MANY_TOKENS)
        self._batch_tokens = batch_tokens or each * self._parts
        chunk = chunk_tokens or CHUNK_TOKENS.get(platform, MANY_CHUNK_TOKENS)
        self._chunk = chunk
        never = np.array(sorted(silent), np.int32)

        def score(params: PyTree, batch: _Batch, most: jax.Array) -> jax.Array:
            lengths_B = None if causal else batch.lengths_B
            model = bind(params)
            hidden_BLD = model(
                batch.tokens_BL, lengths_B=lengths_B, sigma_B=batch.sigma_B
            )
            return _log_probabilities(model, hidden_BLD, batch, most, chunk, never)

        self._score = jax.jit(score, out_shardings=rules.replicated(mesh))

    def __call__(self, params: PyTree, probes: Sequence[Probe]) -> list[np.ndarray]:
        """log p(target) at each place of each probe: float32 [m], in nats.

        The other probes of the call do not matter to any, but for rounding.

        Raises:
          ValueError: a row is empty or longer than the model takes, a probe asks for
            more places than its row has tokens or for one outside of it.
        """
        if not probes:
            return []
        lengths = np.fromiter((len(probe.inputs) for probe in probes), np.int64)
        counts = np.fromiter((len(probe.places) for probe in probes), np.int64)
        self._check(probes, lengths, counts)
        found: list[np.ndarray] = [np.zeros(0, np.float32)] * len(probes)
        queue: collections.deque[tuple[Any, ...]] = collections.deque()
        for plan in self._plans(lengths, counts):
            batch, places = self._batch([probes[i] for i in plan.members], plan)
            self.shapes.add((plan.num_rows, plan.length))
            result = self._score(params, batch, np.int32(places.most))
            queue.append((plan.members, places, result))
            if len(queue) > AHEAD:
                _collect(found, *queue.popleft())
        while queue:
            _collect(found, *queue.popleft())
        return found

    def _check(
        self, probes: Sequence[Probe], lengths: np.ndarray, counts: np.ndarray
    ) -> None:
        wrong = (lengths < 1) | (lengths > self.max_length) | (counts > lengths)
        if wrong.any():
            i = int(np.argmax(wrong))
            raise ValueError(
                f"probe {i} has {lengths[i]} tokens and {counts[i]} places: a row has "
                f"1 to {self.max_length} tokens and at most a place for each"
            )

    def _plans(self, lengths: np.ndarray, counts: np.ndarray) -> Iterator[_Plan]:
        """Cuts the probes into batches, from short to long.

        What does not fill a batch joins the next longer rows, where that costs less
        than a batch of its own.
        """
        padded = padded_lengths(lengths, self.max_length)
        order = np.lexsort((counts, padded))
        steps, begins = np.unique(padded[order], return_index=True)
        ends = [*begins[1:].tolist(), len(order)]
        rest = order[:0]
        for k, (length, begin, end) in enumerate(zip(steps, begins, ends, strict=True)):
            length = int(length)
            members = np.concatenate([rest, order[begin:end]])
            most = self._num_rows(length)
            full = len(members) - len(members) % most
            for start in range(0, full, most):
                yield _Plan(members[start : start + most], most, length)
            rest = members[full:]
            small = self._num_rows(length * SMALL_SHARE)
            num_rows = small if len(rest) <= small else most
            last = k + 1 == len(steps)
            if len(rest) and (last or len(rest) * steps[k + 1] > num_rows * length):
                yield _Plan(rest, num_rows, length)
                rest = order[:0]

    def _num_rows(self, length: int) -> int:
        """Rows of a full batch: the tokens it may have, and a multiple of the parts."""
        rows = max(1, self._batch_tokens // length)
        return max(rows - rows % self._parts, self._parts)

    def _batch(self, probes: Sequence[Probe], plan: _Plan) -> tuple[_Batch, _Places]:
        """The batch on the devices, and where its places are."""
        shape = (plan.num_rows, plan.length)
        lengths_B = np.zeros(plan.num_rows, np.int32)
        lengths_B[: len(probes)] = [len(probe.inputs) for probe in probes]
        tokens_BL = np.full(shape, self._pad_id, np.int32)
        real_BL = np.arange(plan.length) < lengths_B[:, None]
        tokens_BL[real_BL] = np.concatenate([probe.inputs for probe in probes])
        sigma_B = np.zeros(plan.num_rows, np.float32)
        sigma_B[: len(probes)] = [probe.sigma for probe in probes]
        each = plan.num_rows // self._parts  # rows of a part
        counts = np.array([len(probe.places) for probe in probes])
        rows = np.repeat(np.arange(len(probes)), counts)
        places = np.concatenate([probe.places for probe in probes])
        if np.any((places < 0) | (places >= lengths_B[rows])):
            raise ValueError("a probe asks for a place outside of its row")
        part = rows // each
        sizes_N = np.bincount(part, minlength=self._parts)
        index = np.arange(len(rows)) - (np.cumsum(sizes_N) - sizes_N)[part]
        chunk = min(self._chunk, each * plan.length)
        room = math.ceil(each * plan.length / chunk) * chunk

        def laid_out(values: np.ndarray) -> np.ndarray:
            array_NP = np.zeros((self._parts, room), np.int32)
            array_NP[part, index] = values
            return array_NP

        batch = _Batch(
            tokens_BL=tokens_BL,
            lengths_B=np.maximum(lengths_B, 1),
            sigma_B=sigma_B,
            row_NP=laid_out(rows % each),
            place_NP=laid_out(places),
            target_NP=laid_out(np.concatenate([probe.targets for probe in probes])),
        )
        batch = jax.tree.map(self._local, batch)
        batch = hosts.to_global(batch, rules.batch_sharding(self.mesh))
        return batch, _Places(part, index, counts, int(sizes_N.max(initial=0)))

    def _local(self, leaf: np.ndarray) -> np.ndarray:
        return leaf[hosts.local_rows(self.mesh, len(leaf))]


def padded_lengths(lengths: np.ndarray, max_length: int) -> np.ndarray:
    """Lengths that share a program: multiples of 8, beyond 64 four per octave."""
    octave = np.ceil(np.log2(np.maximum(lengths, 1))).astype(np.int64)
    step = np.maximum(LENGTH_MULTIPLE, 2 ** np.maximum(octave - 3, 0))
    return np.minimum(-(-lengths // step) * step, max_length)


def _log_probabilities(
    model: LanguageModel,
    hidden_BLD: jax.Array,
    batch: _Batch,
    most: jax.Array,
    chunk: int,
    silent: np.ndarray,
) -> jax.Array:
    """log p(target), float32 [N, P], of the first `most` places of each part.

    Each part reads its own states alone, and only as many chunks as hold places.
    """
    parts, room = batch.row_NP.shape
    chunk = min(chunk, room)
    hidden_NBLD = hidden_BLD.reshape(parts, -1, *hidden_BLD.shape[1:])

    def cut(array_NP: jax.Array, start: jax.Array) -> jax.Array:
        return jax.lax.dynamic_slice_in_dim(array_NP, start, chunk, axis=1)

    def step(i: jax.Array, found_NP: jax.Array) -> jax.Array:
        start = i * chunk
        chosen_NCD = jax.vmap(lambda hidden, row, place: hidden[row, place])(
            hidden_NBLD, cut(batch.row_NP, start), cut(batch.place_NP, start)
        )
        logits = model.logits(chosen_NCD).astype(jnp.float32)
        if silent.size:
            logits = logits.at[..., silent].set(-jnp.inf)
        targets = cut(batch.target_NP, start)[..., None]
        target_NC = jnp.take_along_axis(logits, targets, axis=-1)[..., 0]
        values = target_NC - jax.nn.logsumexp(logits, axis=-1)
        return jax.lax.dynamic_update_slice_in_dim(found_NP, values, start, axis=1)

    empty = jnp.zeros((parts, room), jnp.float32)
    return jax.lax.fori_loop(0, (most + chunk - 1) // chunk, step, empty)


def _collect(
    found: list[np.ndarray], members: np.ndarray, places: _Places, result: jax.Array
) -> None:
    """Waits for a batch, and shares its values out to its probes."""
    values = np.asarray(result)[places.part, places.index]
    ends = np.cumsum(places.counts)
    begins = ends - places.counts
    for i, begin, end in zip(
        members.tolist(), begins.tolist(), ends.tolist(), strict=True
    ):
        found[i] = values[begin:end]
