import os
import shutil
import unicodedata

import numpy as np
import pytest
from image_files import CORRUPT, PHOTO, encoded

from dropcluster_jax.data import CorruptImageError, load, reading


def constant(value):
    return encoded(np.full((6, 8, 3), value, np.uint8))


def write(root, files):
    for path, content in files.items():
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_bytes(content)
    return f"folder:{root}"


def write_unsplit(root, more=None):
    """Writes 10 images of each of two classes, without a test split; pixels reveal the class."""
    files = {f"{name}/{i}.png": constant(50 * label + i) for label, name in enumerate("ab") for i in range(10)}
    return write(root, {**files, **(more or {})})


def test_folder_without_test_split_is_split_by_class(tmp_path):
    data = load(write_unsplit(tmp_path, {"a/.hidden": b"", ".cache/x": b""}))
    assert data.classes == ("a", "b") and data.spec.image_shape == (6, 8, 3) and not data.skipped
    assert np.bincount(data.train.labels).tolist() == [8, 8] and np.bincount(data.test.labels).tolist() == [2, 2]
    for examples in (data.train, data.test):
        np.testing.assert_array_equal(examples.images[:, 0, 0, 0] // 50, examples.labels)
    values = np.concatenate([data.train.images, data.test.images])[:, 0, 0, 0]
    assert sorted(values.tolist()) == [*range(10), *range(50, 60)]
    assert len(load(f"folder:{tmp_path}", test_fraction=0.5).test) == 10


@pytest.mark.parametrize(
    ("train", "test"),
    [
        ("train", "test"),
        ("train", "val"),
        ("train", "valid"),
        ("train", "validation"),
        ("Train", "Test"),
        ("training", "testing"),
        ("TRAIN", "val"),
    ],
)
def test_existing_splits_are_kept(tmp_path, train, test):
    files = {f"{train}/{name}/{i}.PNG": constant(i) for name in "xyz" for i in range(3)}
    data = load(write(tmp_path, {**files, f"{test}/z/9.png": constant(9)}))
    assert data.classes == ("x", "y", "z") and data.train.labels.tolist() == [0, 0, 0, 1, 1, 1, 2, 2, 2]
    assert data.test.labels.tolist() == [2] and data.test.images[0, 0, 0, 0] == 9
    with pytest.raises(ValueError, match="test_fraction applies to data without a test split"):
        load(f"folder:{tmp_path}", test_fraction=0.3)


@pytest.mark.parametrize("skip_corrupt", [False, True])
def test_test_class_without_training_images_raises(tmp_path, skip_corrupt):
    name = write(tmp_path, {"train/cat/0.png": constant(0), "test/bird/0.png": constant(1)})
    with pytest.raises(ValueError, match=r"bird in .*/test is not a class of .*/train, which has cat"):
        load(name, skip_corrupt=skip_corrupt)


@pytest.mark.parametrize("kind", CORRUPT)
def test_corrupt_images_raise_or_are_skipped(tmp_path, kind):
    content, message = CORRUPT[kind]
    name = write_unsplit(tmp_path, {"a/corrupt.jpg": content})
    with pytest.raises(CorruptImageError, match=rf"/a/corrupt\.jpg.*{message}"):
        load(name)
    data = load(name, skip_corrupt=True)
    assert len(data.train) + len(data.test) == 20
    assert len(data.skipped) == 1 and "/a/corrupt.jpg" in data.skipped[0] and message in data.skipped[0]


@pytest.mark.parametrize(
    ("foreign", "message"),
    [
        ("a/notes.txt", r"/a/notes\.txt is not a file with the suffix of a JPEG, PNG or WebP image"),
        ("loose.png", r"/loose\.png is not in the folder of a class"),
        ("empty/.keep", r"/empty is the folder of a class but contains no images"),
    ],
)
def test_foreign_files_raise_or_are_skipped(tmp_path, foreign, message):
    name = write_unsplit(tmp_path, {foreign: constant(0)})
    with pytest.raises(CorruptImageError, match=message):
        load(name)
    data = load(name, skip_corrupt=True)
    assert len(data.train) + len(data.test) == 20 and len(data.skipped) == 1 and data.classes == ("a", "b")


def test_grayscale_and_cmyk_images_become_rgb(tmp_path):
    gray = encoded(PHOTO[:6, :8, 0])
    cmyk = encoded(PHOTO[:6, :8], "JPEG", "CMYK", quality=95)
    data = load(write(tmp_path, {f"a/{i}.jpg": content for i, content in enumerate([gray, gray, cmyk, cmyk])}))
    assert data.spec.image_shape == (6, 8, 3) and len(data.train) == 3


def test_images_of_different_sizes_require_an_image_size(tmp_path):
    name = write_unsplit(tmp_path, {"a/large.png": encoded(PHOTO)})
    with pytest.raises(ValueError, match=r"must have the same size, got .*\(6, 8, 3\).*set `image_size` to crop"):
        load(name)
    data = load(name, image_size=16)
    assert data.spec.image_shape == (16, 16, 3) and data.spec.encoded and len(data.train) + len(data.test) == 21


def test_changed_files_are_read_again(tmp_path):
    name = write_unsplit(tmp_path)
    before = load(name).train.images.max()
    for i in range(3):
        (tmp_path / "b" / f"{i}.png").write_bytes(constant(255))
    assert before < 255 == load(name).train.images.max()


def test_missing_and_empty_folders_raise(tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere is not a folder with one folder per class"):
        load(f"folder:{tmp_path / 'nowhere'}")
    (tmp_path / "void").mkdir()
    with pytest.raises(ValueError, match="void contains no folders with images"):
        load(f"folder:{tmp_path / 'void'}")
    with pytest.raises(FileNotFoundError, match="was not found: ~nobody-of-this-name/photos is not a folder"):
        load("folder:~nobody-of-this-name/photos")


@pytest.mark.parametrize("options", [{}, {"skip_corrupt": True}, {"skip_corrupt": True, "image_size": 4}])
def test_unreadable_files_are_errors_and_not_corrupt(tmp_path, options):
    name = write_unsplit(tmp_path)
    (tmp_path / "a" / "link.png").symlink_to(tmp_path / "gone.png")
    with pytest.raises(FileNotFoundError, match=r"No such file.*/a/link\.png"):
        load(name, **options)


def test_streamed_images_are_checked_once_if_corrupt_ones_are_left_out(tmp_path, monkeypatch):
    name = write_unsplit(tmp_path, {"a/corrupt.jpg": CORRUPT["truncated"][0], "b/text.png": b"text"})
    data = load(name, image_size=4, skip_corrupt=True)
    assert len(data.train) + len(data.test) == 20 and len(data.skipped) == 2
    monkeypatch.setattr(reading, "read_block", lambda *_: pytest.fail("read again"))
    again = load(name, image_size=4, skip_corrupt=True)
    assert again.train.paths == data.train.paths and again.skipped == data.skipped
    monkeypatch.undo()
    (tmp_path / "b" / "text.png").write_bytes(constant(0))
    assert len(load(name, image_size=4, skip_corrupt=True).skipped) == 1


def test_class_without_readable_training_images_is_a_warning(tmp_path):
    name = write(tmp_path, {f"{split}/{name}/1.png": constant(1) for split in ("train", "test") for name in "ab"})
    (tmp_path / "train" / "b" / "1.png").write_bytes(b"text")
    with pytest.warns(UserWarning, match="no train images of .* are left of the classes b"):
        assert load(name, skip_corrupt=True).train.labels.tolist() == [0]


def test_files_of_operating_systems_are_ignored(tmp_path):
    foreign = ["a/Thumbs.db", "a/desktop.ini", "desktop.ini", "__MACOSX/._a", "a/@eaDir/0.png", "@eaDir/x", "b/._1.png"]
    data = load(write_unsplit(tmp_path, dict.fromkeys(foreign, b"")))
    assert data.classes == ("a", "b") and len(data.train) + len(data.test) == 20 and not data.skipped


def test_training_folder_without_test_split_raises(tmp_path):
    name = write(tmp_path, {f"train/{name}/{i}.png": constant(i) for name in "ab" for i in range(3)})
    with pytest.raises(ValueError, match=r"contains train but no test split: .*, or split .* with folder:.*/train"):
        load(name)
    # A class may be called train.
    images = {f"{name}/{i}.png": constant(i) for name in ("car", "train") for i in range(3)}
    assert load(write(tmp_path / "vehicles", images)).classes == ("car", "train")


@pytest.mark.parametrize("options", [{}, {"image_size": 4}], ids=["arrays", "encoded"])
def test_fingerprint_depends_on_the_test_images_but_not_on_their_location(tmp_path, options):
    files = {f"{split}/{name}/{i}.png": constant(i) for split in ("train", "test") for name in "ab" for i in range(3)}
    spec = load(write(tmp_path / "old", files), **options).spec
    moved = load(write(tmp_path / "new", files), **options).spec
    assert not spec.differences(moved) and len(spec.test_fingerprint) == 16
    more = load(write(tmp_path / "more", {**files, "test/a/3.png": constant(3)}), **options).spec
    assert spec.differences(more) == ["the test examples are different"]
    renamed = load(write(tmp_path / "renamed", {path.replace("/a/", "/c/"): files[path] for path in files}), **options)
    assert spec.differences(renamed.spec)[0] == "the classes or their order differ: only there ['a'], only here ['c']"


def test_images_in_subfolders_belong_to_the_class(tmp_path):
    name = write_unsplit(tmp_path, {f"a/2024/{month}/{i}.png": constant(20 + i) for month in "12" for i in range(5)})
    (tmp_path / "a" / "2024" / "up").symlink_to(tmp_path / "a", target_is_directory=True)
    (tmp_path / "a" / "all").symlink_to(tmp_path, target_is_directory=True)  # would label images of all classes
    data = load(name)
    values = np.concatenate([data.train.images, data.test.images])[:, 0, 0, 0]
    assert sorted(values.tolist()) == [*range(10), *sorted(2 * [*range(20, 25)]), *range(50, 60)]


def test_the_test_folder_can_be_chosen(tmp_path):
    splits = {"train": 1, "test": 2, "val": 3}
    name = write(tmp_path, {f"{split}/{label}/0.png": constant(splits[split]) for split in splits for label in "ab"})
    values = {split: load(name, test_split=split).test.images.max() for split in (None, "test", "val")}
    assert values == {None: 2, "test": 2, "val": 3}
    with pytest.raises(ValueError, match=r"test_split must be a folder next to train in .*, got 'dev'"):
        load(name, test_split="dev")


def test_class_names_that_look_the_same_are_one_class(tmp_path):
    composed, decomposed = (
        unicodedata.normalize(form, "Caf\N{LATIN SMALL LETTER E WITH ACUTE}") for form in ("NFC", "NFD")
    )
    name = write(tmp_path, {f"train/{composed}/0.png": constant(1), f"train/{decomposed}/0.png": constant(2)})
    data = load(write(tmp_path, {f"test/{decomposed}/0.png": constant(3)}) and name)
    assert data.classes == (composed,) and len(data.train) == 2 and data.test.labels.tolist() == [0]


def test_a_pipe_among_the_images_does_not_block(tmp_path):
    name = write_unsplit(tmp_path)
    os.mkfifo(tmp_path / "a" / "pipe.png")
    with pytest.raises(CorruptImageError, match=r"pipe\.png is not a file"):
        load(name)


def test_identity_of_images_is_their_content(tmp_path, monkeypatch):
    """Equal relative paths, sizes and times of modification do not make folders equal."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    for place, value in (("first", 10), ("second", 90)):
        write(tmp_path / place / "photos", {f"{label}/{i}.png": constant(value) for label in "ab" for i in range(5)})
        for file in (tmp_path / place).rglob("*.png"):
            os.utime(file, ns=(0, 0))
    fingerprints = set()
    for place, value in (("first", 10), ("second", 90)):
        monkeypatch.chdir(tmp_path / place)
        assert (load("folder:photos").train.images == value).all()
        fingerprints.add(load("folder:photos", image_size=4).spec.test_fingerprint)
    assert len(fingerprints) == 2
    shutil.copytree("photos", tmp_path / "moved")
    assert load(f"folder:{tmp_path / 'moved'}", image_size=4).spec.test_fingerprint in fingerprints
    # Another folder takes the place of the first one.
    shutil.rmtree(tmp_path / "first" / "photos")
    shutil.copytree(tmp_path / "moved", tmp_path / "first" / "photos")
    monkeypatch.chdir(tmp_path / "first")
    assert (load("folder:photos").train.images == 90).all()
