"""Corrupted test sets: the published one where TFDS has it prepared, else made here."""

import os
from typing import NamedTuple

import jax

from dropcluster_jax.data.corruptions import check_corruption, corrupt
from dropcluster_jax.data.dataset import Dataset
from dropcluster_jax.data.datasets.load import load
from dropcluster_jax.data.datasets.tfds import is_prepared
from dropcluster_jax.data.examples import ArrayExamples

# TFDS calls two of the corruptions otherwise.
_NAMES = {"glass_blur": "frosted_glass_blur", "elastic_transform": "elastic"}


class CorruptedTest(NamedTuple):
    """Corrupted test examples.

    Attributes:
        examples: images and labels.
        origin: where they come from, to be said beside results: `"cifar10_corrupted"`, the published set; `"made"`;
            or, of frost, `"made, a procedural stand-in for the original's pictures"`.
    """

    examples: ArrayExamples
    origin: str


def corrupted_test(
    dataset: Dataset, name: str, severity: int, *, data_dir: str | os.PathLike[str] | None = None, seed: int = 0
) -> CorruptedTest:
    """The test images of a data set under one corruption.

    Args:
        dataset: of arrays.
        name: one of `CORRUPTIONS` or `EXTRA_CORRUPTIONS`.
        severity: 1 to 5.
        data_dir: where TFDS may have prepared `cifar10_corrupted`, which then takes precedence for all of CIFAR-10's
            test images; as of `load`.
        seed: decides what is random about the corruption.

    Returns:
        The examples, as many and of the same shape, uint8; and their origin.

    Raises:
        FileNotFoundError: `data_dir` is given, and no folder.
        TypeError: the examples are no arrays.
        ValueError: there is no such corruption or severity; see `corrupt`.

    References:
        Hendrycks, Dietterich, "Benchmarking Neural Network Robustness to Common Corruptions and Perturbations",
        ICLR 2019, arXiv:1903.12261.

    Example:
        >>> digits = load("digits")
        >>> corrupted = corrupted_test(digits, "contrast", 5)
        >>> len(corrupted.examples), corrupted.origin
        (360, 'made')
    """
    if not isinstance(dataset.test, ArrayExamples):
        raise TypeError(f"the examples of {dataset.name!r} must be arrays, got {type(dataset.test).__name__}")
    check_corruption(name, severity)
    if dataset.name.partition(":")[0] == "cifar10" and dataset.test_split == "test":  # not what is held out of train
        published = f"cifar10_corrupted/{_NAMES.get(name, name)}_{severity}"
        if is_prepared(published, data_dir):
            # The set has no training images, and a split is read once.
            examples = load(published, data_dir, train_split="test").test
            assert isinstance(examples, ArrayExamples)
            return CorruptedTest(examples, "cifar10_corrupted")
    images = corrupt(name, severity, jax.random.key(seed), dataset.test.images)
    return CorruptedTest(ArrayExamples(images, dataset.test.labels), made(name))


def made(name: str) -> str:
    """The origin of images to which a corruption was done here."""
    return "made, a procedural stand-in for the original's pictures" if name == "frost" else "made"
