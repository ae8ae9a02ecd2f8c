"""Datasets and their descriptions."""

import dataclasses
import functools
import reprlib
from collections.abc import Mapping
from typing import Any

import numpy as np

from dropcluster_jax.data.examples import ArrayExamples, Examples


@dataclasses.dataclass(frozen=True)
class DatasetSpec:
    """Description of a dataset: class names, image shape and normalization constants.

    Attributes:
        name: Name of the dataset, as passed to `load`.
        classes: Class names, indexed by label.
        image_shape: Shape of the network's input images, `(height, width, channels)`.
        mean: Mean of each channel of the training images scaled to [0, 1].
        std: Standard deviation of each channel of the training images scaled to [0, 1].
        num_train_examples: Number of training examples.
        encoded: Whether images stay encoded and are decoded and cropped to `image_shape` each time they are read.
        test_fingerprint: Hash of the test examples, which does not depend on where they are stored; None if unknown.

    Example:
        >>> spec = DATASETS["cifar10"]
        >>> spec.image_shape, spec.num_classes, spec.num_train_examples
        ((32, 32, 3), 10, 50000)
        >>> DatasetSpec.from_json(spec.to_json()) == spec
        True
    """

    name: str
    classes: tuple[str, ...]
    image_shape: tuple[int, int, int]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    num_train_examples: int
    encoded: bool = False
    test_fingerprint: str | None = None

    @property
    def num_classes(self) -> int:
        """The number of classes."""
        return len(self.classes)

    def differences(self, other: "DatasetSpec") -> list[str]:
        """Returns how the examples of another dataset differ, as phrases; unknown fingerprints are not compared.

        Mean and standard deviation are not compared, because they can differ in the last bit between machines.

        Example:
            >>> spec = DATASETS["cifar10"]
            >>> spec.differences(dataclasses.replace(spec, num_train_examples=100))
            ['num_train_examples is 50000 there and 100 here']
        """
        phrases = []
        if self.classes != other.classes:
            there, here = set(self.classes), set(other.classes)
            removed, added = reprlib.repr(sorted(there - here)), reprlib.repr(sorted(here - there))
            phrases.append(f"the classes or their order differ: only there {removed}, only here {added}")
        for name in ("image_shape", "num_train_examples"):
            if getattr(self, name) != getattr(other, name):
                phrases.append(f"{name} is {getattr(self, name)!r} there and {getattr(other, name)!r} here")
        fingerprints = {self.test_fingerprint, other.test_fingerprint}
        if None not in fingerprints and len(fingerprints) > 1:
            phrases.append("the test examples are different")
        return phrases

    def to_json(self) -> dict[str, Any]:
        """Returns the fields as JSON-serializable values."""
        return {name: list(value) if isinstance(value, tuple) else value for name, value in vars(self).items()}

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> "DatasetSpec":
        """Inverse of `to_json`."""
        fields: dict[str, Any] = {
            name: tuple(value) if isinstance(value, list) else value for name, value in content.items()
        }
        return cls(**fields)


def _numbered(num_classes: int) -> tuple[str, ...]:
    return tuple(map(str, range(num_classes)))


# The constants in general use, so that networks are comparable. Those of CIFAR-10 match its training images.
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)

#: Descriptions of common datasets, by name.
DATASETS: dict[str, DatasetSpec] = {
    spec.name: spec
    for spec in (
        DatasetSpec("digits", _numbered(10), (8, 8, 1), (0.3054,), (0.3760,), 1_437),
        DatasetSpec("cifar10", _numbered(10), (32, 32, 3), (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616), 50_000),
        DatasetSpec(
            "cifar100", _numbered(100), (32, 32, 3), (0.5071, 0.4865, 0.4409), (0.2673, 0.2564, 0.2762), 50_000
        ),
        DatasetSpec(
            "svhn_cropped", _numbered(10), (32, 32, 3), (0.4377, 0.4438, 0.4728), (0.1980, 0.2010, 0.1970), 73_257
        ),
        DatasetSpec("fashion_mnist", _numbered(10), (28, 28, 1), (0.2860,), (0.3530,), 60_000),
        DatasetSpec("imagenette", _numbered(10), (224, 224, 3), IMAGENET_MEAN, IMAGENET_STD, 9_469, encoded=True),
        DatasetSpec(
            "imagenet2012", _numbered(1000), (224, 224, 3), IMAGENET_MEAN, IMAGENET_STD, 1_281_167, encoded=True
        ),
    )
}


