"""Where labeled images come from: digits, which are embedded; what TFDS has prepared; folders; NumPy archives."""

import dataclasses
import os
import pathlib
from typing import Any

import numpy as np

from dropcluster_jax.data.dataset import Dataset
from dropcluster_jax.data.datasets.digits import load_digits
from dropcluster_jax.data.datasets.folder import load_folder
from dropcluster_jax.data.datasets.npz import load_npz
from dropcluster_jax.data.datasets.tfds import load_tfds
from dropcluster_jax.data.decoding import CorruptImageError
from dropcluster_jax.data.subsets import stratified_subset


def load(
    name: str,
    data_dir: str | os.PathLike[str] | None = None,
    *,
    train_split: str | None = None,
    test_split: str | None = None,
    test_fraction: float | None = None,
    image_size: int | None = None,
    fraction: float | None = None,
    examples_per_class: int | None = None,
    seed: int = 0,
    skip_corrupt: bool = False,
    download: bool = False,
) -> Dataset:
    """Open a data set: read it into memory, or, where an `image_size` says to what its images are cropped, leave it encoded.

    Args:
        name: one of

            - `"digits"`, scikit-learn's 1,797 images of 8x8 pixels, values 0 to 16 scaled to 0 to 255, a fixed fifth
              of each class for test;
            - `NAME[/CONFIG][:VERSION]`, an image classification data set that TFDS has prepared in `data_dir`,
              without a version the newest there. Of `DATASETS` ones mean, deviation, splits and size are known;
            - `folder:PATH`, JPEG, PNG or WebP files in a folder for each class, those in `PATH/train` and `PATH/test`
              (or `val`, `validation`), or in `PATH` itself. Classes go by the alphabet, hidden files do not count;
            - `npz:PATH`, a file of `numpy.savez` with uint8 `train_images` `(examples, height, width[, channels])`,
              `train_labels`, `test_images`, `test_labels`, or `images` and `labels`; and, if wanted, `classes`, their
              names. Read without pickle.
        data_dir: TFDS' folder; by default what the environment variable TFDS_DATA_DIR names, else
            `~/tensorflow_datasets`.
        train_split: the split to train on, or a part of it in TFDS' words: `"train[:512]"`, `"train[:10%]"`; for
            digits and TFDS.
        test_split: the split to test on, likewise.
        test_fraction: the share of each class to test on, where a folder or an archive comes undivided; 0.2 if not given.
        image_size: the side in pixels to which images that are encoded are cropped, each time they are read; for TFDS and
            folders. Without, all are decoded once and must be of one size.
        fraction: train on this share of each class only; see `stratified_subset`.
        examples_per_class: train on so many examples of each class only.
        seed: chooses them.
        skip_corrupt: leave out images that are damaged, of another kind or without a class, and say so in
            `Dataset.skipped`; encoded ones when they are met. Else they are errors.
        download: let TFDS download and prepare what is not there.

    Returns:
        The examples as stored, in their order; arrays that were read from TFDS or a folder are read-only.

    Raises:
        CorruptImageError: an image that cannot be trained on, with its place; a ValueError.
        FileNotFoundError: the data set is not there.
        ImportError: scikit-learn, TFDS or Pillow is not installed.
        OSError: it could not be downloaded.
        ValueError: an option that the source does not take, or is out of range; there is no such split; no
            `"image"` or `"label"`; images of unequal size or of neither 1 nor 3 channels; labels that are no class.

    Example:
        >>> digits = load("digits", train_split="train[:100]")
        >>> len(digits.train), len(digits.test), digits.spec.image_shape, digits.spec.num_classes
        (100, 360, (8, 8, 1), 10)
        >>> len(load("digits", examples_per_class=5).train)
        50
    """
    if image_size is not None and image_size < 1:
        raise ValueError(f"image_size, in pixels, must be at least 1, got {image_size}")
    kind, _, path = name.partition(":")
    splits = {"train_split": train_split, "test_split": test_split}
    if kind in ("folder", "npz") and not path:
        raise ValueError(f"name must say which: {kind}:PATH, got {name!r}")
    if kind == "folder":
        _not_for(name, {**splits, "data_dir": data_dir, "download": download})
        dataset = load_folder(
            name, _path(name, path), test_fraction=test_fraction, image_size=image_size, skip_corrupt=skip_corrupt
        )
    elif kind == "npz":
        _not_for(
            name,
            {
                **splits,
                "data_dir": data_dir,
                "download": download,
                "image_size": image_size,
                "skip_corrupt": skip_corrupt,
            },
        )
        dataset = load_npz(name, _path(name, path), test_fraction)
    elif name == "digits":
        _not_for(name, {"test_fraction": test_fraction, "image_size": image_size})
        dataset = load_digits(
            "train" if train_split is None else train_split, "test" if test_split is None else test_split
        )
    else:
        _not_for(name, {"test_fraction": test_fraction})
        dataset = load_tfds(
            name, data_dir, **splits, image_size=image_size, skip_corrupt=skip_corrupt, download=download
        )
    if fraction is None and examples_per_class is None:
        return dataset
    train = dataset.train
    sound = np.flatnonzero((train.labels >= 0) & (train.labels < len(dataset.classes)))
    if len(sound) < len(train) and not skip_corrupt:
        bad = int(np.setdiff1d(np.arange(len(train)), sound)[0])
        raise CorruptImageError(f"example {bad} of {name!r} has a label that is no class: {train.labels[bad]}")
    train = train.take(sound)
    share = stratified_subset(train.labels, fraction=fraction, examples_per_class=examples_per_class, seed=seed)
    return dataclasses.replace(dataset, train=train.take(share))


def _path(name: str, path: str) -> pathlib.Path:
    try:
        return pathlib.Path(path).expanduser()
    except RuntimeError as error:  # the home folder of nobody
        raise FileNotFoundError(f"{name!r} is not there: {error}") from error


def _not_for(name: str, options: dict[str, Any]) -> None:
    """Refuse options that would be expected to change what is read, and do not."""
    for option, value in options.items():
        if value is not None and value is not False:
            raise ValueError(f"{option} is not for {name!r}, got {value!r}")
