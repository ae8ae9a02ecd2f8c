"""The files of a run folder: created, locked by one process at a time, validated, and read back."""

import concurrent.futures
import dataclasses
import errno
import json
import pathlib
import re
import subprocess
import sys
import types

import flax.linen as nn
import numpy as np
import pytest

import dropcluster_jax as dc
from dropcluster_jax.data import DatasetSpec
from dropcluster_jax.runs import (
    DataConfig,
    DropConfig,
    LoadedRun,
    TrainConfig,
    evaluate_run,
    list_runs,
    load_run,
    read_history,
    run_folder,
)
from dropcluster_jax.runs.figures import draw_run_clusters, draw_run_curves
from dropcluster_jax.runs.run_folder import RunFolderError

HOLD = """
import pathlib, sys, time
from dropcluster_jax.runs import run_folder
with run_folder.lock(pathlib.Path(sys.argv[1]), print):
    print("locked", flush=True)
    time.sleep(60)
"""


def test_runs_that_start_at_the_same_time_get_different_folders(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        folders = list(pool.map(run_folder.new_folder, [TrainConfig()] * 8))
    assert len(set(folders)) == 8 and all(folder.is_dir() for folder in folders)


def test_new_folder_needs_a_folder_named_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs").touch()
    with pytest.raises(RunFolderError, match="no folder can be created in runs: File exists; pass --out"):
        run_folder.new_folder(TrainConfig())


def test_folder_is_locked_until_the_process_ends(tmp_path):
    folder = tmp_path / "new" / "run"
    process = subprocess.Popen([sys.executable, "-c", HOLD, str(folder)], stdout=subprocess.PIPE, text=True)
    with process:
        assert process.stdout.readline() == "locked\n"
        message = f"another process is writing to the run folder {folder}"
        with pytest.raises(RunFolderError, match=message), run_folder.lock(folder, print):
            pass
        process.kill()
    with run_folder.lock(folder, print):
        assert [path.name for path in folder.iterdir()] == [".lock"] and not run_folder.holds_run(folder)


def test_file_system_without_locks_is_noted(tmp_path, monkeypatch):
    def fail(descriptor):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(run_folder, "_lock_file", fail)
    notes = []
    with run_folder.lock(tmp_path, notes.append):
        pass
    assert notes == [f"{tmp_path} cannot be locked (No locks available): make sure that no other process writes to it"]


@pytest.mark.parametrize("name", [".DS_Store", ".git", "Thumbs.db", "desktop.ini"])
def test_files_of_operating_systems_do_not_count(name, tmp_path):
    (tmp_path / name).touch()
    assert not run_folder.holds_run(tmp_path)
    (tmp_path / "thesis.tex").touch()
    with pytest.raises(FileExistsError, match="contains other files"):
        run_folder.holds_run(tmp_path)


@pytest.mark.parametrize(
    "read",
    [load_run, evaluate_run, list_runs, read_history, draw_run_clusters, lambda folder: draw_run_curves([folder])],
)
def test_home_is_expanded(read, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    with pytest.raises(FileNotFoundError, match=str(tmp_path / "runs" / "digits")):
        read("~/runs/digits")
    assert TrainConfig(out=pathlib.Path("~/x")).out == tmp_path / "x"


# Folders that contain runs


SPEC = DatasetSpec("gray", ("a", "b"), (2, 2, 1), mean=(0.5,), std=(0.5,), num_train_examples=4, test_fingerprint="0")
OTHER_SPEC = dataclasses.replace(SPEC, test_fingerprint="1")
CONFIG = TrainConfig(model="resnet8", steps=4)


def write_run(folder, config=CONFIG, finished=False, accuracy=0.75):
    """Writes the files of a run without training."""
    run_folder.write_config(folder, config, SPEC, "1.0")
    with run_folder.JsonLinesFile(folder / "metrics.jsonl") as file:
        file.append({"event": "train", "step": 1, "loss": 1.0})
        file.append({"event": "test", "step": 4, "accuracy": accuracy})
    if finished:
        run_folder.write_json(folder / "summary.json", {"seconds": 3.5, "test_accuracy": accuracy})
    return folder


def test_configuration_and_dataset_are_restored(tmp_path):
    write_run(tmp_path / "new" / "run")
    assert run_folder.read_config(tmp_path / "new" / "run") == (CONFIG, SPEC)
    assert json.loads((tmp_path / "new" / "run" / "config.json").read_text())["version"] == "1.0"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"drop": {', "config.json is damaged: "),
        ("[]", "config.json is damaged: it does not contain a JSON object"),
        ("[" * 10_000, "config.json is damaged: "),
        ('{"drop": {}}', "config.json is damaged or was written by a different version: 'dataset'"),
        ('{"drop": 3, "dataset": {}}', "config.json is damaged or was written by a different version"),
        ('{"drop": {}, "dataset": {"color": 1}}', "config.json is damaged or was written by a different version"),
    ],
    ids=["truncated", "list", "nested", "no dataset", "no options", "other options"],
)
def test_damaged_configurations_are_errors(content, message, tmp_path):
    (tmp_path / "config.json").write_text(content)
    assert run_folder.is_run(tmp_path)
    with pytest.raises(ValueError, match=message):
        run_folder.read_config(tmp_path)


def test_folders_of_other_programs_are_no_runs(tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    for folder in (tmp_path, tmp_path / "missing", tmp_path / "config.json"):
        assert not run_folder.is_run(folder)
        with pytest.raises(FileNotFoundError, match=r"is not a run folder: it has no config\.json of a run"):
            run_folder.read_config(folder)


def test_finished_runs_have_a_summary(tmp_path):
    assert run_folder.finished_run(tmp_path, CONFIG) is None
    write_run(tmp_path)
    assert run_folder.finished_run(tmp_path, CONFIG) is None and run_folder.read_summary(tmp_path) is None
    write_run(tmp_path, finished=True)
    assert run_folder.finished_run(tmp_path, CONFIG) == {"seconds": 3.5, "test_accuracy": 0.75}
    # Options that do not change the results may be different.
    assert run_folder.finished_run(tmp_path, dataclasses.replace(CONFIG, remat=True))
    other = dataclasses.replace(CONFIG, seed=3, drop=DropConfig(rate=0.2))
    with pytest.raises(
        FileExistsError, match=r"seed is 0 there and 3 here; drop\.rate is 0\.1 there and 0\.2 here\. Choose"
    ):
        run_folder.finished_run(tmp_path, other)


def test_moved_archives_are_the_same_run_if_their_images_are(tmp_path, monkeypatch):
    def renamed(name):
        return dataclasses.replace(CONFIG, data=dataclasses.replace(CONFIG.data, name=name))

    opened = []
    monkeypatch.setattr(run_folder, "load", lambda data: opened.append(data.name) or types.SimpleNamespace(spec=SPEC))
    write_run(tmp_path, renamed("npz:a.npz"), finished=True)
    assert run_folder.finished_run(tmp_path, renamed("npz:b.npz")) and opened == ["npz:b.npz"]
    with pytest.raises(FileExistsError, match=r"data\.name is 'npz:a\.npz' there and 'folder:b' here"):
        run_folder.finished_run(tmp_path, renamed("folder:b"))
    monkeypatch.undo()
    monkeypatch.setattr(run_folder, "load", lambda _: types.SimpleNamespace(spec=OTHER_SPEC))
    with pytest.raises(FileExistsError, match=r"a run on a different dataset, .*: the test examples are different"):
        run_folder.finished_run(tmp_path, renamed("npz:b.npz"))


def test_run_on_another_dataset_is_an_error(tmp_path):
    run_folder.check_same_dataset(tmp_path, OTHER_SPEC)
    write_run(tmp_path)
    run_folder.check_same_dataset(tmp_path, SPEC)
    with pytest.raises(FileExistsError, match=r"a run on a different dataset, .*: the test examples are different"):
        run_folder.check_same_dataset(tmp_path, OTHER_SPEC)


def test_changed_data_must_be_allowed(monkeypatch):
    notes = []
    opened = types.SimpleNamespace(spec=OTHER_SPEC)
    monkeypatch.setattr(run_folder, "open_data", lambda *_, **__: (opened, "loader"))
    difference = ["the test examples are different"]
    assert run_folder.open_run_data(CONFIG, OTHER_SPEC, False, notes.append) == (opened, "loader", []) and not notes
    with pytest.raises(ValueError, match=r"not those the run was trained on: the test .*; --allow-changed-data uses"):
        run_folder.open_run_data(CONFIG, SPEC, False, notes.append)
    assert run_folder.open_run_data(CONFIG, SPEC, True, notes.append)[2] == difference
    assert notes == ["the data are not those the run was trained on: the test examples are different"]
    opened.spec = dataclasses.replace(SPEC, image_shape=(2, 2, 3))
    with pytest.raises(ValueError, match="the network needs the same number of classes and image shape"):
        run_folder.open_run_data(CONFIG, SPEC, True, notes.append)


def test_restart_removes_the_files_of_the_run_only(tmp_path):
    run_folder.clear(tmp_path / "missing")
    write_run(tmp_path, finished=True)
    for name in ("checkpoints/4", "damaged/2", "profile", "tensorboard", "pictures"):
        (tmp_path / name).mkdir(parents=True)
    for name in ("clusters.jsonl", "clusters.png", "evaluation.json", "notes.txt", ".lock"):
        (tmp_path / name).touch()
    run_folder.clear(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == [".lock", "notes.txt"]
    with pytest.raises(FileExistsError, match="contains other files"):
        run_folder.clear(tmp_path)


def test_files_in_the_place_of_folders_are_errors(tmp_path):
    for name, kind in (("checkpoints", "folder"), ("metrics.jsonl", "file")):
        folder = write_run(tmp_path / kind)
        if kind == "folder":
            (folder / name).touch()
        else:
            (folder / name).unlink()
            (folder / name).mkdir()
        with pytest.raises(FileExistsError, match=f"{folder / name} must be a {kind}; remove it to train in {folder}"):
            run_folder.holds_run(folder)
    (tmp_path / "thesis.tex").touch()
    with pytest.raises(FileExistsError, match="out must be a folder, got the file"):
        run_folder.holds_run(tmp_path / "thesis.tex")


def test_names_of_new_folders_contain_the_configuration(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    config = TrainConfig(model="resnet8", data=DataConfig("npz:/data/my images.npz"), drop=DropConfig("drop_block"))
    name = run_folder.new_folder(config).name
    assert re.fullmatch(r"npz-data-my-images\.npz-resnet8-block-\d{8}-\d{6}", name)
    assert len(run_folder.slug("x" * 300 + "end")) == 80 and run_folder.slug("x" * 300 + "end").endswith("end")


# JSON, log entries and the history of clusters


def test_json_files_hold_null_instead_of_nan(tmp_path):
    nan, infinity = float("nan"), float("inf")
    run_folder.write_json(tmp_path / "a.json", {"loss": nan, "list": [{"loss": infinity}, 1.5], "tuple": (nan,)})
    assert json.loads((tmp_path / "a.json").read_text()) == {
        "loss": None,
        "list": [{"loss": None}, 1.5],
        "tuple": [None],
    }


def test_earlier_results_on_corrupted_images_are_kept():
    previous = {"step": 4, "changed_data": [], "corrupted": [1, 2], "mean_corrupted_accuracy": 0.5}
    evaluation = {"step": 4, "changed_data": [], "corrupted": [], "mean_corrupted_accuracy": None, "test": {}}
    merged = run_folder.merge_evaluation(previous, evaluation)
    assert merged == {**evaluation, "corrupted": [1, 2], "mean_corrupted_accuracy": 0.5}
    for changes in ({"step": 3}, {"changed_data": ["classes"]}):  # of another checkpoint, or on other data
        assert run_folder.merge_evaluation({**previous, **changes}, evaluation) == evaluation
    new = {**evaluation, "corrupted": [3]}
    assert (
        run_folder.merge_evaluation(previous, new) == new and run_folder.merge_evaluation({}, evaluation) == evaluation
    )


def test_missing_evaluation_is_empty_and_a_damaged_one_an_error(tmp_path):
    assert run_folder.read_evaluation(tmp_path) == {}
    (tmp_path / "evaluation.json").write_text("[]")
    with pytest.raises(ValueError, match=r"evaluation\.json is damaged"):
        run_folder.read_evaluation(tmp_path)


def test_incomplete_last_entry_is_ignored_and_damaged_ones_are_errors(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1}\n{"step": 2}\n{"ste')
    assert [entry["step"] for entry in run_folder.read_json_lines(path)] == [1, 2]
    for content in ("null\n", "[1]\n", '{"loss": 1}\n', '{"step": 1\n'):
        path.write_text(content)
        with pytest.raises(ValueError, match=r"metrics\.jsonl is damaged: "):
            run_folder.read_json_lines(path)
    path.write_bytes(b"\xff\n")
    with pytest.raises(ValueError, match=r"metrics\.jsonl is damaged: "):
        run_folder.read_json_lines(path)


def test_entries_are_on_disk_when_append_returns(tmp_path):
    with run_folder.JsonLinesFile(tmp_path / "a.jsonl") as file:
        file.append({"step": 1, "loss": float("nan")})
        assert file.read() == [{"step": 1, "loss": None}]
        size = file.size()
        file.append({"step": 2})
    with run_folder.JsonLinesFile(tmp_path / "a.jsonl", size) as file:
        assert file.read() == [{"step": 1, "loss": None}]
        file.append({"step": 3})
    assert [entry["step"] for entry in run_folder.read_json_lines(tmp_path / "a.jsonl")] == [1, 3]
    with run_folder.JsonLinesFile(tmp_path / "a.jsonl", 10**9) as file:  # a log that was replaced by a shorter one
        assert [entry["step"] for entry in file.read()] == [1, 3]


def test_an_incomplete_last_line_is_removed(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text('{"step": 1}\n{"step": 2, "lo')
    with run_folder.JsonLinesFile(path, 10**9) as file:
        file.append({"step": 2})
    assert [entry["step"] for entry in run_folder.read_json_lines(path)] == [1, 2]


def test_history_contains_the_labels_of_each_update(tmp_path):
    grid, channels = dc.Grid(num_clusters=4), dc.Grid(num_clusters=2, per_channel=True)
    states = {"stage1": grid.init((4, 6, 3)), "stage2": channels.init((2, 2, 3))}
    with run_folder.JsonLinesFile(tmp_path / "clusters.jsonl") as file:
        for step in (0, 20):
            file.append(run_folder.encode_clusters(step, states))
    history = read_history(tmp_path)
    assert list(history) == ["stage1", "stage2"]
    for place, updates in history.items():
        assert [step for step, _ in updates] == [0, 20]
        for _, labels in updates:
            assert labels.dtype == np.int32 and (labels == states[place].labels).all()


@pytest.mark.parametrize(
    "layer",
    [{"shape": [2, 2, 1], "labels": "!"}, {"shape": [2, 2, 1], "labels": "AAAA"}, {"shape": [3, 3, 1]}, None, "text"],
    ids=["base64", "compression", "missing", "null", "string"],
)
def test_damaged_history_is_an_error(layer, tmp_path):
    (tmp_path / "clusters.jsonl").write_text(json.dumps({"step": 0, "layers": {"stage1": layer}}) + "\n")
    with pytest.raises(ValueError, match=r"clusters\.jsonl is damaged: "):
        read_history(tmp_path)


# Listing


def test_runs_are_listed_with_their_results(tmp_path):
    write_run(tmp_path / "b" / "deep", finished=True)
    write_run(tmp_path / "a", dataclasses.replace(CONFIG, seed=3, drop=DropConfig("none", rate=0.3)), accuracy=0.5)
    run_folder.write_config(tmp_path / "c", CONFIG, SPEC, "1.0")
    (tmp_path / "d").mkdir()
    (tmp_path / "d" / "config.json").write_text("{")
    (tmp_path / "bert").mkdir()
    (tmp_path / "bert" / "config.json").write_text('{"model_type": "bert"}')
    (tmp_path / "link").symlink_to(tmp_path / "b")
    unfinished, deep, new, damaged = list_runs(tmp_path)
    common = {"model": "resnet8", "data": "digits"}
    assert deep == {
        **{"run": str(tmp_path / "b" / "deep"), "method": "drop_cluster", "rate": 0.1, "seed": 0, **common},
        **{"step": 4, "finished": True, "test_accuracy": 0.75, "seconds": 3.5},
    }
    assert unfinished == {
        **{"run": str(tmp_path / "a"), "method": "none", "rate": 0.0, "seed": 3, **common},
        **{"step": 4, "finished": False, "test_accuracy": 0.5, "seconds": None},
    }
    assert (new["step"], new["test_accuracy"], new["finished"]) == (0, None, False)
    assert set(damaged) == {"run", "error"} and "config.json is damaged" in damaged["error"]


def test_damaged_runs_are_listed_with_the_reason(tmp_path):
    """Whichever file is damaged."""
    cases = [
        ("config.json", '{"drop": 3}'),
        ("config.json", '{"drop": {}, "seed": "x"}'),
        ("summary.json", "{}"),
        ("summary.json", "[]"),
        ("metrics.jsonl", "null\n"),
        ("metrics.jsonl", '{"step": 1}\n'),
    ]
    for name, content in cases:
        (write_run(tmp_path / "run", finished=True) / name).write_text(content)
        (entry,) = list_runs(tmp_path)
        assert set(entry) == {"run", "error"} and "damaged" in entry["error"], (name, content)


def test_folders_without_runs_are_errors(tmp_path):
    with pytest.raises(FileNotFoundError, match=f"no folder {tmp_path / 'missing'}"):
        list_runs(tmp_path / "missing")
    with pytest.raises(FileNotFoundError, match=r"contains no runs; `dropcluster train digits --out .*` creates one"):
        list_runs(tmp_path)


# The trained network


def test_logits_are_those_of_normalized_images():
    class Mean(nn.Module):
        def __call__(self, x):
            return x.mean((1, 2))

    loaded = LoadedRun(Mean(), {}, CONFIG, SPEC, step=0, state=None)
    images = np.stack([np.zeros((2, 2, 1), np.uint8), np.full((2, 2, 1), 255, np.uint8)])
    np.testing.assert_allclose(loaded.logits(images), [[-1], [1]], atol=1e-6)
    message = r"images must have shape \(batch, height, width, 1\), got \(2, 2, 1\); add a batch axis .* images\[None\]"
    with pytest.raises(ValueError, match=message):
        loaded.logits(images[0])
    with pytest.raises(ValueError, match=r"must have shape \(batch, height, width, 1\), got \(2, 2, 2, 3\)"):
        loaded.logits(np.zeros((2, 2, 2, 3), np.uint8))


def test_run_without_checkpoints_cannot_be_loaded(tmp_path):
    with pytest.raises(FileNotFoundError, match="has no checkpoint yet"):
        load_run(write_run(tmp_path))
