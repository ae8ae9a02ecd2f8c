"""Random images in the shape of a dataset, for speed measurements."""

import numpy as np

from dropcluster_jax.data.dataset import Dataset, DatasetSpec
from dropcluster_jax.data.examples import ArrayExamples


def fake_data(spec: DatasetSpec, num_train_examples: int) -> Dataset:
    """Returns random images and labels in the shape of a dataset.

    Args:
        spec: Description of the dataset to imitate, e.g. `DATASETS["cifar10"]`.
        num_train_examples: Number of training examples, at least 1.

    Returns:
        Uint8 images of shape `spec.image_shape`, identical on every call; there are a quarter as many test examples.

    Example:
        >>> from dropcluster_jax.data import DATASETS
        >>> fake = fake_data(DATASETS["fashion_mnist"], 8)
        >>> fake.spec.image_shape, fake.spec.num_classes, len(fake.train), len(fake.test)
        ((28, 28, 1), 10, 8, 2)
    """
    rng = np.random.default_rng(0)

    def random_examples(count: int) -> ArrayExamples:
        images = rng.integers(0, 256, (count, *spec.image_shape), np.uint8)
        return ArrayExamples(images, rng.integers(0, spec.num_classes, count).astype(np.int32))

    train, test = random_examples(num_train_examples), random_examples(-(-num_train_examples // 4))
    return Dataset(spec.name, train, test, spec.classes, mean_std=(spec.mean, spec.std))
