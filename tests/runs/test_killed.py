"""Killed runs resume with bit-identical results. `make soak` tries more moments than the two here."""

import json
import os
import pathlib
import random
import shlex
import signal
import subprocess
import sys

import pytest
from training.helpers import equal

from dropcluster_jax.cli import main
from dropcluster_jax.runs import load_run

MOMENTS = [
    (signal.SIGKILL, "save"),
    (signal.SIGTERM, "step"),
    (signal.SIGKILL, "clusters"),
    (signal.SIGINT, "clusters"),
]
TURNS = int(os.environ.get("SOAK_TURNS", "1"))
STEPS = 60 if TURNS > 1 else 24

RUN = ["train", "digits", "--model", "resnet8", "--steps", str(STEPS), "--batch-size", "16", "--checkpoint.every", "3"]
RUN += [
    "--drop.update-interval",
    "4",
    "--drop.probe-size",
    "32",
    "--data.examples-per-class",
    "32",
    "--data.test-split",
]
RUN += ["test[:64]", "--ema-decay", "0.9", "--drop.places", "stage1"]


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    """The folder of an uninterrupted run."""
    folder = tmp_path_factory.mktemp("runs") / "uninterrupted"
    main([*RUN, "--out", str(folder)])
    return folder


def strike(folder: pathlib.Path, number: int, **moment) -> subprocess.CompletedProcess[str]:
    """Starts or resumes a run that sends itself a signal."""
    script = pathlib.Path(__file__).with_name("killed_run.py")
    arguments = [json.dumps({**moment, "signal": number}), *RUN, "--out", folder]
    return subprocess.run(
        [sys.executable, script, *arguments], capture_output=True, text=True, timeout=120, check=False
    )


def last_checkpoint(folder: pathlib.Path) -> int:
    checkpoints = folder / "checkpoints"
    if not checkpoints.exists():
        return 0
    return max((int(path.name) for path in checkpoints.iterdir() if path.name.isdecimal()), default=0)


def entries(folder: pathlib.Path) -> list[dict]:
    """The log entries without the speed."""
    lines = map(json.loads, (folder / "metrics.jsonl").read_text().splitlines())
    return [{name: value for name, value in line.items() if name != "images_per_second"} for line in lines]


def assert_same(folder: pathlib.Path, expected: pathlib.Path) -> None:
    """Checks that the final state, the log, the cluster history and the summary are bit-identical."""
    loaded, expected_run = load_run(folder), load_run(expected)
    assert loaded.step == expected_run.step == STEPS and equal(loaded.state, expected_run.state)
    assert entries(folder) == entries(expected)
    history = (folder / "clusters.jsonl").read_bytes()
    assert history == (expected / "clusters.jsonl").read_bytes() and history.count(b"\n") > 1
    summaries = [json.loads((path / "summary.json").read_text()) for path in (folder, expected)]
    for summary in summaries:
        del summary["seconds"]
    assert summaries[0] == summaries[1]


def assert_says_how_to_resume(process: subprocess.CompletedProcess[str], number: signal.Signals, folder: pathlib.Path):
    step = last_checkpoint(folder)
    assert process.stderr.splitlines() == [
        f"stopped by {number.name} after step {step}; to resume from step {step}:",
        f"  {shlex.join(['dropcluster', *RUN, '--out', str(folder)])}",
    ]


@pytest.mark.slow
def test_killed_run_resumes_with_bit_identical_results(uninterrupted, tmp_path):
    """Signals arrive at random moments; runs that finish before all signals were sent are followed by others."""
    rng, runs = random.Random(0), 0
    moments = iter(MOMENTS * TURNS if TURNS > 1 else MOMENTS[:2])
    moment = next(moments)
    while moment:
        folder = tmp_path / f"run{runs}"
        runs += 1
        while moment:
            number, when = moment
            after = last_checkpoint(folder) + rng.randrange(7)
            process = strike(folder, number, when=when, after=after, delay=rng.choice([0, rng.random() / 20]))
            if process.returncode == 0:  # finished before the signal
                break
            if number == signal.SIGKILL:
                assert process.returncode == -number, process.stderr
            else:
                assert process.returncode == 128 + number, process.stderr
                assert_says_how_to_resume(process, number, folder)
            moment = next(moments, None)
        main([*RUN, "--out", str(folder)])
        assert_same(folder, uninterrupted)
