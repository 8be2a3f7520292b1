"""Models that read generated texts: one of Hugging Face, or a causal run of lmjax."""

import collections
import contextlib
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from lmjax.core import extras
from lmjax.core.errors import UserError
from lmjax.core.types import PyTree
from lmjax.data.tokenization.tokenizers import Tokenizer
from lmjax.evaluate.completions import Completion, score_completions
from lmjax.evaluate.likelihood import Scorer


class Window(NamedTuple):
    """Tokens [start, stop) of a text, of which those from `counted` on count."""

    start: int
    counted: int
    stop: int


def windows(length: int, first: int, size: int) -> Iterator[Window]:
    """Windows in which each of the tokens [first, length) counts once.

    Where a text is longer than `size`, each further window begins half a window after
    the one before: what counts in it sees half a window or more.
    """
    window = Window(0, first, min(length, size))
    while window.counted < window.stop:
        yield window
        start = window.start + max(size // 2, 1)
        window = Window(start, window.stop, min(length, start + size))


class LmjaxJudge:
    """A causal model of lmjax.

    Args:
      scorer: of an exact likelihood.
      opening: ids that stand before the text of a document, as in training.
      max_length: most tokens of a row that the model takes.
      document_mask: whether attention stays within documents, as in training.

    Raises:
      ValueError: the scorer's figures are bounds.
    """

    def __init__(
        self,
        scorer: Scorer,
        params: PyTree,
        tokenizer: Tokenizer,
        *,
        name: str,
        opening: Sequence[int],
        max_length: int,
        document_mask: bool = False,
    ):
        if scorer.objective.kind != "exact":
            raise ValueError(
                f"the judge {name!r} gives an {scorer.objective.kind}; a judge must be "
                "an autoregressive model, whose likelihood is exact"
            )
        self.name = name
        self.counted = "every token, the first after the opening of a document"
        self._scorer, self._params, self._tokenizer = scorer, params, tokenizer
        self._opening, self._max_length = tuple(opening), max_length
        self._document_mask = document_mask

    def nll(self, texts: Sequence[str]) -> list[tuple[float, int]]:
        """See `Judge`; longer texts go by `windows`."""
        owners, pieces = [], []
        for owner, encoded in enumerate(self._tokenizer.encode_ids(texts)):
            ids = [*self._opening, *encoded.tolist()]
            for start, counted, stop in windows(
                len(ids), len(self._opening), self._max_length
            ):
                owners.append(owner)
                pieces.append(Completion(ids[start:counted], ids[counted:stop]))
        special = self._tokenizer.special
        found = score_completions(
            self._scorer,
            self._params,
            pieces,
            opening=(),
            eos_id=special.eos,
            pad_id=special.pad,
            max_length=self._max_length,
            end=False,
            document_mask=self._document_mask,
        )
        nats, counts = np.zeros(len(texts)), np.zeros(len(texts), np.int64)
        np.add.at(nats, owners, [piece.nll for piece in found])
        np.add.at(counts, owners, [piece.tokens for piece in found])
        return list(zip(nats.tolist(), counts.tolist(), strict=True))


class HuggingFaceJudge:
    """A causal model of Hugging Face, in float32, with its own tokenizer.

    A text ends with its first EOS, which counts. Where the tokenizer has a BOS it
    stands before the text, and every token counts; otherwise the first does not.

    Args:
      model: a folder, or a name on the hub.
      context: most tokens of a window, 2 or more; 0 is what the model says.
      batch_size: windows per batch, whose logits are in memory at once.
      device: of torch; the default leaves the accelerator to jax.

    Raises:
      UserError: torch or transformers is missing, or there is no such model.
    """

    def __init__(
        self, model: str, *, context: int = 0, batch_size: int = 4, device: str = "cpu"
    ):
        what = "A Hugging Face judge"
        self._torch = extras.require("torch", extra="judge", what=what)
        transformers = extras.require("transformers", extra="judge", what=what)
        try:
            self._tokenizer = transformers.AutoTokenizer.from_pretrained(model)
            loaded = transformers.AutoModelForCausalLM.from_pretrained(model)
        except (OSError, ValueError) as error:
            raise UserError(
                f"The judge can't be loaded: {error}",
                where=repr(model),
                remedy="name a folder with a causal language model and its tokenizer, "
                "or one on the Hugging Face hub.",
            ) from error
        self._model = loaded.float().eval().to(device)
        self._device, self._batch_size = device, batch_size
        # A window of one token has nothing to predict it from.
        self._context = max(2, context or _context(loaded.config, self._tokenizer))
        self.name = model
        has_bos = self._tokenizer.bos_token_id is not None
        first = "every token, the first after BOS" if has_bos else "all but the first"
        self.counted = f"{first}; up to the first EOS"

    def nll(self, texts: Sequence[str]) -> list[tuple[float, int]]:
        """See `Judge`; longer texts go by `windows`."""
        pending: list[tuple[int, list[int], int]] = []
        for owner, text in enumerate(texts):
            ids = self._encode(text)
            for start, counted, stop in windows(len(ids), 1, self._context):
                pending.append((owner, ids[start:stop], counted - start))
        # Windows of a length side by side; longest first, so that memory runs out at
        # once or never.
        pending.sort(key=lambda item: -len(item[1]))
        nats = collections.Counter({owner: 0.0 for owner in range(len(texts))})
        counts: collections.Counter[int] = collections.Counter()
        for first in range(0, len(pending), self._batch_size):
            chosen = pending[first : first + self._batch_size]
            costs = self._costs([ids for _, ids, _ in chosen])
            for (owner, ids, counted), cost in zip(chosen, costs, strict=True):
                nats[owner] += float(cost[counted - 1 : len(ids) - 1].sum())
                counts[owner] += len(ids) - counted
        return [(nats[owner], counts[owner]) for owner in range(len(texts))]

    def _encode(self, text: str) -> list[int]:
        """BOS, if there is one, and the text up to its first EOS."""
        bos, eos = self._tokenizer.bos_token_id, self._tokenizer.eos_token_id
        with _quiet(self._tokenizer):
            ids = self._tokenizer(text, add_special_tokens=False)["input_ids"]
        if bos is not None:
            ids = ids[1:] if ids[:1] == [bos] else ids
        if eos in ids:
            ids = ids[: ids.index(eos) + 1]
        return ids if bos is None else [bos, *ids]

    def _costs(self, rows: Sequence[list[int]]) -> np.ndarray:
        """Nats of each token but the first; behind the end of a row they mean nothing.

        Padding stands on the right, where a causal model does not see it.
        """
        torch = self._torch
        length = max(map(len, rows))
        tokens = torch.zeros((len(rows), length), dtype=torch.long)
        real = torch.zeros((len(rows), length), dtype=torch.long)
        for i, ids in enumerate(rows):
            tokens[i, : len(ids)] = torch.tensor(ids)
            real[i, : len(ids)] = 1
        tokens, real = tokens.to(self._device), real.to(self._device)
        with torch.inference_mode():
            logits = self._model(input_ids=tokens, attention_mask=real).logits
            costs = torch.nn.functional.cross_entropy(
                logits[:, :-1].transpose(1, 2).float(), tokens[:, 1:], reduction="none"
            )
        return costs.cpu().numpy().astype(np.float64)


def _context(config: Any, tokenizer: Any) -> int:
    """Most tokens that a model of Hugging Face takes."""
    given = [
        getattr(config, "max_position_embeddings", None),
        getattr(tokenizer, "model_max_length", None),  # huge where it is not known
    ]
    known = [number for number in given if number]
    return int(min(known)) if known else 1024


@contextlib.contextmanager
def _quiet(tokenizer: Any) -> Iterator[None]:
    """Tokenizers warn of texts beyond the context, which go by windows here."""
    before = tokenizer.model_max_length
    tokenizer.model_max_length = 10**30
    try:
        yield
    finally:
        tokenizer.model_max_length = before
