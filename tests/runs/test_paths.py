import os
import pathlib
import re

import pytest

from dropcluster_jax.runs import paths
from dropcluster_jax.runs.paths import as_path


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


def test_local_paths_are_expanded(monkeypatch):
    monkeypatch.setenv("HOME", "/home/me")
    assert as_path("~/x") == pathlib.Path("/home/me/x")
    assert as_path("a/b") == pathlib.Path("a/b") and not paths.is_remote(as_path("a"))


def test_children_are_sorted_and_may_be_hidden(tmp_path):
    for name in ("b", ".hidden", "a"):
        (tmp_path / name).touch()
    assert [path.name for path in paths.children(tmp_path)] == [".hidden", "a", "b"]
    assert [path.name for path in paths.visible_children(tmp_path)] == ["a", "b"]
    assert paths.children(tmp_path / "missing") == paths.children(tmp_path / "a") == []


def test_files_are_written_completely_or_not_at_all(tmp_path, monkeypatch):
    file = tmp_path / "a.json"
    paths.write_bytes(file, b"first")
    paths.write_bytes(file, b"second")
    assert paths.read_text(file) == "second"

    def write_half(path, content):
        with path.open("wb") as opened:
            opened.write(content[:2])
        raise OSError("No space left on device")

    monkeypatch.setattr(pathlib.Path, "write_bytes", write_half)
    with pytest.raises(OSError, match="No space left"):
        paths.write_bytes(file, b"third")
    assert list(tmp_path.iterdir()) == [file] and file.read_text() == "second"


def test_folders_are_created_moved_found_and_removed(tmp_path):
    paths.create_folder(tmp_path / "a" / "b")
    (tmp_path / "a" / "b" / "c.json").touch()
    (tmp_path / "c.json").touch()
    assert paths.find_files(tmp_path, "c.json") == [tmp_path / "a" / "b" / "c.json", tmp_path / "c.json"]
    paths.move_folder(tmp_path / "a", tmp_path / "new" / "parent" / "a")
    assert not (tmp_path / "a").exists() and (tmp_path / "new" / "parent" / "a" / "b" / "c.json").is_file()
    paths.remove_folder(tmp_path / "new")
    paths.remove_folder(tmp_path / "new")
    assert [path.name for path in tmp_path.iterdir()] == ["c.json"]


def test_errors_of_object_stores_become_os_errors():
    class Remote(os.PathLike):
        def __fspath__(self):
            return "gs://bucket/x"

        __str__ = __fspath__

    with pytest.raises(OSError, match="gs://bucket/x cannot be accessed: no credentials"), paths.as_os_error(Remote()):
        raise RuntimeError("no credentials\nand more lines")
    with pytest.raises(OSError, match="gs://bucket/x cannot be accessed: RuntimeError"), paths.as_os_error(Remote()):
        raise RuntimeError
    with pytest.raises(FileNotFoundError), paths.as_os_error(Remote()):
        raise FileNotFoundError
    with pytest.raises(RuntimeError), paths.as_os_error(pathlib.Path("x")):
        raise RuntimeError
