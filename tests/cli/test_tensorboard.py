"""What `--tensorboard` leaves of a run."""

import io
import shutil

import numpy as np
from commands import SHORT, command, one_run, records
from event_files import events, values
from PIL import Image


@one_run
def test_a_run_writes_every_number_and_a_picture_at_each_update(finished):
    out, _ = finished
    found = values(out / "tensorboard")
    scalars = {(tag, step): value.simple_value for tag, step, value in found if value.HasField("simple_value")}
    for record in records(out, "train"):
        assert scalars["train/loss", record["step"]] == np.float32(record["loss"])
        assert scalars["train/rate", record["step"]] == np.float32(record["rate"])
    for record in records(out, "test"):
        assert scalars["test/accuracy", record["step"]] == np.float32(record["accuracy"])
    updates = records(out, "clusters")
    for record in updates:
        explained = record["layers"]["drop_stage1"]["explained_variance"]
        assert scalars["clusters/stage1/explained_variance", record["step"]] == np.float32(explained)
    pictures = [(tag, step) for tag, step, value in found if value.HasField("image")]
    steps = [0, *(record["step"] for record in updates)]
    assert sorted(pictures) == [(f"clusters/{place}", step) for place in ("stage1", "stage2") for step in steps]
    image = next(value.image for _, _, value in found if value.HasField("image"))
    assert Image.open(io.BytesIO(image.encoded_image_string)).size == (image.width, image.height)


@one_run
def test_a_run_that_goes_on_has_every_number_and_picture_once(finished, tmp_path):
    """From a checkpoint, with an update at the very step of it; a TensorBoard that watches starts anew."""
    out = tmp_path / "run"
    shutil.copytree(finished[0], out)
    (out / "summary.json").unlink()
    for step in ("20", "24"):
        shutil.rmtree(out / "checkpoints" / step)
    assert command(*SHORT, "--tensorboard", "--out", str(out)) == 0
    found = [(tag, step, value.HasField("image")) for tag, step, value in values(out / "tensorboard")]
    assert len(set(found)) == len(found)
    updates = [record["step"] for record in records(out, "clusters")]
    assert 10 in updates
    assert [step for tag, step, image in found if tag == "clusters/stage1" and image] == [0, *updates]
    losses = [step for tag, step, _ in found if tag == "train/loss"]
    assert losses == [record["step"] for record in records(out, "train")]
    logs = [event for event in events(out / "tensorboard") if event.HasField("session_log")]
    assert [(event.step, event.session_log.status) for event in logs] == [(0, 1)]
