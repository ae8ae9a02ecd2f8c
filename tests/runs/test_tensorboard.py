import subprocess
import sys

import pytest
from event_files import values

from dropcluster_jax.runs import TensorBoard


@pytest.mark.slow
def test_unwritable_event_file_raises(tmp_path):
    code = f"""
import resource
from dropcluster_jax.runs import TensorBoard
with TensorBoard({str(tmp_path)!r}) as board:
    resource.setrlimit(resource.RLIMIT_FSIZE, (2000, 2000))
    for step in range(1000):
        board({{"event": "train", "step": step, "loss": 0.5}})
"""
    process = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert process.returncode == 1 and process.stderr.splitlines()[-1] == "OSError: [Errno 27] File too large"


def test_nested_numbers_become_scalars(tmp_path):
    with TensorBoard(tmp_path) as board:
        board({"event": "train", "step": 3, "rate": {"mine": 0.25}, "images_per_second": None, "note": "text"})
    assert [(tag, step) for tag, step, _ in values(tmp_path)] == [("train/rate/mine", 3)]
