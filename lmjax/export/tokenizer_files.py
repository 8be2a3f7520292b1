"""The tokenizer of a model as the files that transformers reads, with the same ids.

lmjax takes text as text, whatever it spells. transformers reads a special token where
the text spells its name, unless it is asked not to: `tokenizer(text,
split_special_tokens=True)` gives the ids of lmjax. That is not made the default here,
because evaluations write masks and openings into texts by their names.
"""

import itertools
import json
import types
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from lmjax.core.errors import UserError
from lmjax.data.tokenization import byte_tokenizer
from lmjax.data.tokenization.huggingface_tokenizer import tokenizers_library
from lmjax.data.tokenization.tokenizers import Tokenizer
from lmjax.export import sentencepiece_json

FILE = "tokenizer.json"
SENTENCEPIECE_FILE = "tokenizer.model"
# What an id is called that the vocabulary has no name for.
_DEFAULT_NAMES = types.MappingProxyType(
    {"unk": "<unk>", "bos": "<s>", "eos": "</s>", "pad": "<pad>", "mask": "<mask>"}
)
_ROUNDING = 1e-3  # of a sum of scores in single precision
# Encoded both ways before the files are given out: see `_check`.
_TRAPS = (
    "",
    " ",
    "The quick brown fox, don't you know?  He's 12345.6 years old...\n\nYes!",
    "  a  \u00a0\tB\r\n\n\r \ufb01 \uff21 e\u0301 \u00e9 \u00c5 \u3000 \u2126 x ",
    "\u2581 a\u2581b \u2585 \ufffd \U0001f600\u200d\u2764\ufe0f \u201cIt's\u201d ",
    "\u0660\u0967 \u8a9e\u8a9e \u0e33 \ufeff\x7f\x85\u2028\xad\n <0x41> a</w>b\t\t",
)


def tokenizer_files(
    tokenizer: Tokenizer, *, opening_id: int, max_length: int
) -> dict[str, bytes]:
    """Makes tokenizer.json, tokenizer_config.json and special_tokens_map.json.

    A text, or a pair of texts, gets one opening token and nothing at its end; EOS
    stands between the texts of a pair, as between documents in training. Also
    tokenizer.model for a tokenizer of SentencePiece.

    Args:
      opening_id: id before a text: BOS, or EOS for a model that never saw BOS, which is
        declared as bos_token then.
      max_length: longest input of the model, in tokens.

    Raises:
      UserError: a tokenizer.json cannot express this tokenizer, or the package
        tokenizers is not installed.
    """
    model = tokenizer.model_bytes
    is_sentencepiece = False
    if model == byte_tokenizer.MODEL_BYTES:
        names = _names(tokenizer, {})
        content = _byte_content(names)
    elif model.lstrip().startswith(b"{"):
        content = json.loads(model)
        names = _names(tokenizer, _vocabulary(content))
        _add_to_model(content["model"], names)
    else:
        is_sentencepiece = True
        content, names = _sentencepiece_content(tokenizer)
    special = tokenizer.special
    content |= {
        "truncation": None,
        "padding": None,
        "added_tokens": _added_tokens(content.get("added_tokens") or (), names),
        "post_processor": _post_processor(
            names[opening_id], opening_id, names[special.eos], special.eos
        ),
    }
    roles = {
        "bos_token": names[opening_id],
        "eos_token": names[special.eos],
        "unk_token": names[special.unk],
        "pad_token": names[special.pad],
        "mask_token": names[special.mask],
        "cls_token": names[opening_id],
        "sep_token": names[special.eos],
    }
    _check(tokenizer, content)
    files = {
        FILE: _json(content),
        "tokenizer_config.json": _json(_settings(content, roles, max_length)),
        "special_tokens_map.json": _json(roles),
    }
    return files | ({SENTENCEPIECE_FILE: model} if is_sentencepiece else {})


def _settings(
    content: Mapping[str, Any], roles: Mapping[str, str], max_length: int
) -> dict[str, Any]:
    """The content of tokenizer_config.json."""
    added = {
        str(entry["id"]): {name: entry[name] for name in entry if name != "id"}
        for entry in content["added_tokens"]
    }
    return {
        # Files that name the class of transformers 5 can't be read by 4.
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": max_length,
        "model_input_names": ["input_ids", "attention_mask"],
        "padding_side": "right",
        "clean_up_tokenization_spaces": False,
        "added_tokens_decoder": added,
        **roles,
    }


def _names(tokenizer: Tokenizer, vocabulary: Mapping[int, str]) -> dict[int, str]:
    """Names of the special ids: those of the vocabulary, or new ones."""
    names: dict[int, str] = {}
    taken = set(vocabulary.values())
    for role, name in _DEFAULT_NAMES.items():
        index = getattr(tokenizer.special, role)
        while index not in vocabulary and name in taken:
            name = f"<{name}>"
        names[index] = vocabulary.get(index, name)
        taken.add(names[index])
    return names


def _vocabulary(content: Mapping[str, Any]) -> dict[int, str]:
    """Names of all ids of a tokenizer.json."""
    vocabulary = content["model"]["vocab"]
    if isinstance(vocabulary, list):  # of a unigram model: names with scores
        found = {i: name for i, (name, _) in enumerate(vocabulary)}
    else:
        found = {i: name for name, i in vocabulary.items()}
    entries = content.get("added_tokens") or ()
    return found | {entry["id"]: entry["content"] for entry in entries}


