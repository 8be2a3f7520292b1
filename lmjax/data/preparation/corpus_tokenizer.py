"""The tokenizer of a corpus: named by the config, trained before, or trained now."""

import contextlib
import itertools
from collections.abc import Iterator, Sequence
from pathlib import Path

from absl import logging

from lmjax.config.schema import TokenizerConfig, TokenizerKind
from lmjax.core.errors import UserError
from lmjax.core.files import replacing
from lmjax.data.preparation.cache import short_hash
from lmjax.data.preparation.cleaning import Cleaner
from lmjax.data.preparation.corpus import Corpus, Readers
from lmjax.data.preparation.scanning import Piece, pieces
from lmjax.data.preparation.splits import TRAIN, Assignment
from lmjax.data.tokenization.encoding import check_match
from lmjax.data.tokenization.tokenizers import (
    Tokenizer,
    load_tokenizer,
    tokenizer_from_bytes,
)
from lmjax.data.tokenization.training import train_tokenizer, training_key

_LOOKED_AT = 100  # pieces of a source, for text that a tokenizer does not keep


class CorpusTokenizer:
    """Finds or makes the tokenizer of one corpus.

    Args:
      config: names a tokenizer, or says what to train.
      contents: everything that decides which text is trained on.
      cache_dir: trained tokenizers stand in its folder `tokenizers`.

    Attributes:
      named: the one that `config` names; None if one is to be trained.
    """

    def __init__(self, config: TokenizerConfig, cache_dir: Path):
        trains = not config.path and config.kind is not TokenizerKind.BYTES
        self.named = None if trains else load_tokenizer(config)
        self._config, self._folder = config, cache_dir / "tokenizers"

    def find(self, contents: dict) -> Tokenizer | None:
        """The tokenizer without any work on the corpus, if that is possible."""
        if self.named is not None:
            return self.named
        # One that is damaged is trained again.
        with contextlib.suppress(UserError, FileNotFoundError):
            return tokenizer_from_bytes(self._file(contents).read_bytes())
        return None

    def train(
        self, contents: dict, corpus: Corpus, assignment: Assignment, cleaner: Cleaner
    ) -> Tokenizer:
        """Trains on the training documents, and keeps the result."""
        texts = (
            piece.clean_prompt(cleaner) + piece.clean_text(cleaner)
            for piece, place in _placed(corpus.train, assignment)
            if place == TRAIN
        )
        model = train_tokenizer(self._config, texts)
        file = self._file(contents)
        file.parent.mkdir(parents=True, exist_ok=True)
        with replacing(file) as temporary:
            temporary.write_bytes(model)
        logging.info("Trained the tokenizer %s", file)
        return tokenizer_from_bytes(model)

    def _file(self, contents: dict) -> Path:
        key = short_hash([contents, training_key(self._config)])
        return self._folder / f"{self._config.kind.value}-{key}.model"


def _placed(sources: Readers, assignment: Assignment) -> Iterator[tuple[Piece, int]]:
    """All pieces of the training files, each with what becomes of its document."""
    for source, readers in sources.items():
        files = assignment.places["train"][source]
        for reader, places in zip(readers, files, strict=True):
            document = -1
            for piece in pieces(reader):
                document += piece.begins
                yield piece, int(places[document])


def check_tokenizer(tokenizer: Tokenizer, sources: Readers) -> None:
    """Holds a tokenizer against the first documents of each source.

    Where decoding does not give their text back, it says so with an example.

    Raises:
      UserError: ids of pre-tokenised input are not this tokenizer's.
    """
    for source, readers in sources.items():
        first = itertools.chain.from_iterable(map(pieces, readers))
        first = list(itertools.islice(first, _LOOKED_AT))
        if any(not isinstance(piece.content, str) for piece in first):
            check_match(tokenizer, [piece.content for piece in first], source)
        elif not tokenizer.lossless:
            prompts = [piece.prompt.text for piece in first if piece.prompt]
            texts = [piece.content for piece in first]
            _warn_if_lossy(tokenizer, source, [*prompts, *texts])


def _warn_if_lossy(tokenizer: Tokenizer, source: str, texts: Sequence[str]) -> None:
    for text in texts:
        text = text[:2000]
        decoded = tokenizer.decode(tokenizer.encode(text))
        if decoded != text:
            pairs = enumerate(zip(text, decoded, strict=False))
            shorter = min(len(text), len(decoded))
            at = next((i for i, (a, b) in pairs if a != b), shorter)
            logging.warning(
                "The tokenizer does not keep the text of %s: %r becomes %r. Words and "
                "bytes are counted in the text itself.",
                source,
                text[max(at - 10, 0) : at + 20],
                decoded[max(at - 10, 0) : at + 20],
            )
            return
