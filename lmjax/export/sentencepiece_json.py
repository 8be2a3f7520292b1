"""A SentencePiece model as the content of a tokenizer.json, with the same ids.

Pieces stand there with real blanks rather than with U+2581: then no normalizer is
needed, U+2581 in a text is a character like any other, and places in the text are told
exactly. What Hugging Face's library cannot express is refused.

Three things differ all the same. A unigram model of SentencePiece adds up scores over
the whole text in single precision, Hugging Face's in double: in texts of thousands of
tokens, and in runs such as "-----", it may be another of almost equal segmentations.
Broken UTF-8, which only generated ids spell, may be shown by another number of U+FFFD.
And a model that rewrites characters (such as nmt_nfkc, which lmjax never trains) is
followed but for a combining mark behind a rewritten one: Hugging Face's library loses
that mark.
"""

import base64
import dataclasses
import struct
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from lmjax.core.errors import UserError

_SPACE_MARK = "\u2581"
_NORMAL, _UNKNOWN, _CONTROL, _USER_DEFINED, _UNUSED, _BYTE = 1, 2, 3, 4, 5, 6
_UNIGRAM, _BPE, _CHAR = 1, 2, 4
_ALL = 2**31  # more blanks than a text has


@dataclasses.dataclass(frozen=True)
class Piece:
    """One id: its text with real blanks, or its name; score and kind."""

    text: str
    score: float
    kind: int


@dataclasses.dataclass(frozen=True, kw_only=True)
class SentencePieceModel:
    """What a .model file says, as far as it shapes ids."""

    pieces: tuple[Piece, ...]
    model_type: int
    byte_fallback: bool
    space_as_suffix: bool
    character_map: bytes
    dummy_prefix: bool
    remove_extra_spaces: bool
    escape_spaces: bool

    @property
    def is_unigram(self) -> bool:
        return self.model_type == _UNIGRAM


def read_model(data: bytes) -> SentencePieceModel:
    """Reads a serialized ModelProto; absent fields are what SentencePiece takes."""
    pieces, trainer, normalizer = [], {}, {}
    for number, value in _fields(data):
        match number:
            case 1:
                fields = dict(_fields(value))
                kind = fields.get(3, _NORMAL)
                text = fields.get(1, b"").decode()
                if kind in (_NORMAL, _USER_DEFINED, _UNUSED):
                    text = text.replace(_SPACE_MARK, " ")
                (score,) = struct.unpack("<f", fields.get(2, b"\0\0\0\0"))
                pieces.append(Piece(text, score, kind))
            case 2:
                trainer = dict(_fields(value))
            case 3:
                normalizer = dict(_fields(value))
    return SentencePieceModel(
        pieces=tuple(pieces),
        model_type=trainer.get(3, _UNIGRAM),
        byte_fallback=bool(trainer.get(35, 0)),
        space_as_suffix=bool(trainer.get(24, 0)),
        character_map=normalizer.get(2, b""),
        dummy_prefix=bool(normalizer.get(3, 1)),
        remove_extra_spaces=bool(normalizer.get(4, 1)),
        escape_spaces=bool(normalizer.get(5, 1)),
    )


def tokenizer_content(
    model: SentencePieceModel, names: Mapping[int, str], *, lossless: bool
) -> dict[str, Any]:
    """The content of a tokenizer.json, without added tokens and post-processor.

    Args:
      names: of the special ids, those appended behind the vocabulary included.
      lossless: whether every text is spelled as it is, U+2581 too; otherwise the model
        reads that as a blank.

    Raises:
      UserError: the model has what a tokenizer.json can't express.
    """
    _check(model)
    texts = [names.get(i, piece.text) for i, piece in enumerate(model.pieces)]
    texts += [names[i] for i in range(len(texts), max(names, default=-1) + 1)]
    if len(set(texts)) < len(texts):
        raise _refused("two pieces with the same text")
    splits = []
    if model.is_unigram:
        content: dict[str, Any] = _unigram(model, texts)
        splits = _splits(model, texts)
    else:
        content = _bpe(model, texts)
    pre_tokenizer = {"type": "Sequence", "pretokenizers": splits} if splits else None
    normalizers = [] if lossless else _normalizers(model)
    return {
        "version": "1.0",
        "normalizer": {"type": "Sequence", "normalizers": normalizers}
        if normalizers
        else None,
        "pre_tokenizer": pre_tokenizer,
        "decoder": {"type": "Sequence", "decoders": _decoders(model)},
        "model": content,
    }


