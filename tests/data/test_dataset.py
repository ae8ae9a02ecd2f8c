"""What a data set says of its images: mean and deviation, and how it is divided."""

import numpy as np
import pytest

from dropcluster_jax.data import DATASETS, ArrayExamples, Dataset, load
from dropcluster_jax.data.subsets import stratified_split


@pytest.fixture(scope="module")
def digits() -> Dataset:
    return load("digits")


def test_mean_and_deviation_are_those_of_the_training_images(digits):
    scaled = digits.train.images.astype(np.float64) / 255
    for found, expected in ((digits.spec.mean, scaled.mean()), (digits.spec.std, scaled.std())):
        assert found.dtype == np.float32 and found.shape == (1,)
        np.testing.assert_allclose(found, expected, rtol=1e-6)


def test_mean_and_deviation_hold_over_chunks_and_channels():
    """More pixels than one chunk, and values whose squares would overflow narrow sums."""
    rng = np.random.default_rng(0)
    images = rng.integers((0, 100, 254), 256, (1100, 32, 32, 3)).astype(np.uint8)
    labels = np.zeros(1100, np.int32)
    examples = ArrayExamples(images, labels)
    data = Dataset("noise", examples, examples, ("noise",))
    np.testing.assert_allclose(data.spec.mean, images.mean((0, 1, 2)) / 255, rtol=1e-6)
    np.testing.assert_allclose(data.spec.std, images.std((0, 1, 2), dtype=np.float64) / 255, rtol=1e-6)


def test_a_data_set_prints_in_one_line(digits):
    assert repr(digits).startswith("Dataset(name='digits', train=ArrayExamples(), test=ArrayExamples(), classes=('0'")


def test_what_is_known_of_cifar10_is_what_its_pixels_say(tfds_dir):
    known = DATASETS["cifar10"]
    data = load("cifar10", tfds_dir, train_split="train[:20000]", test_split="test[:10]")
    assert list(data.spec.mean) == pytest.approx(known.mean) and list(data.spec.std) == pytest.approx(known.std)
    measured = Dataset("other", data.train, data.test, data.classes)
    np.testing.assert_allclose(measured.spec.mean, known.mean, atol=2e-3)
    np.testing.assert_allclose(measured.spec.std, known.std, atol=2e-3)


def test_what_comes_undivided_is_divided_by_class_and_always_alike():
    labels = np.repeat(np.arange(4, dtype=np.int32), [10, 20, 30, 2])
    train, test = stratified_split(labels, 0.2)
    assert sorted([*train, *test]) == list(range(62))
    assert np.bincount(labels[test]).tolist() == [2, 4, 6, 1]
    np.testing.assert_array_equal(stratified_split(labels, 0.2)[1], test)
    with pytest.raises(ValueError, match="leaves class 3 without a training image"):
        stratified_split(labels, 0.8)
    for share in (0, 1, float("nan")):
        with pytest.raises(ValueError, match="test_fraction must be above 0 and below 1"):
            stratified_split(labels, share)
