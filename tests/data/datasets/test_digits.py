import numpy as np
import pytest

from dropcluster_jax.data import DATASETS, Dataset, load


@pytest.fixture(scope="module")
def digits() -> Dataset:
    return load("digits")


def test_train_and_test_partition_the_original_digits(digits):
    from sklearn.datasets import load_digits

    original = load_digits()
    images = np.concatenate([digits.train.images, digits.test.images])
    labels = np.concatenate([digits.train.labels, digits.test.labels])
    assert images.dtype == np.uint8 and images.shape == (1797, 8, 8, 1) and labels.dtype == np.int32
    expected = np.array([[[round(value * 255 / 16)] for value in image.ravel()] for image in original.images])
    assert sorted(image.tobytes() + bytes([label]) for image, label in zip(images, labels, strict=True)) == sorted(
        image.astype(np.uint8).tobytes() + bytes([label])
        for image, label in zip(expected, original.target, strict=True)
    )


def test_a_fifth_of_each_class_is_for_test(digits):
    assert digits.classes == tuple("0123456789") and digits.spec.num_classes == 10
    train, test = np.bincount(digits.train.labels), np.bincount(digits.test.labels)
    assert len(train) == len(test) == 10
    assert (abs(test - (train + test) / 5) < 1).all()


def test_split_is_fixed(digits):
    again = load("digits")
    np.testing.assert_array_equal(again.train.images, digits.train.images)
    np.testing.assert_array_equal(again.test.labels, digits.test.labels)


def test_spec_agrees_with_the_table(digits):
    spec, expected = digits.spec, DATASETS["digits"]
    assert spec.mean == pytest.approx(expected.mean, abs=5e-5) and spec.std == pytest.approx(expected.std, abs=5e-5)
    assert spec.classes == expected.classes and spec.image_shape == expected.image_shape
    assert spec.num_train_examples == expected.num_train_examples and spec.encoded == expected.encoded


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
def test_split_slices_follow_tfds(digits, split, expected):
    sliced = load("digits", train_split=split)
    np.testing.assert_array_equal(sliced.train.images, digits.train.images[expected])
    np.testing.assert_array_equal(sliced.train.labels, digits.train.labels[expected])
    np.testing.assert_array_equal(sliced.test.images, digits.test.images)


@pytest.mark.parametrize("split", ["validation", "train[", "train[:2000]", "train[5:5]", "train[-2000:]", ""])
def test_invalid_splits_raise(split):
    with pytest.raises(
        ValueError, match=r"test_split must be a split of 'digits' .*: (use e\.g\. test, |it is empty or exceeds)"
    ):
        load("digits", test_split=split)
