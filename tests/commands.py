"""Helpers for tests of the command: calls in this and in a new process, and the options of a short run."""

import contextlib
import json
import os
import pathlib
import subprocess
import sys

import pytest

from dropcluster_jax.cli import main

SHORT = ["train", "digits", "--model", "resnet8", "--steps", "24", "--batch-size", "32"]
SHORT += ["--drop.update-interval", "4", "--drop.probe-size", "64"]

# Tests that read the run of the fixture `finished` share a worker, so that the run is trained once.
one_run = pytest.mark.xdist_group("finished run")


def command(*arguments: str) -> int:
    """Runs the command and returns its exit status."""
    try:
        main(list(arguments))
    except SystemExit as stop:
        return int(stop.code or 0)
    return 0


def run_command(*arguments: str, **environment: str | None) -> subprocess.CompletedProcess[str]:
    """Runs the command in a new process, with changes to the environment; None removes a variable."""
    variables = {name: value for name, value in {**os.environ, **environment}.items() if value is not None}
    words = [sys.executable, "-m", "dropcluster_jax", *arguments]
    return subprocess.run(words, env=variables, capture_output=True, text=True, check=False)


def entries(folder: pathlib.Path, event: str) -> list[dict]:
    """Returns the log entries of one event."""
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    return [entry for entry in map(json.loads, lines) if entry["event"] == event]


@contextlib.contextmanager
def edited(path: pathlib.Path):
    """Yields the content of a JSON file and writes it back."""
    content = json.loads(path.read_text())
    yield content
    path.write_text(json.dumps(content))
