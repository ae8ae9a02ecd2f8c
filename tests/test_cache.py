import os
import warnings

import jax
import numpy as np
import pytest

from dropcluster_jax.cache import cache_root, cached, compilation_cache


@pytest.fixture
def counted(tmp_path, monkeypatch):
    """A list that grows with each computation, and the function to cache."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    calls = []

    def make():
        calls.append(1)
        return {"images": np.arange(24, dtype=np.uint8).reshape(2, 3, 4), "labels": np.array([1, 2], np.int32)}

    return calls, make


def test_arrays_are_computed_once_per_key(counted):
    calls, make = counted
    for _ in range(3):
        arrays = cached("data", ["x", 1], make)
        np.testing.assert_array_equal(arrays["images"].ravel(), np.arange(24))
        assert arrays["labels"].tolist() == [1, 2] and arrays["labels"].dtype == np.int32
        assert not arrays["images"].flags.writeable
    assert len(calls) == 1
    cached("data", ["x", 2], make)
    assert len(calls) == 2


@pytest.mark.parametrize("damage", ["flip", "truncate", "remove", "checksums"])
def test_damaged_entries_are_recomputed(counted, damage):
    calls, make = counted
    cached("data", 1, make)
    (folder,) = cache_root().iterdir()
    file = folder / ("checksums.json" if damage == "checksums" else "images.npy")
    content = file.read_bytes()
    if damage == "remove":
        file.unlink()
    else:
        file.write_bytes({"flip": content[:-1] + b"\xff", "truncate": content[:-5], "checksums": b"{"}[damage])
    np.testing.assert_array_equal(cached("data", 1, make)["images"].ravel(), np.arange(24))
    assert len(calls) == 2
    cached("data", 1, make)
    assert len(calls) == 2 and len(list(cache_root().iterdir())) == 1


def test_an_entry_that_another_process_has_written_is_kept(counted):
    _, make = counted

    def make_after_another_process():
        cached("data", 1, make)
        (folder,) = cache_root().iterdir()
        inodes.append((folder / "images.npy").stat().st_ino)
        return make()

    inodes = []
    cached("data", 1, make_after_another_process)
    (folder,) = cache_root().iterdir()
    assert inodes == [(folder / "images.npy").stat().st_ino]


def test_unwritable_cache_issues_one_warning(counted, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    with pytest.warns(UserWarning, match="cannot be written") as warned:
        for key in (1, 2):
            with warnings.catch_warnings():  # Python forgets which warnings it has shown
                assert cached("data", key, counted[1])["labels"].tolist() == [1, 2]
    assert len(warned) == 1


@pytest.mark.parametrize("configured", [True, False])
def test_compilation_cache_is_enabled_and_restored(configured, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    before = jax.config.jax_compilation_cache_dir
    directory = str(tmp_path / "mine") if configured else None
    jax.config.update("jax_compilation_cache_dir", directory)
    try:
        with compilation_cache():
            assert jax.config.jax_compilation_cache_dir == (directory or str(cache_root() / "compiled"))
        assert jax.config.jax_compilation_cache_dir == directory
    finally:
        jax.config.update("jax_compilation_cache_dir", before)


def test_without_a_home_directory_nothing_is_cached(counted, monkeypatch):
    calls, make = counted
    monkeypatch.delenv("XDG_CACHE_HOME")

    def no_home(path):
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr("pathlib.Path.expanduser", no_home)
    with pytest.warns(UserWarning, match="nothing is cached, because there is no home directory") as warned:
        for _ in range(2):
            assert cached("data", 1, make)["labels"].tolist() == [1, 2]
    assert len(calls) == 2 and len(warned) == 1


def test_entries_have_the_permissions_of_the_umask(counted):
    previous = os.umask(0o002)
    try:
        cached("data", 1, counted[1])
    finally:
        os.umask(previous)
    (folder,) = cache_root().iterdir()
    assert folder.stat().st_mode & 0o777 == 0o775
