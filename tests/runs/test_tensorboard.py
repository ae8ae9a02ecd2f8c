import subprocess
import sys

import jax
import jax.numpy as jnp
from event_files import values

import dropcluster_jax as dc
from dropcluster_jax.linen import DropCluster
from dropcluster_jax.training import make_steps
from dropcluster_jax.runs.logging import TensorBoard


def test_an_event_file_that_cannot_be_written_is_an_error_and_no_endless_wait(tmp_path):
    code = f"""
import resource
from dropcluster_jax.training import TensorBoard
with TensorBoard({str(tmp_path)!r}) as board:
    resource.setrlimit(resource.RLIMIT_FSIZE, (2000, 2000))
    for step in range(1000):
        board({{"event": "train", "step": step, "loss": 0.5}})
"""
    finished = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert finished.returncode == 1 and finished.stderr.splitlines()[-1] == "OSError: [Errno 27] File too large"


def test_any_training_loop_may_use_it(tmp_path):
    """Layers of any name, a rate of each, numbers that are none."""
    import flax.linen as nn
    import optax

    class Net(nn.Module):
        @nn.compact
        def __call__(self, x, train=False, rate=0.0, update_clusters=False):
            x = DropCluster(dc.KMeans(num_clusters=4), name="mine")(
                x, rate=rate, deterministic=not train, update_clusters=update_clusters
            )
            return nn.Dense(3)(x.mean(axis=(1, 2)))

    batch = {"image": jax.random.normal(jax.random.key(0), (16, 6, 6, 2)), "label": jnp.zeros(16, jnp.int32)}
    steps = make_steps(Net(), optax.sgd(0.1))
    state = jax.jit(steps.update_clusters)(jax.jit(steps.init)(jax.random.key(1), batch), batch)
    with TensorBoard(tmp_path) as board:
        board({"event": "train", "step": 3, "rate": {"mine": 0.25}, "images_per_second": None, "note": "text"})
        board.watch(state)
    assert [(tag, step) for tag, step, _ in values(tmp_path)] == [("train/rate/mine", 3), ("clusters/mine", 0)]
