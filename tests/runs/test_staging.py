"""Local copies of run folders; the object store is a local folder here."""

import pathlib

import pytest
from fsspec.implementations.local import LocalFileSystem

from dropcluster_jax.runs import staging
from dropcluster_jax.runs.staging import Staging


@pytest.fixture
def store(tmp_path, monkeypatch):
    """A folder in the place of an object store, and the names of uploaded files in order."""
    uploaded = []

    class Store(LocalFileSystem):
        def put(self, sources, targets):
            uploaded.extend(pathlib.Path(source).name for source in sources)
            super().put(sources, targets)

    file_system = Store(auto_mkdir=True, skip_instance_cache=True)
    monkeypatch.setattr(staging, "file_system", lambda path: (file_system, str(path)))
    return pathlib.PurePosixPath(tmp_path / "store"), tmp_path / "store", uploaded


def test_local_folders_are_not_copied(tmp_path):
    with Staging(tmp_path) as folder:
        assert folder.local == tmp_path
        folder.download(["metrics.jsonl"])
        folder.upload(last="summary.json")
        folder.remove_missing_folders()
    assert list(tmp_path.iterdir()) == []


def test_changed_files_are_uploaded_and_the_last_one_last(store):
    address, folder, uploaded = store
    with Staging(address) as staged:
        for name in ("summary.json", "a.txt", "sub/b.txt"):
            (staged.local / name).parent.mkdir(exist_ok=True)
            (staged.local / name).write_text(name)
        staged.upload(last="summary.json")
        assert sorted(uploaded) == ["a.txt", "b.txt", "summary.json"] and uploaded[-1] == "summary.json"
        assert (folder / "sub" / "b.txt").read_text() == "sub/b.txt"
        uploaded.clear()
        staged.upload(last="summary.json")
        assert uploaded == []
        with (staged.local / "a.txt").open("a") as file:
            file.write(" and more")
        staged.upload(last="summary.json")
        assert uploaded == ["a.txt"] and (folder / "a.txt").read_text() == "a.txt and more"
    assert not staged.local.exists()


def test_downloaded_files_are_uploaded_only_if_they_change(store):
    address, folder, uploaded = store
    (folder / "logs").mkdir(parents=True)
    (folder / "metrics.jsonl").write_text("1")
    (folder / "logs" / "events").write_text("2")
    (folder / "other").write_text("3")
    with Staging(address) as staged:
        staged.download(["metrics.jsonl", "logs", "missing"])
        assert sorted(path.name for path in staged.local.rglob("*") if path.is_file()) == ["events", "metrics.jsonl"]
        staged.upload(last="summary.json")
        assert uploaded == []
