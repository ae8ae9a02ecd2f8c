"""Run folders in Google Cloud Storage: training, killing, resuming and reading, with an emulator."""

import importlib.util
import json
import os
import pathlib
import random
import signal
import subprocess
import sys

import pytest
from commands import command
from runs.test_killed import RUN, STEPS
from runs.test_processes import free_port, start
from tfds_folders import prepare
from training.helpers import equal

from dropcluster_jax.data import load
from dropcluster_jax.runs import Checkpointer, load_run, read_history
from dropcluster_jax.runs.config import as_path
from dropcluster_jax.runs.folder import read_json, read_summary, visible_files
from dropcluster_jax.runs.log import read_entries

# aiohttp warns that gcsfs uploads files of more than 1 MB as bytes. On a busy machine, callbacks of clients of Orbax's
# saves may be called after their event loop was closed.
pytestmark = [
    pytest.mark.filterwarnings("ignore:Sending a large body directly with raw bytes:ResourceWarning"),
    pytest.mark.filterwarnings("ignore:Exception ignored in. None:pytest.PytestUnraisableExceptionWarning"),
    pytest.mark.xdist_group("object storage"),  # the runs of the fixtures are shared
]

PACKAGES = ("gcsfs", "gcp_storage_emulator")
TURNS = int(os.environ.get("SOAK_TURNS", "1"))

SHORT = [*RUN, "--steps", "24", "--checkpoint.every", "0"]  # two checkpoints; the compiled programs of RUN


