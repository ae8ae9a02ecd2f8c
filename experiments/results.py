"""Result files: one JSON line for each finished run, and where each number comes from.

Files of several machines are merged by concatenation; a run that is in them twice counts once.
"""

import datetime
import fcntl
import functools
import importlib.metadata
import json
import os
import pathlib
import platform
import subprocess
from collections.abc import Mapping
from typing import Any

import jax

Line = dict[str, Any]

FOLDER = pathlib.Path(__file__).parent / "results"
_PACKAGES = ("jax", "jaxlib", "flax", "optax", "numpy")


def read(path: pathlib.Path) -> list[Line]:
    """The lines of a file, in their order; of a run that is there twice, the first.

    What a kill has left of a last line is no line.

    Raises:
        ValueError: a line that is none, with its number.
    """
    if not path.exists():
        return []
    lines: dict[str, Line] = {}
    whole = path.read_text().split("\n")[:-1]  # behind the last line break there is nothing, or a part of a line
    for number, text in enumerate(whole, 1):
        try:
            line = json.loads(text)
            lines.setdefault(line["id"], line)
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(f"{path}, line {number} is no result: {error!r}") from None
    return list(lines.values())


def append(path: pathlib.Path, line: Mapping[str, Any]) -> None:
    """Write a line behind the others, whole or not at all: what a kill has left of one is cut off first.

    Others may write to the same file at the same time.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a+b") as file:
        fcntl.flock(file, fcntl.LOCK_EX)  # until it is closed
        file.seek(0)
        content = file.read()
        end = content.rfind(b"\n") + 1
        if end < len(content):
            file.truncate(end)
        file.write(json.dumps(line, allow_nan=False).encode() + b"\n")
        file.flush()
        os.fsync(file.fileno())


def provenance() -> dict[str, Any]:
    """Where and by what a number was made: `commit`, `versions`, `device`, `time`."""
    return {
        "commit": commit(),
        "versions": {"python": platform.python_version()}
        | {name: importlib.metadata.version(name) for name in _PACKAGES},
        "device": device(),
        "time": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    }


def device() -> str:
    """What runs are trained on; of CPUs also how many there are."""
    first = jax.devices()[0]
    if first.platform != "cpu":
        return first.device_kind
    return f"{_processor()}, {os.cpu_count()} cores"


@functools.cache
def _processor() -> str:
    try:
        lines = pathlib.Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


@functools.cache
def commit() -> str | None:
    """That of the code when this was first called, with a plus sign where it was changed; None without Git."""
    folder = pathlib.Path(__file__).parent
    try:
        head = _git(folder, "rev-parse", "--short=12", "HEAD")
        code = (":/dropcluster_jax", ":/experiments", ":(exclude,top)experiments/results")
        changed = _git(folder, "status", "--porcelain", "--", *code)
    except (OSError, subprocess.CalledProcessError):
        return None
    return head + ("+" if changed else "")


def _git(folder: pathlib.Path, *words: str) -> str:
    return subprocess.run(["git", *words], cwd=folder, capture_output=True, text=True, check=True).stdout.strip()
