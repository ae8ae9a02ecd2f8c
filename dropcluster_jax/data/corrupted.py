"""Corrupted test sets: the published one if TFDS has prepared it, otherwise computed by `corrupt`."""

import os
from typing import NamedTuple

import jax

from dropcluster_jax.data.corruptions import corrupt
from dropcluster_jax.data.dataset import Dataset
from dropcluster_jax.data.datasets.tfds import is_prepared
from dropcluster_jax.data.examples import ArrayExamples
from dropcluster_jax.data.opening import load

# Names in TFDS that differ from ours.
_TFDS_NAMES = {"glass_blur": "frosted_glass_blur", "elastic_transform": "elastic"}


class CorruptedTest(NamedTuple):
    """Corrupted test examples, and the origin of their images, to be reported with results."""

    examples: ArrayExamples
    origin: str


def corrupted_test(
    dataset: Dataset, name: str, severity: int, *, data_dir: str | os.PathLike[str] | None = None, seed: int = 0
) -> CorruptedTest:
    """Returns the test examples of a dataset under a corruption.

    For the whole test split of CIFAR-10, the published `cifar10_corrupted` is used if TFDS has prepared it in
    `data_dir`. See `corrupt` for the corruptions.

    Returns:
        Examples of the same number and shape, and their origin: `"cifar10_corrupted"` for the published dataset,
        otherwise `"computed"` or, for frost, `"computed with a procedural frost texture"`.

    Raises:
        FileNotFoundError: If `data_dir` is given but is not a folder.
        TypeError: If the examples are not arrays.

    Example:
        >>> digits = load("digits")
        >>> corrupted = corrupted_test(digits, "contrast", 5)
        >>> len(corrupted.examples), corrupted.origin
        (360, 'computed')
    """
    if not isinstance(dataset.test, ArrayExamples):
        raise TypeError(f"the examples of {dataset.name!r} must be arrays, got {type(dataset.test).__name__}")
    if dataset.name.partition(":")[0] == "cifar10" and dataset.test_split == "test":
        published = f"cifar10_corrupted/{_TFDS_NAMES.get(name, name)}_{severity}"
        if is_prepared(published, data_dir):
            # The published dataset has only a test split; its files are decoded once and then cached.
            examples = load(published, dir=data_dir, train_split="test").test
            assert isinstance(examples, ArrayExamples)
            return CorruptedTest(examples, "cifar10_corrupted")
    images = corrupt(name, severity, jax.random.key(seed), dataset.test.images)
    return CorruptedTest(ArrayExamples(images, dataset.test.labels), computed_origin(name))


def computed_origin(name: str) -> str:
    """Returns the origin of images corrupted by `corrupt`, which replaces the photos of frost by a texture."""
    return "computed with a procedural frost texture" if name == "frost" else "computed"
