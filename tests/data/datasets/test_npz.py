"""Archives of arrays: read without pickle, checked to the last label."""

import zipfile

import numpy as np
import pytest

from dropcluster_jax.data import load

IMAGES = np.arange(20 * 4 * 5 * 3, dtype=np.uint8).reshape(20, 4, 5, 3)
LABELS = np.arange(20) % 4


def saved(tmp_path, **arrays):
    np.savez(tmp_path / "data.npz", **arrays)
    return f"npz:{tmp_path / 'data.npz'}"


def test_train_and_test_come_back_as_they_were(tmp_path):
    name = saved(tmp_path, train_images=IMAGES, train_labels=LABELS, test_images=IMAGES[:8], test_labels=LABELS[:8])
    data = load(name)
    np.testing.assert_array_equal(data.train.images, IMAGES)
    np.testing.assert_array_equal(data.test.labels, LABELS[:8])
    assert (
        data.train.labels.dtype == np.int32
        and data.classes == ("0", "1", "2", "3")
        and data.spec.image_shape == (4, 5, 3)
    )


def test_what_is_undivided_is_divided_and_grey_images_get_their_channel(tmp_path):
    name = saved(tmp_path, images=IMAGES[..., 0], labels=LABELS.astype(np.uint8), classes=np.array(list("abcd")))
    data = load(name, test_fraction=0.4)
    assert data.spec.image_shape == (4, 5, 1) and data.classes == tuple("abcd")
    assert np.bincount(data.train.labels).tolist() == [3] * 4 and np.bincount(data.test.labels).tolist() == [2] * 4
    assert len(load(name, fraction=0.5).train) == 8 and len(load(name).test) == 4
    with pytest.raises(ValueError, match="test_fraction must be above 0 and below 1, got 0"):
        load(name, test_fraction=0.0)


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"images": IMAGES}, "must hold train_images, .*, or images and labels, .* but holds images"),
        ({"images": IMAGES / 255, "labels": LABELS}, "images of .* must be uint8 .* got float64"),
        ({"images": IMAGES[..., :2], "labels": LABELS}, r"1 or 3 channels\), got uint8 of \(20, 4, 5, 2\)"),
        ({"images": IMAGES[:0], "labels": LABELS[:0]}, r"got uint8 of \(0, 4, 5, 3\)"),
        ({"images": IMAGES, "labels": LABELS[1:]}, r"labels of .* must have the shape \(20,\), got \(19,\)"),
        ({"images": IMAGES, "labels": LABELS / 2}, "labels of .* must be integers, got float64"),
        ({"images": IMAGES, "labels": LABELS - 1}, "without a gap .* got 4 different ones from -1 to 2"),
        ({"images": IMAGES, "labels": LABELS * 85}, "without a gap .* got 4 different ones from 0 to 255"),
        ({"images": IMAGES, "labels": LABELS - 1, "classes": np.array(list("abcd"))}, "from 0 to 3, number 0 is -1"),
        ({"images": IMAGES, "labels": LABELS, "classes": np.array(list("abca"))}, "must differ from one another"),
        ({"images": IMAGES, "labels": LABELS, "classes": np.array(["a", "b", "c"])}, "from 0 to 2, number 3 is 3"),
        ({"images": IMAGES, "labels": LABELS, "classes": np.arange(4)}, "classes of .* must be a list of names"),
        ({"images": IMAGES, "labels": LABELS.astype(object)}, "cannot be read as an .npz file of arrays: .*pickle"),
    ],
)
def test_what_is_wrong_is_said_with_the_path(tmp_path, arrays, message):
    with pytest.raises(ValueError, match=message) as caught:
        load(saved(tmp_path, **arrays))
    assert "data.npz" in str(caught.value)


def test_sizes_must_agree(tmp_path):
    arrays = {"train_images": IMAGES, "train_labels": LABELS, "test_images": IMAGES[:, 1:], "test_labels": LABELS}
    with pytest.raises(ValueError, match=r"of one size, got \(4, 5, 3\), \(3, 5, 3\)"):
        load(saved(tmp_path, **arrays))


@pytest.mark.parametrize("damage", ["text", "truncated", "empty"])
def test_damaged_files_are_said_to_be(tmp_path, damage):
    name = saved(tmp_path, images=IMAGES, labels=LABELS)
    path = tmp_path / "data.npz"
    path.write_bytes({"text": b"no archive", "truncated": path.read_bytes()[:300], "empty": b""}[damage])
    with pytest.raises(ValueError, match=r"data.npz cannot be read as an .npz file"):
        load(name)


def test_what_is_not_there_and_options_of_other_sources_are_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"nothing\.npz is no file"):
        load(f"npz:{tmp_path / 'nothing.npz'}")
    name = saved(tmp_path, images=IMAGES, labels=LABELS)
    for option, value in {"size": 32, "train_split": "train", "download": True}.items():
        with pytest.raises(ValueError, match=f"{option} is not for 'npz:"):
            load(name, **{option: value})
    divided = saved(tmp_path, train_images=IMAGES, train_labels=LABELS, test_images=IMAGES, test_labels=LABELS)
    with pytest.raises(ValueError, match="test_fraction is for examples that come undivided"):
        load(divided, test_fraction=0.1)


def test_damage_within_compressed_arrays_and_foreign_members_are_said_to_be(tmp_path):
    path = tmp_path / "data.npz"
    np.savez_compressed(path, images=np.random.default_rng(0).integers(0, 256, IMAGES.shape, np.uint8), labels=LABELS)
    content = bytearray(path.read_bytes())
    content[200:260] = bytes(60)
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"data\.npz cannot be read as an \.npz file"):
        load(f"npz:{path}")
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("images", b"no array")
    with pytest.raises(ValueError, match=r"data\.npz cannot be read as an \.npz file of arrays: images is no array"):
        load(f"npz:{path}")
    for name in ("npz", "folder:", "folder"):
        with pytest.raises(ValueError, match="name must say which: "):
            load(name)
    with pytest.raises(FileNotFoundError, match="is not there: Could not determine home"):
        load("folder:~nobody-of-this-name/photos")
