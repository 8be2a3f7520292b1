"""What a compiled program sends between devices, read from its text.

`compiled.as_text()` is a module of XLA's HLO: computations of one instruction a line,
which call each other as the bodies of loops, of fusions and of asynchronous operations.
"""

import collections
import dataclasses
import math
import re

KINDS = (
    "all-reduce",
    "all-gather",
    "reduce-scatter",
    "all-to-all",
    "collective-permute",
    "collective-broadcast",
    "ragged-all-to-all",
)

_COMPUTATION = re.compile(r"^(ENTRY )?%?([\w.\-]+) \(.*\) -> .* \{$")
# The shape may be a tuple with layouts and comments in it, but no word with "(" behind.
_INSTRUCTION = re.compile(r"^\s+(?:ROOT )?%?([\w.\-]+) = (.*?) ([a-z][\w\-]*)\((.*)$")
_ARRAY = re.compile(r"\b(pred|[a-z]+?(\d+)\w*)\[([\d,<=]*)\]")
_NAME = re.compile(r"%([\w.\-]+)")
_CALLED = re.compile(
    r"\b(?:body|condition|calls|to_apply|branch_computations|called_computations)="
    r"(\{[^}]*\}|%?[\w.\-]+)"
)
_TRIPS = re.compile(r'"known_trip_count":\{"n":"(\d+)"\}')
_CHANNEL = re.compile(r"\bchannel_id=(\d+)")
_CONDITION = re.compile(r"\bcondition=%?([\w.\-]+)")


@dataclasses.dataclass(frozen=True)
class Collective:
    """All collectives of one kind that a device takes part in when a program runs once.

    Attributes:
      kind: one of `KINDS`.
      count: how often; those in a loop as often as it turns, where the compiler says.
      num_bytes: of the whole arrays, on one device: what is summed, what comes out of
        an all-gather, what goes into any other.
    """

    kind: str
    count: int
    num_bytes: int


@dataclasses.dataclass(frozen=True)
class _Instruction:
    shape: str
    operation: str
    operands: tuple[str, ...]
    called: tuple[str, ...]
    wraps: bool
    trips: int  # of a loop; 0 where the compiler does not say
    channel: str
    condition: str
    number: int  # of a constant


def collectives(text: str) -> tuple[Collective, ...]:
    """Collectives of a compiled program, by kind in the order of `KINDS`.

    Raises:
      ValueError: when the text is not that of a compiled program.
    """
    computations, entry = _parse(text)
    shapes = {
        name: instruction.shape
        for instructions in computations.values()
        for name, instruction in instructions.items()
    }
    runs = _runs(computations, entry)
    counts: collections.Counter[str] = collections.Counter()
    sizes: collections.Counter[str] = collections.Counter()
    seen: set[str] = set()
    for name, times in runs.items():
        for instruction in computations[name].values():
            kind = instruction.operation.removesuffix("-start")
            wraps = kind != instruction.operation and instruction.wraps
            if kind not in KINDS or wraps:  # then it stands in what is started
                continue
            # TPUs spread one over several fusions, which share its channel.
            if instruction.channel in seen:
                continue
            seen.update(filter(None, [instruction.channel]))
            counts[kind] += times
            sizes[kind] += times * _size(kind, instruction, shapes)
    return tuple(
        Collective(kind, counts[kind], sizes[kind]) for kind in KINDS if counts[kind]
    )


def shape_bytes(shape: str) -> int:
    """Bytes of an array or a tuple of arrays, as HLO spells shapes."""
    total = 0
    for dtype, bits, sizes in _ARRAY.findall(shape):
        width = 8 if dtype == "pred" else int(bits)
        sizes = sizes.replace("<=", "").split(",")
        total += math.ceil(math.prod(int(n) for n in sizes if n) * width / 8)
    return total


def _size(kind: str, instruction: _Instruction, shapes: dict[str, str]) -> int:
    """Bytes of one collective; of its result, the start of one also has operands."""
    given = sum(shape_bytes(shapes[name]) for name in instruction.operands)
    if kind != "all-gather":
        return given
    found = shape_bytes(instruction.shape)
    return found - given if instruction.operation.endswith("-start") else found


def _parse(text: str) -> tuple[dict[str, dict[str, _Instruction]], str]:
    """Instructions by name of each computation, and the name of the first to run."""
    computations: dict[str, dict[str, _Instruction]] = {}
    entry, current = "", None
    for line in text.splitlines():
        if begun := _COMPUTATION.match(line):
            current = computations.setdefault(begun[2], {})
            entry = begun[2] if begun[1] else entry
        elif current is not None and (found := _INSTRUCTION.match(line)):
            name, shape, operation, rest = found.groups()
            operands, attributes = _close(rest)
            trips, channel = _TRIPS.search(attributes), _CHANNEL.search(attributes)
            condition = _CONDITION.search(attributes)
            number = operands if operation == "constant" else ""
            current[name] = _Instruction(
                shape=shape,
                operation=operation,
                operands=tuple(_NAME.findall(operands)),
                # What is waited for was called by what started it.
                called=() if operation.endswith("-done") else _called(attributes),
                wraps=" calls=" in attributes,
                trips=int(trips[1]) if trips else 0,
                channel=channel[1] if channel else "",
                condition=condition[1] if condition else "",
                number=int(number) if number.isdecimal() else 0,
            )
    if not entry:
        raise ValueError("no ENTRY computation: this is no text of a compiled program")
    return computations, entry


def _close(rest: str) -> tuple[str, str]:
    """Splits what follows "(" at the ")" that closes it."""
    depth = 1
    for place, letter in enumerate(rest):
        depth += (letter == "(") - (letter == ")")
        if not depth:
            return rest[:place], rest[place + 1 :]
    return rest, ""


def _called(attributes: str) -> tuple[str, ...]:
    return tuple(
        name.strip().removeprefix("%")
        for names in _CALLED.findall(attributes)
        for name in names.strip("{}").split(",")
        if name.strip()
    )


def _runs(
    computations: dict[str, dict[str, _Instruction]], entry: str
) -> collections.Counter[str]:
    """How often each computation runs; every branch of a conditional as if taken."""
    runs: collections.Counter[str] = collections.Counter()

    def visit(name: str, times: int) -> None:
        runs[name] += times
        for instruction in computations[name].values():
            trips = instruction.trips or _bound(computations, instruction.condition)
            for called in instruction.called:
                if called in computations:
                    visit(called, times * trips)

    visit(entry, 1)
    return runs


def _bound(computations: dict[str, dict[str, _Instruction]], condition: str) -> int:
    """Turns of a loop that counts from 0 while it is below a constant; else 1."""
    instructions = computations.get(condition, {})
    for instruction in instructions.values():
        if instruction.operation == "compare":
            for name in instruction.operands:
                if name in instructions and instructions[name].number:
                    return instructions[name].number
    return 1
