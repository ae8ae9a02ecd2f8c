"""The command as tests call it, and a short run."""

import json
import pathlib

import pytest

from dropcluster_jax.cli import main

SHORT = ["train", "digits", "--model", "resnet8", "--steps", "24", "--batch-size", "32"]
SHORT += ["--drop.update-every", "4", "--drop.probe-size", "64"]

# What looks at the run of the fixture `finished` goes to one worker, so that it is made once.
one_run = pytest.mark.xdist_group("finished run")


def command(*arguments: str) -> int:
    """Its exit status."""
    try:
        main(list(arguments))
    except SystemExit as stop:
        return int(stop.code or 0)
    return 0


def records(folder: pathlib.Path, event: str) -> list[dict]:
    """What a run has written of one kind."""
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    return [record for record in map(json.loads, lines) if record["event"] == event]
