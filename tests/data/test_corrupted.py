import dataclasses
import json

import jax
import numpy as np
import pytest
from image_files import encoded
from tfds_folders import prepare

from dropcluster_jax.data import ArrayExamples, Dataset, corrupt, corrupted_test, load

ZEROS = ArrayExamples(np.zeros((10_000, 2, 2, 3), np.uint8), np.zeros(10_000, np.int32))
CIFAR10 = Dataset("cifar10", ZEROS, ZEROS, tuple(map(str, range(10))), test_split="test")


def prepare_published(data_dir, config):
    """Prepares one configuration of `cifar10_corrupted`, which has only a test split, with five images."""
    import tensorflow_datasets as tfds

    features = {"image": tfds.features.Image(shape=(2, 2, 3)), "label": tfds.features.ClassLabel(num_classes=10)}
    prepare(data_dir, name="cifar10_corrupted", config=config, features=features, sizes=[(2, 2, 3)] * 5)
    info = next(data_dir.rglob("dataset_info.json"))
    content = json.loads(info.read_text())
    test_splits = [split for split in content["splits"] if split["name"] == "test"]
    info.write_text(json.dumps({**content, "splits": test_splits}))


def test_computed_images_are_those_of_corrupt():
    digits = load("digits")
    corrupted = corrupted_test(digits, "contrast", 4, seed=3)
    expected = corrupt("contrast", 4, jax.random.key(3), digits.test.images)
    np.testing.assert_array_equal(corrupted.examples.images, expected)
    np.testing.assert_array_equal(corrupted.examples.labels, digits.test.labels)
    assert corrupted.origin == "computed"


def test_origin_of_frost_mentions_the_texture():
    digits = load("digits")
    subset = dataclasses.replace(digits, test=digits.test.take(slice(0, 2)))
    assert corrupted_test(subset, "frost", 1).origin == "computed with a procedural frost texture"


@pytest.mark.parametrize(
    ("name", "config"),
    [("fog", "fog_2"), ("glass_blur", "frosted_glass_blur_2"), ("elastic_transform", "elastic_2")],
)
def test_published_images_are_preferred(tmp_path, name, config):
    prepare_published(tmp_path, config)
    corrupted = corrupted_test(CIFAR10, name, 2, data_dir=tmp_path)
    assert corrupted.origin == "cifar10_corrupted"
    assert corrupted.examples.images[:, 0, 0, 0].tolist() == [0, 1, 2, 3, 4]


def test_published_images_are_used_only_for_the_test_split_of_cifar10(tmp_path):
    prepare_published(tmp_path, "fog_2")
    small = ZEROS.take(slice(0, 4))
    other_split = dataclasses.replace(CIFAR10, test_split="train[40000:]", test=small)
    held_out = dataclasses.replace(CIFAR10, test_split=None, test=small)
    other_dataset = dataclasses.replace(CIFAR10, name="fashion_mnist", test=small)
    for dataset in (other_split, held_out, other_dataset):
        assert corrupted_test(dataset, "fog", 2, data_dir=tmp_path).origin == "computed"
    assert corrupted_test(CIFAR10, "contrast", 3, data_dir=tmp_path).origin == "computed"


@pytest.mark.bad_input
def test_invalid_arguments_raise(tmp_path):
    with pytest.raises(ValueError, match="name must be one of"):
        corrupted_test(load("digits"), "fogg", 1)
    (tmp_path / "a").mkdir()
    for i in range(5):
        (tmp_path / "a" / f"{i}.png").write_bytes(encoded(np.zeros((4, 4, 3), np.uint8)))
    with pytest.raises(TypeError, match="must be arrays, got FileExamples"):
        corrupted_test(load(f"folder:{tmp_path}", image_size=4), "fog", 1)
