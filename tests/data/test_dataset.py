import dataclasses
import json

import numpy as np
import pytest

from dropcluster_jax.data import DATASETS, ArrayExamples, Dataset, DatasetSpec, load


@pytest.fixture(scope="module")
def digits() -> Dataset:
    return load("digits")


def test_mean_and_std_are_those_of_the_training_images(digits):
    scaled = digits.train.images.astype(np.float64) / 255
    np.testing.assert_allclose(digits.spec.mean, [scaled.mean()], rtol=1e-6)
    np.testing.assert_allclose(digits.spec.std, [scaled.std()], rtol=1e-6)


def test_mean_and_std_over_chunks_and_channels():
    """More pixels than one chunk, with values whose squares would overflow narrow sums."""
    rng = np.random.default_rng(0)
    images = rng.integers((0, 100, 254), 256, (1100, 32, 32, 3)).astype(np.uint8)
    examples = ArrayExamples(images, np.zeros(1100, np.int32))
    data = Dataset("noise", examples, examples, ("noise",))
    np.testing.assert_allclose(data.spec.mean, images.mean((0, 1, 2)) / 255, rtol=1e-6)
    np.testing.assert_allclose(data.spec.std, images.std((0, 1, 2), dtype=np.float64) / 255, rtol=1e-6)


@pytest.mark.slow
def test_cifar10_constants_match_its_images(tfds_dir):
    spec = DATASETS["cifar10"]
    data = load("cifar10", dir=tfds_dir, train_split="train[:20000]", test_split="test[:10]")
    assert data.spec.mean == spec.mean and data.spec.std == spec.std
    computed = Dataset("other", data.train, data.test, data.classes).spec
    np.testing.assert_allclose(computed.mean, spec.mean, atol=2e-3)
    np.testing.assert_allclose(computed.std, spec.std, atol=2e-3)


def test_specs_survive_json():
    for name, spec in DATASETS.items():
        assert DatasetSpec.from_json(json.loads(json.dumps(spec.to_json()))) == spec, name
        assert len(spec.mean) == len(spec.std) == spec.image_shape[2], name


IMAGES = np.random.default_rng(0).integers(0, 256, (6, 4, 4, 3), np.uint8)
LABELS = np.arange(6, dtype=np.int32) % 3


@pytest.mark.parametrize("dtype", [np.uint8, np.int64, np.uint64])
def test_integer_labels_become_int32_vectors(dtype):
    for labels in (LABELS.astype(dtype), LABELS[:, None].astype(dtype)):
        examples = ArrayExamples(IMAGES, labels)
        assert examples.labels.dtype == np.int32 and examples.labels.tolist() == LABELS.tolist()
    assert np.shares_memory(ArrayExamples(IMAGES, LABELS).labels, LABELS)


@pytest.mark.bad_input
@pytest.mark.parametrize(
    ("images", "labels", "message"),
    [
        (IMAGES / 255, LABELS, "images must be uint8, 0 to 255, .* got float64"),
        (IMAGES.astype(np.int32), LABELS, "images must be uint8, .* got int32"),
        (IMAGES[..., 0], LABELS, r"got uint8 of shape \(6, 4, 4\)"),
        (IMAGES, LABELS / 2, r"labels must be integers of shape \(6,\) or \(6, 1\), got float64"),
        (IMAGES, LABELS > 0, "labels must be integers .* got bool"),
        (IMAGES, np.eye(6, dtype=np.int32), r"labels must be integers .* got int32 of shape \(6, 6\)"),
        (IMAGES, LABELS[1:], r"labels must be integers of shape \(6,\) .* of shape \(5,\)"),
        (IMAGES, LABELS.astype(np.int64) + 2**32, "labels must fit in int32"),
    ],
)
def test_invalid_arrays_raise(images, labels, message):
    with pytest.raises(ValueError, match=message):
        ArrayExamples(images, labels)


@pytest.mark.bad_input
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"classes": ("a", "b")}, r"labels of train of 'mine' must be in \[0, 2\), got 2 at index 2"),
        (
            {"test": ArrayExamples(IMAGES, LABELS - 1)},
            r"labels of test of 'mine' must be in \[0, 3\), got -1 at index 0",
        ),
        ({"test": ArrayExamples(IMAGES[:, 1:], LABELS)}, r"the same shape, got \(4, 4, 3\) and \(3, 4, 3\)"),
        ({"test": ArrayExamples(IMAGES[:0], LABELS[:0])}, "test of 'mine' must contain examples, got none"),
        ({"classes": ("a", "b", "a")}, "classes of 'mine' must be distinct, got a, b, a"),
        ({"classes": "abc"}, "classes of 'mine' must be a sequence of strings, got 'abc'"),
        ({"classes": (0, 1, 2)}, "must be a sequence of strings"),
    ],
)
def test_inconsistent_datasets_raise(change, message):
    examples = ArrayExamples(IMAGES, LABELS)
    with pytest.raises(ValueError, match=message):
        Dataset(**{"name": "mine", "train": examples, "test": examples, "classes": ("a", "b", "c"), **change})


def test_differences_name_what_changed():
    train = ArrayExamples(IMAGES, LABELS)
    spec = Dataset("mine", train, train, ("a", "b", "c")).spec

    def differences(test=train, classes=("a", "b", "c"), train=train):
        return spec.differences(Dataset("other", train, test, classes).spec)

    assert differences() == []
    assert differences(classes=("a", "z", "c")) == [
        "the classes or their order differ: only there ['b'], only here ['z']"
    ]
    assert differences(train=train.take(slice(5))) == ["num_train_examples is 6 there and 5 here"]
    for test in (
        train.take(slice(5)),
        train.take(np.arange(6)[::-1].copy()),
        ArrayExamples(IMAGES, np.roll(LABELS, 1)),
        ArrayExamples(IMAGES ^ 1, LABELS),
    ):
        assert differences(test=test) == ["the test examples are different"]
    gray = ArrayExamples(IMAGES[..., :1], LABELS)
    assert differences(test=gray, train=gray)[0] == "image_shape is (4, 4, 3) there and (4, 4, 1) here"


def test_differences_of_many_classes_are_short():
    spec = DATASETS["imagenet2012"]
    renamed = dataclasses.replace(spec, classes=tuple(f"class {name}" for name in spec.classes))
    (difference,) = spec.differences(renamed)
    assert difference.startswith("the classes or their order differ: only there ['0', '1', ") and len(difference) < 300
    assert len(spec.differences(dataclasses.replace(spec, classes=spec.classes[::-1]))) == 1


def test_spec_of_an_older_run_has_no_fingerprint():
    examples = ArrayExamples(IMAGES, LABELS)
    spec = Dataset("mine", examples, examples, ("a", "b", "c")).spec
    content = spec.to_json()
    del content["test_fingerprint"]
    older = DatasetSpec.from_json(content)
    assert older.test_fingerprint is None and not older.differences(spec) and not spec.differences(older)
