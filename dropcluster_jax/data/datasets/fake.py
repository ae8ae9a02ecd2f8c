"""Random images in the shape of a dataset, for speed measurements."""

import numpy as np

from dropcluster_jax.data.config import DataConfig
from dropcluster_jax.data.dataset import DATASETS, Dataset
from dropcluster_jax.data.examples import ArrayExamples

_MIN_TRAIN_IMAGES = 1024


def fake_dataset(config: DataConfig, batch_size: int) -> Dataset:
    """Returns random images and labels in the shape of a dataset of `DATASETS`, without reading it.

    They are the same at every call. There are enough training images for a batch, and a quarter as many test images.
    """
    if config.name not in DATASETS:
        raise ValueError(f"fake data needs one of the datasets {', '.join(DATASETS)}, got {config.name!r}")
    spec, rng = DATASETS[config.name], np.random.default_rng(0)
    height, width, channels = spec.image_shape
    sides = (height, width) if config.image_size is None else (config.image_size, config.image_size)

    def random_examples(count: int) -> ArrayExamples:
        images = rng.integers(0, 256, (count, *sides, channels), np.uint8)
        return ArrayExamples(images, rng.integers(0, spec.num_classes, count).astype(np.int32))

    num_train = max(batch_size, _MIN_TRAIN_IMAGES)
    train, test = random_examples(num_train), random_examples(-(-num_train // 4))
    return Dataset(spec.name, train, test, spec.classes, mean_std=(spec.mean, spec.std))
