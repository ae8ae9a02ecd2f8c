"""The configuration of a run's data, and opening it."""

import dataclasses
from typing import Literal

from jax.sharding import NamedSharding

from dropcluster_jax.data.dataset import DATASETS, Dataset
from dropcluster_jax.data.datasets import fake_data, load
from dropcluster_jax.data.loaders import Loader, LoaderName, make_loader

_MIN_FAKE_IMAGES = 1024


@dataclasses.dataclass(frozen=True)
class DataConfig:
    """The dataset and how it is read; see `load` and `make_loader`."""

    name: str = "digits"
    """Dataset: digits (bundled with scikit-learn), the name of a prepared TFDS dataset, folder:PATH or npz:PATH."""
    dir: str | None = None
    """TFDS data directory, local or at gs://. Default: $TFDS_DATA_DIR, otherwise ~/tensorflow_datasets. For folder:PATH
    and npz:PATH, the folder that a relative PATH starts from. Default: the current one."""
    download: bool = False
    """Let TFDS download and prepare the dataset if it is missing."""
    train_split: str | None = None
    """Split to train on, or a slice of it, e.g. "train[:45000]"."""
    test_split: str | None = None
    """Split to evaluate on, or a slice of it."""
    test_fraction: float | None = None
    """Fraction of each class to evaluate on, for folders and archives without a test split. Default: 0.2."""
    validation_fraction: float = 0.0
    """Fraction of each training class to hold out; held-out images are never trained on."""
    evaluate_on: Literal["test", "validation"] = "test"
    """Images to evaluate on during training: the test split, or held-out training images."""
    fraction: float | None = None
    """Train on this fraction of each class."""
    examples_per_class: int | None = None
    """Train on this number of images of each class."""
    seed: int = 0
    """Selects the training subset; smaller subsets are contained in larger ones."""
    image_size: int | None = None
    """Side in pixels to which encoded images are cropped each time they are read. Default: that of the preset, if it
    has one; otherwise all images are decoded once."""
    skip_corrupt: bool = False
    """Skip and count images that cannot be decoded or are of an unsupported kind, instead of stopping."""
    loader: LoaderName = "auto"
    """Keep all images on the device (memory), stream them (grain), or choose by size (auto)."""
    workers: int = 0
    """Reader processes of the grain loader. Default: threads."""


def open_data(
    config: DataConfig,
    batch_size: int,
    seed: int = 0,
    *,
    random_crop: bool = False,
    flip: bool = False,
    fake: bool = False,
    sharding: NamedSharding | None = None,
) -> tuple[Dataset, Loader]:
    """Opens a dataset, or random images in its shape if `fake`, and its loader; see `load` and `make_loader`."""
    dataset = _fake_dataset(config, batch_size) if fake else open_dataset(config)
    loader = open_loader(config, dataset, batch_size, seed, random_crop=random_crop, flip=flip, sharding=sharding)
    return dataset, loader


def open_dataset(config: DataConfig) -> Dataset:
    """Opens a dataset; see `load`."""
    return load(
        config.name,
        config.dir,
        train_split=config.train_split,
        test_split=config.test_split,
        test_fraction=config.test_fraction,
        validation_fraction=config.validation_fraction,
        evaluate_on=config.evaluate_on,
        image_size=config.image_size,
        fraction=config.fraction,
        examples_per_class=config.examples_per_class,
        seed=config.seed,
        skip_corrupt=config.skip_corrupt,
        download=config.download,
    )


def open_loader(
    config: DataConfig,
    dataset: Dataset,
    batch_size: int,
    seed: int = 0,
    *,
    random_crop: bool = False,
    flip: bool = False,
    sharding: NamedSharding | None = None,
) -> Loader:
    """Makes the loader of a dataset; see `make_loader`."""
    return make_loader(
        dataset,
        batch_size,
        seed,
        loader=config.loader,
        sharding=sharding,
        random_crop=random_crop,
        flip=flip,
        workers=config.workers,
        skip_corrupt=config.skip_corrupt,
    )


def _fake_dataset(config: DataConfig, batch_size: int) -> Dataset:
    if config.name not in DATASETS:
        raise ValueError(f"fake data needs one of the datasets {', '.join(DATASETS)}, got {config.name!r}")
    spec = DATASETS[config.name]
    if config.image_size is not None:
        spec = dataclasses.replace(spec, image_shape=(config.image_size, config.image_size, spec.image_shape[-1]))
    return fake_data(spec, max(batch_size, _MIN_FAKE_IMAGES))
