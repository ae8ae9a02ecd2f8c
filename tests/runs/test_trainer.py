"""A run as a unit: its results, stopping, restarting and resuming. Whole commands are in tests/cli."""

import dataclasses
import json
import shutil
import signal

import jax
import numpy as np
import pytest
from training.helpers import equal

import dropcluster_jax as dc
from dropcluster_jax.runs import (
    AugmentConfig,
    CheckpointConfig,
    Checkpointer,
    DataConfig,
    DropConfig,
    TrainConfig,
    load_run,
    train,
    trainer,
)
from dropcluster_jax.runs import folder as run_folder
from dropcluster_jax.runs.config import as_path
from dropcluster_jax.training import NonFiniteError

pytestmark = pytest.mark.xdist_group("trainer")  # share the compiled programs and the reference

CONFIG = TrainConfig(
    model="resnet8",
    steps=12,
    batch_size=16,
    evaluate_every_epochs=0.5,
    drop=DropConfig(places=("stage1",), update_interval=4, probe_size=32),
    data=DataConfig(examples_per_class=16, test_split="test[:64]"),
    checkpoint=CheckpointConfig(every=3),
)


def at(folder, **changes):
    return dataclasses.replace(CONFIG, out=folder, **changes)


def contents(folder):
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def entries(folder):
    lines = map(json.loads, (folder / "metrics.jsonl").read_text().splitlines())
    return [{name: value for name, value in line.items() if name != "images_per_second"} for line in lines]


def without_seconds(summary):
    return {name: value for name, value in summary.items() if name != "seconds"}


@pytest.fixture(scope="module")
def reference(tmp_path_factory):
    """The folder and the summary of an uninterrupted run."""
    folder = tmp_path_factory.mktemp("runs") / "reference"
    return folder, train(at(folder), notify=lambda message: None)


@pytest.fixture
def copy(reference, tmp_path):
    """A copy of the folder, without the summary."""
    folder = tmp_path / "copy"
    shutil.copytree(reference[0], folder)
    (folder / "summary.json").unlink()
    return folder


def stop_at(step):
    def log(entry):
        if entry["step"] >= step:
            signal.raise_signal(signal.SIGTERM)

    return log


def test_results_are_those_of_the_last_step(reference):
    folder, summary = reference
    assert json.loads((folder / "summary.json").read_text()) == summary
    last = [entry for entry in entries(folder) if entry["event"] == "eval"][-1]
    assert last["step"] == summary["steps"] == 12 and last["count"] == 64
    assert (summary["eval_accuracy"], summary["eval_loss"]) == (last["accuracy"], last["loss"])
    assert not any(name.startswith("test") for name in summary)
    loaded = load_run(folder)
    assert summary["parameters"] == sum(leaf.size for leaf in jax.tree.leaves(loaded.state.params))
    assert summary["clusters"]["stage1"]["num_updates"] == 3 and loaded.step == 12
    assert summary["nonfinite_steps"] == 0 and summary["skipped"] == [] and summary["seconds"] > 0
    assert run_folder.read_config(as_path(folder))[0] == dataclasses.replace(CONFIG, out=None)
    assert json.loads((folder / "config.json").read_text())["version"] == dc.__version__


def test_events_are_in_order_and_at_their_steps(reference):
    folder, _ = reference
    steps = {
        event: [e["step"] for e in entries(folder) if e["event"] == event] for event in ("train", "eval", "clusters")
    }
    assert steps == {"train": [1, 10, 12], "eval": [5, 10, 12], "clusters": [1, 5, 9]}


def test_finished_run_is_not_repeated(reference, monkeypatch):
    folder, summary = reference
    before, notes = contents(folder), []
    monkeypatch.setattr(trainer, "fit", None)
    assert train(at(folder, remat=True), notify=notes.append) == summary
    assert contents(folder) == before and notes == [
        f"{folder} already contains this run, finished; pass a different out to train again"
    ]


@pytest.mark.parametrize("changes", [{"seed": 1}, {"data": dataclasses.replace(CONFIG.data, test_split="test[:32]")}])
def test_a_different_run_in_the_folder_is_an_error_and_unchanged(changes, reference):
    folder, _ = reference
    before = contents(folder)
    with pytest.raises(FileExistsError, match="out contains a run with a different"):
        train(at(folder, **changes))
    assert contents(folder) == before


def test_stopped_run_resumes_with_the_same_bits(reference, tmp_path):
    folder, notes = tmp_path / "run", []
    for step in (4, 8):  # logged before the update of step 5 and after step 10
        with pytest.raises(trainer.Stopped) as stopped:
            train(at(folder), log=stop_at(step), notify=notes.append)
        assert (stopped.value.name, stopped.value.status) == ("SIGTERM", 143)
        assert stopped.value.checkpoint == stopped.value.step < 12
        assert not (folder / "summary.json").exists()
    summary = train(at(folder), notify=notes.append)
    expected_folder, expected = reference
    assert without_seconds(summary) == without_seconds(expected)
    assert equal(load_run(folder).state, load_run(expected_folder).state)
    assert entries(folder) == entries(expected_folder)
    assert (folder / "clusters.jsonl").read_bytes() == (expected_folder / "clusters.jsonl").read_bytes()
    assert [note for note in notes if "resuming" in note] == [
        f"resuming from the checkpoint of step {step}" for step in (5, 10)
    ]