def user_defined(model: SentencePieceModel) -> dict[int, str]:
    """Pieces that are one id wherever they stand, by id."""
    return {
        i: piece.text
        for i, piece in enumerate(model.pieces)
        if piece.kind == _USER_DEFINED
    }


def reserved(model: SentencePieceModel) -> dict[int, str]:
    """Names of ids that text never holds, by id."""
    return {
        i: piece.text
        for i, piece in enumerate(model.pieces)
        if piece.kind in (_CONTROL, _UNKNOWN)
    }


def _fields(data: bytes) -> Iterator[tuple[int, Any]]:
    """Fields of a protocol buffer message: numbers as int, the others as bytes."""
    at = 0

    def varint() -> int:
        nonlocal at
        value = shift = 0
        while True:
            byte = data[at]
            at += 1
            value |= (byte & 0x7F) << shift
            shift += 7
            if byte < 0x80:
                return value

    while at < len(data):
        tag = varint()
        match tag & 7:
            case 0:
                yield tag >> 3, varint()
                continue
            case 1:
                size = 8
            case 2:
                size = varint()
            case 5:
                size = 4
            case kind:
                raise ValueError(f"wire type {kind} at byte {at}")
        yield tag >> 3, data[at : at + size]
        at += size


def _check(model: SentencePieceModel) -> None:
    if model.model_type not in (_UNIGRAM, _BPE, _CHAR):
        raise _refused("words as its pieces (model_type word)")
    if any(piece.kind == _UNUSED for piece in model.pieces):
        raise _refused("unused pieces")
    if not model.escape_spaces:
        raise _refused("blanks that are not escaped (escape_whitespaces)")
    if model.space_as_suffix and model.dummy_prefix:
        raise _refused("a blank added behind the text (treat_whitespace_as_suffix)")
    if user_defined(model) and (model.dummy_prefix or model.remove_extra_spaces):
        raise _refused("user-defined pieces, and adds or removes blanks")
    if model.model_type == _BPE:
        scores = [
            p.score for p in model.pieces if p.kind == _NORMAL and len(p.text) > 1
        ]
        if len(set(scores)) < len(scores):
            raise _refused("merges of the same rank")


def _refused(what: str) -> UserError:
    return UserError(
        f"A tokenizer.json can't express this SentencePiece model: it has {what}.",
        where="tokenizer.model",
        remedy="train with a tokenizer that lmjax made, or with one that comes as "
        "tokenizer.json.",
    )


def _bpe(model: SentencePieceModel, texts: Sequence[str]) -> dict[str, Any]:
    vocabulary = {text: i for i, text in enumerate(texts)}
    learned = {p.text for p in model.pieces if p.kind == _NORMAL}
    ranked = sorted(
        (p for p in model.pieces if p.kind == _NORMAL), key=lambda p: -p.score
    )
    merges = [
        [piece.text[:cut], piece.text[cut:]]
        for piece in ranked
        for cut in range(1, len(piece.text))
        if piece.text[:cut] in learned and piece.text[cut:] in learned
    ]
    unknown = next(
        (texts[i] for i, p in enumerate(model.pieces) if p.kind == _UNKNOWN), None
    )
    return {
        "type": "BPE",
        "dropout": None,
        "unk_token": unknown,
        "continuing_subword_prefix": None,
        "end_of_word_suffix": None,
        "fuse_unk": True,
        "byte_fallback": model.byte_fallback,
        "ignore_merges": False,
        "vocab": vocabulary,
        "merges": [] if model.model_type == _CHAR else merges,
    }


