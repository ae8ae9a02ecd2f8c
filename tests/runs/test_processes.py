"""Runs of multiple processes on one machine, with JAX's distributed runtime and Gloo."""

import contextlib
import json
import os
import pathlib
import re
import shlex
import signal
import socket
import subprocess
import sys
import time

import pytest
from runs.test_killed import RUN, STEPS, TURNS, entries, last_checkpoint

from dropcluster_jax.cli import main
from dropcluster_jax.runs import load_run


def free_port() -> str:
    with contextlib.closing(socket.socket()) as server:
        server.bind(("127.0.0.1", 0))
        return f"127.0.0.1:{server.getsockname()[1]}"


def environment(devices: int) -> dict[str, str]:
    flags = re.sub(r"--xla_force_host_platform_device_count=\d+", "", os.environ["XLA_FLAGS"])
    return {
        **os.environ,
        "XLA_FLAGS": f"{flags} --xla_force_host_platform_device_count={devices}",
        "PYTHONPATH": str(pathlib.Path(__file__).parents[1]),
    }


@contextlib.contextmanager
def start(commands: list[list[str]], devices: int):
    """Starts a process for each command, with this number of CPU devices each."""
    processes = [
        subprocess.Popen(
            [sys.executable, *command],
            env=environment(devices),
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        for command in commands
    ]
    try:
        yield processes
    finally:
        for process in processes:
            if process.poll() is None:
                process.kill()
            process.wait()
            for stream in (process.stdout, process.stderr):
                assert stream is not None
                stream.close()


@pytest.mark.slow
@pytest.mark.parametrize(("num_processes", "devices"), [(2, 2), (4, 1)] if TURNS > 1 else [(2, 2)])
@pytest.mark.parametrize("strategy", ["jit", "pmap"])
def test_steps_of_processes_equal_other_steps(strategy, num_processes, devices):
    """With jit, those of one device; with pmap, those of shard_map on the same devices.

    20 steps, each from the state of the others: loss, gradients, update and statistics to 1e-5, equal clusters.
    """
    script, coordinator = str(pathlib.Path(__file__).with_name("process_steps.py")), free_port()
    commands = [[script, coordinator, str(num_processes), str(index), strategy] for index in range(num_processes)]
    with start(commands, devices) as processes:
        for process in processes:
            out, err = process.communicate(timeout=150)
            assert process.returncode == 0, err
            differences = json.loads(out.splitlines()[-1])
            assert differences.pop("devices") == 4 and differences.pop("labels") <= 1e-4
            assert set(differences) == {"loss", "gradients", "update", "statistics", "evaluation"}
            assert max(differences.values()) < 1e-5, differences


def two_processes(folder: pathlib.Path) -> list[list[str]]:
    """The commands of two processes that train one run."""
    arguments = [*RUN, "--out", str(folder), "--coordinator", free_port(), "--num-processes", "2"]
    return [["-m", "dropcluster_jax", *arguments, "--process-id", str(index)] for index in range(2)]


def wait_for_checkpoint(folder: pathlib.Path, after: int, processes: list[subprocess.Popen[str]]) -> None:
    deadline = time.monotonic() + 120
    while last_checkpoint(folder) <= after:
        assert time.monotonic() < deadline and all(process.poll() is None for process in processes)
        time.sleep(0.02)


@pytest.mark.slow
@pytest.mark.parametrize("turn", range(TURNS))
def test_signal_to_one_process_stops_both_at_the_same_step(turn, tmp_path):
    """A single process with another number of devices then finishes the run."""
    number, target = ((signal.SIGTERM, 1), (signal.SIGINT, 0))[turn % 2]
    folder = tmp_path / "run"
    (folder / "checkpoints" / "0").mkdir(parents=True)  # of an earlier run, which --restart removes
    (folder / "config.json").write_text('{"drop": {}}')
    options = ["--restart", "--shard-optimizer"]
    with start([[*words, *options] for words in two_processes(folder)], devices=2) as processes:
        wait_for_checkpoint(folder, 5 * (turn % 5), processes)
        processes[target].send_signal(number)
        outputs = [process.communicate(timeout=60) for process in processes]
        assert [process.returncode for process in processes] == [
            128 + (number if index == target else signal.SIGTERM) for index in range(2)
        ], outputs
    step = last_checkpoint(folder)
    messages = outputs[0][1].splitlines()
    name = number.name if target == 0 else "SIGTERM"
    assert f"stopped by {name} after step {step}; to resume from step {step}:" in messages
    assert "stopped" not in outputs[1][1]
    arguments = shlex.split(messages[-1])[1:]
    main(arguments[: arguments.index("--coordinator")])
    assert load_run(folder).step == STEPS
    steps = [entry["step"] for entry in entries(folder) if entry["event"] == "train"]
    assert steps == sorted({1, *range(10, STEPS, 10), STEPS})


@pytest.mark.slow
@pytest.mark.parametrize("turn", range(TURNS))
@pytest.mark.skipif(TURNS == 1, reason="waits for the heartbeat timeout: part of `make soak`")
def test_when_one_process_is_killed_the_other_exits_and_both_can_resume(turn, tmp_path):
    folder, victim = tmp_path / "run", turn % 2
    with start(two_processes(folder), devices=2) as processes:
        wait_for_checkpoint(folder, 5 * (turn % 5), processes)
        processes[victim].kill()
        since = time.monotonic()
        _, err = processes[1 - victim].communicate(timeout=60)
        assert time.monotonic() - since < 30 and processes[1 - victim].returncode != 0
        assert "another task died" in err or "another process died" in err
    with start(two_processes(folder), devices=2) as processes:
        outputs = [process.communicate(timeout=120) for process in processes]
        assert [process.returncode for process in processes] == [0, 0], outputs
        assert "resuming from the checkpoint of step" in outputs[0][0]
    assert load_run(folder).step == STEPS and (folder / "summary.json").is_file()
