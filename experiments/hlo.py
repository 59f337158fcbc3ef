"""Counts what a compiled program moves on each chip: bytes of its memory, and bytes between chips."""

import math
import re
from collections.abc import Callable
from typing import NamedTuple

BITS = {
    "pred": 8,
    "s4": 4,
    "u4": 4,
    "s8": 8,
    "u8": 8,
    "bf16": 16,
    "f16": 16,
    "s16": 16,
    "u16": 16,
    "s64": 64,
    "u64": 64,
}
SHAPE = re.compile(r"\b([a-z]+\d*)\[([\d,]*)\](\{[^}]*\})?")


class Instruction(NamedTuple):
    """One line of a compiled program: %name = type opcode(operands), rest."""

    name: str
    type: str
    opcode: str
    operands: list[str]
    text: str


class Collectives(NamedTuple):
    """Of one kind of communication, in one step: how often it runs, bytes of its results, bytes that a chip sends for it."""

    runs: float
    result: float
    sent: float


INSTRUCTION = re.compile(r"^\s+(?:ROOT )?%?([\w.\-]+) = (.*?) ([a-z][\w\-]*)\((.*)$")
COMPUTATION = re.compile(r"^(?:ENTRY )?%?([\w.\-]+) .*\{$")


def computations(text: str) -> tuple[dict[str, list[Instruction]], str]:
    """The instructions of every computation of HLO text, and the name of the entry."""
    found: dict[str, list[Instruction]] = {}
    entry = name = ""
    for line in text.splitlines():
        if header := COMPUTATION.match(line):
            name = header[1]
            found[name] = []
            entry = name if line.startswith("ENTRY") else entry
        elif name and (match := INSTRUCTION.match(line)):
            operands = re.findall(r"%([\w.\-]+)", match[4].partition(")")[0])
            found[name].append(Instruction(match[1], match[2], match[3], operands, line))
    return found, entry


def loop_counts(found: dict[str, list[Instruction]], entry: str, into_calls: bool) -> dict[str, float]:
    """How often every computation that is reached runs. into_calls: follow also the insides of fusions."""
    reached: dict[str, float] = {}

    def visit(name: str, times: float) -> None:
        if name not in found or reached.get(name, 0.0) >= times:
            return
        reached[name] = times
        for instruction in found[name]:
            if instruction.opcode == "while":
                body, condition = (
                    re.search(rf"{part}=%?([\w.\-]+)", instruction.text) for part in ("body", "condition")
                )
                assert body and condition
                visit(body[1], times * _trips(instruction, found.get(condition[1], [])))
            elif instruction.opcode in ("conditional", "call") or into_calls:
                for called in re.findall(r"(?:calls|to_apply|branch_computations)=\{?([%\w.\-, ]+)", instruction.text):
                    for inner in re.findall(r"%([\w.\-]+)", called):
                        visit(inner, times)

    visit(entry, 1.0)
    return reached


def _trips(loop: Instruction, condition: list[Instruction]) -> int:
    if known := re.search(r'known_trip_count"?:\{"?n"?:"?(\d+)', loop.text):
        return int(known[1])
    constants = {i.name: int(m[1]) for i in condition if (m := re.search(r" constant\((\d+)\)", i.text))}
    bounds = [constants[o] for i in condition if i.opcode == "compare" for o in i.operands if o in constants]
    return max(bounds, default=1)


