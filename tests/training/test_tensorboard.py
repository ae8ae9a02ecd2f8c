"""Event files are read here by their format, not by what wrote them."""

import io
import struct

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


def test_a_run_that_goes_on_hides_what_was_written_after_its_checkpoint(tmp_path):
    for step in (0, 20):
        with TensorBoard(tmp_path, step):
            pass
    starts = [(event.step, event.session_log.status) for event in events(tmp_path) if event.HasField("session_log")]
    assert starts == [(21, 1)]


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
        board({"event": "train", "step": 3, "rate": {"mine": 0.25}, "images_per_second": None})
        board.watch(state)
    assert [(tag, step) for tag, step, _ in values(tmp_path)] == [("train/rate/mine", 3), ("clusters/mine", 0)]
