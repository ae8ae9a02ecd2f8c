"""Cycles and collectives of a compiled program, from its HLO text."""

import collections
import dataclasses
import math
import re
from typing import NamedTuple

_COMPUTATION = re.compile(r"^(ENTRY )?%?([\w.\-]+) \(.*\{\s*$")
_INSTRUCTION = re.compile(r"^\s+(?:ROOT )?%?([\w.\-]+) = (.+?) ([a-z][\w\-]*)\((.*)$")
_CALLEES = re.compile(r"(?:body|condition|calls|to_apply|\w+_computations?)=\{?(%[\w.\-]+(?:, %[\w.\-]+)*)")
_ARRAY = re.compile(r"\b(?:(pred)|[a-z]+(\d+)\w*)\[([\d,]*)\]")
_CYCLES = re.compile(r'"estimated_cycles":"(\d+)"')
_PENALTY = 2**60  # libtpu adds it to the estimates of a few operations; the remainder is of the usual magnitude
_KNOWN_TRIP_COUNT = re.compile(r'"known_trip_count":\{"n":"(\d+)"')
_COLLECTIVE = re.compile(r"^(all-reduce|all-gather|reduce-scatter|(?:ragged-)?all-to-all|collective-\w+)(-start)?$")


@dataclasses.dataclass(frozen=True)
class Collective:
    """The collectives of one kind in a program.

    Attributes:
        name: Kind of collective, e.g. `"all-reduce"`.
        num_calls: Number of calls in one execution.
        num_bytes: Total size of their operands on each device.
    """

    name: str
    num_calls: int
    num_bytes: int


class Costs(NamedTuple):
    """The costs of one execution of a program on one device.

    A loop over a constant range counts its number of iterations, other loops count once.

    Attributes:
        cycles: Sum of the compiler's estimates, over all branches of conditionals; None if there are none.
        collectives: Collectives by kind.
    """

    cycles: int | None
    collectives: tuple[Collective, ...]


class _Instruction(NamedTuple):
    name: str
    result: str
    opcode: str
    rest: str

    def operands(self) -> list[str]:
        return re.findall(r"%([\w.\-]+)", self.rest.partition(")")[0])


def costs(text: str) -> Costs:
    """Returns the costs of a compiled program.

    Args:
        text: HLO text of the optimized program, `compiled.as_text()`.
    """
    computations, entry = _parse(text)
    cycles: list[int] = []
    calls, operand_sizes = collections.Counter[str](), collections.Counter[str]()
    pending = [(entry, 1)]  # computations and how often they run
    while pending:
        name, repetitions = pending.pop()
        instructions = computations.pop(name, ())  # computations that several instructions apply count once
        sizes = {instruction.name: _num_bytes(instruction.result) for instruction in instructions}
        for instruction in instructions:
            if estimate := _CYCLES.search(instruction.rest):
                cycles.append(repetitions * (int(estimate[1]) % _PENALTY))
            if match := _COLLECTIVE.match(instruction.opcode):
                calls[match[1]] += repetitions
                num_bytes = sum(sizes.get(operand, 0) for operand in instruction.operands())
                operand_sizes[match[1]] += repetitions * num_bytes
            trips = _trip_count(instruction, computations) if instruction.opcode == "while" else 1
            for callees in _CALLEES.findall(instruction.rest):
                pending += [(callee[1:], repetitions * trips) for callee in callees.split(", ")]
    return Costs(
        cycles=sum(cycles) if cycles else None,
        collectives=tuple(Collective(kind, calls[kind], operand_sizes[kind]) for kind in sorted(calls)),
    )


def _parse(text: str) -> tuple[dict[str, list[_Instruction]], str]:
    """Returns the instructions of each computation, and the name of the entry computation."""
    computations: dict[str, list[_Instruction]] = {}
    entry, instructions = "", []
    for line in text.splitlines():
        if header := _COMPUTATION.match(line):
            instructions = computations.setdefault(header[2], [])
            entry = header[2] if header[1] else entry
        elif match := _INSTRUCTION.match(line):
            instructions.append(_Instruction(*match.groups()))
    return computations, entry


def _trip_count(loop: _Instruction, computations: dict[str, list[_Instruction]]) -> int:
    """Returns the number of iterations of a loop over a constant range from 0, e.g. of `jax.lax.scan`; otherwise 1."""
    if known := _KNOWN_TRIP_COUNT.search(loop.rest):
        return int(known[1])
    condition = re.search(r"condition=%([\w.\-]+)", loop.rest)
    instructions = computations.get(condition[1], []) if condition else []
    constants = {i.name: i.rest.partition(")")[0] for i in instructions if i.opcode == "constant"}
    if instructions and instructions[-1].opcode == "compare" and "direction=LT" in instructions[-1].rest:
        limits = [constants[operand] for operand in instructions[-1].operands() if operand in constants]
        if len(limits) == 1 and limits[0].isdecimal():
            return int(limits[0])
    return 1


def _num_bytes(shapes: str) -> int:
    """Returns the size of the arrays in the type of a result, without padding."""
    total = 0
    for pred, bits, shape in _ARRAY.findall(shapes):
        lengths = [int(length) for length in shape.split(",") if length]
        total += -(-(8 if pred else int(bits)) * math.prod(lengths) // 8)
    return total
