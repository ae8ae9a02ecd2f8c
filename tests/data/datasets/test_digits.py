"""The digits are all there, divided once and for all."""

import numpy as np
import pytest

from dropcluster_jax.data import Dataset, load


@pytest.fixture(scope="module")
def digits() -> Dataset:
    return load("digits")


def rows(images):
    return sorted(image.tobytes() for image in images)


def test_digits_are_divided_and_none_is_lost_or_doubled(digits):
    from sklearn.datasets import load_digits

    whole = load_digits()
    together = np.concatenate([digits.train.images, digits.test.images])
    assert together.dtype == np.uint8 and together.shape == (1797, 8, 8, 1)
    expected = np.array([[[round(value * 255 / 16)] for value in image.ravel()] for image in whole.images])
    assert rows(together) == rows(expected.astype(np.uint8))
    labels = np.concatenate([digits.train.labels, digits.test.labels])
    assert labels.dtype == np.int32
    with_labels = [image.tobytes() + bytes([label]) for image, label in zip(together, labels, strict=True)]
    assert sorted(with_labels) == sorted(
        image.astype(np.uint8).tobytes() + bytes([label]) for image, label in zip(expected, whole.target, strict=True)
    )


def test_each_digit_gives_a_fifth_to_the_test(digits):
    assert digits.classes == tuple("0123456789") and digits.spec.num_classes == 10
    train, test = np.bincount(digits.train.labels), np.bincount(digits.test.labels)
    assert len(train) == len(test) == 10
    assert (abs(test - (train + test) / 5) < 1).all()


def test_digits_are_divided_the_same_each_time(digits):
    again = load("digits")
    np.testing.assert_array_equal(again.train.images, digits.train.images)
    np.testing.assert_array_equal(again.test.labels, digits.test.labels)


@pytest.mark.parametrize(
    ("split", "expected"),
    [
        ("train[:100]", slice(0, 100)),
        ("train[10:-20]", slice(10, -20)),
        ("train[:10%]", slice(0, 144)),
        ("train[-50%:]", slice(1437 - 718, None)),
        ("train[:]", slice(None)),
    ],
)
def test_parts_of_digits_are_those_that_tfds_would_take(digits, split, expected):
    part = load("digits", train_split=split)
    np.testing.assert_array_equal(part.train.images, digits.train.images[expected])
    np.testing.assert_array_equal(part.train.labels, digits.train.labels[expected])
    np.testing.assert_array_equal(part.test.images, digits.test.images)


@pytest.mark.parametrize("split", ["validation", "train[", "train[:2000]", "train[5:5]", "train[-2000:]", ""])
def test_parts_that_digits_do_not_have_are_refused(split):
    with pytest.raises(ValueError, match=r"test_split must be a split of 'digits', train \(1437 examples\), test"):
        load("digits", test_split=split)
