"""Event files are read here by their format, not by what wrote them."""

import io
import struct
import subprocess
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np
from commands import SHORT, command, records
from PIL import Image
from tensorboardX.proto.event_pb2 import Event

import dropcluster_jax as dc
from dropcluster_jax.linen import DropCluster
from dropcluster_jax.training import make_steps
from dropcluster_jax.training.tensorboard import TensorBoard


def events(folder):
    """Of all files, by their time: a length, its checksum, the event, its checksum."""
    for path in sorted(folder.glob("events.out.tfevents.*")):
        data, at = path.read_bytes(), 0
        while at < len(data):
            (length,) = struct.unpack_from("<Q", data, at)
            yield Event.FromString(data[at + 12 : at + 12 + length])
            at += 16 + length


def values(folder):
    return [(value.tag, event.step, value) for event in events(folder) for value in event.summary.value]


def test_a_run_writes_every_number_and_a_picture_at_each_update(tmp_path):
    out = tmp_path / "run"
    assert command(*SHORT, "--tensorboard", "--out", str(out)) == 0
    found = values(out / "tensorboard")
    scalars = {(tag, step): value.simple_value for tag, step, value in found if value.HasField("simple_value")}
    for record in records(out, "train"):
        assert scalars["train/loss", record["step"]] == np.float32(record["loss"])
        assert scalars["train/rate", record["step"]] == np.float32(record["rate"])
    for record in records(out, "test"):
        assert scalars["test/accuracy", record["step"]] == np.float32(record["accuracy"])
    updates = records(out, "clusters")
    for record in updates:
        explained = record["layers"]["drop_stage1"]["explained"]
        assert scalars["clusters/stage1/explained", record["step"]] == np.float32(explained)
    pictures = [(tag, step) for tag, step, value in found if value.HasField("image")]
    steps = [0, *(record["step"] for record in updates)]
    assert sorted(pictures) == [(f"clusters/{place}", step) for place in ("stage1", "stage2") for step in steps]
    image = next(value.image for _, _, value in found if value.HasField("image"))
    assert Image.open(io.BytesIO(image.encoded_image_string)).size == (image.width, image.height)


def test_a_run_that_goes_on_has_every_number_and_picture_once(tmp_path):
    """Stopped after a checkpoint, with an update at the very step of it; a TensorBoard that watches starts anew."""
    out = tmp_path / "run"
    options = [*SHORT, "--tensorboard", "--checkpoint.every", "10", "--out", str(out)]
    code = f"from dropcluster_jax.cli import main; main({options!r})"
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.DEVNULL)
    while not (out / "checkpoints" / "10").exists() and process.poll() is None:
        time.sleep(0.05)
    process.kill()
    process.wait()
    assert command(*options) == 0
    found = [(tag, step, value.HasField("image")) for tag, step, value in values(out / "tensorboard")]
    assert len(set(found)) == len(found)
    updates = [record["step"] for record in records(out, "clusters")]
    assert 10 in updates
    assert [step for tag, step, image in found if tag == "clusters/stage1" and image] == [0, *updates]
    assert [step for tag, step, _ in found if tag == "train/loss"] == [
        record["step"] for record in records(out, "train")
    ]
    log = [
        (event.step, event.session_log.status) for event in events(out / "tensorboard") if event.HasField("session_log")
    ]
    assert log == [(0, 1)]


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
    state = jax.jit(steps.cluster)(jax.jit(steps.init)(jax.random.key(1), batch), batch)
    with TensorBoard(tmp_path) as board:
        board({"event": "train", "step": 3, "rate": {"mine": 0.25}, "images_per_second": None, "note": "text"})
        board.watch(state)
    assert [(tag, step) for tag, step, _ in values(tmp_path)] == [("train/rate/mine", 3), ("clusters/mine", 0)]
