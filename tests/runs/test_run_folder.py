"""Run folders are created and locked by one process at a time."""

import concurrent.futures
import errno
import os
import pathlib
import re
import subprocess
import sys

import pytest

from dropcluster_jax.runs import TrainConfig, evaluate_run, list_runs, load_run, read_history, run_folder
from dropcluster_jax.runs.figures import draw_run_clusters, draw_run_curves
from dropcluster_jax.runs.paths import as_path
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


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("az://bucket/run", "paths must be local, gs://... or s3://..., got az://bucket/run"),
        (pathlib.Path("hdfs://host/run"), "paths must be local, gs://... or s3://..., got hdfs://host/run"),
        ("~no-such-user/run", "~no-such-user/run cannot be expanded"),
        (os.fsdecode(b"runs/\xff"), r"paths must be valid in the locale's encoding, got b'runs/\xff'"),
    ],
)
def test_invalid_paths_are_errors(path, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        as_path(path)