def _unigram(model: SentencePieceModel, texts: Sequence[str]) -> dict[str, Any]:
    # What text never holds scores 0: the least score makes the cost of an unknown.
    scores = [p.score if p.kind == _NORMAL else 0.0 for p in model.pieces]
    scores += [0.0] * (len(texts) - len(scores))
    unknown = [i for i, p in enumerate(model.pieces) if p.kind == _UNKNOWN]
    return {
        "type": "Unigram",
        "unk_id": unknown[0] if unknown else None,
        "vocab": [list(pair) for pair in zip(texts, scores, strict=True)],
        "byte_fallback": model.byte_fallback,
    }


def _splits(model: SentencePieceModel, texts: Sequence[str]) -> list[dict[str, Any]]:
    """Cuts that keep a unigram model of Hugging Face to what SentencePiece does.

    It would read the names of special ids and bytes as these, wherever a text spells
    them: so each is cut where no learned piece reaches across. And it takes a run of
    unknown characters for one: so they are taken apart, which tells the bytes of one
    from those of the next.
    """
    learned = {p.text for p in model.pieces if p.kind == _NORMAL}
    pairs = {text[i : i + 2] for text in learned for i in range(len(text) - 1)}

    characters = set("".join(learned))

    def boundary(name: str, behind: str = "") -> str:
        def harm(cut: int) -> int:
            """2 for a learned piece across the cut, 1 for an unknown run."""
            sides = name[cut - 1 : cut + 1]
            return 2 * (sides in pairs) + (not characters.intersection(sides))

        cut = min(range(1, len(name)), key=harm)
        before, after = _escaped(name[:cut]), _escaped(name[cut:])
        return f"(?<={before})(?={after}{behind})"

    kinds = dict(zip(texts, (p.kind for p in model.pieces), strict=False))
    silent = [
        text
        for text in texts
        if len(text) > 1 and kinds.get(text, _CONTROL) in (_CONTROL, _UNKNOWN)
    ]
    cuts = [boundary(name) for name in silent]
    splits = []
    if model.byte_fallback:
        cuts.append(boundary("<0x", "[0-9A-F]{2}>"))
        known = "".join(_escaped(c) for c in sorted(characters))
        splits.append(_split(f"[^{known}]"))
    return [*splits, _split("|".join(cuts))] if cuts else splits


def _split(pattern: str) -> dict[str, Any]:
    return {
        "type": "Split",
        "pattern": {"Regex": pattern},
        "behavior": "Isolated",
        "invert": False,
    }


def _escaped(text: str) -> str:
    """The text in a pattern of Oniguruma, inside a set of characters or outside."""
    return "".join(c if c.isalnum() else f"\\x{{{ord(c):X}}}" for c in text)


def _normalizers(model: SentencePieceModel) -> list[dict[str, Any]]:
    def replace(pattern: dict[str, str], content: str) -> dict[str, Any]:
        return {"type": "Replace", "pattern": pattern, "content": content}

    found: list[dict[str, Any]] = []
    if model.character_map:
        encoded = base64.b64encode(model.character_map).decode()
        found.append({"type": "Precompiled", "precompiled_charsmap": encoded})
    if model.remove_extra_spaces:  # of marks only those at the end
        pattern = f"\\A +|(?<= ) +|[ {_SPACE_MARK}]+\\z"
        found.append(replace({"Regex": pattern}, ""))
    found.append(replace({"String": _SPACE_MARK}, " "))
    if model.dummy_prefix:
        found.append({"type": "Prepend", "prepend": " "})
    return found


def _decoders(model: SentencePieceModel) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = [{"type": "ByteFallback"}, {"type": "Fuse"}]
    if model.dummy_prefix or model.remove_extra_spaces:
        start = _ALL if model.remove_extra_spaces else 1
        found.append({"type": "Strip", "content": " ", "start": start, "stop": 0})
    return found
