"""The files of a run folder: created, locked by one process at a time, and validated."""

import concurrent.futures
import dataclasses
import errno
import json
import pathlib
import re
import subprocess
import sys

import pytest

from dropcluster_jax.data import DatasetSpec
from dropcluster_jax.runs import DataConfig, DropConfig, TrainConfig
from dropcluster_jax.runs import folder as run_folder
from dropcluster_jax.runs.config import as_path
from dropcluster_jax.runs.folder import RunFolderError, check_out, to_json
from dropcluster_jax.training.loop import LogEntry

HOLD = """
import sys, time
from dropcluster_jax.runs.config import as_path
from dropcluster_jax.runs.folder import lock
with lock(as_path(sys.argv[1]), print):
    print("locked", flush=True)
    time.sleep(60)
"""
SPEC = DatasetSpec("gray", ("a", "b"), (2, 2, 1), mean=(0.5,), std=(0.5,), num_train_examples=4, test_fingerprint="0")
OTHER_SPEC = dataclasses.replace(SPEC, test_fingerprint="1")
CONFIG = TrainConfig(model="resnet8", steps=4)


@pytest.fixture
def folder(tmp_path):
    return as_path(tmp_path)


def write_run(folder, config=CONFIG, finished=False, accuracy=0.75):
    """Writes the files of a run without training."""
    folder = as_path(folder)
    run_folder.write_config(folder, config, SPEC, "1.0")
    entries: list[LogEntry] = [{"event": "train", "step": 1, "loss": 1.0}]
    entries.append({"event": "eval", "step": 4, "accuracy": accuracy})
    (folder / "metrics.jsonl").write_text("".join(f"{to_json(entry)}\n" for entry in entries))
    if finished:
        run_folder.write_json(folder / "summary.json", {"seconds": 3.5, "eval_accuracy": accuracy})
    return folder