def collectives(text: str) -> dict[str, Collectives]:
    """The communication between chips of a compiled program, by kind."""
    found, entry = computations(text)
    by_channel: dict[str, tuple[str, Collectives]] = {}
    for name, times in loop_counts(found, entry, into_calls=True).items():
        for instruction in found[name]:
            kind = instruction.opcode.removesuffix("-start")
            if kind not in SENT:
                continue
            results = [_bytes(shape) for shape in SHAPE.finditer(instruction.type) if shape[1] not in ("u32", "s32")]
            size = sum(results)
            if instruction.opcode.endswith("-start") and len(results) > 1:
                # The first half of the tuple is the operands.
                size = sum(results[len(results) // 2 :])
            if "all-reduce-scatter" in name:
                kind, size = "reduce-scatter", size / _group_size(instruction.text)
            cost = Collectives(times, times * size, times * SENT[kind](size, _group_size(instruction.text)))
            # The compiler may cut one into several fusions, which share its channel.
            channel = re.search(r"channel_id=(\d+)", instruction.text)
            by_channel[channel[1] if channel else instruction.name] = kind, cost
    totals: dict[str, Collectives] = {}
    for kind, cost in by_channel.values():
        totals[kind] = Collectives(*map(sum, zip(totals.get(kind, Collectives(0, 0, 0)), cost, strict=True)))
    return totals


# Bytes that each of n chips sends for a result of that size, in rings.
SENT: dict[str, Callable[[float, int], float]] = {
    "all-reduce": lambda size, n: 2 * size * (n - 1) / n,
    "all-gather": lambda size, n: size * (n - 1) / n,
    "reduce-scatter": lambda size, n: size * (n - 1),
    "all-to-all": lambda size, n: size * (n - 1) / n,
    "collective-permute": lambda size, n: size,
}


def _group_size(text: str) -> int:
    """The chips that take part in one collective, of the three ways in which HLO writes replica_groups."""
    if iota := re.search(r"replica_groups=\[\d+,(\d+)\]", text):
        return int(iota[1])
    if mesh := re.search(r"replica_groups=mesh\[([^\]]*)\][^{]*\{([^}]*)\}", text):
        # An axis in the braces may be cut: 'axis':(1)2 are two chips along it.
        sizes = dict(re.findall(r"'(\w+)'=(\d+)", mesh[1]))
        return math.prod(int(part or sizes[name]) for name, part in re.findall(r"'(\w+)'(?::\(\d+\)(\d+))?", mesh[2]))
    if listed := re.search(r"replica_groups=\{\{([\d,]*)\}", text):
        return listed[1].count(",") + 1
    if "source_target_pairs" in text:
        return 1
    raise ValueError(f"the chips of a collective cannot be read: {text.strip()[:2000]}")


FREE = {
    "parameter",
    "constant",
    "get-tuple-element",
    "tuple",
    "bitcast",
    "while",
    "conditional",
    "call",
    "after-all",
    "custom-call",
}


def memory_bytes(text: str) -> float:
    """An estimate of what a chip's memory reads and writes: operands and results of every instruction outside fusions.

    What the compiler keeps in the chip's vector memory is free. Of an array that a fusion only cuts, the cuts count; of one
    that it updates in place, what it writes.
    """
    found, entry = computations(text)
    total = 0.0
    for name, times in loop_counts(found, entry, into_calls=False).items():
        types = {instruction.name: instruction.type for instruction in found[name]}
        for instruction in found[name]:
            kernel = instruction.opcode != "custom-call" or "tpu_custom_call" in instruction.text
            if instruction.opcode in FREE or instruction.opcode.endswith("-done") or not kernel:
                continue
            results = list(SHAPE.finditer(instruction.type))
            if instruction.opcode.endswith("-start"):
                # A copy between the two memories: the smaller of what it names is what moves.
                total += times * min((_bytes(shape) for shape in results if shape[2]), default=0.0)
                continue
            operands = [types.get(operand, "") for operand in instruction.operands]
            # A communication under way hands its buffers from one fusion to the next.
            passed = {shape[0] for shape in results} if "[]{:S(2)}" in instruction.type else set()
            passed &= {shape[0] for operand in operands for shape in SHAPE.finditer(operand)}
            for place, operand in enumerate(operands):
                total += times * min(_far(operand, passed), _read(found, instruction, place))
            total += times * min(_far(instruction.type, passed), _written(found, name, instruction))
    return total


SAME_VALUES = {"bitcast", "convert", "copy", "pad", "reshape", "transpose"}


def _far(type_: str, passed: set[str]) -> float:
    """Bytes of a type's arrays that lie in the chip's large memory, but for those passed on."""
    return sum(
        _bytes(shape) for shape in SHAPE.finditer(type_) if "S(" not in (shape[3] or "") and shape[0] not in passed
    )


def _called(instruction: Instruction) -> str:
    """The computation that a fusion consists of, or ""."""
    match = re.search(r"calls=%?([\w.\-]+)", instruction.text) if instruction.opcode == "fusion" else None
    return match[1] if match else ""


def _is_root(instruction: Instruction) -> bool:
    return instruction.text.lstrip().startswith("ROOT")


def _read(found: dict[str, list[Instruction]], user: Instruction, place: int) -> float:
    """Bytes that an instruction reads at most of the operand at one place."""
    if user.opcode in ("dynamic-slice", "slice") and place == 0:
        return _far(user.type, set())
    if user.opcode == "dynamic-update-slice" and place == 0:
        return 0.0
    inside = found.get(_called(user), [])
    parameter = next((i.name for i in inside if i.opcode == "parameter" and f"parameter({place})" in i.text), None)
    return _read_of(found, inside, parameter) if parameter else math.inf


def _read_of(found: dict[str, list[Instruction]], inside: list[Instruction], name: str) -> float:
    """Bytes that a computation reads at most of a value of its own; the whole where it is the result."""
    total = 0.0
    for user in inside:
        if user.name == name and _is_root(user):
            return math.inf
        for place, operand in enumerate(user.operands):
            if operand == name:
                same = user.opcode in SAME_VALUES and place == 0
                total += _read_of(found, inside, user.name) if same else _read(found, user, place)
    return total


def _written(found: dict[str, list[Instruction]], name: str, instruction: Instruction) -> float:
    """Bytes that an instruction of a computation writes at most."""
    if called := _called(instruction):
        root = [i for i in found.get(called, []) if _is_root(i)]
        return sum(min(_far(i.type, set()), _written(found, called, i)) for i in root) if root else math.inf
    named = {i.name: i for i in found[name]}
    operands = [named[operand] for operand in instruction.operands if operand in named]
    if instruction.opcode == "dynamic-update-slice":
        return _far(operands[1].type, set())
    if instruction.opcode in ("bitcast", "tuple"):
        return sum(min(_far(i.type, set()), _written(found, name, i)) for i in operands)
    return math.inf


def _bytes(shape: re.Match[str]) -> float:
    bits = BITS.get(shape[1]) or int((re.search(r"\d+", shape[1]) or [32])[0])
    return math.prod(int(length) for length in shape[2].split(",") if length) * bits / 8
