"""Damage to files: random bytes, and changes that know the format they are made to.

Every mutation is a function of a generator and bytes, and gives other bytes. What is
damaged inside stays well-formed outside, so that readers are reached beyond their first
check: JSON that is still JSON, zip archives with a true directory, packed text.
"""

import gzip
import io
import json
import lzma
import pickletools
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import zstandard

Mutation = Callable[[np.random.Generator, bytes], bytes]

BOMB_BYTES = 20_000_000  # what a compressed bomb unpacks to
_INTERESTING = (0, 1, 0x7F, 0x80, 0xFF, 0x7FFF, 0xFFFF, 2**31 - 1, 2**31, 2**32 - 1)
_INTERESTING += (2**62, 2**63 - 1, 2**63, 2**64 - 1)
_MOST_BYTES = 1_000_000  # of a mutated file, but for bombs
_WORDS = (b"\x00", b"\xff\xfe", b"\xef\xbb\xbf", b"\xed\xa0\x80", b"\xf4\x90\x80\x80")
_WORDS += (b"\r\n", b"{", b"[", b'"', b"\\u0000", b"-", b"1e999", b"NaN", b"\x1b[2J")


def pick(rng: np.random.Generator, choices: Sequence[Any]) -> Any:
    """One of them."""
    return choices[int(rng.integers(len(choices)))]


def mixture(*mutations: Mutation) -> Mutation:
    """One of these, or a few of them in a row."""

    def mutate(rng: np.random.Generator, data: bytes) -> bytes:
        for _ in range(1 + int(rng.integers(4) == 0) + int(rng.integers(8) == 0)):
            data = pick(rng, mutations)(rng, data)
        return data

    return mutate


def _range(rng: np.random.Generator, data: bytes) -> tuple[int, int]:
    """Where something begins and ends; mostly short."""
    start = int(rng.integers(len(data) + 1))
    longest = pick(rng, (1, 4, 16, 256, len(data)))
    return start, min(len(data), start + int(rng.integers(longest + 1)))


def any_bytes(rng: np.random.Generator, data: bytes) -> bytes:
    """Bytes that never were a file."""
    return rng.bytes(int(rng.integers(pick(rng, (1, 9, 300, 5000)))))


def truncate(rng: np.random.Generator, data: bytes) -> bytes:
    """The beginning, or the end."""
    at = int(rng.integers(len(data) + 1))
    return data[at:] if rng.integers(8) == 0 else data[:at]


