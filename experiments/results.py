"""Result files, with one JSON line per finished run, and the provenance of each line.

Files from several machines can be concatenated; duplicate lines count once.
"""

import base64
import datetime
import fcntl
import functools
import importlib.metadata
import json
import os
import pathlib
import platform
import subprocess
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np

Line = dict[str, Any]

FOLDER = pathlib.Path(__file__).parent / "results"
_PACKAGES = ("jax", "jaxlib", "flax", "optax", "numpy")


def read(path: pathlib.Path) -> list[Line]:
    """Returns the lines of a file, the first one of each id; an incomplete last line is ignored.

    Raises:
        ValueError: If a complete line is damaged.
    """
    if not path.exists():
        return []
    lines: dict[str, Line] = {}
    for number, text in enumerate(path.read_text().split("\n")[:-1], 1):
        try:
            line = json.loads(text)
            lines.setdefault(line["id"], line)
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(f"{path}, line {number}, is not a result: {error!r}") from None
    return list(lines.values())


def append(path: pathlib.Path, line: Mapping[str, Any]) -> None:
    """Appends a line atomically, after removing an incomplete last line. Safe for concurrent processes."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a+b") as file:
        fcntl.flock(file, fcntl.LOCK_EX)  # released when the file is closed
        file.seek(0)
        content = file.read()
        end = content.rfind(b"\n") + 1
        if end < len(content):
            file.truncate(end)
        file.write(json.dumps(line, allow_nan=False).encode() + b"\n")
        file.flush()
        os.fsync(file.fileno())


def encode_labels(labels: np.ndarray) -> list[str]:
    """Returns a 2-D label map as text, a string per row and a character per position, starting at "0".

    Unlike the compressed maps of a run folder, these are readable in the result files.
    """
    return ["".join(chr(ord("0") + label) for label in row) for row in labels.tolist()]


def decode_labels(rows: Sequence[str]) -> np.ndarray:
    """Inverse of `encode_labels`."""
    return np.array([[ord(character) - ord("0") for character in row] for row in rows], np.int32)


def encode_bits(values: np.ndarray) -> str:
    """Returns a 1-D array of booleans as base64, eight per byte."""
    return base64.b64encode(np.packbits(values).tobytes()).decode()


def decode_bits(text: str, count: int) -> np.ndarray:
    """Inverse of `encode_bits`; `count` is the number of values."""
    return np.unpackbits(np.frombuffer(base64.b64decode(text), np.uint8), count=count).astype(bool)


def encode_counts(values: np.ndarray) -> str:
    """Returns a 1-D array of integers from 0 to 255 as base64, one per byte."""
    return base64.b64encode(values.astype(np.uint8).tobytes()).decode()


def decode_counts(text: str) -> np.ndarray:
    """Inverse of `encode_counts`."""
    return np.frombuffer(base64.b64decode(text), np.uint8).astype(int)


def provenance() -> dict[str, Any]:
    """Returns `commit`, `versions`, `device` and `time`."""
    return {
        "commit": commit(),
        "versions": _versions(),
        "device": device(),
        "time": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    }


@functools.cache
def _versions() -> dict[str, str]:
    versions = {name: importlib.metadata.version(name) for name in _PACKAGES}
    return {"python": platform.python_version(), **versions}


def device() -> str:
    """Returns the kind of the accelerator, or the model and the number of CPU cores."""
    first = jax.devices()[0]
    return first.device_kind if first.platform != "cpu" else f"{_cpu_model()}, {os.cpu_count()} cores"


@functools.cache
def _cpu_model() -> str:
    try:
        lines = pathlib.Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return models[0] if models else platform.machine()


@functools.cache
def commit() -> str | None:
    """Returns the commit at the first call, with "+" if the code was modified; None without Git."""
    code = (":/dropcluster_jax", ":/experiments", ":(exclude,top)experiments/results")
    try:
        head = _git("rev-parse", "--short=12", "HEAD")
        modified = _git("status", "--porcelain", "--", *code)
    except (OSError, subprocess.CalledProcessError):
        return None
    return head + ("+" if modified else "")


def _git(*arguments: str) -> str:
    folder = pathlib.Path(__file__).parent
    return subprocess.run(["git", *arguments], cwd=folder, capture_output=True, text=True, check=True).stdout.strip()
