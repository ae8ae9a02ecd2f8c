"""Profiles a compiled program by kind of operation, on CPU."""

import collections
import itertools
import math
import pathlib
import re
import tempfile
from collections.abc import Callable, Iterator

import jax

_REPEATS = 3
# An instruction of HLO text: its name, and its shape, opcode and operands.
_INSTRUCTION = re.compile(r"^\s*(?:ROOT )?%?([\w.-]+) = (.*)$", re.MULTILINE)
_COMPUTATION = re.compile(r"^%?([\w.-]+) \([^\n]*\) -> [^\n]* \{\n(.*?)^\}", re.MULTILINE | re.DOTALL)
_CONTROL_FLOW = re.compile(r" (?:while|conditional|call)\(")


def profile(program: jax.stages.Compiled, run: Callable[[], object]) -> dict[str, float]:
    """Returns the seconds per run by kind of operation, and the time in which no operation runs as "idle".

    If several operations run at the same time, the time is divided equally between them, so that the sum is the time of
    a run.

    Args:
        program: Program whose operations are counted.
        run: Runs the program once and waits for the result.
    """
    run()
    with tempfile.TemporaryDirectory() as folder:
        with jax.profiler.trace(folder):
            for _ in range(_REPEATS):
                run()
        (trace,) = pathlib.Path(folder).rglob("*.xplane.pb")
        intervals = list(_intervals(jax.profiler.ProfileData.from_file(str(trace)), _kinds(program.as_text() or "")))
    times = sorted({time for start, end, _ in intervals for time in (start, end)})
    starts, ends = collections.defaultdict(list), collections.defaultdict(list)
    for start, end, kind in intervals:
        starts[start].append(kind)
        ends[end].append(kind)
    seconds: collections.Counter[str] = collections.Counter()
    active: collections.Counter[str] = collections.Counter()
    for time, next_time in itertools.pairwise(times):
        active.update(starts[time])
        active.subtract(ends[time])
        total = active.total()
        for kind, number in active.items() if total else [("idle", 1)]:
            seconds[kind] += (next_time - time) * number / max(total, 1) / _REPEATS / 1e9
    return dict(seconds.most_common())


def _intervals(trace: jax.profiler.ProfileData, kinds: dict[str, str]) -> Iterator[tuple[float, float, str]]:
    """Yields the start, the end and the kind of each operation.

    An asynchronous operation has an event when it is started and another one, with the prefix "end: ", when it is done.
    """
    runs, ends = collections.defaultdict(list), collections.defaultdict(list)
    for plane in trace.planes:
        for line in plane.lines:
            for event in line.events:
                operation = dict(event.stats).get("hlo_op")
                if event.name.startswith("end: "):
                    ends[event.name.removeprefix("end: ")].append(event.start_ns)
                elif operation in kinds:
                    runs[operation].append((event.start_ns, event.start_ns + event.duration_ns))
    for operation, starts_and_ends in runs.items():
        starts_and_ends.sort()
        next_starts = [start for start, _ in starts_and_ends[1:]] + [math.inf]
        for (start, end), next_start in zip(starts_and_ends, next_starts, strict=True):
            yield (
                start,
                max((time for time in ends[operation] if end < time < next_start), default=end),
                kinds[operation],
            )


def _kinds(hlo: str) -> dict[str, str]:
    """Returns the kind of each operation of a program in HLO text, except for control flow."""
    computations = {match[1]: match[2] for match in _COMPUTATION.finditer(hlo)}
    kinds = {}
    for match in _INSTRUCTION.finditer(hlo):
        name, instruction = match[1], match[2]
        called = re.search(r"calls=%?([\w.-]+)", instruction)
        body = computations.get(called[1], "") if called else ""
        if not _CONTROL_FLOW.search(instruction):
            kinds[name] = _kind(instruction, f"{instruction}\n{body}")
    return kinds


def _kind(instruction: str, text: str) -> str:
    """Returns the kind of an operation, given its instruction, with those that are fused into it in `text`."""
    backward = "transpose(jvp" in text
    if convolution := re.search(r"\w+\[\d+,(\d+),\S* convolution\(.*?window=\{size=(\d+)", text):
        side, window = map(int, convolution.groups())
        if window > side:  # the window is the output's gradient
            return "convolution, kernel gradient"
        return "convolution, input gradient" if backward else "convolution, forward"
    if " dot(" in text:
        if "lhs_contracting_dims={0}" in text:
            return "1x1 convolution, kernel gradient"
        return "1x1 convolution, input gradient" if backward else "1x1 convolution, forward"
    if " transpose(" in text or instruction.split(" ")[1].startswith("copy("):
        return "transposition"
    if re.search(r" reduce(?:-window)?\(", text):
        return "reduction"
    return "elementwise"