def _add_to_model(model: dict[str, Any], names: Mapping[int, str]) -> None:
    """Puts special ids into the vocabulary: what is only added may be numbered anew."""
    vocabulary = model["vocab"]
    if isinstance(vocabulary, list):
        first = len(vocabulary)
        vocabulary += [[names[i], 0.0] for i in sorted(names) if i >= first]
    else:
        vocabulary |= {name: i for i, name in names.items() if name not in vocabulary}


def _byte_content(names: Mapping[int, str]) -> dict[str, Any]:
    """Byte-level BPE without a merge."""
    first = max(names) + 1
    letters = _byte_letters()
    vocabulary = {name: i for i, name in names.items()}
    vocabulary |= {letter: first + byte for byte, letter in enumerate(letters)}
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "use_regex": False}
    return {
        "version": "1.0",
        "normalizer": None,
        "pre_tokenizer": byte_level | {"trim_offsets": False},
        "decoder": byte_level | {"trim_offsets": False},
        "model": {"type": "BPE", "vocab": vocabulary, "merges": []},
    }


def _byte_letters() -> list[str]:
    """What byte-level vocabularies write for each byte; see `_byte_content`.

    Printable Latin-1 stands for itself; the others follow from U+0100 on.
    """
    others = itertools.count(0x100)
    return [
        chr(byte)
        if 0x21 <= byte < 0x7F or (byte >= 0xA1 and byte != 0xAD)
        else chr(next(others))
        for byte in range(256)
    ]


def _sentencepiece_content(tokenizer: Tokenizer) -> tuple[dict[str, Any], dict]:
    """The content of a tokenizer.json, and names of special and reserved ids."""
    model = sentencepiece_json.read_model(tokenizer.model_bytes)
    # Where pieces and names of special ids are one, the ids are, too.
    vocabulary = {i: piece.text for i, piece in enumerate(model.pieces)}
    names = _names(tokenizer, vocabulary)
    content = sentencepiece_json.tokenizer_content(
        model, names, lossless=tokenizer.lossless
    )
    reserved = sentencepiece_json.reserved(model)
    content["added_tokens"] = [
        _added_token(i, text, special=False)
        for i, text in sentencepiece_json.user_defined(model).items()
    ]
    return content, reserved | names


def _added_tokens(
    entries: Iterable[Mapping[str, Any]], special: Mapping[int, str]
) -> list[dict[str, Any]]:
    """Entries of a tokenizer.json, with all special ids among them, in order."""
    found = {entry["id"]: dict(entry) for entry in entries}
    for index, name in special.items():
        entry = found.get(index) or _added_token(index, name, special=True)
        found[index] = entry | {"special": True}
    return [found[index] for index in sorted(found)]


def _added_token(index: int, text: str, *, special: bool) -> dict[str, Any]:
    return {
        "id": index,
        "content": text,
        "single_word": False,
        "lstrip": False,
        "rstrip": False,
        "normalized": False,
        "special": special,
    }


def _post_processor(
    opening: str, opening_id: int, end: str, end_id: int
) -> dict[str, Any]:
    """One opening token, then the text; EOS only between the two of a pair."""

    def token(name: str, type_id: int = 0) -> dict[str, Any]:
        return {"SpecialToken": {"id": name, "type_id": type_id}}

    def sequence(name: str, type_id: int) -> dict[str, Any]:
        return {"Sequence": {"id": name, "type_id": type_id}}

    ids = {opening: opening_id, end: end_id}
    first = [token(opening), sequence("A", 0)]
    return {
        "type": "TemplateProcessing",
        "single": first,
        "pair": [*first, token(end), sequence("B", 1)],
        "special_tokens": {
            name: {"id": name, "ids": [index], "tokens": [name]}
            for name, index in ids.items()
        },
    }


def _check(tokenizer: Tokenizer, content: Mapping[str, Any]) -> None:
    """Encodes traps and the pieces themselves both ways: ids must be the same.

    Raises:
      UserError: they are not.
    """
    library = tokenizers_library().Tokenizer.from_str(json.dumps(content))
    library.encode_special_tokens = True
    texts = list(_TRAPS)
    if not tokenizer.model_bytes.lstrip().startswith(b"{"):  # made here, not taken over
        pieces = {piece.decode("utf-8", "replace") for piece in tokenizer.piece_bytes}
        texts += sorted(pieces - {""})
    found = library.encode_batch_fast(texts, add_special_tokens=False)
    different = [
        (text, theirs.ids, ours.tolist())
        for text, theirs, ours in zip(
            texts, found, tokenizer.encode_ids(texts), strict=True
        )
        if theirs.ids != ours.tolist()
        and not equally_likely(content["model"], theirs.ids, ours)
    ]
    if different:
        text, theirs, ours = different[0]
        raise UserError(
            f"A tokenizer.json can't express this tokenizer: {text[:40]!r} would be "
            f"{theirs[:8]} rather than {ours[:8]} (and {len(different) - 1:,} more of "
            f"{len(texts):,} texts).",
            where="tokenizer",
            remedy="train with a tokenizer that lmjax made, or with one that comes as "
            "tokenizer.json.",
        )


def equally_likely(
    model: Mapping[str, Any], first: Sequence[int], second: Sequence[int]
) -> bool:
    """Whether a unigram model could give either: single precision decides then."""
    if model["type"] != "Unigram":
        return False
    scores = [sum(model["vocab"][index][1] for index in ids) for ids in (first, second)]
    return len(first) == len(second) and abs(scores[0] - scores[1]) < _ROUNDING


def _json(content: Any) -> bytes:
    text = json.dumps(content, ensure_ascii=False, indent=1)
    return (text + "\n").encode()
