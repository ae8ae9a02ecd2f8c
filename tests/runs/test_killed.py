"""What is killed goes on to the same bits. `make soak` does so at twenty moments and more; here there are a few."""

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

# Of each turn two are `kill -9`, while a checkpoint is written and while clusters are updated.
MOMENTS = [
    (signal.SIGKILL, "save"),
    (signal.SIGTERM, "step"),
    (signal.SIGKILL, "cluster"),
    (signal.SIGINT, "cluster"),
]
TURNS = int(os.environ.get("SOAK_TURNS", "1"))
STEPS = 60 if TURNS > 1 else 24

RUN = ["train", "digits", "--model", "resnet8", "--steps", str(STEPS), "--batch-size", "16", "--checkpoint.every", "3"]
RUN += ["--drop.update-every", "4", "--drop.probe-size", "32", "--data.examples-per-class", "32", "--data.test-split"]
RUN += ["test[:64]", "--ema-decay", "0.9", "--drop.places", "stage1"]


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
    """Final parameters, statistics, clusters, optimizer, key, averages, metrics, history and summary, bit for bit."""
    one, other = load_run(folder), load_run(whole)
    assert one.step == other.step == STEPS and equal(one.state, other.state)
    assert records(folder) == records(whole)
    histories = [(each / "clusters.jsonl").read_bytes() for each in (folder, whole)]
    assert histories[0] == histories[1] and histories[0].count(b"\n") > 1
    summaries = [json.loads((each / "summary.json").read_text()) for each in (folder, whole)]
    for summary in summaries:
        del summary["seconds"]
    assert summaries[0] == summaries[1]


def assert_told_how_to_go_on(finished: subprocess.CompletedProcess[str], number: signal.Signals, folder: pathlib.Path):
    step = last_checkpoint(folder)
    assert finished.stderr.splitlines() == [
        f"stopped by {number.name} after step {step}; this goes on from step {step}:",
        f"  {shlex.join(['dropcluster', *RUN, '--out', str(folder)])}",
    ]


def test_killed_and_told_to_stop_at_random_moments_a_run_ends_in_the_same_bits(uninterrupted, tmp_path):
    """Each time it goes on from its last checkpoint. Runs that end before all was done are followed by others."""
    rng, runs = random.Random(0), 0
    moments = iter(MOMENTS * TURNS if TURNS > 1 else MOMENTS[:2])
    moment = next(moments)
    while moment:
        folder = tmp_path / f"run{runs}"
        runs += 1
        while moment:
            number, when = moment
            after = last_checkpoint(folder) + rng.randrange(7)
            finished = strike(folder, number, when=when, after=after, delay=rng.choice([0, rng.random() / 20]))
            if finished.returncode == 0:  # over before the moment came
                break
            if number == signal.SIGKILL:
                assert finished.returncode == -number, finished.stderr
            else:
                assert finished.returncode == 128 + number, finished.stderr
                assert_told_how_to_go_on(finished, number, folder)
            moment = next(moments, None)
        main([*RUN, "--out", str(folder)])
        assert_same(folder, uninterrupted)


def test_a_second_interrupt_leaves_at_once():
    """While the step, which the first one lets go on, takes long and never comes back to Python."""
    told = (
        "import os, signal, threading\n"
        "import jax\n"
        "from dropcluster_jax.runs.preemption import Preemption\n"
        "with Preemption():\n"
        "    os.kill(os.getpid(), signal.SIGINT)\n"
        "    print('goes on', flush=True)\n"
        "    threading.Timer(1, os.kill, (os.getpid(), signal.SIGINT)).start()\n"
        "    jax.block_until_ready(jax.lax.while_loop(lambda x: x < 1, lambda x: x * x, 0.0))\n"
    )
    left = subprocess.run([sys.executable, "-c", told], capture_output=True, text=True, timeout=60, check=False)
    assert left.returncode == 130 and left.stdout == "goes on\n"
