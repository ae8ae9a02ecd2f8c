"""Event files of runs."""

import shutil

import numpy as np
import pytest
from commands import SHORT, command, entries, one_run
from event_files import events, values


@one_run
def test_event_files_contain_every_number(finished):
    out, _ = finished
    logged = values(out / "tensorboard")
    scalars = {(tag, step): value.simple_value for tag, step, value in logged if value.HasField("simple_value")}
    for entry in entries(out, "train"):
        assert scalars["train/loss", entry["step"]] == np.float32(entry["loss"])
        assert scalars["train/rate", entry["step"]] == np.float32(entry["rate"])
    for entry in entries(out, "eval"):
        assert scalars["eval/accuracy", entry["step"]] == np.float32(entry["accuracy"])
    updates = entries(out, "clusters")
    for entry in updates:
        explained = entry["layers"]["stage1"]["explained_variance"]
        assert scalars["clusters/stage1/explained_variance", entry["step"]] == np.float32(explained)


@pytest.mark.slow
@one_run
def test_resumed_run_logs_everything_once(unfinished):
    """The checkpoint is of a step with a cluster update; a running TensorBoard discards the old file."""
    out = unfinished
    for step in ("20", "24"):
        shutil.rmtree(out / "checkpoints" / step)
    assert command(*SHORT, "--tensorboard", "--out", str(out)) == 0
    logged = [(tag, step) for tag, step, _ in values(out / "tensorboard")]
    assert len(set(logged)) == len(logged)
    updates = [entry["step"] for entry in entries(out, "clusters")]
    assert 10 in updates
    assert [step for tag, step in logged if tag == "clusters/stage1/explained_variance"] == updates
    losses = [step for tag, step in logged if tag == "train/loss"]
    assert losses == [entry["step"] for entry in entries(out, "train")]
    starts = [event for event in events(out / "tensorboard") if event.HasField("session_log")]
    assert [(event.step, event.session_log.status) for event in starts] == [(0, 1)]
