"""Corrupted test sets say where they come from, and the published one takes precedence."""

import dataclasses
import json

import jax
import numpy as np
import pytest
from image_files import encoded

from dropcluster_jax.data import ArrayExamples, Dataset, corrupt, corrupted_test, load


def test_what_is_made_is_what_corrupt_gives_and_frost_is_called_a_stand_in():
    digits = load("digits")
    made = corrupted_test(digits, "contrast", 4, seed=3)
    np.testing.assert_array_equal(made.examples.images, corrupt("contrast", 4, jax.random.key(3), digits.test.images))
    np.testing.assert_array_equal(made.examples.labels, digits.test.labels)
    assert made.origin == "made"
    few = Dataset("few", digits.train, digits.test.take(slice(0, 2)), digits.classes)
    assert "stand-in" in corrupted_test(few, "frost", 1).origin


@pytest.mark.parametrize(
    ("name", "published"),
    [("fog", "fog_2"), ("glass_blur", "frosted_glass_blur_2"), ("elastic_transform", "elastic_2")],
)
def test_the_published_set_takes_precedence_when_present(tmp_path, name, published):
    """As TFDS would prepare it: a configuration for each corruption and severity, a test split alone."""
    import tensorflow_datasets as tfds
    from tfds_folders import prepare

    zeros = ArrayExamples(np.zeros((10_000, 2, 2, 3), np.uint8), np.zeros(10_000, np.int32))
    cifar10 = Dataset("cifar10", zeros, zeros, tuple(map(str, range(10))), test_split="test")
    held_out = dataclasses.replace(cifar10, test_split="train[40000:]", test=zeros.take(slice(0, 4)))
    features = {"image": tfds.features.Image(shape=(2, 2, 3)), "label": tfds.features.ClassLabel(num_classes=10)}
    prepare(tmp_path, name="cifar10_corrupted", config=published, features=features, sizes=[(2, 2, 3)] * 5)
    info = next(tmp_path.rglob("dataset_info.json"))
    about = json.loads(info.read_text())
    info.write_text(json.dumps({**about, "splits": [split for split in about["splits"] if split["name"] == "test"]}))

    found = corrupted_test(cifar10, name, 2, data_dir=tmp_path)
    assert found.origin == "cifar10_corrupted" and found.examples.images[:, 0, 0, 0].tolist() == [0, 1, 2, 3, 4]
    if name == "fog":  # of another severity, and of another data set, there is none
        few = Dataset("fashion", zeros.take(slice(0, 4)), zeros.take(slice(0, 4)), cifar10.classes)
        assert corrupted_test(few, name, 2, data_dir=tmp_path).origin == "made"
        assert corrupted_test(held_out, name, 2, data_dir=tmp_path).origin == "made"
        with pytest.raises(FileNotFoundError, match=r"data_dir must be a folder .*nowhere is none"):
            corrupted_test(cifar10, name, 2, data_dir=tmp_path / "nowhere")
        assert corrupted_test(cifar10, "contrast", 3, data_dir=tmp_path).origin == "made"


@pytest.mark.bad_input
def test_wrong_arguments_are_named(tmp_path):
    with pytest.raises(ValueError, match="name must be one of"):
        corrupted_test(load("digits"), "fogg", 1)
    (tmp_path / "a").mkdir()
    for i in range(5):
        (tmp_path / "a" / f"{i}.png").write_bytes(encoded(np.zeros((4, 4, 3), np.uint8)))
    with pytest.raises(TypeError, match="must be arrays, got FileExamples"):
        corrupted_test(load(f"folder:{tmp_path}", image_size=4), "fog", 1)
