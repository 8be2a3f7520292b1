"""What all tokenizers share: special ids, and how ids and text belong together."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from lmjax.core.errors import UserError

# Under these names a vocabulary may hold a special id, the usual one first.
_NAMES = {
    "eos": ("</s>", "[EOS]", "[SEP]", "<eos>", "<|endoftext|>", "<|end_of_text|>"),
    "unk": ("<unk>", "[UNK]"),
    "bos": ("<s>", "[BOS]", "[CLS]", "<bos>", "<|begin_of_text|>"),
    "pad": ("<pad>", "[PAD]", "<|pad|>"),
    "mask": ("<mask>", "[MASK]"),
}
# Control pictures, as in the BabyLM tokenizers of GPT-BERT: one alone is a character.
_PICTURES = {
    "eos": "\u2403",
    "unk": "\u2426",
    "bos": "\u2402",
    "pad": "\u2422",
    "mask": "\u2425",
}
_APPENDED = ("mask", "bos", "pad", "eos", "unk")  # in this order

# Whatever a model may do to text: normal forms, case, accents, blanks and line ends at
# every place, control characters, its own marks, bytes beyond the first plane.
_TRAPS = (
    "  a  \u00a0\tB\r\n\n\r \ufb01 \uff21 e\u0301 \u00e9 \u00c5 \u3000 \u2126 \x00 x ",
    "\u2581 a\u2581b \u2585 \ufffd \U0001f600\u200d\u2764\ufe0f \u201cIt's\u201d ",
    " don 't , . 123456 \u0660\u0967 \u8a9e\u8a9e \u0e33 \ufeff\x7f\x85\u2028\xad\n",
    "\u2402\u2403\u2422\u2423\u2424\u2425\u2426 \u0120\u010a ##a @@ </w> <0x41>",
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class SpecialIds:
    """Ids with a meaning of their own, all distinct; the only home of these numbers."""

    unk: int
    bos: int
    eos: int
    pad: int
    mask: int


def find_special(find: Callable[[str], int | None]) -> dict[str, int]:
    """Looks in a vocabulary for the special ids under their usual names.

    Args:
      find: gives the id of a name, or None.
    """
    found = {}
    for role, names in _NAMES.items():
        ids = [index for name in names if (index := find(name)) is not None]
        if ids:
            found[role] = ids[0]
    pictures = {role: find(name) for role, name in _PICTURES.items()}
    if not found and None not in pictures.values():
        return pictures
    return found


def complete_special(found: Mapping[str, int], size: int) -> SpecialIds:
    """Gives every role an id of its own: what is missing is appended.

    Args:
      found: ids of the vocabulary by role. Where two roles share one, it is that of
        EOS, then of unk, bos, pad.
      size: number of ids of the vocabulary; the first appended id.
    """
    ids: dict[str, int] = {}
    for role in _NAMES:
        if role in found and found[role] not in ids.values():
            ids[role] = found[role]
    for role in _APPENDED:
        if role not in ids:
            ids[role] = size
            size += 1
    return SpecialIds(**ids)


class Vocabulary:
    """The ids of a tokenizer, and the text of each.

    Attributes:
      size: number of ids, the appended ones included.
      special: the special ids.
      pieces: text of each id, as `Tokenizer.piece_bytes`.
      complete: whether every byte has a piece, so that any text can be spelled.
    """

    def __init__(
        self, pieces: Sequence[bytes], special: SpecialIds, reserved: Sequence[int] = ()
    ):
        """Takes the text of each id of the model.

        Args:
          reserved: ids that text never holds, besides the special ones.
        """
        roles = dataclasses.astuple(special)
        self._silent = {*roles, *reserved}
        self._unk_is_appended = special.unk >= len(pieces)
        self.size = max(len(pieces), *(i + 1 for i in roles))
        self.special = special
        self.pieces = tuple(
            b"" if i in self._silent else pieces[i] for i in range(self.size)
        )
        self._byte_ids = {p: i for i, p in enumerate(self.pieces) if len(p) == 1}
        self.complete = len(self._byte_ids) == 256
        self._forbidden = np.zeros(self.size, bool)
        self._forbidden[list(self._silent - {special.unk})] = True
        # Pieces that are blank may stand for nothing, see `align`.
        self._blank = np.array([p.isspace() for p in self.pieces])

    def unpredictable(self, lossless: bool) -> tuple[int, ...]:
        """Ids a model never predicts: text never holds them, nor do they end it."""
        special = self.special
        ids = self._silent - {special.eos, special.unk}
        if lossless and self._unk_is_appended:  # then nothing is ever encoded as it
            ids.add(special.unk)
        return tuple(sorted(ids))

    def bytes_of(self, ids: Sequence[int] | np.ndarray) -> bytes:
        """The text that ids spell; special ids are no text."""
        return b"".join(map(self.pieces.__getitem__, np.asarray(ids).tolist()))

    def without_special(self, ids: Sequence[int] | np.ndarray) -> list[int]:
        """Leaves out special and reserved ids."""
        return [i for i in np.asarray(ids).tolist() if i not in self._silent]

    def spell_names(
        self, ids: np.ndarray, names: Callable[[int], str | None] | None
    ) -> np.ndarray:
        """Replaces special ids but unk: text that looks like their names is text.

        Args:
          ids: int32 [n], as the model encodes a text.
          names: gives the text that was read as a special id; None makes it unk.

        Returns:
          ids of the bytes of these names, or unk, in their place; int32 [m].
        """
        at = np.flatnonzero(self._forbidden[ids])
        if not len(at):
            return ids
        parts, end = [], 0
        for i in at:
            name = names(int(ids[i])) if names else None
            new = [self.special.unk] if name is None else self.spell(name)
            parts += [ids[end:i], np.array(new, np.int32)]
            end = i + 1
        return np.concatenate([*parts, ids[end:]])

    def spell(self, text: str) -> list[int]:
        """Ids of its bytes one by one, of a complete vocabulary."""
        return [self._byte_ids[bytes([byte])] for byte in text.encode()]

    def align(
        self, text: str, ids: np.ndarray, ends: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """Shares out the bytes of a text among ids that were read from it.

        Args:
          ids: int32 [n].
          ends: int [n], where in `text` each id ends, in characters.

        Returns:
          The ids, just unk if there are none for a text, and int64 bytes of each; they
          sum to those of the text. What has no id of its own belongs to the next.
        """
        if not len(ids) and text:
            ids, ends = np.array([self.special.unk], np.int32), np.array([len(text)])
        if not len(ids):
            return ids, np.zeros(0, np.int64)
        ends = np.maximum.accumulate(ends.astype(np.int64))
        ends[-1] = len(text)
        # A blank that the model put in front of a word must not take its beginning.
        for i in np.flatnonzero(self._blank[ids[:-1]]):
            start = ends[i - 1] if i else 0
            if not (text[start : ends[i]] or " ").isspace():
                ends[i] = start
        if text.isascii():
            return ids, np.diff(ends, prepend=0)
        points = np.frombuffer(text.encode("utf-32-le"), "<u4")
        sizes = np.ones(len(points), np.int64)
        for least in (2**7, 2**11, 2**16):
            sizes += points >= least
        byte_ends = np.concatenate([[0], np.cumsum(sizes)])[ends]
        return ids, np.diff(byte_ends, prepend=0)


def keeps_text(encode: Callable[[str], np.ndarray], vocabulary: Vocabulary) -> bool:
    """Whether what encodes texts full of traps spells them."""
    return vocabulary.complete and all(
        vocabulary.bytes_of(encode(text)) == text.encode() for text in _TRAPS
    )


def not_unicode(texts: Sequence[str]) -> UserError:
    bad = next((t for t in texts if any("\ud800" <= c <= "\udfff" for c in t)), "")
    return UserError(
        f"A text is not valid Unicode: {bad[:40]!r}.",
        remedy="give it as UTF-8 (a terminal set to another encoding causes this).",
    )