@dataclasses.dataclass(frozen=True, eq=False)
class Dataset:
    """Labeled images for training and evaluation.

    Attributes:
        name: Name under which the dataset was loaded.
        train: Training examples: arrays or encoded images.
        test: Examples to evaluate on, of the same kind and shape.
        classes: Class names, indexed by label.
        image_size: Side in pixels of the crops of encoded images; None for arrays.
        test_split: TFDS split that `test` was read from, if any.
        mean_std: Mean and standard deviation of each channel; computed from `train`, or ImageNet's if encoded.
        skipped: Location and reason for each image that was skipped while loading.

    Raises:
        ValueError: If class names are not distinct strings, labels of arrays are not in [0, number of classes), there
            are no examples, or the shapes of training and test images differ.

    Example:
        >>> images = np.zeros((2, 4, 4, 1), np.uint8)
        >>> images[1] = 255
        >>> examples = ArrayExamples(images, np.arange(2, dtype=np.int32))
        >>> dataset = Dataset("extremes", examples, examples, classes=("black", "white"))
        >>> dataset.spec.image_shape, dataset.spec.num_classes, dataset.spec.mean, dataset.spec.std
        ((4, 4, 1), 2, (0.5,), (0.5,))
    """

    name: str
    train: Examples
    test: Examples
    classes: tuple[str, ...]
    image_size: int | None = None
    test_split: str | None = None
    mean_std: tuple[tuple[float, ...], tuple[float, ...]] | None = dataclasses.field(repr=False, default=None)
    skipped: tuple[str, ...] = dataclasses.field(repr=False, default=())

    def __post_init__(self) -> None:
        if isinstance(self.classes, str) or not all(isinstance(name, str) for name in self.classes):
            raise ValueError(f"classes of {self.name!r} must be a sequence of strings, got {self.classes!r}")
        object.__setattr__(self, "classes", tuple(self.classes))
        if len(set(self.classes)) < len(self.classes):
            raise ValueError(f"classes of {self.name!r} must be distinct, got {', '.join(self.classes)}")
        for split, examples in (("train", self.train), ("test", self.test)):
            if not len(examples):
                raise ValueError(f"{split} of {self.name!r} must contain examples, got none")
            if isinstance(examples, ArrayExamples):
                labels = examples.labels
                invalid = np.flatnonzero((labels < 0) | (labels >= len(self.classes)))
                if len(invalid):
                    raise ValueError(
                        f"labels of {split} of {self.name!r} must be in [0, {len(self.classes)}), "
                        f"got {labels[invalid[0]]} at index {invalid[0]}"
                    )
        if self.mean_std is not None:
            mean, std = self.mean_std
            channels = self.train.shape[-1] if isinstance(self.train, ArrayExamples) else 3
            valid = all(0 <= value <= 1 for value in (*mean, *std)) and 0 not in std
            if not valid or {len(mean), len(std)} != {channels}:
                raise ValueError(
                    f"mean and std of {self.name!r} must be those of {channels} channels of pixel values in [0, 1], "
                    f"got {mean} and {std}; divide constants of values up to 255 by 255"
                )
        arrays = [examples for examples in (self.train, self.test) if isinstance(examples, ArrayExamples)]
        if len({examples.shape for examples in arrays}) > 1:
            raise ValueError(
                f"images of train and test of {self.name!r} must have the same shape, "
                f"got {arrays[0].shape} and {arrays[1].shape}"
            )

    @functools.cached_property
    def spec(self) -> DatasetSpec:
        """The dataset's description; the first access reads all test examples that are arrays.

        If they are unknown, it also computes the mean and standard deviation, and raises ValueError if a channel is
        constant.
        """
        images = self.train.images if isinstance(self.train, ArrayExamples) else None
        size, mean_std = self.image_size or 0, self.mean_std
        if mean_std is None:
            mean_std = (IMAGENET_MEAN, IMAGENET_STD) if images is None else _mean_and_std(images)
            if 0 in mean_std[1]:
                raise ValueError(
                    f"channel {mean_std[1].index(0)} of the training images of {self.name!r} is constant and cannot be "
                    "normalized; remove it, or set mean and std yourself: `mean_std` of `Dataset`, or the arrays mean "
                    "and std of an .npz archive"
                )
        return DatasetSpec(
            self.name,
            self.classes,
            (size, size, 3) if images is None else images.shape[1:],
            *mean_std,
            len(self.train),
            encoded=images is None,
            test_fingerprint=self.test.fingerprint(),
        )


def _mean_and_std(images: np.ndarray) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Returns the mean and standard deviation of each channel, from the exact frequencies of the 256 values."""
    counts = np.zeros((images.shape[-1], 256), np.int64)
    for start in range(0, len(images), 1024):
        block = images[start : start + 1024]
        counts += [np.bincount(block[..., channel].ravel(), minlength=256) for channel in range(len(counts))]
    frequencies, values = counts / counts.sum(1, keepdims=True), np.arange(256) / 255
    mean = frequencies @ values
    std = np.sqrt((frequencies * (values - mean[:, None]) ** 2).sum(1))
    # float32 is the precision in which images are normalized.
    return tuple(mean.astype(np.float32).tolist()), tuple(std.astype(np.float32).tolist())
