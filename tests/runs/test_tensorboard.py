import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from event_files import values

import dropcluster_jax as dc
from dropcluster_jax.runs import TensorBoard
from dropcluster_jax.training import TrainState


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


def test_nested_numbers_become_scalars_and_labels_images(tmp_path):
    clusters = dc.Grid(num_clusters=4).init((6, 6, 2))
    state = TrainState({}, {}, {"other": clusters._asdict()}, (), jax.random.key(0), jnp.array(5))
    with TensorBoard(tmp_path) as board:
        board({"event": "train", "step": 3, "rate": {"mine": 0.25}, "images_per_second": None, "note": "text"})
        board.log_labels(4, {"mine": np.asarray(clusters.labels)})
        board.log_clusters(state)
    expected = [("train/rate/mine", 3), ("clusters/mine", 4), ("clusters/other", 5)]
    assert [(tag, step) for tag, step, _ in values(tmp_path)] == expected
