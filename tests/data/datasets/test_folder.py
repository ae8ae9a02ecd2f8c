"""Folders of images: labels by the alphabet, foreign files named or counted, never a silent wrong label."""

import numpy as np
import pytest
from image_files import BAD, PHOTO, encoded

from dropcluster_jax.data import CorruptImageError, load


def color(value):
    return encoded(np.full((6, 8, 3), value, np.uint8))


def write(root, files):
    for path, content in files.items():
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_bytes(content)
    return f"folder:{root}"


def undivided(root, more=None):
    files = {f"{name}/{i}.png": color(50 * label + i) for label, name in enumerate("ab") for i in range(10)}
    return write(root, {**files, **(more or {})})


def test_an_undivided_folder_is_divided_by_class_and_labels_go_by_the_alphabet(tmp_path):
    data = load(undivided(tmp_path, {"a/.hidden": b"", ".cache/x": b""}))
    assert data.classes == ("a", "b") and data.spec.image_shape == (6, 8, 3) and not data.skipped
    assert np.bincount(data.train.labels).tolist() == [8, 8] and np.bincount(data.test.labels).tolist() == [2, 2]
    for part in (data.train, data.test):
        np.testing.assert_array_equal(part.images[:, 0, 0, 0] // 50, part.labels)
    values = np.concatenate([data.train.images, data.test.images])[:, 0, 0, 0]
    assert sorted(values.tolist()) == [*range(10), *range(50, 60)]
    assert len(load(f"folder:{tmp_path}", test_fraction=0.5).test) == 10


@pytest.mark.parametrize("test", ["test", "val", "validation"])
def test_folders_for_training_and_test_are_taken_as_they_are(tmp_path, test):
    files = {f"train/{name}/{i}.PNG": color(i) for name in "xyz" for i in range(3)}
    data = load(write(tmp_path, {**files, f"{test}/z/9.png": color(9)}))
    assert data.classes == ("x", "y", "z") and data.train.labels.tolist() == [0, 0, 0, 1, 1, 1, 2, 2, 2]
    assert data.test.labels.tolist() == [2] and data.test.images[0, 0, 0, 0] == 9
    with pytest.raises(ValueError, match="test_fraction is for examples that come undivided"):
        load(f"folder:{tmp_path}", test_fraction=0.3)


def test_a_class_that_training_does_not_know_is_refused_whatever_is_said(tmp_path):
    name = write(tmp_path, {"train/cat/0.png": color(0), "test/bird/0.png": color(1)})
    for skip_corrupt in (False, True):
        with pytest.raises(ValueError, match=r"/test/bird is no class of .*/train, which has cat"):
            load(name, skip_corrupt=skip_corrupt)


@pytest.mark.parametrize("kind", BAD)
def test_bad_images_are_named_or_skipped_and_counted(tmp_path, kind):
    content, message = BAD[kind]
    name = undivided(tmp_path, {"a/bad.jpg": content})
    with pytest.raises(CorruptImageError, match=rf"/a/bad\.jpg.*{message}"):
        load(name)
    data = load(name, skip_corrupt=True)
    assert len(data.train) + len(data.test) == 20
    assert len(data.skipped) == 1 and "/a/bad.jpg" in data.skipped[0] and message in data.skipped[0]


@pytest.mark.parametrize(
    ("foreign", "message"),
    [
        ("a/notes.txt", r"/a/notes\.txt is no JPEG, PNG or WebP image by its name"),
        ("loose.png", r"/loose\.png lies beside the folders of classes"),
        ("empty/.keep", r"/empty is the folder of a class, and holds no image"),
        ("a/nested.png/0.png", r"/a/nested\.png is no JPEG, PNG or WebP image by its name"),
    ],
)
def test_what_does_not_belong_there_is_named_or_skipped_and_counted(tmp_path, foreign, message):
    name = undivided(tmp_path, {foreign: color(0)})
    with pytest.raises(CorruptImageError, match=message):
        load(name)
    data = load(name, skip_corrupt=True)
    assert len(data.train) + len(data.test) == 20 and len(data.skipped) == 1 and data.classes == ("a", "b")


def test_grey_and_cmyk_images_become_red_green_and_blue(tmp_path):
    gray = encoded(PHOTO[:6, :8, 0])
    cmyk = encoded(PHOTO[:6, :8], "JPEG", "CMYK", quality=95)
    data = load(write(tmp_path, {f"a/{i}.jpg": content for i, content in enumerate([gray, gray, cmyk, cmyk])}))
    assert data.spec.image_shape == (6, 8, 3) and len(data.train) == 3


def test_images_of_unequal_size_need_a_size(tmp_path):
    name = undivided(tmp_path, {"a/large.png": encoded(PHOTO)})
    with pytest.raises(ValueError, match=r"must be of one size, got .*\(6, 8, 3\).*an `image_size` crops"):
        load(name)
    data = load(name, image_size=16)
    assert data.spec.image_shape == (16, 16, 3) and len(data.train) + len(data.test) == 21


def test_a_changed_file_is_read_anew(tmp_path):
    name = undivided(tmp_path)
    before = load(name).train.images.max()
    (tmp_path / "b" / "0.png").write_bytes(color(255))
    (tmp_path / "b" / "1.png").write_bytes(color(255))
    (tmp_path / "b" / "2.png").write_bytes(color(255))
    assert before < 255 == load(name).train.images.max()


def test_what_is_not_there_is_said(tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere is no folder; it should hold a folder for each class"):
        load(f"folder:{tmp_path / 'nowhere'}")
    (tmp_path / "void").mkdir()
    with pytest.raises(ValueError, match="void holds no folder of a class with images"):
        load(f"folder:{tmp_path / 'void'}")
    with pytest.raises(ValueError, match="data_dir is not for 'folder:"):
        load(f"folder:{tmp_path}", data_dir=tmp_path)


def test_a_link_that_leads_nowhere_is_a_bad_image(tmp_path):
    name = undivided(tmp_path)
    (tmp_path / "a" / "link.png").symlink_to(tmp_path / "gone.png")
    with pytest.raises(CorruptImageError, match=r"/a/link\.png cannot be read: No such file"):
        load(name)
    assert "link.png" in load(name, skip_corrupt=True).skipped[0]
