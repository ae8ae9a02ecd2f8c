import json

import numpy as np
import pytest

from dropcluster_jax.data import DATASETS, ArrayExamples, Dataset, DatasetSpec, fake_data, load


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


def test_repr_omits_arrays(digits):
    assert repr(digits).startswith("Dataset(name='digits', train=ArrayExamples(), test=ArrayExamples(), classes=('0'")


def test_cifar10_constants_match_its_images(tfds_dir):
    spec = DATASETS["cifar10"]
    data = load("cifar10", tfds_dir, train_split="train[:20000]", test_split="test[:10]")
    assert data.spec.mean == spec.mean and data.spec.std == spec.std
    computed = Dataset("other", data.train, data.test, data.classes).spec
    np.testing.assert_allclose(computed.mean, spec.mean, atol=2e-3)
    np.testing.assert_allclose(computed.std, spec.std, atol=2e-3)


@pytest.mark.parametrize("name", DATASETS)
def test_spec_survives_json(name):
    spec = DATASETS[name]
    assert DatasetSpec.from_json(json.loads(json.dumps(spec.to_json()))) == spec
    assert len(spec.mean) == len(spec.std) == spec.image_shape[2]


def test_spec_with_unknown_fields_raises():
    content = DATASETS["cifar10"].to_json()
    with pytest.raises(TypeError, match="unexpected keyword argument 'color'"):
        DatasetSpec.from_json({**content, "color": True})


def test_fake_data_has_the_shape_of_the_dataset_and_is_fixed():
    spec = DATASETS["cifar100"]
    fake, again = fake_data(spec, 10), fake_data(spec, 10)
    assert fake.spec.image_shape == spec.image_shape and fake.spec.classes == spec.classes
    assert fake.spec.mean == spec.mean and len(fake.train) == 10 and len(fake.test) == 3
    np.testing.assert_array_equal(fake.train.images, again.train.images)
    np.testing.assert_array_equal(fake.test.labels, again.test.labels)
