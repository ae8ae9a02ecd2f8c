"""What is killed goes on to the same bits. `make soak` kills twenty times and more; here it is a few times."""

import json
import os
import pathlib
import random
import shlex
import signal
import subprocess
import sys

import pytest
from training.test_steps import equal

from dropcluster_jax.cli import main
from dropcluster_jax.training import load_run

KILLS = int(os.environ.get("SOAK_KILLS", "2"))

RUN = ["train", "digits", "--model", "resnet8", "--steps", "60", "--batch-size", "16", "--checkpoint.every", "3"]
RUN += ["--drop.update-every", "4", "--drop.probe-size", "32", "--data.per-class", "32", "--data.test-split"]
RUN += ["test[:64]", "--average", "0.9"]


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    """The folder of the run that nothing disturbs."""
    folder = tmp_path_factory.mktemp("runs") / "whole"
    main([*RUN, "--out", str(folder)])
    return folder


def strike(folder: pathlib.Path, number: int, **moment) -> subprocess.CompletedProcess[str]:
    """Go on with a run until it is struck by the signal."""
    script = pathlib.Path(__file__).with_name("killed_run.py")
    told = json.dumps({**moment, "signal": number})
    return subprocess.run(
        [sys.executable, script, told, *RUN, "--out", folder], capture_output=True, text=True, timeout=120, check=False
    )


def last_checkpoint(folder: pathlib.Path) -> int:
    there = folder / "checkpoints"
    return (
        max((int(path.name) for path in there.iterdir() if path.name.isdecimal()), default=0) if there.exists() else 0
    )


def records(folder: pathlib.Path) -> list[dict]:
    lines = map(json.loads, (folder / "metrics.jsonl").read_text().splitlines())
    return [{name: value for name, value in line.items() if name != "images_per_second"} for line in lines]


def assert_same(folder: pathlib.Path, whole: pathlib.Path) -> None:
    """Final parameters, statistics, clusters, optimiser, key, averages, metrics and summary, bit for bit."""
    one, other = load_run(folder), load_run(whole)
    assert one.step == other.step == 60 and equal(one.state, other.state)
    assert records(folder) == records(whole)
    summaries = [json.loads((each / "summary.json").read_text()) for each in (folder, whole)]
    for summary in summaries:
        del summary["seconds"]
    assert summaries[0] == summaries[1]


def test_killed_at_random_moments_a_run_ends_in_the_same_bits(uninterrupted, tmp_path):
    """Runs that are over before all kills were made are followed by others."""
    rng, kills, runs = random.Random(0), 0, 0
    while kills < KILLS:
        folder = tmp_path / f"run{runs}"
        runs += 1
        while kills < KILLS:
            when = ("save", "cluster", "step")[kills % 3]
            after = last_checkpoint(folder) + rng.randrange(7)
            finished = strike(folder, signal.SIGKILL, when=when, after=after, delay=rng.choice([0, rng.random() / 20]))
            if finished.returncode == 0:
                break
            assert finished.returncode == -signal.SIGKILL, finished.stderr
            kills += 1
        main([*RUN, "--out", str(folder)])
        assert_same(folder, uninterrupted)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("turn", range(max(1, KILLS // 2)))
def test_told_to_stop_a_run_saves_says_how_to_go_on_and_ends_in_the_same_bits(number, turn, uninterrupted, tmp_path):
    rng = random.Random(turn)
    folder = tmp_path / "run"
    finished = strike(folder, number, when=("step", "cluster", "save")[turn % 3], after=rng.randrange(50), delay=0.0)
    assert finished.returncode == 128 + number, finished.stderr
    step = last_checkpoint(folder)
    told = finished.stderr.splitlines()
    assert told[0] == f"stopped by {number.name} after step {step}; this goes on from step {step}:"
    assert told[1] == f"  {shlex.join(['dropcluster', *RUN, '--out', str(folder)])}" and len(told) == 2
    main(shlex.split(told[1])[1:])
    assert_same(folder, uninterrupted)