def test_runs_that_start_at_the_same_time_get_different_folders(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        folders = list(pool.map(run_folder.new_folder, [TrainConfig()] * 8))
    assert len(set(folders)) == 8 and all(folder.is_dir() for folder in folders)


def test_names_of_new_folders_contain_the_configuration(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    config = TrainConfig(model="resnet8", data=DataConfig("npz:/data/my images.npz"), drop=DropConfig("drop_block"))
    name = run_folder.new_folder(config).name
    assert re.fullmatch(r"npz-data-my-images\.npz-resnet8-drop_block-\d{8}-\d{6}", name)
    assert len(run_folder.slug("x" * 300 + "end")) == 80 and run_folder.slug("x" * 300 + "end").endswith("end")


def test_new_folder_needs_a_folder_named_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs").touch()
    with pytest.raises(NotADirectoryError):
        run_folder.new_folder(TrainConfig())


def test_folder_is_locked_until_the_process_ends(folder):
    folder = folder / "new" / "run"
    process = subprocess.Popen([sys.executable, "-c", HOLD, str(folder)], stdout=subprocess.PIPE, text=True)
    with process:
        assert process.stdout.readline() == "locked\n"
        message = f"another process is writing to the run folder {folder}"
        with pytest.raises(RunFolderError, match=message), run_folder.lock(folder, print):
            pass
        process.kill()
    with run_folder.lock(folder, print):
        assert [path.name for path in folder.iterdir()] == [".lock"] and check_out(folder, CONFIG, SPEC) is None


def test_file_system_without_locks_is_noted(folder, monkeypatch):
    def fail(descriptor):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(run_folder, "_lock_file", fail)
    notes = []
    with run_folder.lock(folder, notes.append):
        pass
    assert notes == [f"{folder} cannot be locked (No locks available): make sure that no other process writes to it"]


@pytest.mark.parametrize("name", [".DS_Store", ".git", "Thumbs.db", "desktop.ini"])
def test_files_of_operating_systems_do_not_count(name, folder):
    (folder / name).touch()
    assert check_out(folder, CONFIG, SPEC) is None


def test_folders_with_other_files_are_errors_and_unchanged(folder):
    (folder / "thesis.tex").touch()
    for action in (run_folder.clear, lambda folder: check_out(folder, CONFIG, SPEC)):
        with run_folder.lock(folder, print), pytest.raises(FileExistsError, match="contains other files"):
            action(folder)
        assert [path.name for path in folder.iterdir()] == ["thesis.tex"]
    with pytest.raises(RunFolderError, match="out must be a folder"), run_folder.lock(folder / "thesis.tex", print):
        pass


def test_configuration_and_dataset_are_restored(folder):
    write_run(folder / "new" / "run")
    assert run_folder.read_config(folder / "new" / "run") == (CONFIG, SPEC)
    assert json.loads((folder / "new" / "run" / "config.json").read_text())["version"] == "1.0"


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
def test_damaged_configurations_are_errors(content, message, folder):
    (folder / "config.json").write_text(content)
    assert run_folder.is_run(folder)
    with pytest.raises(ValueError, match=message):
        run_folder.read_config(folder)


def test_folders_of_other_programs_are_no_runs(folder):
    (folder / "config.json").write_text('{"model_type": "bert"}')
    for path in (folder, folder / "missing", folder / "config.json"):
        assert not run_folder.is_run(path)
        with pytest.raises(FileNotFoundError, match=r"is not a run folder: it has no config\.json of a run"):
            run_folder.read_config(path)


def test_finished_runs_have_a_summary(folder):
    assert check_out(folder, CONFIG, SPEC) is None
    write_run(folder)
    assert check_out(folder, CONFIG, SPEC) is None and run_folder.read_summary(folder) is None
    write_run(folder, finished=True)
    assert check_out(folder, CONFIG, SPEC) == {"seconds": 3.5, "eval_accuracy": 0.75}


@pytest.mark.parametrize(
    ("there", "here", "message"),
    [
        ({}, {"remat": True}, None),  # does not change the results
        ({}, {"data": DataConfig(skip_corrupt=True)}, "skip_corrupt is False there and True here"),
        ({"data": DataConfig("npz:a.npz")}, {"data": DataConfig("npz:b.npz")}, None),  # the same images, moved
        ({"data": DataConfig("npz:a.npz")}, {"data": DataConfig("folder:b")}, "data.name is 'npz' there and 'folder'"),
        ({"data": DataConfig("cifar10")}, {"data": DataConfig("cifar100")}, "data.name is 'cifar10' there and"),
        (
            {},
            {"seed": 3, "drop": DropConfig(rate=0.2)},
            r"seed is 0 there and 3 here; drop\.rate is 0\.1 there and 0\.2 here\. Choose",
        ),
    ],
)
@pytest.mark.parametrize("finished", [True, False])
def test_a_different_configuration_is_an_error(there, here, message, finished, folder):
    write_run(folder, dataclasses.replace(CONFIG, **there), finished)
    config = dataclasses.replace(CONFIG, **here)
    if message is None:
        assert (check_out(folder, config, SPEC) is not None) == finished
    else:
        with pytest.raises(FileExistsError, match=f"a run with a different configuration, {folder}: .*{message}"):
            check_out(folder, config, SPEC)


@pytest.mark.parametrize("finished", [True, False])
def test_a_different_dataset_is_an_error(finished, folder):
    write_run(folder, finished=finished)
    with pytest.raises(FileExistsError, match=r"a run with a different dataset, .*: the test examples are different"):
        check_out(folder, CONFIG, OTHER_SPEC)


def test_restart_removes_the_files_of_the_run_only(folder):
    run_folder.clear(folder / "missing")
    write_run(folder, finished=True)
    for name in ("checkpoints/4", "damaged/2", "profile", "tensorboard", "pictures"):
        (folder / name).mkdir(parents=True)
    for name in ("clusters.jsonl", "clusters.png", "evaluation.json", "notes.txt", ".lock"):
        (folder / name).touch()
    run_folder.clear(folder)
    assert sorted(path.name for path in folder.iterdir()) == [".lock", "notes.txt"]


def test_json_files_hold_null_instead_of_nan(folder):
    nan, infinity = float("nan"), float("inf")
    run_folder.write_json(folder / "a.json", {"loss": nan, "list": [{"loss": infinity}, 1.5], "tuple": (nan,)})
    assert run_folder.read_json(folder / "a.json") == {"loss": None, "list": [{"loss": None}, 1.5], "tuple": [None]}


def test_files_are_written_completely_or_not_at_all(folder, monkeypatch):
    file = folder / "new" / "a.json"
    run_folder.write_file(file, b"first")
    run_folder.write_file(file, b"second")
    assert file.read_text() == "second"

    def write_half(path, content):
        pathlib.Path(path).write_text("ha")
        raise OSError("No space left on device")

    monkeypatch.setattr(type(file), "write_bytes", write_half)
    with pytest.raises(OSError, match="No space left"):
        run_folder.write_file(file, b"third")
    assert list(file.parent.iterdir()) == [file] and file.read_text() == "second"
