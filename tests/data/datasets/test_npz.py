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
    with pytest.raises(ValueError, match="test_fraction applies to data without a test split, 'npz:"):
        load(name, test_fraction=0.1)


def test_archive_without_test_split_is_split_by_class(tmp_path):
    name = save(tmp_path, images=IMAGES[..., 0], labels=LABELS.astype(np.uint8), classes=np.array(list("abcd")))
    data = load(name, test_fraction=0.4)
    assert data.spec.image_shape == (4, 5, 1) and data.classes == tuple("abcd")
    assert np.bincount(data.train.labels).tolist() == [3] * 4 and np.bincount(data.test.labels).tolist() == [2] * 4
    assert len(load(name, fraction=0.5).train) == 8 and len(load(name).test) == 4


@pytest.mark.bad_input
@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        (
            {"images": IMAGES},
            "must contain train_images, .*, or x_train, .*, or images, labels, .* but contains images",
        ),
        (
            {"images": IMAGES / 255, "labels": LABELS},
            "images and labels of .* are invalid: images must .* got float64",
        ),
        ({"images": IMAGES[..., :2], "labels": LABELS}, r"1 or 3 channels and .*, got the shape \(20, 4, 5, 2\)"),
        ({"images": IMAGES[:0], "labels": LABELS[:0]}, r"at least one example, got the shape \(0, 4, 5, 3\)"),
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
        ({"images": IMAGES, "labels": LABELS, "classes": np.arange(4)}, "classes of .* must be a sequence of strings"),
        ({"images": IMAGES, "labels": LABELS.astype(object)}, "cannot be read as an .npz archive: .*pickle"),
    ],
)
def test_invalid_arrays_raise_with_the_path(tmp_path, arrays, message):
    with pytest.raises(ValueError, match=message) as info:
        load(save(tmp_path, **arrays))
    assert "data.npz" in str(info.value)


@pytest.mark.parametrize("channels", [(), (3,)], ids=["grayscale", "color"])
@pytest.mark.parametrize(
    ("names", "validation"),
    [
        (["train_images", "train_labels", "test_images", "test_labels"], ["val_images", "val_labels"]),
        (["x_train", "y_train", "x_test", "y_test"], []),
    ],
    ids=["medmnist", "keras"],
)
def test_archives_of_medmnist_and_keras_are_read(tmp_path, names, validation, channels):
    images, labels = IMAGES[..., 0] if not channels else IMAGES, LABELS[:, None].astype(np.uint8)
    contents = [images, labels, images[:8], labels[:8]]
    data = load(save(tmp_path, **dict(zip(names + validation, contents + contents[:2], strict=False))))
    np.testing.assert_array_equal(data.train.images.squeeze(), images)
    np.testing.assert_array_equal(data.train.labels, LABELS)
    assert data.train.labels.dtype == np.int32 and data.test.labels.tolist() == LABELS[:8].tolist()
    assert data.spec.image_shape == (4, 5, *(channels or (1,))) and data.classes == ("0", "1", "2", "3")


def test_mean_and_std_of_an_archive_are_used(tmp_path):
    mean, std = np.array([0.1, 0.2, 0.3]), np.array([0.4, 0.5, 0.6])
    data = load(save(tmp_path, images=IMAGES, labels=LABELS, mean=mean, std=std))
    assert data.spec.mean == (0.1, 0.2, 0.3) and data.spec.std == (0.4, 0.5, 0.6)
    constant = np.zeros_like(IMAGES)
    assert load(save(tmp_path, images=constant, labels=LABELS, mean=mean, std=std)).spec.std == (0.4, 0.5, 0.6)


@pytest.mark.parametrize(
    ("constants", "message"),
    [
        ({"mean": [0.5] * 3}, "must contain both mean and std, or neither"),
        ({"std": [0.5] * 3}, "must contain both mean and std"),
        ({"mean": [0.5], "std": [0.5]}, "must be those of 3 channels"),
        ({"mean": [0.5] * 3, "std": [0.5, float("nan"), 0.5]}, "must be those of 3 channels"),
        ({"mean": [1, 2, 3], "std": [0.5] * 3}, r"pixel values in \[0, 1\]"),
        ({"mean": [0.5] * 3, "std": [0.5, 0.0, 0.5]}, r"pixel values in \[0, 1\]"),
        ({"mean": [0.5] * 3, "std": [0.5, -1.0, 0.5]}, "must be those of 3 channels"),
        ({"mean": [125.0] * 3, "std": [60.0] * 3}, "divide constants of values up to 255 by 255"),
    ],
)
def test_invalid_mean_and_std_raise(tmp_path, constants, message):
    arrays = {name: np.array(values) for name, values in constants.items()}
    with pytest.raises(ValueError, match=message):
        load(save(tmp_path, images=IMAGES, labels=LABELS, **arrays))


def test_constant_channel_raises_with_a_remedy(tmp_path):
    images = IMAGES.copy()
    images[..., 2] = 7
    with pytest.raises(
        ValueError, match=r"channel 2 of the training images of 'npz:.*' is constant .*remove it, or set"
    ):
        _ = load(save(tmp_path, images=images, labels=LABELS)).spec


@pytest.mark.parametrize("damage", ["text", "single array", "truncated", "empty", "foreign", "compressed"])
def test_damaged_archives_raise(tmp_path, damage):
    name = save(tmp_path, images=IMAGES, labels=LABELS)
    path = tmp_path / "data.npz"
    if damage == "foreign":
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("images", b"not an array")
    elif damage == "single array":
        with path.open("wb") as file:
            np.save(file, IMAGES)
    elif damage == "compressed":
        images = np.random.default_rng(0).integers(0, 256, IMAGES.shape, np.uint8)
        np.savez_compressed(path, images=images, labels=LABELS)
        content = bytearray(path.read_bytes())
        content[200:260] = bytes(60)
        path.write_bytes(content)
    else:
        path.write_bytes({"text": b"text", "truncated": path.read_bytes()[:300], "empty": b""}[damage])
    reason = {
        "foreign": ": images is not an array",
        "text": ": File is not a zip file",
        "single array": ": File is not a zip file",
    }.get(damage, "")
    with pytest.raises(ValueError, match=rf"data\.npz cannot be read as an \.npz archive{reason}"):
        load(name)
