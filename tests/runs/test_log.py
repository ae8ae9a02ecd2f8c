"""The log of a run: entries are written at each save, and those after the restored checkpoint are dropped."""

import json

import numpy as np
import pytest

import dropcluster_jax as dc
from dropcluster_jax.runs import read_history
from dropcluster_jax.runs.config import as_path
from dropcluster_jax.runs.folder import CLUSTERS, METRICS
from dropcluster_jax.runs.log import RunLog, read_entries

STATES = {
    "stage1": dc.Grid(num_clusters=4).init((4, 6, 3)),
    "stage2": dc.Grid(num_clusters=2, per_channel=True).init((2, 2, 3)),
}
TRAIN = {"event": "train", "step": 1, "loss": 2.0, "accuracy": 0.25, "rate": 0.1, "images_per_second": 1500.0}
EVAL = {"event": "eval", "step": 2, "loss": 0.5, "accuracy": 0.75, "count": 4.0}


@pytest.fixture
def folder(tmp_path):
    return as_path(tmp_path)


def test_entries_are_written_at_each_save_and_at_the_end(folder):
    with RunLog(folder, [METRICS, CLUSTERS], {}) as log:
        log.log(TRAIN)
        log.log_clusters(0, STATES)
        assert list(folder.iterdir()) == [] and log.write() == {METRICS: 1, CLUSTERS: 1}
        assert read_entries(folder / METRICS) == [TRAIN]
        log.log({**EVAL, "loss": float("nan")})
        log.log_clusters(20, STATES)
    assert read_entries(folder / METRICS) == [TRAIN, {**EVAL, "loss": None}]
    history = read_history(folder)
    assert list(history) == ["stage1", "stage2"]
    for place, updates in history.items():
        assert [step for step, _ in updates] == [0, 20]
        for _, labels in updates:
            assert labels.dtype == np.int32 and (labels == STATES[place].labels).all()


def test_entries_are_written_if_training_fails(folder):
    with pytest.raises(FloatingPointError), RunLog(folder, [METRICS], {}) as log:
        log.log(TRAIN)
        raise FloatingPointError
    assert read_entries(folder / METRICS) == [TRAIN]


def test_entries_after_the_restored_checkpoint_are_dropped(folder):
    with RunLog(folder, [METRICS, CLUSTERS], {}) as log:
        log.log(TRAIN)
        log.log_clusters(0, STATES)
        counts = log.write()
        log.log(EVAL)
        log.log_clusters(2, STATES)
    with RunLog(folder, [METRICS, CLUSTERS], counts) as log:
        assert log.write() == counts
    assert read_entries(folder / METRICS) == [TRAIN]
    assert [step for step, _ in read_history(folder)["stage1"]] == [0]
    with RunLog(folder, [METRICS], {}):  # without a checkpoint
        pass
    assert read_entries(folder / METRICS) == []


def test_a_log_without_files_writes_nothing(folder):
    """As in all processes but the first."""
    with RunLog(folder, [], {METRICS: 3}) as log:
        log.log(TRAIN)
        log.log_clusters(0, STATES)
        assert log.write() == {}
    assert list(folder.iterdir()) == []


@pytest.mark.parametrize("content", [b"null\n", b"[1]\n", b'{"loss": 1}\n', b'{"step": 1\n', b"\xff\n"])
def test_damaged_entries_are_errors(content, folder):
    (folder / METRICS).write_bytes(content)
    with pytest.raises(ValueError, match=r"metrics\.jsonl is damaged: "):
        read_entries(folder / METRICS)


@pytest.mark.parametrize(
    "layer",
    [{"shape": [2, 2, 1], "labels": "!"}, {"shape": [2, 2, 1], "labels": "AAAA"}, {"shape": [3, 3, 1]}, None, "text"],
    ids=["base64", "compression", "missing", "null", "string"],
)
def test_damaged_history_is_an_error(layer, folder):
    (folder / "clusters.jsonl").write_text(json.dumps({"step": 0, "layers": {"stage1": layer}}) + "\n")
    with pytest.raises(ValueError, match=r"clusters\.jsonl is damaged: "):
        read_history(folder)


def test_missing_history_is_an_error(folder):
    with pytest.raises(FileNotFoundError, match=r"clusters\.jsonl"):
        read_history(folder)
