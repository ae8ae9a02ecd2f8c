"""What was kept comes back as it was; what was damaged is made anew."""

import numpy as np
import pytest

from dropcluster_jax.cache import cache_root, cached


@pytest.fixture
def made(tmp_path, monkeypatch):
    """How often the arrays were made, and the function that makes them."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    calls = []

    def make():
        calls.append(1)
        return {"images": np.arange(24, dtype=np.uint8).reshape(2, 3, 4), "labels": np.array([1, 2], np.int32)}

    return calls, make


def test_arrays_are_made_once_for_a_key(made):
    calls, make = made
    for _ in range(3):
        arrays = cached("data", ["x", 1], make)
        np.testing.assert_array_equal(arrays["images"], make()["images"])
        assert arrays["labels"].dtype == np.int32
        calls.pop()
    assert len(calls) == 1
    cached("data", ["x", 2], make)
    assert len(calls) == 2


@pytest.mark.parametrize("damage", ["flip", "truncate", "remove", "listing"])
def test_what_is_damaged_is_made_anew(made, damage):
    calls, make = made
    cached("data", 1, make)
    (folder,) = cache_root().iterdir()
    file = folder / ("checksums.json" if damage == "listing" else "images.npy")
    content = file.read_bytes()
    if damage == "remove":
        file.unlink()
    else:
        file.write_bytes({"flip": content[:-1] + b"\xff", "truncate": content[:-5], "listing": b"{"}[damage])
    np.testing.assert_array_equal(cached("data", 1, make)["images"].ravel(), np.arange(24))
    assert len(calls) == 2
    cached("data", 1, make)
    assert len(calls) == 2 and len(list(cache_root().iterdir())) == 1


def test_a_folder_that_cannot_be_written_costs_time_alone(made, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    with pytest.warns(UserWarning, match="cannot be written"):
        assert cached("data", 1, made[1])["labels"].tolist() == [1, 2]
