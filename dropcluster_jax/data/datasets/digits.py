"""The handwritten digits of scikit-learn, which are part of its package."""

import re
from typing import Any

import numpy as np
from jaxtyping import Int

from dropcluster_jax._optional import optional_import
from dropcluster_jax.data.config import DataConfig
from dropcluster_jax.data.dataset import Dataset
from dropcluster_jax.data.datasets.tfds import split_error
from dropcluster_jax.data.examples import ArrayExamples


def load_digits(config: DataConfig) -> Dataset:
    """Loads the 1,797 images of 8x8 pixels, with values scaled from [0, 16] to [0, 255].

    A fifth of each class is the test split. The splits are fixed, and shuffled so that a slice contains all classes.
    """
    with optional_import("scikit-learn"):
        from sklearn.datasets import load_digits as load_bunch
        from sklearn.model_selection import train_test_split

    bunch: Any = load_bunch()
    images = np.rint(bunch.images * (255 / 16)).astype(np.uint8)[..., None]
    labels = bunch.target.astype(np.int32)
    train, test = train_test_split(np.arange(len(labels)), test_size=0.2, stratify=labels, random_state=0)
    splits = {"train": train, "test": test}
    train = _slice_split("train_split", "train" if config.train_split is None else config.train_split, splits)
    test = _slice_split("test_split", "test" if config.test_split is None else config.test_split, splits)
    train, test = (ArrayExamples(images[indices], labels[indices]) for indices in (train, test))
    return Dataset("digits", train, test, classes=tuple(map(str, bunch.target_names)))


def _slice_split(argument: str, split: str, splits: dict[str, Any]) -> Int[np.ndarray, " _"]:
    """Returns the indices of a split in TFDS's notation: `train`, `train[:100]`, `test[-10%:]`."""
    match = re.fullmatch(r"(train|test)(?:\[(-?\d+%?)?:(-?\d+%?)?\])?", split)
    if match is None:
        raise split_error("digits", argument, split, "use e.g. test, train[:100] or train[20%:]")
    name, *bounds = match.groups()
    size = len(splits[name])

    def position(bound: str) -> int:
        offset = round(float(bound[:-1]) / 100 * size) if bound.endswith("%") else int(bound)
        return offset + size if bound.startswith("-") else offset

    start, stop = (
        default if bound is None else position(bound) for bound, default in zip(bounds, (0, size), strict=True)
    )
    if not 0 <= start < stop <= size:
        raise split_error("digits", argument, split, f"it is empty or exceeds {size} examples")
    return splits[name][start:stop]
