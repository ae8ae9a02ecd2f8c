import zipfile

import numpy as np
import pytest

from dropcluster_jax.data import load

IMAGES = np.arange(20 * 4 * 5 * 3, dtype=np.uint8).reshape(20, 4, 5, 3)
LABELS = np.arange(20) % 4


def save(tmp_path, **arrays):
    np.savez(tmp_path / "data.npz", **arrays)
    return f"npz:{tmp_path / 'data.npz'}"


def test_archive_with_test_split_is_loaded_unchanged(tmp_path):
    name = save(tmp_path, train_images=IMAGES, train_labels=LABELS, test_images=IMAGES[:8], test_labels=LABELS[:8])
    data = load(name)
    np.testing.assert_array_equal(data.train.images, IMAGES)
    np.testing.assert_array_equal(data.test.labels, LABELS[:8])
    assert data.train.labels.dtype == np.int32
    assert data.classes == ("0", "1", "2", "3") and data.spec.image_shape == (4, 5, 3)
    with pytest.raises(ValueError, match="test_fraction applies to archives without a test split"):
        load(name, test_fraction=0.1)


def test_archive_without_test_split_is_split_by_class(tmp_path):
    name = save(tmp_path, images=IMAGES[..., 0], labels=LABELS.astype(np.uint8), classes=np.array(list("abcd")))
    data = load(name, test_fraction=0.4)
    assert data.spec.image_shape == (4, 5, 1) and data.classes == tuple("abcd")
    assert np.bincount(data.train.labels).tolist() == [3] * 4 and np.bincount(data.test.labels).tolist() == [2] * 4
    assert len(load(name, fraction=0.5).train) == 8 and len(load(name).test) == 4


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"images": IMAGES}, "must contain train_images, .*, or images and labels, .* but contains images"),
        ({"images": IMAGES / 255, "labels": LABELS}, "images of .* must be uint8 .* got float64"),
        ({"images": IMAGES[..., :2], "labels": LABELS}, r"1 or 3 channels\), got uint8 of shape \(20, 4, 5, 2\)"),
        ({"images": IMAGES[:0], "labels": LABELS[:0]}, r"got uint8 of shape \(0, 4, 5, 3\)"),
        ({"images": IMAGES, "labels": LABELS[1:]}, r"labels of .* must have shape \(20,\), got \(19,\)"),
        ({"images": IMAGES, "labels": LABELS / 2}, "labels of .* must be integers, got float64"),
        ({"images": IMAGES, "labels": LABELS - 1}, "consecutive from 0, .* got 4 distinct labels from -1 to 2"),
        ({"images": IMAGES, "labels": LABELS * 85}, "consecutive from 0, .* got 4 distinct labels from 0 to 255"),
        (
            {"images": IMAGES, "labels": LABELS - 1, "classes": np.array(list("abcd"))},
            r"labels of .* must be in \[0, 4\), got -1 at index 0",
        ),
        ({"images": IMAGES, "labels": LABELS, "classes": np.array(list("abca"))}, "classes of .* must be distinct"),
        (
            {"images": IMAGES, "labels": LABELS, "classes": np.array(["a", "b", "c"])},
            r"labels of .* must be in \[0, 3\), got 3 at index 3",
        ),
        ({"images": IMAGES, "labels": LABELS, "classes": np.arange(4)}, "classes of .* must be a list of strings"),
        ({"images": IMAGES, "labels": LABELS.astype(object)}, "cannot be read as an .npz archive: .*pickle"),
    ],
)
def test_invalid_arrays_raise_with_the_path(tmp_path, arrays, message):
    with pytest.raises(ValueError, match=message) as info:
        load(save(tmp_path, **arrays))
    assert "data.npz" in str(info.value)


def test_train_and_test_images_of_different_sizes_raise(tmp_path):
    arrays = {"train_images": IMAGES, "train_labels": LABELS, "test_images": IMAGES[:, 1:], "test_labels": LABELS}
    with pytest.raises(ValueError, match=r"must have the same size, got \(4, 5, 3\) and \(3, 5, 3\)"):
        load(save(tmp_path, **arrays))


@pytest.mark.parametrize("damage", ["text", "truncated", "empty", "foreign", "compressed"])
def test_damaged_archives_raise(tmp_path, damage):
    name = save(tmp_path, images=IMAGES, labels=LABELS)
    path = tmp_path / "data.npz"
    if damage == "foreign":
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("images", b"not an array")
    elif damage == "compressed":
        images = np.random.default_rng(0).integers(0, 256, IMAGES.shape, np.uint8)
        np.savez_compressed(path, images=images, labels=LABELS)
        content = bytearray(path.read_bytes())
        content[200:260] = bytes(60)
        path.write_bytes(content)
    else:
        path.write_bytes({"text": b"text", "truncated": path.read_bytes()[:300], "empty": b""}[damage])
    reason = ": images is not an array" if damage == "foreign" else ""
    with pytest.raises(ValueError, match=rf"data\.npz cannot be read as an \.npz archive{reason}"):
        load(name)


def test_missing_file_raises(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"nothing\.npz is not a file"):
        load(f"npz:{tmp_path / 'nothing.npz'}")