def flip(rng: np.random.Generator, data: bytes) -> bytes:
    """Some bits are others."""
    if not data:
        return data
    changed = np.frombuffer(data, np.uint8).copy()
    count = int(pick(rng, (1, 1, 2, 8, 1 + len(data) // 50)))
    changed[rng.integers(len(data), size=count)] ^= np.uint8(1) << rng.integers(
        8, size=count
    ).astype(np.uint8)
    return changed.tobytes()


def overwrite(rng: np.random.Generator, data: bytes) -> bytes:
    """A stretch of other bytes, or a number at the edge of its type."""
    start, stop = _range(rng, data)
    new = rng.bytes(stop - start)
    if rng.integers(2):
        new = _number(rng)
    return (data[:start] + new + data[start + len(new) :])[:_MOST_BYTES]


def insert(rng: np.random.Generator, data: bytes) -> bytes:
    """Something between two bytes."""
    at = int(rng.integers(len(data) + 1))
    new = pick(rng, (rng.bytes(int(rng.integers(40))), _number(rng), pick(rng, _WORDS)))
    return (data[:at] + new + data[at:])[:_MOST_BYTES]


def delete(rng: np.random.Generator, data: bytes) -> bytes:
    """A stretch is gone."""
    start, stop = _range(rng, data)
    return data[:start] + data[stop:]


def duplicate(rng: np.random.Generator, data: bytes) -> bytes:
    """A stretch comes twice, or very often, here or elsewhere."""
    start, stop = _range(rng, data)
    times = pick(rng, (1, 1, 2, 50, 2000))
    part = (data[start:stop] * times)[: _MOST_BYTES // 4]
    at = stop if rng.integers(2) else int(rng.integers(len(data) + 1))
    return (data[:at] + part + data[at:])[:_MOST_BYTES]


def _number(rng: np.random.Generator) -> bytes:
    value, size = pick(rng, _INTERESTING), pick(rng, (1, 2, 4, 8))
    order = "little" if rng.integers(4) else "big"
    return (value % 2 ** (8 * size)).to_bytes(size, order)


bytes_of = mixture(truncate, flip, overwrite, insert, delete, duplicate, any_bytes)


# JSON.
def _deep(depth: int, opening: str, inner: str, closing: str) -> str:
    return opening * depth + inner + closing * depth


class _Text(str):
    """A text that stands in JSON as it is."""


def _value(rng: np.random.Generator) -> Any:
    """A value of whatever type, often at the edge of what it may be."""
    depth = int(pick(rng, (20, 300, 3000, 100_000)))
    choices: tuple[Callable[[], Any], ...] = (
        lambda: pick(rng, (None, True, False, [], {}, "", 0, -1, 1, 0.5, -0.0)),
        lambda: pick(rng, _INTERESTING) * pick(rng, (1, -1)),
        lambda: pick(rng, (1e308, -1e308, 5e-324, 1e9, float("nan"), float("inf"))),
        lambda: _Text(pick(rng, ("1e400", "-1e400", "9" * 400, "9" * 5000, "-0"))),
        lambda: pick(rng, ("../../x", "/etc/passwd", "..", ".", "/", "a/../../b")),
        lambda: pick(
            rng, ("\x00", "a\x00b", "\ud800", "\x1b]0;x\x07", "é" * 300, "\n")
        ),
        lambda: pick(rng, ("x" * 70_000, "[" * 3000, "-" * 9000 + "1", "{[]: 1}")),
        lambda: pick(rng, ("hf://../..", "file:///etc/passwd", "NaN", "1e999", "1_0")),
        lambda: _Text(_deep(depth, "[", "1", "]")),
        lambda: _Text(_deep(depth, '{"a":', "1", "}")),
        lambda: [_value(rng) for _ in range(int(rng.integers(4)))],
        lambda: {f"k{i}": i for i in range(int(pick(rng, (1, 5, 3000))))},
        lambda: list(range(int(pick(rng, (2, 5000))))),
    )
    return pick(rng, choices)()


def _places(value: Any) -> list[tuple[Any, Any]]:
    """(container, key or index) of everything inside."""
    found, pending = [], [value]
    while pending:
        container = pending.pop()
        keys = container if isinstance(container, dict) else range(len(container))
        for key in keys:
            found.append((container, key))
            if isinstance(container[key], dict | list):
                pending.append(container[key])
    return found


def _change(rng: np.random.Generator, root: Any) -> Any:
    """The same with one thing changed; lists and dictionaries are changed in place."""
    places = _places(root) if isinstance(root, dict | list) else []
    if not places or rng.integers(40) == 0:
        return _value(rng)
    # All keys alike would hardly ever meet the few that matter among many words.
    if rng.integers(2):
        places = [place for place in places if isinstance(place[0], dict)] or places
    container, key = pick(rng, places)
    old = container[key]
    kind = int(rng.integers(8))
    if kind == 0:
        del container[key]
    elif kind == 1 and isinstance(container, dict):
        container[pick(rng, ("", "../x", "\ud800", "x" * 5000, f"{key} "))] = old
    elif kind == 1:
        most = 3 if isinstance(old, dict | list | str) else 1000  # or it has no end
        container.extend([old] * int(pick(rng, (1, 3, most))))
    elif kind == 2 and isinstance(old, int | float) and not isinstance(old, bool):
        container[key] = pick(rng, (old + 1, -old, old * 10**6, 0, old - 1, str(old)))
    elif kind == 3 and isinstance(old, str):
        container[key] = pick(rng, (old + "x", old[:-1], "../" + old, "/" + old, [old]))
    elif kind == 4:
        container[key] = _again(pick(rng, places))
    elif kind == 5 and isinstance(container, list):
        container.insert(key, _value(rng))
    else:
        container[key] = _value(rng)
    return root


def _again(place: tuple[Any, Any]) -> Any:
    """A copy, so that nothing holds itself."""
    return json.loads(dump(place[0][place[1]]))


def dump(value: Any) -> str:
    """JSON, with what `_Text` holds as it is."""
    if isinstance(value, _Text):
        return str(value)
    if isinstance(value, dict):
        inner = ", ".join(f"{json.dumps(k)}: {dump(v)}" for k, v in value.items())
        return "{" + inner + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(dump, value)) + "]"
    return json.dumps(value)


def json_of(rng: np.random.Generator, data: bytes) -> bytes:
    """JSON with something changed in it; bytes are damaged if it is none."""
    if len(data) > _MOST_BYTES:
        return bytes_of(rng, data)
    try:
        root = json.loads(data)
    except (ValueError, RecursionError):
        return bytes_of(rng, data)
    try:
        for _ in range(pick(rng, (1, 1, 1, 2, 5))):
            root = _change(rng, root)
        text = dump(root)
    except (ValueError, RecursionError):
        return data
    if len(text) > 4 * _MOST_BYTES:
        return data
    if rng.integers(12) == 0:  # a key twice
        text = text.replace("{", '{"version": 1, "model": 1, "shaped_by": {}, ', 1)
    encoded = text.encode("utf-8", "surrogatepass")
    if rng.integers(30) == 0:
        encoded = text.encode(pick(rng, ("utf-16", "utf-32")), "surrogatepass")
    return encoded


def json_lines_of(rng: np.random.Generator, data: bytes) -> bytes:
    """One line of several is damaged."""
    lines = data.split(b"\n")
    at = int(rng.integers(len(lines)))
    lines[at] = json_of(rng, lines[at])
    return b"\n".join(lines)


# Containers.
def packed(inner: Mutation) -> Mutation:
    """Packs what is damaged inside, damages what is packed, or packs a bomb."""

    def mutate(rng: np.random.Generator, data: bytes) -> bytes:
        kind = int(rng.integers(60))
        if kind == 0:
            return bomb(rng, data)
        if kind < 25:
            data = inner(rng, data)
        data = pack(rng, data)
        return data if kind < 20 else bytes_of(rng, data)

    return mutate


def pack(rng: np.random.Generator, data: bytes) -> bytes:
    """Compressed by gzip or zstd, perhaps as two parts."""
    at = int(rng.integers(len(data) + 1)) if rng.integers(3) == 0 else len(data)
    if rng.integers(2):
        parts = [gzip.compress(part, 1) for part in (data[:at], data[at:])]
    else:
        parts = [zstandard.compress(part, 1) for part in (data[:at], data[at:])]
    return b"".join(parts)


def bomb(rng: np.random.Generator, data: bytes) -> bytes:
    """A few kilobytes that stand for many megabytes: one line, or very many."""
    unit = pick(rng, (b"a", b"\n", b" ", b"\x00", b"a\n", b"[", data[:64] or b"a"))
    # Made of a file's beginning it holds documents, which are worked on one by one.
    content = unit * (BOMB_BYTES // (len(unit) if len(unit) < 3 else 10 * len(unit)))
    if rng.integers(2):
        return gzip.compress(content, 1)
    return zstandard.compress(content, 1)


def zip_of(rng: np.random.Generator, data: bytes) -> bytes:
    """A zip whose entries are damaged, and whose directory is true."""
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            entries = [[name, archive.read(name)] for name in archive.namelist()]
    except (zipfile.BadZipFile, ValueError, EOFError, OSError, NotImplementedError):
        return bytes_of(rng, data)
    except (KeyError, RuntimeError, UnicodeError, zlib.error, struct.error):
        return bytes_of(rng, data)
    method = zipfile.ZIP_STORED
    entry = pick(rng, entries) if entries else ["x", b""]
    kind = int(rng.integers(8))
    if kind == 0:
        entry[0] = pick(rng, ("../../x", "/etc/passwd", "a/data.pkl", "", "a\\..\\b"))
    elif kind == 1 and entries:
        entries.remove(entry)
    elif kind == 2:
        entries.append(list(entry))
    elif kind == 3:
        method = zipfile.ZIP_DEFLATED
        entry[1] = entry[1] + bytes(BOMB_BYTES // 4) * int(rng.integers(2))
    elif kind < 6 and entry[0].endswith("data.pkl"):
        entry[1] = pickle_of(rng, entry[1])
    else:
        entry[1] = bytes_of(rng, entry[1])
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", method) as archive:
        seen: set[str] = set()
        for name, content in entries:
            if name in seen:  # zipfile warns of what is meant here
                name += "/data.pkl"
            seen.add(name)
            archive.writestr(zipfile.ZipInfo(name or "x"), content, method)
    changed = out.getvalue()
    return changed if rng.integers(4) else flip(rng, changed)


def pickle_of(rng: np.random.Generator, data: bytes) -> bytes:
    """A pickle with an instruction changed, and the rest as it was."""
    try:
        at = [position for _, _, position in pickletools.genops(data)]
    except ValueError:
        return bytes_of(rng, data)
    start = pick(rng, at)
    stop = next((other for other in at if other > start), len(data))
    calls = (b"cos\nsystem\n", b"c__builtin__\neval\n", b"cbuiltins\nexec\n")
    numbers = (b"K\xff", b"J\xff\xff\xff\xff", b"M\xff\xff", b"\x8a\x09" + b"\xff" * 9)
    others = (b"N", b"]", b"}", b")", b"(", b"t", b"R", b"0", b"2", b"Q", b"b", b"a")
    others += (b"\x81", b"\x93", b"h\xff", b"r\xff\xff\xff\x7f", b"X\xff\xff\xff\x7f")
    new = pick(rng, (pick(rng, calls), pick(rng, numbers), pick(rng, others), b""))
    if rng.integers(3) == 0:
        new += data[start:stop]
    return data[:start] + new + data[stop:]


def safetensors_of(rng: np.random.Generator, data: bytes) -> bytes:
    """A header with something changed, or whose length lies."""
    size = int.from_bytes(data[:8], "little")
    header, tensors = data[8 : 8 + size], data[8 + size :]
    header = json_of(rng, header)
    size = len(header)
    if rng.integers(4) == 0:
        size = int(pick(rng, (*_INTERESTING, size - 1, size + 1)))
    if rng.integers(6) == 0:
        tensors = truncate(rng, tensors)
    return (size % 2**64).to_bytes(8, "little") + header + tensors


def tar_of(rng: np.random.Generator, data: bytes) -> bytes:
    """An archive with other members: links, devices, paths that lead out of it."""
    members = []
    try:
        with tarfile.open(fileobj=io.BytesIO(data)) as archive:
            for member in archive:
                content = archive.extractfile(member) if member.isfile() else None
                members.append((member, content.read() if content else b""))
    except (
        tarfile.TarError,
        lzma.LZMAError,
        zlib.error,
        EOFError,
        OSError,
        ValueError,
    ):
        return bytes_of(rng, data)
    if not members:
        return bytes_of(rng, data)
    name = members[0][0].name
    odd = tarfile.TarInfo(pick(rng, ("../../x.jsonl", "/etc/x.jsonl", name, "z.jsonl")))
    odd.type = pick(rng, (b"0", b"1", b"2", b"3", b"4", b"5", b"6", b"7", b"S"))
    odd.linkname = pick(rng, (name, "../../etc/passwd", "", odd.name))
    content = pick(rng, (b"", rng.bytes(40), json_lines_of(rng, members[0][1])))
    odd.size = len(content) if odd.type in (b"0", b"7", b"S") else 0
    members.insert(int(rng.integers(len(members) + 1)), (odd, content))
    out = io.BytesIO()
    mode = pick(rng, ("w", "w:gz", "w:xz"))
    preset = {"preset": 0} if mode == "w:xz" else {}
    with tarfile.open(fileobj=out, mode=mode, **preset) as archive:
        for member, content in members:
            archive.addfile(member, io.BytesIO(content))
    changed = out.getvalue()
    return changed if rng.integers(3) else bytes_of(rng, changed)


# Protocol buffers, by their wire format.
def _fields(data: bytes) -> list[tuple[int, bytes]]:
    """Tag and payload of each field; ValueError where it is no message."""
    found, at = [], 0
    while at < len(data):
        tag, at = _varint(data, at)
        start = at
        if tag & 7 == 0:
            _, at = _varint(data, at)
            found.append((tag, data[start:at]))
        elif tag & 7 == 2:
            size, at = _varint(data, at)
            found.append((tag, data[at : at + size]))
            at += size
        elif tag & 7 in (1, 5):
            at += 8 if tag & 7 == 1 else 4
            found.append((tag, data[start:at]))
        else:
            raise ValueError("no wire type")
        if at > len(data):
            raise ValueError("it ends too early")
    return found


def _varint(data: bytes, at: int) -> tuple[int, int]:
    value = 0
    for shift in range(0, 70, 7):
        if at >= len(data):
            raise ValueError("it ends too early")
        value |= (data[at] & 0x7F) << shift
        at += 1
        if not data[at - 1] & 0x80:
            return value, at
    raise ValueError("too long")


def _to_varint(value: int) -> bytes:
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*out, value])


def protocol_buffer_of(rng: np.random.Generator, data: bytes) -> bytes:
    """A message with a field changed, however deep, and true lengths around it."""
    try:
        fields = _fields(data)
    except ValueError:
        return bytes_of(rng, data)
    if not fields:
        return bytes_of(rng, data)
    at = int(rng.integers(len(fields)))
    if rng.integers(2):  # the kinds of fields alike: a vocabulary has one very often
        tag = pick(rng, sorted({tag for tag, _ in fields}))
        at = pick(rng, [i for i, field in enumerate(fields) if field[0] == tag])
    tag, payload = fields[at]
    kind = int(rng.integers(8))
    if kind == 0:
        del fields[at]
    elif kind == 1:
        fields[at:at] = [fields[at]] * int(pick(rng, (1, 2, 300)))
    elif kind == 2:
        fields[at] = (tag ^ (int(rng.integers(32)) << 3), payload)
    elif tag & 7 == 0:
        fields[at] = (tag, _to_varint(int(pick(rng, (*_INTERESTING, 2, 3, 4, 5, 6)))))
    elif tag & 7 == 2 and kind == 3:
        fields[at] = (tag, bytes_of(rng, payload))
    elif tag & 7 == 2:
        fields[at] = (tag, protocol_buffer_of(rng, payload))
    else:
        numbers = (float("nan"), float("inf"), -1e38, 0.0)
        new = np.float32(pick(rng, numbers)).tobytes()
        fields[at] = (tag, (new * 2)[: len(payload)])
    parts = []
    for tag, payload in fields:
        size = _to_varint(len(payload)) if tag & 7 == 2 else b""
        parts.append(_to_varint(tag) + size + payload)
    return b"".join(parts)[:_MOST_BYTES]
