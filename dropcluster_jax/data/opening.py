"""Opening a dataset by name, selecting its training and evaluation examples, and making its loader."""

import dataclasses
import os
from typing import Any

import numpy as np

from dropcluster_jax.data.config import DataConfig
from dropcluster_jax.data.dataset import Dataset
from dropcluster_jax.data.datasets.digits import load_digits
from dropcluster_jax.data.datasets.fake import fake_dataset
from dropcluster_jax.data.datasets.folder import load_folder
from dropcluster_jax.data.datasets.npz import load_npz
from dropcluster_jax.data.datasets.tfds import load_tfds
from dropcluster_jax.data.examples import ArrayExamples
from dropcluster_jax.data.loaders import Loader, make_loader
from dropcluster_jax.data.reading import read_dataset
from dropcluster_jax.data.sampling import check_integer
from dropcluster_jax.data.subsets import stratified_split, stratified_subset

_TEST_FRACTION = 0.2  # The default of `test_fraction`.
_LOADERS = {"digits": load_digits, "tfds": load_tfds, "folder": load_folder, "npz": load_npz}
# The options that do not apply to a kind of dataset.
_UNUSED = {
    "digits": ("test_fraction", "image_size"),
    "tfds": ("test_fraction",),
    "folder": ("train_split",),
    "npz": ("train_split", "test_split", "image_size", "skip_corrupt"),
}


def load(data: DataConfig | str, **options: Any) -> Dataset:
    """Opens a dataset.

    Images are decoded into memory, unless an image size is known: then they stay encoded, and a loader decodes and
    crops them each time they are read.

    Args:
        data: Name of a dataset, or a `DataConfig`. The name is one of

            - `"digits"`: scikit-learn's 1,797 images of 8x8 pixels, with values scaled from [0, 16] to [0, 255]. A
              fixed fifth of each class is the test split.
            - `NAME[/CONFIG][:VERSION]`: An image classification dataset that TFDS has prepared in `data_dir`, by
              default its newest version. Normalization constants, test split and image size of those in `DATASETS` are
              known.
            - `folder:PATH`: JPEG, PNG or WebP files in one folder per class, in `PATH/train` and `PATH/test` (or
              `val`, `valid`, `validation`; in any case), or directly in `PATH`. Classes are sorted by name; hidden
              files and those of operating systems, e.g. `Thumbs.db`, are ignored.
            - `npz:PATH`: An archive written by `numpy.savez` that contains `train_images`, `train_labels`,
              `test_images` and `test_labels` (as MedMNIST), `x_train`, `y_train`, `x_test` and `y_test` (as Keras), or
              `images` and `labels`, and optionally `classes`, the class names, and `mean` and `std`, those of each
              channel of images scaled to [0, 1]. A validation split (`val_images`, `x_val`, ...) is not used. Images
              are uint8 `(examples, height, width[, channels])`, labels integers `(examples[, 1])`. Pickled archives
              are an error.
        options: Fields of `DataConfig`, instead of those of `data`:

            - `dir`: TFDS data directory, local or `gs://...`; by default the environment variable TFDS_DATA_DIR,
              otherwise `~/tensorflow_datasets`. For `folder:PATH` and `npz:PATH`, the folder that a relative PATH
              starts from, or that contains its last component, if it was moved.
            - `train_split`, `test_split`: Splits to train and to evaluate on, or slices of them in TFDS's notation:
              `"train[:512]"`, `"train[:10%]"`. For digits and TFDS datasets.
            - `test_fraction`: Fraction of each class to evaluate on, in (0, 1), for folders and archives without a
              test split; 0.2 by default.
            - `validation_fraction`: Fraction of each class of the training set to hold out, in [0, 1). The held-out
              examples are never trained on. They depend on the training labels and `validation_seed`: not on `seed`,
              `fraction` or `examples_per_class`, which apply to the remaining examples.
            - `validation_seed`: Selects the examples to hold out.
            - `evaluate_on`: `"test"`, or `"validation"` to make the held-out examples `Dataset.test`.
            - `image_size`: Side in pixels to which encoded images are cropped each time they are read. For TFDS
              datasets and folders. By default, all images are decoded once and must have the same size.
            - `fraction`: Fraction of each class to train on, in (0, 1]; see `stratified_subset`.
            - `examples_per_class`: Number of examples of each class to train on, instead of `fraction`.
            - `seed`: Selects the training subset.
            - `skip_corrupt`: Whether to leave out images that are damaged, of an unsupported kind or without a valid
              label, and to list them in `Dataset.skipped`; all images are decoded once to find them. By default, they
              are errors. Files that cannot be opened are always errors.

    Returns:
        The dataset. Examples are in their stored order; arrays read from TFDS or a folder are read-only. Encoded images
        are turned upright by the orientation in their EXIF data. If mean and standard deviation are not known, they are
        computed from the images trained on.

    Raises:
        CorruptImageError: If an image is damaged, of an unsupported kind or without a valid label; a ValueError.
        FileNotFoundError: If the dataset does not exist.
        ImportError: If scikit-learn, TFDS or Pillow is needed and not installed.
        OSError: If a file cannot be read.
        TypeError: If an option is not a field of `DataConfig`.
        ValueError: If an option or split is invalid for this dataset, or the dataset does not contain labeled images of
            1 or 3 channels and, without `image_size`, equal size.

    Example:
        >>> digits = load("digits", train_split="train[:100]")
        >>> len(digits.train), len(digits.test), digits.spec.image_shape, digits.spec.num_classes
        (100, 360, (8, 8, 1), 10)
        >>> tuning = load("digits", examples_per_class=5, validation_fraction=0.1, evaluate_on="validation")
        >>> len(tuning.train), len(tuning.test)
        (50, 142)
    """
    if options.get("dir") is not None:
        options["dir"] = os.fspath(options["dir"])
    config = dataclasses.replace(DataConfig(data) if isinstance(data, str) else data, **options)
    _check(config)
    dataset = _LOADERS[config.kind](config)
    dataset = _split_off_test(dataset, config)
    if not isinstance(dataset.train, ArrayExamples):
        dataset = read_dataset(dataset, config.skip_corrupt)
    return _select(dataset, config)


