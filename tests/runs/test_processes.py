"""Several processes for real: on one machine, with JAX's distributed runtime and Gloo."""

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
from runs.test_killed import RUN, STEPS, TURNS, last_checkpoint, records

from dropcluster_jax.cli import main
from dropcluster_jax.training import load_run


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
def together(commands: list[list[str]], devices: int):
    """The processes of these commands, each with so many CPU devices."""
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


@pytest.mark.parametrize(("processes", "devices"), [(2, 2), (4, 1)] if TURNS > 1 else [(2, 2)])
def test_steps_of_several_processes_are_those_of_one_device(processes, devices):
    """20 steps, each from one device's state: loss, gradients, update and statistics to 1e-5, and the same clusters."""
    script, coordinator = str(pathlib.Path(__file__).with_name("process_steps.py")), free_port()
    commands = [[script, coordinator, str(processes), str(process)] for process in range(processes)]
    with together(commands, devices) as running:
        for process in running:
            out, err = process.communicate(timeout=150)
            assert process.returncode == 0, err
            found = json.loads(out.splitlines()[-1])
            assert found.pop("devices") == 4 and found.pop("labels") <= 1e-4
            assert set(found) == {"loss", "gradients", "update", "statistics", "evaluation"}
            assert max(found.values()) < 1e-5, found


def commands(folder: pathlib.Path) -> list[list[str]]:
    """Of two processes."""
    both = [*RUN, "--out", str(folder), "--coordinator", free_port(), "--num-processes", "2"]
    return [["-m", "dropcluster_jax", *both, "--process-id", str(process)] for process in range(2)]


def wait_for_checkpoint(folder: pathlib.Path, after: int, processes: list[subprocess.Popen[str]]) -> None:
    deadline = time.monotonic() + 120
    while last_checkpoint(folder) <= after:
        assert time.monotonic() < deadline and all(process.poll() is None for process in processes)
        time.sleep(0.02)


@pytest.mark.parametrize("turn", range(TURNS))
def test_two_processes_told_to_stop_save_the_same_step_and_one_goes_on(turn, tmp_path):
    """Either is told, by either signal; then one process with other devices ends the run."""
    number, told = ((signal.SIGTERM, 1), (signal.SIGINT, 0))[turn % 2]
    folder = tmp_path / "run"
    (folder / "checkpoints" / "0").mkdir(parents=True)  # of another run, which --restart removes before any looks
    (folder / "config.json").write_text('{"drop": {}}')
    told_more = ["--restart", "--shard-optimizer"]
    with together([[*words, *told_more] for words in commands(folder)], devices=2) as running:
        wait_for_checkpoint(folder, 5 * (turn % 5), running)
        running[told].send_signal(number)
        ends = [process.communicate(timeout=60) for process in running]
        assert [process.returncode for process in running] == [
            128 + (number if process == told else signal.SIGTERM) for process in range(2)
        ], ends
    step = last_checkpoint(folder)
    said = ends[0][1].splitlines()
    name = number.name if told == 0 else "SIGTERM"
    assert f"stopped by {name} after step {step}; this goes on from step {step}:" in said
    assert "stopped" not in ends[1][1]
    arguments = shlex.split(said[-1])[1:]
    main(arguments[: arguments.index("--coordinator")])
    assert load_run(folder).step == STEPS
    steps = [record["step"] for record in records(folder) if record["event"] == "train"]
    assert steps == sorted({1, *range(10, STEPS, 10), STEPS})


@pytest.mark.parametrize("turn", range(TURNS))
@pytest.mark.skipif(TURNS == 1, reason="waits for a silent process to be given up: part of `make soak`")
def test_one_of_two_killed_the_other_ends_with_a_message_and_both_go_on(turn, tmp_path):
    folder, victim = tmp_path / "run", turn % 2
    with together(commands(folder), devices=2) as running:
        wait_for_checkpoint(folder, 5 * (turn % 5), running)
        running[victim].kill()
        since = time.monotonic()
        _, err = running[1 - victim].communicate(timeout=60)
        assert time.monotonic() - since < 30 and running[1 - victim].returncode != 0
        assert "another task died" in err or "another process is gone" in err
    with together(commands(folder), devices=2) as running:
        ends = [process.communicate(timeout=120) for process in running]
        assert [process.returncode for process in running] == [0, 0], ends
        assert "going on from the checkpoint of step" in ends[0][0]
    assert load_run(folder).step == STEPS and (folder / "summary.json").is_file()
