"""A data set: labelled images for training and test, and what is known of the usual ones."""

import dataclasses
import functools
from typing import NamedTuple

import numpy as np
from jaxtyping import Float32, Int, Int32

from dropcluster_jax.data.examples import ArrayExamples, Examples
from dropcluster_jax.data.shares import balanced_share


class Known(NamedTuple):
    """What is known of a data set beforehand.

    Attributes:
        num_classes: how many classes it has.
        mean: the mean of each channel of the training images, scaled to [0, 1].
        std: the standard deviations.
        train_split: the split to train on.
        test_split: the split to test on.
        config: the configuration that its name alone stands for.
        size: the side to which its images, of unequal size, are cropped.
    """

    num_classes: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    train_split: str = "train"
    test_split: str = "test"
    config: str | None = None
    size: int | None = None


# The values that are in general use, so that networks can be compared; of CIFAR-10 they were measured again.
_IMAGENET = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
KNOWN: dict[str, Known] = {
    "cifar10": Known(10, (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)),
    "cifar100": Known(100, (0.5071, 0.4865, 0.4409), (0.2673, 0.2564, 0.2762)),
    "svhn_cropped": Known(10, (0.4377, 0.4438, 0.4728), (0.1980, 0.2010, 0.1970)),
    "fashion_mnist": Known(10, (0.2860,), (0.3530,)),
    "imagenette": Known(10, *_IMAGENET, test_split="validation", config="full-size-v2", size=224),
    "imagenet2012": Known(1000, *_IMAGENET, test_split="validation", size=224),
}


@dataclasses.dataclass(frozen=True, eq=False)
class Dataset:
    """Labelled images for training and test.

    Attributes:
        name: what it was loaded as.
        train: the examples to train on: arrays, or images that are still encoded.
        test: the examples to test on, of the same kind and shape.
        classes: the names of the classes; a label is an index among them.
        test_split: of a data set of TFDS, the split that `test` is.
        size: the side to which encoded images are cropped, in pixels; None for arrays.
        known: what is known of it beforehand, if anything.
        skipped: for each image that was left out as it was loaded, where it lies and why.

    Example:
        >>> images = np.zeros((2, 4, 4, 1), np.uint8)
        >>> images[1] = 255  # black and white
        >>> examples = ArrayExamples(images, np.arange(2, dtype=np.int32))
        >>> dataset = Dataset("extremes", examples, examples, classes=("black", "white"))
        >>> dataset.shape, dataset.num_classes, dataset.mean.tolist(), dataset.std.tolist()
        ((4, 4, 1), 2, [0.5], [0.5])
    """

    name: str
    train: Examples
    test: Examples
    classes: tuple[str, ...]
    size: int | None = None
    test_split: str | None = None
    known: Known | None = dataclasses.field(repr=False, default=None)
    skipped: tuple[str, ...] = dataclasses.field(repr=False, default=())

    @property
    def num_classes(self) -> int:
        """The number of classes."""
        return len(self.classes)

    @property
    def shape(self) -> tuple[int, ...]:
        """Of an image as a network meets it: `(height, width, channels)`, in pixels."""
        return self.train.shape if isinstance(self.train, ArrayExamples) else (self.size or 0, self.size or 0, 3)

    @property
    def mean(self) -> Float32[np.ndarray, " channels"]:
        """The mean of each channel of images scaled to [0, 1], float32 `(channels,)`.

        What is known beforehand; else of the training images, where they are in memory; else of ImageNet.
        """
        return self._moments[0]

    @property
    def std(self) -> Float32[np.ndarray, " channels"]:
        """The standard deviation of each channel of images scaled to [0, 1], float32 `(channels,)`, as of `mean`."""
        return self._moments[1]

    @functools.cached_property
    def _moments(self) -> tuple[Float32[np.ndarray, " channels"], Float32[np.ndarray, " channels"]]:
        if self.known is not None and len(self.known.mean) == self.shape[-1]:
            return np.array(self.known.mean, np.float32), np.array(self.known.std, np.float32)
        if not isinstance(self.train, ArrayExamples):
            return np.array(_IMAGENET[0], np.float32), np.array(_IMAGENET[1], np.float32)
        # In integers, so exact, and no copy of all images in a wider type.
        pixels = self.train.images.reshape(-1, self.shape[-1])
        total = squares = np.zeros(pixels.shape[-1], np.int64)
        for begin in range(0, len(pixels), 1 << 20):
            part = pixels[begin : begin + (1 << 20)].astype(np.uint32)
            total = total + part.sum(0, dtype=np.int64)
            squares = squares + (part * part).sum(0, dtype=np.int64)
        count = len(pixels)
        variances = [
            (count * s - t * t) / (255 * count) ** 2 for t, s in zip(total.tolist(), squares.tolist(), strict=True)
        ]
        return (total / (255 * count)).astype(np.float32), np.sqrt(variances).astype(np.float32)


def split_by_share(
    labels: Int32[np.ndarray, " examples"], test_share: float
) -> tuple[Int[np.ndarray, " train"], Int[np.ndarray, " test"]]:
    """The indices to train and to test on, where the examples come undivided.

    A share of each class, the same one for the same labels: no run trains on what another is tested on, as long as no
    example is added or removed.

    Args:
        labels: of all examples.
        test_share: the share of each class to test on, above 0 and below 1.

    Returns:
        Sorted indices of training and of test.

    Raises:
        ValueError: the share is out of range, or leaves a class without a training image.
    """
    if not 0 < test_share < 1:
        raise ValueError(f"test_share must be above 0 and below 1, got {test_share}")
    test = balanced_share(labels, fraction=test_share)
    train = np.setdiff1d(np.arange(len(labels)), test)
    missing = set(labels.tolist()) - set(labels[train].tolist())
    if missing:
        raise ValueError(f"test_share {test_share} leaves class {min(missing)} without a training image")
    return train, test
