import os
import re
import shutil

import numpy as np
import pytest
from commands import SHORT, run_command
from image_files import encoded

# Options that do not change the results: checkpoints after steps 10, 20 and 24, and event files.
KEPT = ["--checkpoint.every", "10", "--checkpoint.keep", "3", "--tensorboard"]


@pytest.fixture(scope="session")
def finished(tmp_path_factory):
    """The folder and the completed process of a short run on digits, on one device."""
    folder = tmp_path_factory.mktemp("runs") / "digits"
    flags = re.sub(r"--xla_force_host_platform_device_count=\d+", "", os.environ["XLA_FLAGS"])
    process = run_command(*SHORT, *KEPT, "--out", str(folder), XLA_FLAGS=flags)
    assert process.returncode == 0, process.stderr
    return folder, process


@pytest.fixture
def unfinished(finished, tmp_path):
    """A copy of the run folder without its summary, which is written last."""
    folder = tmp_path / "copy"
    shutil.copytree(finished[0], folder)
    (folder / "summary.json").unlink()
    return folder


@pytest.fixture
def photos(tmp_path):
    """A folder of images of different sizes, one of which is corrupt."""
    for label, name in enumerate(("cat", "dog")):
        (tmp_path / "photos" / name).mkdir(parents=True)
        for i in range(20):
            pixels = np.full((20 + i, 30, 3), 100 * label + i, np.uint8)
            (tmp_path / "photos" / name / f"{i}.png").write_bytes(encoded(pixels))
    (tmp_path / "photos" / "cat" / "text.jpg").write_bytes(b"not an image")
    return f"folder:{tmp_path / 'photos'}"
