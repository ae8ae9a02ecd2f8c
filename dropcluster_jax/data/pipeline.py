"""Batches from arrays in memory: for training, for evaluation and for learning clusters.

NumPy alone. What a batch holds depends on the seed and its number, on nothing that came before: a run that
starts again in the middle meets the batches it would have met.
"""

import itertools
from collections.abc import Iterator

import numpy as np
from jaxtyping import Int, Shaped

Batch = dict[str, np.ndarray]
Images = Shaped[np.ndarray, "examples ..."]
Labels = Int[np.ndarray, " examples"]


def training_batches(images: Images, labels: Labels, batch_size: int, seed: int, start: int = 0) -> Iterator[Batch]:
    """Endless batches of shuffled examples, each example at most once an epoch.

    Epoch e takes the examples in the order `np.random.default_rng([seed, e]).permutation(len(images))`; those
    at its end that do not fill a batch are left out.

    Args:
        images: uint8 `(examples, height, width, channels)`.
        labels: int32 `(examples,)`.
        batch_size: examples in a batch, at most all of them.
        seed: at least 0.
        start: the number of the first batch, counted over all epochs: the step at which a run is resumed.

    Returns:
        An iterator without end over dicts of `"image"` `(batch_size, height, width, channels)` and `"label"`
        `(batch_size,)`.

    Raises:
        TypeError: `batch_size`, `seed` or `start` is no integer.
        ValueError: one of them is out of range, `images` and `labels` differ in length, or are empty.

    Example:
        >>> import numpy as np
        >>> images, labels = np.zeros((5, 8, 8, 1), np.uint8), np.arange(5, dtype=np.int32)
        >>> batches = training_batches(images, labels, batch_size=2, seed=0)
        >>> epoch = [next(batches) for _ in range(2)]
        >>> epoch[0]["image"].shape, len({int(label) for batch in epoch for label in batch["label"]})
        ((2, 8, 8, 1), 4)
        >>> resumed = next(training_batches(images, labels, batch_size=2, seed=0, start=1))
        >>> bool((resumed["label"] == epoch[1]["label"]).all())
        True
    """
    _check_examples(images, labels, least=1)
    _check_integer("batch_size", batch_size, 1, len(images))
    _check_integer("seed", seed, 0)
    _check_integer("start", start, 0)

    def batches() -> Iterator[Batch]:
        first_epoch, first = divmod(start, len(images) // batch_size)
        for epoch in itertools.count(first_epoch):
            order = np.random.default_rng([seed, epoch]).permutation(len(images))
            for end in range((first + 1) * batch_size, len(images) + 1, batch_size):
                chosen = order[end - batch_size : end]
                yield {"image": images[chosen], "label": labels[chosen]}
            first = 0

    return batches()


def evaluation_batches(images: Images, labels: Labels, batch_size: int) -> Iterator[Batch]:
    """Batches of one size with each example exactly once, in order.

    Args:
        images: uint8 `(examples, height, width, channels)`.
        labels: int32 `(examples,)`.
        batch_size: examples in a batch; the last is filled up with zeros.

    Returns:
        An iterator over dicts of `"image"`, `"label"` and `"weight"`, float32 `(batch_size,)`: 1 for an
        example, 0 for what only fills the last batch.

    Raises:
        TypeError: `batch_size` is no integer.
        ValueError: it is less than 1, or `images` and `labels` differ in length.

    Example:
        >>> import numpy as np
        >>> images, labels = np.zeros((3, 8, 8, 1), np.uint8), np.arange(3, dtype=np.int32)
        >>> for batch in evaluation_batches(images, labels, batch_size=2):
        ...     print(batch["label"].tolist(), batch["weight"].tolist())
        [0, 1] [1.0, 1.0]
        [2, 0] [1.0, 0.0]
    """
    _check_examples(images, labels, least=0)
    _check_integer("batch_size", batch_size, 1)

    def batches() -> Iterator[Batch]:
        for begin in range(0, len(images), batch_size):
            image, label = images[begin : begin + batch_size], labels[begin : begin + batch_size]
            batch = {"image": image, "label": label, "weight": np.ones(len(label), np.float32)}
            yield {name: _fill_up(part, batch_size) for name, part in batch.items()}

    return batches()


def probe_batch(images: Images, labels: Labels, size: int, seed: int, update: int) -> Batch:
    """The probe batch of one update: examples drawn without replacement.

    Their random stream is another than that of `training_batches` with the same seed.

    Args:
        images: uint8 `(examples, height, width, channels)`.
        labels: int32 `(examples,)`.
        size: examples in the batch; where there are fewer, all are taken.
        seed: at least 0.
        update: the number of the update, at least 0; each has a batch of its own.

    Returns:
        A dict of `"image"` and `"label"`.

    Raises:
        TypeError: `size`, `seed` or `update` is no integer.
        ValueError: one of them is out of range, `images` and `labels` differ in length, or are empty.

    Example:
        >>> import numpy as np
        >>> images, labels = np.zeros((5, 8, 8, 1), np.uint8), np.arange(5, dtype=np.int32)
        >>> probe_batch(images, labels, size=3, seed=0, update=0)["image"].shape
        (3, 8, 8, 1)
        >>> sorted(probe_batch(images, labels, size=256, seed=0, update=1)["label"].tolist())
        [0, 1, 2, 3, 4]
    """
    _check_examples(images, labels, least=1)
    _check_integer("size", size, 1)
    _check_integer("seed", seed, 0)
    _check_integer("update", update, 0)
    # The spawn key sets this stream apart from that of the epochs, whatever seed and update are.
    rng = np.random.default_rng(np.random.SeedSequence([seed, update], spawn_key=(1,)))
    chosen = rng.choice(len(images), min(size, len(images)), replace=False)
    return {"image": images[chosen], "label": labels[chosen]}


def _fill_up(part: Shaped[np.ndarray, "..."], batch_size: int) -> Shaped[np.ndarray, "..."]:
    missing = batch_size - len(part)
    return np.pad(part, [(0, missing)] + [(0, 0)] * (part.ndim - 1)) if missing else part


def _check_examples(images: Shaped[np.ndarray, "..."], labels: Shaped[np.ndarray, "..."], least: int) -> None:
    if len(images) < least:
        raise ValueError("images must hold an example, got none")
    if len(images) != len(labels):
        raise ValueError(f"images and labels must be equally many, got {len(images)} and {len(labels)}")


def _check_integer(name: str, value: int, least: int, most: int | None = None) -> None:
    if not isinstance(value, int | np.integer):
        raise TypeError(f"{name} must be an integer, got {value!r}")
    if value < least or (most is not None and value > most):
        allowed = f"at least {least}" if most is None else f"from {least} to {most}, the number of images"
        raise ValueError(f"{name} must be {allowed}, got {value}")
