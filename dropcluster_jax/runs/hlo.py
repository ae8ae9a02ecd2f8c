"""Cycles, memory traffic and collectives of a compiled program, from its HLO text."""

import re
from collections.abc import Iterator
from typing import NamedTuple

_COMPUTATION = re.compile(r"^(ENTRY )?%?([\w.\-]+) \(.*\{\s*$")
_INSTRUCTION = re.compile(r"^\s+(?:ROOT )?%?([\w.\-]+) = (.+?) ([a-z][\w\-]*)\((.*)$")
_CALLEES = re.compile(
    r"(?:body|condition|calls|to_apply|branch_computations|\w+_computation)=\{?(%[\w.\-]+(?:, %[\w.\-]+)*)"
)
_ARRAY = re.compile(r"\b(?:(pred)|[a-z]+(\d+)\w*)\[([\d,]*)\]")
_CYCLES = re.compile(r'"estimated_cycles":"(\d+)"')
_PENALTY = 2**60  # libtpu adds it to the estimates of a few operations; the remainder is of the usual magnitude
_KNOWN_TRIP_COUNT = re.compile(r'"known_trip_count":\{"n":"(\d+)"')
_COLLECTIVE = re.compile(
    r"^(all-reduce|all-gather|reduce-scatter|all-to-all|ragged-all-to-all|collective-permute|collective-broadcast)(-start)?$"
)
_CONTROL_FLOW = ("while", "conditional", "call")
_WITHOUT_TRAFFIC = ("parameter", "constant", "get-tuple-element", "tuple", "bitcast", *_CONTROL_FLOW)


class Collective(NamedTuple):
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

    Attributes:
        cycles: Sum of the compiler's estimates, over all branches of conditionals; None if there are none, as on GPUs.
        bytes_accessed: Total size of the operands and results of all kernels.
        collectives: Collectives by kind.
        has_loops: Whether the program has loops. A loop over a constant range counts that number of times, others once.
    """

    cycles: int | None
    bytes_accessed: int
    collectives: tuple[Collective, ...]
    has_loops: bool


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
    collectives: dict[str, tuple[int, int]] = {}
    bytes_accessed, has_loops = 0, False
    for name, repetitions, fused in _executions(computations, entry):
        sizes = {instruction.name: _num_bytes(instruction.result) for instruction in computations[name]}
        for instruction in computations[name]:
            operand_bytes = sum(sizes.get(operand, 0) for operand in instruction.operands())
            has_loops |= instruction.opcode == "while"
            if estimate := _CYCLES.search(instruction.rest):
                cycles.append(repetitions * (int(estimate[1]) % _PENALTY))
            if match := _COLLECTIVE.match(instruction.opcode):
                num_calls, total = collectives.get(match[1], (0, 0))
                collectives[match[1]] = num_calls + repetitions, total + repetitions * operand_bytes
            if not fused and instruction.opcode not in _WITHOUT_TRAFFIC and not instruction.opcode.endswith("-done"):
                bytes_accessed += repetitions * (operand_bytes + sizes[instruction.name])
    return Costs(
        cycles=sum(cycles) if cycles else None,
        bytes_accessed=bytes_accessed,
        collectives=tuple(Collective(name, *collectives[name]) for name in sorted(collectives)),
        has_loops=has_loops,
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


def _executions(computations: dict[str, list[_Instruction]], entry: str) -> Iterator[tuple[str, int, bool]]:
    """Yields each computation that is reachable, how often it is executed, and whether it is part of a kernel."""
    pending, visited = [(entry, 1, False)], set()
    while pending:
        name, repetitions, fused = pending.pop()
        if name in visited or name not in computations:
            continue
        visited.add(name)
        yield name, repetitions, fused
        for instruction in computations[name]:
            trips = _trip_count(instruction, computations) if instruction.opcode == "while" else 1
            inside = fused or instruction.opcode not in _CONTROL_FLOW
            for callees in _CALLEES.findall(instruction.rest):
                pending += [(callee[1:], repetitions * trips, inside) for callee in callees.split(", ")]


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
        size = 8 if pred else int(bits)
        for length in shape.split(","):
            size *= int(length or 1)
        total += -(-size // 8)
    return total
