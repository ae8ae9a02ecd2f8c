"""Opening a dataset by name, and selecting its training and evaluation examples."""

import dataclasses
import os
import pathlib
from typing import Any, Literal

import numpy as np

from dropcluster_jax.data.dataset import Dataset
from dropcluster_jax.data.datasets.digits import load_digits
from dropcluster_jax.data.datasets.folder import load_folder
from dropcluster_jax.data.datasets.npz import load_npz
from dropcluster_jax.data.datasets.tfds import load_tfds
from dropcluster_jax.data.decoding import CorruptImageError
from dropcluster_jax.data.examples import Examples
from dropcluster_jax.data.subsets import stratified_split, stratified_subset


def load(
    name: str,
    data_dir: str | os.PathLike[str] | None = None,
    *,
    train_split: str | None = None,
    test_split: str | None = None,
    test_fraction: float | None = None,
    validation_fraction: float = 0.0,
    evaluate_on: Literal["test", "validation"] = "test",
    image_size: int | None = None,
    fraction: float | None = None,
    examples_per_class: int | None = None,
    seed: int = 0,
    skip_corrupt: bool = False,
    download: bool = False,
) -> Dataset:
    """Opens a dataset.

    Images are decoded into memory, unless an image size is known: then they stay encoded, and a loader decodes and
    crops them each time they are read.

    Args:
        name: One of

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
        data_dir: TFDS data directory, local or `gs://...`; by default the environment variable TFDS_DATA_DIR, otherwise
            `~/tensorflow_datasets`. For `folder:PATH` and `npz:PATH`, the folder that a relative PATH starts from, or
            that contains its last component, if it was moved.
        train_split: Split to train on, or a slice of it in TFDS's notation: `"train[:512]"`, `"train[:10%]"`. For
            digits and TFDS datasets.
        test_split: Split to evaluate on, in the same notation.
        test_fraction: Fraction of each class to evaluate on, in (0, 1), for folders and archives without a test split;
            0.2 by default.
        validation_fraction: Fraction of each class of the training set to hold out, in [0, 1). The held-out examples
            are never trained on. They depend on the training labels alone: not on `seed`, `fraction` or
            `examples_per_class`, which apply to the remaining examples.
        evaluate_on: `"test"`, or `"validation"` to make the held-out examples `Dataset.test`.
        image_size: Side in pixels to which encoded images are cropped each time they are read. For TFDS datasets and
            folders. By default, all images are decoded once and must have the same size.
        fraction: Fraction of each class to train on, in (0, 1]; see `stratified_subset`.
        examples_per_class: Number of examples of each class to train on, instead of `fraction`.
        seed: Selects the training subset.
        skip_corrupt: Whether to skip images that are damaged, of an unsupported kind or without a valid label, and to
            list them in `Dataset.skipped`; loaders skip encoded images as they read them. By default, they are errors.
        download: Whether TFDS may download and prepare the dataset if it is missing.

    Returns:
        The dataset. Examples are in their stored order; arrays read from TFDS or a folder are read-only. Encoded images
        are turned upright by the orientation in their EXIF data. If mean and standard deviation are not known, they are
        computed from the images trained on.

    Raises:
        CorruptImageError: If an image is damaged, of an unsupported kind or without a valid label; a ValueError.
        FileNotFoundError: If the dataset does not exist.
        ImportError: If scikit-learn, TFDS or Pillow is needed and not installed.
        OSError: If the dataset cannot be downloaded.
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
    _check_options(test_fraction, validation_fraction, evaluate_on, image_size)
    kind, _, path = name.partition(":")
    if kind in ("folder", "npz"):
        if not path:
            raise ValueError(f"name must include a path, {kind}:PATH, got {name!r}")
        _check_unused(name, train_split=train_split, test_split=test_split, download=download)
    else:
        _check_unused(name, test_fraction=test_fraction)
    if kind == "folder":
        dataset = load_folder(name, _locate(name, path, data_dir), test_fraction, image_size, skip_corrupt)
    elif kind == "npz":
        _check_unused(name, image_size=image_size, skip_corrupt=skip_corrupt)
        dataset = load_npz(name, _locate(name, path, data_dir), test_fraction)
    elif name == "digits":
        _check_unused(name, image_size=image_size)
        dataset = load_digits(train_split, test_split)
    else:
        dataset = load_tfds(name, data_dir, train_split, test_split, image_size, skip_corrupt, download)
    if not validation_fraction and fraction is None and examples_per_class is None:
        return dataset
    train = _valid_examples(dataset, skip_corrupt)
    validation = None
    if validation_fraction:
        kept, held_out = stratified_split(train.labels, validation_fraction, dataset.classes)
        train, validation = train.take(kept), train.take(held_out)
    if fraction is not None or examples_per_class is not None:
        indices = stratified_subset(
            train.labels,
            fraction=fraction,
            examples_per_class=examples_per_class,
            seed=seed,
            classes=dataset.classes,
        )
        train = train.take(indices)
    if validation is not None and evaluate_on == "validation":
        return dataclasses.replace(dataset, train=train, test=validation, test_split=None)
    return dataclasses.replace(dataset, train=train)


def _check_options(
    test_fraction: float | None, validation_fraction: float, evaluate_on: str, image_size: int | None
) -> None:
    if test_fraction is not None and not 0 < test_fraction < 1:
        raise ValueError(f"test_fraction must be in (0, 1), got {test_fraction}")
    if not 0 <= validation_fraction < 1:
        raise ValueError(f"validation_fraction must be in [0, 1), got {validation_fraction}")
    if evaluate_on not in ("test", "validation"):
        raise ValueError(f"evaluate_on must be 'test' or 'validation', got {evaluate_on!r}")
    if evaluate_on == "validation" and not validation_fraction:
        raise ValueError("validation_fraction must be positive to evaluate on validation, got 0")
    if image_size is not None and image_size < 1:
        raise ValueError(f"image_size must be at least 1, got {image_size}")


def _check_unused(name: str, **options: Any) -> None:
    """Checks that options which do not apply to a dataset are not set."""
    for option, value in options.items():
        if value is not None and value is not False:
            raise ValueError(f"{option} does not apply to {name!r}, got {value!r}")


def _locate(name: str, path: str, data_dir: str | os.PathLike[str] | None) -> pathlib.Path:
    """Returns the path of an archive or image folder, which may have been moved into `data_dir`.

    An absolute path is only looked up in `data_dir` if it does not exist.
    """
    try:
        stored = pathlib.Path(path).expanduser()
        if data_dir is None or (stored.is_absolute() and stored.exists()):
            return stored
        if "://" in os.fspath(data_dir):
            raise ValueError(f"data_dir must be a local folder for {name!r}, got {data_dir}")
        base = pathlib.Path(data_dir).expanduser()
    except RuntimeError as error:  # A user without a home directory.
        raise FileNotFoundError(f"{name!r} was not found: {error}") from error
    if not stored.is_absolute() and (base / stored).exists():
        return base / stored
    return base / stored.name


def _valid_examples(dataset: Dataset, skip_corrupt: bool) -> Examples:
    """Returns the training examples with valid labels; others are skipped, or an error."""
    train = dataset.train
    valid = np.flatnonzero((train.labels >= 0) & (train.labels < len(dataset.classes)))
    if len(valid) < len(train) and not skip_corrupt:
        index = int(np.setdiff1d(np.arange(len(train)), valid)[0])
        raise CorruptImageError(f"example {index} of {dataset.name!r} has the invalid label {train.labels[index]}")
    return train.take(valid)
