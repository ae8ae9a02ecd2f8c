import dataclasses

import numpy as np
import pytest
from image_files import encoded
from tfds_folders import prepare

from dropcluster_jax.data import (
    DATASETS,
    CorruptImageError,
    DataConfig,
    GrainLoader,
    load,
    stratified_subset,
)
from dropcluster_jax.data.opening import open_data


def write_folder(root):
    """Writes 20 images of each of two classes, whose pixels are unique."""
    for label, name in enumerate("ab"):
        (root / name).mkdir()
        for i in range(20):
            (root / name / f"{i:02}.png").write_bytes(encoded(np.full((4, 4, 3), 100 * label + i, np.uint8)))
    return f"folder:{root}"


def identities(examples):
    """Returns values that identify the examples, decoded or not."""
    return examples.images[:, 0, 0, 0].tolist() if hasattr(examples, "images") else examples.paths


@pytest.mark.parametrize("options", [{}, {"image_size": 4}], ids=["arrays", "encoded"])
def test_validation_set_is_held_out_of_the_training_set(tmp_path, options):
    name = write_folder(tmp_path)
    full = load(name, **options)
    validating = load(name, validation_fraction=0.25, evaluate_on="validation", **options)
    testing = load(name, validation_fraction=0.25, **options)
    assert np.bincount(validating.test.labels).tolist() == [4, 4]
    assert np.bincount(validating.train.labels).tolist() == [12, 12]
    assert sorted(identities(validating.train) + identities(validating.test)) == sorted(identities(full.train))
    assert identities(testing.train) == identities(validating.train)
    assert identities(testing.test) == identities(full.test) and testing.test_split is None


@pytest.mark.parametrize("subset", [{"fraction": 0.2}, {"examples_per_class": 7}])
def test_training_subset_is_drawn_after_holding_out(subset):
    full = load("digits").train
    held_out = stratified_subset(full.labels, fraction=0.1)
    remaining = full.take(np.setdiff1d(np.arange(len(full)), held_out))
    expected = remaining.take(stratified_subset(remaining.labels, seed=3, **subset))
    data = load("digits", validation_fraction=0.1, evaluate_on="validation", seed=3, **subset)
    np.testing.assert_array_equal(data.train.images, expected.images)
    np.testing.assert_array_equal(data.train.labels, expected.labels)
    np.testing.assert_array_equal(data.test.images, full.images[held_out])
    np.testing.assert_array_equal(data.test.labels, full.labels[held_out])


@pytest.mark.parametrize("image_size", [None, 4], ids=["arrays", "encoded"])
def test_training_subsets_are_balanced_and_nested(tmp_path, image_size):
    prepare(tmp_path, sizes=[(4, 5, 3)] * 20, labels=[0, 1] * 10)
    options = {"dir": tmp_path, "seed": 3, "image_size": image_size}
    small, large = (load("tiny", examples_per_class=count, **options) for count in (2, 5))
    assert np.bincount(small.train.labels).tolist() == [2, 2] and len(small.test) == 20
    assert np.bincount(large.train.labels).tolist() == [5, 5]
    if image_size is None:
        assert set(identities(small.train)) < set(identities(large.train))
    same = load("tiny", fraction=0.2, **options).train
    np.testing.assert_array_equal(same.labels, small.train.labels)


def test_examples_with_invalid_labels_are_not_selected(tmp_path):
    prepare(tmp_path, labels=[0, 1, 0, -1, 0, 1])
    for options in ({"examples_per_class": 2}, {"validation_fraction": 0.5}):
        with pytest.raises(CorruptImageError, match=r"tiny/train, example 3, has the label -1, labels must"):
            load("tiny", dir=tmp_path, image_size=4, **options)
    subset = load("tiny", dir=tmp_path, image_size=4, examples_per_class=2, skip_corrupt=True)
    assert np.bincount(subset.train.labels).tolist() == [2, 2]
    split = load(
        "tiny", dir=tmp_path, image_size=4, validation_fraction=0.5, evaluate_on="validation", skip_corrupt=True
    )
    assert np.bincount(split.train.labels).tolist() == [1, 1] and np.bincount(split.test.labels).tolist() == [2, 1]