def test_restart_begins_from_the_start(reference, copy):
    notes = []
    (copy / "notes.txt").write_text("mine")
    summary = train(at(copy, seed=1, steps=3), restart=True, notify=notes.append)
    assert summary["steps"] == 3 and not any("resuming" in note for note in notes)
    assert load_run(copy).config.seed == 1 and (copy / "notes.txt").read_text() == "mine"
    assert Checkpointer(copy / "checkpoints").steps() == [3]


def test_training_time_and_the_last_evaluation_are_carried_over(reference, copy):
    """A run that was killed before it wrote its summary, and lost its log, has the same results."""
    (copy / "metrics.jsonl").unlink()
    summary = train(at(copy), notify=lambda message: None)
    _, expected = reference
    assert without_seconds(summary) == without_seconds(expected)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(trainer.time, "perf_counter", lambda: 0.0)
        (copy / "summary.json").unlink()
        assert 0 < train(at(copy), notify=lambda message: None)["seconds"] <= summary["seconds"]


@pytest.mark.slow
def test_only_runs_evaluated_on_validation_images_keep_the_best_checkpoint(tmp_path, monkeypatch):
    saved = {}

    def save(self, state, metadata, accuracy=None):
        saved[int(state.step)] = accuracy
        return save_checkpoint(self, state, metadata, accuracy)

    save_checkpoint = Checkpointer.save
    monkeypatch.setattr(Checkpointer, "save", save)
    train(at(tmp_path / "test", drop=DropConfig("none")), notify=lambda message: None)
    assert saved.keys() == {3, 5, 6, 9, 10, 12} and set(saved.values()) == {None}
    data = DataConfig(validation_fraction=0.2, evaluate_on="validation", examples_per_class=16)
    train(at(tmp_path / "validation", drop=DropConfig("none"), data=data), notify=lambda message: None)
    assert [step for step, accuracy in saved.items() if accuracy is not None] == [5, 10, 12]
    best = max((5, 10, 12), key=lambda step: (saved[step], step))
    assert load_run(tmp_path / "validation", best=True).step == best


def test_failed_run_keeps_its_log_and_resumes_from_the_last_checkpoint(tmp_path):
    """If the loss is not finite."""
    config = at(tmp_path / "run", learning_rate=1e30, drop=DropConfig("none"), checkpoint=CheckpointConfig(every=1))
    with pytest.raises(NonFiniteError):
        train(config, notify=lambda message: None)
    events = [entry["event"] for entry in entries(tmp_path / "run")]
    assert events[0] == "train" and events[-1] == "nonfinite"
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(load_run(tmp_path / "run").variables))


def test_run_without_its_last_checkpoint_is_unfinished(tmp_path, monkeypatch):
    monkeypatch.setattr(Checkpointer, "wait", lambda self: [])
    with pytest.raises(OSError, match="the checkpoint of the last step, 1, could not be written"):
        train(at(tmp_path / "run", steps=1, drop=DropConfig("none")))
    assert not (tmp_path / "run" / "summary.json").exists()


def test_run_without_an_output_folder_gets_a_new_one(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    train(at(None, steps=1, drop=DropConfig("none")), notify=lambda message: None)
    (folder,) = (tmp_path / "runs").iterdir()
    assert folder.name.startswith("digits-resnet8-none-") and (folder / "summary.json").exists()


@pytest.mark.bad_input
@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"drop": DropConfig(places=("stage9",))}, "places in drop must be among"),
        ({"batch_size": 5000}, "batch_size"),
        ({"drop": DropConfig(probe_size=1)}, "drop.probe_size"),
        ({"steps": 2**31}, r"below 2\*\*31"),
        ({"augment": AugmentConfig(cutout=-1)}, None),
    ],
)
def test_invalid_configurations_raise_before_anything_is_written(changes, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        train(at(tmp_path / "run", **changes))
    assert list(tmp_path.iterdir()) == []


def test_run_that_another_process_started_in_the_meantime_is_not_changed(tmp_path):
    """Between the validation and the lock."""
    folder = as_path(tmp_path / "run")
    first, second = (trainer.prepare(at(folder, seed=seed, drop=DropConfig("none"))) for seed in (1, 2))
    run_folder.write_config(folder, first.config, first.dataset.spec, dc.__version__)
    before = contents(tmp_path / "run")
    with pytest.raises(FileExistsError, match="seed is 1 there and 2 here"):
        trainer.execute(second, folder)
    assert contents(tmp_path / "run").items() - before.items() == {(tmp_path / "run" / ".lock", b"")}


def test_single_cluster_is_noted_before_training(tmp_path):
    notes = []
    drop = DropConfig(cluster_size=40)
    trainer.prepare(TrainConfig(model="resnet8", drop=drop, out=tmp_path), notify=notes.append)
    assert notes == ["stage2 has a single cluster, its whole map of 4x4: drop.cluster_size 40 is too large"]