def open_data(
    config: DataConfig, batch_size: int, seed: int = 0, *, fake: bool = False, **options: Any
) -> tuple[Dataset, Loader]:
    """Opens a dataset, or random images in its shape if `fake`, and its loader with `options` of `make_loader`."""
    dataset = fake_dataset(config, batch_size) if fake else load(config)
    return dataset, make_loader(dataset, batch_size, seed, loader=config.loader, workers=config.workers, **options)


def _check(config: DataConfig) -> None:
    if config.test_fraction is not None and not 0 < config.test_fraction < 1:
        raise ValueError(f"test_fraction must be in (0, 1), got {config.test_fraction}")
    if not 0 <= config.validation_fraction < 1:
        raise ValueError(f"validation_fraction must be in [0, 1), got {config.validation_fraction}")
    if config.evaluate_on not in ("test", "validation"):
        raise ValueError(f"evaluate_on must be 'test' or 'validation', got {config.evaluate_on!r}")
    if config.evaluate_on == "validation" and not config.validation_fraction:
        raise ValueError("validation_fraction must be positive to evaluate on validation, got 0")
    if config.image_size is not None:
        check_integer("image_size", config.image_size, 1)
    for option in _UNUSED[config.kind]:
        if getattr(config, option) != getattr(DataConfig, option):
            raise ValueError(f"{option} does not apply to {config.name!r}, got {getattr(config, option)!r}")


def _split_off_test(dataset: Dataset, config: DataConfig) -> Dataset:
    """Divides each class of a dataset without a test split, whose `test` is `train`."""
    if dataset.test is not dataset.train:
        if config.test_fraction is not None:
            raise ValueError(f"test_fraction applies to data without a test split, {dataset.name!r} has one")
        return dataset
    indices = stratified_split(dataset.train.labels, config.test_fraction or _TEST_FRACTION, dataset.classes)
    train, test = map(dataset.train.take, indices)
    return dataclasses.replace(dataset, train=train, test=test)


def _select(dataset: Dataset, config: DataConfig) -> Dataset:
    """Holds out validation examples and selects the training subset."""
    subset = config.fraction is not None or config.examples_per_class is not None
    if not config.validation_fraction and not subset:
        return dataset
    train, test, test_split = dataset.train, dataset.test, dataset.test_split
    labels, kept = train.labels, np.arange(len(train))
    if config.validation_fraction:
        kept, held_out = stratified_split(labels, config.validation_fraction, dataset.classes, config.validation_seed)
        if config.evaluate_on == "validation":
            test, test_split = train.take(held_out), None
    if subset:
        selected = stratified_subset(
            labels[kept],
            fraction=config.fraction,
            examples_per_class=config.examples_per_class,
            seed=config.seed,
            classes=dataset.classes,
        )
        kept = kept[selected]
    return dataclasses.replace(dataset, train=train.take(kept), test=test, test_split=test_split)
