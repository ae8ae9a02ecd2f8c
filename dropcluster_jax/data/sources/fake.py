"""Random images of a data set's shape: for benchmarks, where only the speed counts."""

import numpy as np

from dropcluster_jax.data.dataset import KNOWN, Dataset, Known
from dropcluster_jax.data.examples import ArrayExamples

_DIGITS = Known(10, (0.3,), (0.4,), size=8)


def fake_data(name: str, examples: int, size: int | None = None) -> Dataset:
    """As many training images, and a quarter of it test images, that mean nothing.

    Args:
        name: one of `KNOWN`, or `"digits"`; it gives the number of channels and classes.
        examples: the number of training images, at least 1.
        size: their side in pixels, at least 1; the data set's own, if not given.

    Returns:
        Arrays: uint8 images `(examples, size, size, channels)`, the same ones each time.

    Raises:
        ValueError: a data set of which nothing is known.

    Example:
        >>> fake = fake_data("imagenet2012", 8, size=64)
        >>> fake.shape, fake.num_classes, len(fake.train), len(fake.test)
        ((64, 64, 3), 1000, 8, 2)
    """
    known = _DIGITS if name == "digits" else KNOWN.get(name)
    if known is None:
        raise ValueError(f"fake data needs one of digits, {', '.join(KNOWN)}, got {name!r}")
    size = size or known.size or (28 if len(known.mean) == 1 else 32)
    rng = np.random.default_rng(0)

    def some(number: int) -> ArrayExamples:
        images = rng.integers(0, 256, (number, size, size, len(known.mean)), np.uint8)
        return ArrayExamples(images, rng.integers(0, known.num_classes, number).astype(np.int32))

    classes = tuple(str(label) for label in range(known.num_classes))
    return Dataset(name, some(examples), some(-(-examples // 4)), classes, known=known)
