"""Random images in the shape of a dataset, for benchmarks that measure only speed."""

import numpy as np

from dropcluster_jax.data.dataset import Dataset, DatasetSpec
from dropcluster_jax.data.examples import ArrayExamples


def fake_data(spec: DatasetSpec, num_train_examples: int) -> Dataset:
    """Returns random images and labels: `num_train_examples` for training and a quarter of that for test.

    Args:
        spec: Description of the dataset to imitate, such as `DATASETS["cifar10"]`.
        num_train_examples: Number of training images, at least 1.

    Returns:
        Arrays of uint8 images of the shape `spec.image_shape`, the same on each call.

    Example:
        >>> from dropcluster_jax.data import DATASETS
        >>> fake = fake_data(DATASETS["fashion_mnist"], 8)
        >>> fake.spec.image_shape, fake.spec.num_classes, len(fake.train), len(fake.test)
        ((28, 28, 1), 10, 8, 2)
    """
    rng = np.random.default_rng(0)

    def random_examples(number: int) -> ArrayExamples:
        images = rng.integers(0, 256, (number, *spec.image_shape), np.uint8)
        return ArrayExamples(images, rng.integers(0, spec.num_classes, number).astype(np.int32))

    train, test = random_examples(num_train_examples), random_examples(-(-num_train_examples // 4))
    return Dataset(spec.name, train, test, spec.classes, mean_std=(spec.mean, spec.std))
