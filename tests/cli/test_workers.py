"""Reader processes do not disturb the end of a run, however it is stopped."""

import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from PIL import Image

OPTIONS = "--data.image-size 8 --data.workers 1 --batch-size 8 --steps 1000000 --evaluate-every-epochs 0"


@pytest.mark.slow
@pytest.mark.parametrize(("number", "status"), [(signal.SIGTERM, 143), (signal.SIGKILL, -signal.SIGKILL)])
def test_run_with_reader_processes_can_be_stopped(number, status, tmp_path):
    for index, pixels in enumerate(np.random.default_rng(0).integers(0, 256, (40, 8, 8, 3), np.uint8)):
        folder = tmp_path / "photos" / "ab"[index % 2]
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(folder / f"{index}.png")
    words = [sys.executable, "-m", "dropcluster_jax", "train", "imagenette", "--model", "resnet8", *OPTIONS.split()]
    words += ["--data.name", f"folder:{tmp_path / 'photos'}", "--drop.method", "none", "--checkpoint.every", "2"]
    words += ["--out", str(tmp_path / "run")]
    with subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True) as process:
        try:
            while not list(tmp_path.glob("run/checkpoints/[0-9]*")):
                assert process.poll() is None
                time.sleep(0.1)
            if number == signal.SIGKILL:  # as by the kernel if memory is short: the main process only
                process.kill()
            else:  # as by a terminal or a scheduler: all processes of the group
                os.killpg(process.pid, number)
            output, _ = process.communicate(timeout=120)  # until the reader processes, which share the output, end
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
    assert process.returncode == status and b"Traceback" not in output
    assert number == signal.SIGKILL or b"to resume from step" in output
