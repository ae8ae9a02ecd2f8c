import subprocess
import sys

import numpy as np
import pytest
from commands import SHORT
from image_files import encoded

# Options that change nothing of what a run finds: checkpoints of steps 10, 20 and 24, and event files.
KEPT = ["--checkpoint.every", "10", "--checkpoint.keep", "3", "--tensorboard"]


@pytest.fixture(scope="session")
def finished(tmp_path_factory):
    """A short run on digits: its folder and what it printed."""
    folder = tmp_path_factory.mktemp("runs") / "digits"
    printed = subprocess.run(
        [sys.executable, "-c", "from dropcluster_jax.cli import main; main()", *SHORT, *KEPT, "--out", str(folder)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert printed.returncode == 0, printed.stderr
    return folder, printed


@pytest.fixture
def photos(tmp_path):
    """A folder of images of unequal size, one of them no image."""
    for label, name in enumerate(("cat", "dog")):
        (tmp_path / "photos" / name).mkdir(parents=True)
        for i in range(20):
            pixels = np.full((20 + i, 30, 3), 100 * label + i, np.uint8)
            (tmp_path / "photos" / name / f"{i}.png").write_bytes(encoded(pixels))
    (tmp_path / "photos" / "cat" / "text.jpg").write_bytes(b"not a picture")
    return f"folder:{tmp_path / 'photos'}"
