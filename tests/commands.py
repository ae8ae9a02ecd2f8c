"""Helpers for tests of the command: a call that returns the exit status, and the options of a short run."""

import json
import pathlib

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


def entries(folder: pathlib.Path, event: str) -> list[dict]:
    """Returns the log entries of one event."""
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    return [entry for entry in map(json.loads, lines) if entry["event"] == event]
