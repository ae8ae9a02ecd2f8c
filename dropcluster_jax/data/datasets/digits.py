"""scikit-learn's handwritten digits: embedded, so always at hand."""

import re
from typing import Any

import numpy as np
from jaxtyping import Int

from dropcluster_jax._optional import optional_import
from dropcluster_jax.data.dataset import Dataset
from dropcluster_jax.data.datasets.splits import no_split
from dropcluster_jax.data.examples import ArrayExamples


def load_digits(train_split: str, test_split: str) -> Dataset:
    """1,797 images of 8x8 pixels, values 0 to 16 scaled to 0 to 255, a fixed fifth of each class for test."""
    with optional_import("scikit-learn"):
        from sklearn.datasets import load_digits as load_bunch
        from sklearn.model_selection import train_test_split

    bunch: Any = load_bunch()
    images = np.rint(bunch.images * (255 / 16)).astype(np.uint8)[..., None]
    labels = bunch.target.astype(np.int32)
    # Fixed: no run trains on what another is tested on. Shuffled: train[:100] is a sample of all classes.
    train, test = train_test_split(np.arange(len(labels)), test_size=0.2, stratify=labels, random_state=0)
    parts = {"train": train, "test": test}
    splits = {"train_split": train_split, "test_split": test_split}
    chosen = [_part(argument, split, parts) for argument, split in splits.items()]
    examples = [ArrayExamples(images[indices], labels[indices]) for indices in chosen]
    return Dataset("digits", *examples, classes=tuple(str(digit) for digit in bunch.target_names))


def _part(argument: str, split: str, parts: dict[str, Any]) -> Int[np.ndarray, " _"]:
    """The indices of a split that is written as TFDS would: `train`, `train[:100]`, `test[-10%:]`."""
    sizes = {part: len(indices) for part, indices in parts.items()}
    match = re.fullmatch(r"(train|test)(?:\[(-?\d+%?)?:(-?\d+%?)?\])?", split)
    if match is None:
        raise no_split("digits", argument, split, sizes, "what is wanted is such as train, train[:100], train[20%:]")
    part, *ends = match.groups()
    size = sizes[part]

    def position(end: str) -> int:
        place = round(float(end[:-1]) / 100 * size) if end.endswith("%") else int(end)
        return place + size if end.startswith("-") else place

    begin, end = (default if end is None else position(end) for end, default in zip(ends, (0, size), strict=True))
    if not 0 <= begin < end <= size:
        raise no_split("digits", argument, split, sizes, "it is empty or reaches beyond the examples")
    return parts[part][begin:end]