@pytest.mark.bad_input
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"evaluate_on": "validation"}, "validation_fraction must be positive to evaluate on validation, got 0"),
        ({"evaluate_on": "train"}, "evaluate_on must be 'test' or 'validation', got 'train'"),
        ({"validation_fraction": 1.0}, r"validation_fraction must be in \[0, 1\), got 1.0"),
        ({"validation_fraction": -0.1}, r"validation_fraction must be in \[0, 1\), got -0.1"),
        ({"validation_fraction": float("nan")}, r"validation_fraction must be in \[0, 1\), got nan"),
        ({"validation_fraction": 0.9999}, "holding out the fraction 0.9999 leaves class '0' without training examples"),
        ({"test_fraction": 0.0}, r"test_fraction must be in \(0, 1\), got 0.0"),
        ({"image_size": 0}, "image_size must be at least 1, got 0"),
        ({"fraction": 2.0}, r"fraction must be in \(0, 1\], got 2.0"),
        ({"test_fraction": 0.5}, "test_fraction does not apply to 'digits', got 0.5"),
        ({"image_size": 8}, "image_size does not apply to 'digits', got 8"),
    ],
)
def test_invalid_options_raise(options, message):
    with pytest.raises(ValueError, match=message):
        load("digits", **options)


@pytest.mark.parametrize("kind", ["folder", "npz"])
def test_options_of_other_kinds_of_datasets_raise(tmp_path, kind):
    name = f"{kind}:{tmp_path}"
    unused = {"train_split": "train"}
    if kind == "npz":
        unused |= {"test_split": "test", "image_size": 32, "skip_corrupt": True}
    for option, value in unused.items():
        with pytest.raises(ValueError, match=f"{option} does not apply to '{kind}:"):
            load(name, **{option: value})


@pytest.mark.parametrize("name", ["npz", "folder:", "folder"])
def test_missing_path_raises(name):
    with pytest.raises(ValueError, match="name must include a path, "):
        load(name)


@pytest.mark.parametrize("kind", ["folder", "npz"])
def test_moved_data_are_found_in_data_dir(tmp_path, monkeypatch, kind):
    """By the relative path, or by its last component."""
    (tmp_path / "old" / "photos").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "old")
    write_folder(tmp_path / "old" / "photos")
    np.savez("photos.npz", images=np.zeros((8, 4, 4, 1), np.uint8), labels=np.arange(8) % 2)
    path = "photos" if kind == "folder" else "photos.npz"
    original = load(f"{kind}:{path}")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(FileNotFoundError, match=f"'{kind}:{path}' was not found"):
        load(f"{kind}:{path}")
    for name, data_dir in (
        (path, "old"),
        (path, tmp_path / "old"),
        (f"old/{path}", tmp_path),
        (f"data/{path}", "old"),
        (f"/nowhere/{path}", "old"),
        (f"{tmp_path}/old/{path}", "elsewhere"),  # an absolute path that exists
    ):
        moved = load(f"{kind}:{name}", dir=data_dir)
        assert moved.name == f"{kind}:{name}" and moved.test.fingerprint() == original.test.fingerprint()
    with pytest.raises(FileNotFoundError, match=f"was not found: elsewhere/{path} is not a "):
        load(f"{kind}:/nowhere/{path}", dir="elsewhere")


def test_class_that_a_split_exhausts_is_named(tmp_path):
    images, labels = np.zeros((9, 4, 4, 1), np.uint8), np.array([0] * 8 + [1])
    np.savez(tmp_path / "data.npz", images=images, labels=labels, classes=np.array(["cat", "owl"]))
    with pytest.raises(ValueError, match=r"holding out the fraction 0.2 leaves class 'owl' without training examples"):
        load(f"npz:{tmp_path / 'data.npz'}")
    with pytest.raises(ValueError, match=r"at most \d+, the size of class '0', got 1000"):
        load("digits", examples_per_class=1000)


def test_options_reach_the_dataset_and_the_loader():
    config = DataConfig(examples_per_class=5, seed=3, loader="grain", test_split="test[:20]")
    dataset, loader = open_data(config, batch_size=10, seed=1)
    expected = load(config)
    np.testing.assert_array_equal(dataset.train.images, expected.train.images)
    assert len(dataset.test) == 20 and isinstance(loader, GrainLoader)
    labels, other_labels = (
        np.asarray(next(open_data(dataclasses.replace(config, loader="memory"), 10, seed)[1].train())["label"])
        for seed in (1, 2)
    )
    batches = loader.train()
    assert (np.asarray(next(batches)["label"]) == labels).all() and (labels != other_labels).any()
    batches.close()


def test_fake_data_has_the_shape_of_the_dataset():
    dataset, _ = open_data(DataConfig(name="imagenet2012", image_size=16), 8, fake=True)
    assert dataset.spec.image_shape == (16, 16, 3) and dataset.spec.classes == DATASETS["imagenet2012"].classes
    assert len(dataset.train) == 1024 and len(open_data(DataConfig(), 2000, fake=True)[0].train) == 2000
    with pytest.raises(ValueError, match=r"fake data needs one of the datasets digits, .*, got 'photos'"):
        open_data(DataConfig(name="photos"), 8, fake=True)