@pytest.fixture(scope="module")
def bucket():
    """The address of an empty bucket; skips the test if a package is not installed."""
    missing = [package for package in PACKAGES if importlib.util.find_spec(package) is None]
    if missing:
        pytest.skip(f"{', '.join(missing)} of the extra dev is not installed")
    address = f"http://{free_port()}"
    environment = {
        **{"STORAGE_EMULATOR_HOST": address, "TENSORSTORE_GCS_HTTP_URL": address, "GOOGLE_CLOUD_PROJECT": "test"},
        **{"GOOGLE_AUTH_TOKEN_FOR_TESTING": "test", "GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT": "false"},
        "CLOUD_STORAGE_EMULATOR_ENDPOINT": address,
    }
    script = pathlib.Path(__file__).with_name("object_store.py")
    with pytest.MonkeyPatch.context() as patch:
        for name, value in environment.items():
            patch.setenv(name, value)
        emulator = subprocess.Popen(
            [sys.executable, script, address.rpartition(":")[2]],
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        with emulator:
            assert emulator.stdout.readline() == "ready\n"
            yield "gs://bucket"
            emulator.kill()


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    """The local folder of an uninterrupted run."""
    folder = tmp_path_factory.mktemp("runs") / "uninterrupted"
    assert command(*RUN, "--out", str(folder)) == 0
    return folder


@pytest.fixture(scope="module")
def resumed(bucket, uninterrupted):
    """The address of the same run in the bucket, killed and resumed."""
    script, folder, rng = pathlib.Path(__file__).with_name("killed_run.py"), f"{bucket}/runs/resumed", random.Random(0)
    for moment in ({"when": "save", "after": 2}, {"when": "step", "after": 7})[:TURNS]:
        moment = json.dumps({**moment, "delay": rng.random() / 20, "signal": signal.SIGKILL})
        process = subprocess.run(
            [sys.executable, script, moment, *RUN, "--out", folder],
            **{"capture_output": True, "text": True, "timeout": 200, "check": False},
        )
        assert process.returncode == -signal.SIGKILL, process.stderr
        assert read_summary(as_path(folder)) is None
    assert command(*RUN, "--out", folder) == 0
    return folder


def entries(folder) -> list[dict]:
    return [
        {name: value for name, value in entry.items() if name != "images_per_second"}
        for entry in read_entries(as_path(folder) / "metrics.jsonl")
    ]


def summary(folder) -> dict:
    return {**read_summary(as_path(folder)), "seconds": 0}


@pytest.mark.slow
def test_killed_runs_resume_with_bit_identical_results(resumed, uninterrupted):
    run, expected = load_run(resumed), load_run(uninterrupted)
    assert run.step == expected.step == STEPS and equal(run.state, expected.state)
    assert entries(resumed) == entries(uninterrupted) and summary(resumed) == summary(uninterrupted)
    history, expected_history = read_history(resumed), read_history(uninterrupted)
    assert str(history) == str(expected_history) and len(history["stage1"]) > 2
    names = [path.name for path in visible_files(as_path(resumed))]
    assert names == ["checkpoints", "clusters.jsonl", "clusters.png", "config.json", "metrics.jsonl", "summary.json"]


@pytest.mark.slow
def test_commands_read_and_write_run_folders(resumed, bucket, capsys, tmp_path):
    assert command("runs", f"{bucket}/runs", "--json") == 0
    (entry,) = json.loads(capsys.readouterr().out)
    assert entry["run"] == resumed and entry["finished"] and entry["step"] == STEPS
    assert command("evaluate", resumed) == 0
    assert f"results: {resumed}/evaluation.json" in capsys.readouterr().out
    assert read_json(as_path(resumed) / "evaluation.json")["test"]["count"] == 64
    assert command("clusters", resumed) == 0
    files = capsys.readouterr().out.split()
    assert f"{resumed}/pictures/history.gif" in files
    assert {as_path(file).read_bytes()[:4] for file in files} == {b"\x89PNG", b"GIF8"}
    assert command("plot", resumed, "--out", str(tmp_path / "curves.svg")) == 0
    assert "resumed" in (tmp_path / "curves.svg").read_text()
    assert command(*RUN, "--out", resumed) == 0
    assert f"{resumed} already contains this run, finished" in capsys.readouterr().out
    assert command(*RUN, "--out", resumed, "--seed", "1") == 2
    assert "seed is 0 there and 1 here" in capsys.readouterr().err


@pytest.mark.slow
def test_missing_runs_and_buckets_are_reported_in_one_line(resumed, bucket, capsys):
    assert command("evaluate", f"{bucket}/runs") == 2
    assert f"did you mean {resumed}?" in capsys.readouterr().err
    assert command("runs", f"{bucket}/empty") == 2
    assert f"no folder {bucket}/empty" in capsys.readouterr().err
    assert command(*RUN, "--out", f"{bucket}-2/run") != 0
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and error.startswith("dropcluster")


@pytest.mark.slow
def test_restart_removes_the_previous_run_and_keeps_other_objects(bucket, capsys):
    folder = as_path(f"{bucket}/restarted")
    assert command(*SHORT, "--out", str(folder), "--tensorboard", "--profile") == 0
    assert {"profile", "tensorboard"} < {path.name for path in visible_files(folder)}
    (folder / "checkpoints" / "99" / "state").write_text("of a killed process")
    assert Checkpointer(folder / "checkpoints").steps() == [20, 24]
    assert command(*SHORT, "--out", str(folder), "--tensorboard", "--seed", "1", "--restart") == 0
    assert load_run(folder).config.seed == 1
    names = [path.name for path in visible_files(folder)]
    assert "profile" not in names and len(visible_files(folder / "tensorboard")) == 1
    folder = as_path(f"{bucket}/notes")
    (folder / "thesis.tex").write_text("mine")
    assert command(*SHORT, "--out", str(folder), "--restart") == 2
    assert (folder / "thesis.tex").read_text() == "mine"


@pytest.mark.slow
def test_damaged_checkpoint_is_moved_and_the_previous_one_restored(bucket, capsys):
    folder = as_path(f"{bucket}/damaged-run")
    assert command(*SHORT, "--out", str(folder)) == 0
    (folder / "checkpoints" / "24" / "state" / "manifest.ocdbt").write_text("damaged")
    (folder / "summary.json").unlink()
    capsys.readouterr()
    assert command(*SHORT, "--out", str(folder)) == 0
    assert f"was moved to {folder}/damaged; using the one of step 20" in capsys.readouterr().out.replace("\n", " ")
    assert [path.name for path in visible_files(folder / "damaged")] == ["24", "24.txt"]
    assert load_run(folder).step == 24


@pytest.mark.slow
def test_two_processes_train_one_run(bucket):
    """With pmap."""
    folder = f"{bucket}/two"
    arguments = [*SHORT, "--out", folder, "--strategy", "pmap", "--coordinator", free_port(), "--num-processes", "2"]
    commands = [["-m", "dropcluster_jax", *arguments, "--process-id", str(index)] for index in range(2)]
    with start(commands, devices=2) as processes:
        outputs = [process.communicate(timeout=500) for process in processes]
        statuses = [process.returncode for process in processes]
    assert statuses == [0, 0], outputs
    assert Checkpointer(f"{folder}/checkpoints").steps() == [20, 24] and load_run(folder).step == 24


@pytest.mark.slow
def test_prepared_datasets_are_read(bucket, tmp_path):
    import gcsfs

    local = prepare(tmp_path)
    gcsfs.GCSFileSystem().put(f"{local}/tiny", "bucket/tfds/", recursive=True)
    dataset, expected = load("tiny", dir="gs://bucket/tfds"), load("tiny", dir=local)
    assert dataset.spec == expected.spec and (dataset.train.images == expected.train.images).all()


def test_prepared_datasets_are_not_read_from_other_object_stores():
    with pytest.raises(
        ValueError, match=r"dir or TFDS_DATA_DIR must be a local folder or gs://\.\.\., got s3://bucket/tfds"
    ):
        load("tiny", dir="s3://bucket/tfds")


def test_archives_must_be_local():
    with pytest.raises(FileNotFoundError, match=r"'npz:x\.npz' was not found"):
        load("npz:x.npz", dir="gs://bucket/x")


def test_missing_package_is_reported_with_its_extra(capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "gcsfs", None)
    for words in ([*RUN, "--out"], ["runs"], ["evaluate"]):
        assert command(*words, "gs://bucket/run") == 2
        assert capsys.readouterr().err == (
            'dropcluster: error: gcsfs is not installed: pip install "etils[epath-gcs]>=1.15"\n'
        )
