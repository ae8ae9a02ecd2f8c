"""Labelled images, in memory or still encoded: what sources hand out and batches are cut from."""

import dataclasses
import itertools
import os
import pathlib
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
from jaxtyping import Int, Int32, UInt8

from dropcluster_jax.data.decoding import BadImageError, decode

_BLOCK = 256  # examples read at once: one by one, reading takes longer than decoding


@dataclasses.dataclass(frozen=True, eq=False)
class ArrayExamples:
    """Labelled images of one size, in memory (or mapped into it).

    Attributes:
        images: uint8 `(examples, height, width, channels)`.
        labels: int32 `(examples,)`.

    Raises:
        ValueError: they are not equally many.
    """

    images: UInt8[np.ndarray, "examples height width channels"] = dataclasses.field(repr=False)
    labels: Int32[np.ndarray, " examples"] = dataclasses.field(repr=False)

    def __post_init__(self) -> None:
        if len(self.images) != len(self.labels):
            raise ValueError(f"images and labels must be equally many, got {len(self.images)} and {len(self.labels)}")

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def shape(self) -> tuple[int, ...]:
        """`(height, width, channels)`."""
        return self.images.shape[1:]

    def take(self, indices: Int[np.ndarray, " _"] | slice) -> "ArrayExamples":
        """The examples of these indices."""
        return ArrayExamples(self.images[indices], self.labels[indices])


@dataclasses.dataclass(frozen=True, eq=False)
class FileExamples:
    """Labelled image files, decoded when asked for.

    Attributes:
        paths: of the files.
        labels: int32 `(examples,)`.
    """

    paths: list[str] = dataclasses.field(repr=False)
    labels: Int32[np.ndarray, " examples"] = dataclasses.field(repr=False)

    def __len__(self) -> int:
        return len(self.labels)

    def take(self, indices: Int[np.ndarray, " _"] | slice) -> "FileExamples":
        """The examples of these indices."""
        chosen = np.arange(len(self))[indices]
        paths: list[str] = [self.paths[int(i)] for i in chosen]
        return FileExamples(paths, self.labels[chosen])

    def where(self, index: int) -> str:
        """What to call an example in an error."""
        return self.paths[index]

    def read(self, indices: Sequence[int]) -> list[tuple[bytes, int]]:
        """Encoded images and their labels."""
        return [(_read_file(self.paths[index]), int(self.labels[index])) for index in indices]


@dataclasses.dataclass(frozen=True, eq=False)
class RecordExamples:
    """Labelled images as TFDS has prepared them, decoded when asked for.

    Attributes:
        name: of the data set and its split, as errors call it.
        source: a TFDS data source whose images are left encoded.
    """

    name: str
    source: Any = dataclasses.field(repr=False)

    def __len__(self) -> int:
        return len(self.source)

    def where(self, index: int) -> str:
        """What to call an example in an error."""
        return f"{self.name}, example {index},"

    def read(self, indices: Sequence[int]) -> list[tuple[bytes, int]]:
        """Encoded images and their labels."""
        return [(example["image"], int(example["label"])) for example in self.source.__getitems__(list(indices))]


EncodedExamples = FileExamples | RecordExamples


def decode_all(
    name: str, examples: EncodedExamples, channels: int, num_classes: int, skip_bad: bool = False
) -> tuple[ArrayExamples, list[str]]:
    """All examples in memory, decoded by several threads.

    Args:
        name: what errors call the examples together.
        examples: encoded images and their labels.
        channels: of the pixels, 3 or 1.
        num_classes: labels must be from 0 to below it.
        skip_bad: leave out what cannot be trained on, instead of stopping there.

    Returns:
        The examples in their order, and for each that was skipped where it lies and why.

    Raises:
        BadImageError: an image is bad or its label no class, and `skip_bad` is not given.
        ValueError: the images are of unequal size, or there is none.
    """

    def read_block(block: Sequence[int]) -> tuple[list[np.ndarray], list[int], list[str]]:
        images, labels, skipped = [], [], []
        for index, (encoded, label) in zip(block, examples.read(block), strict=True):
            where = examples.where(index)
            try:
                if not 0 <= label < num_classes:
                    raise BadImageError(f"{where} has the label {label}, labels must be from 0 to {num_classes - 1}")
                images.append(decode(encoded, where, channels))
                labels.append(label)
            except BadImageError as error:
                if not skip_bad:
                    raise
                skipped.append(str(error))
        return images, labels, skipped

    if not len(examples):
        raise ValueError(f"{name!r} holds no image")
    blocks = [range(start, min(start + _BLOCK, len(examples))) for start in range(0, len(examples), _BLOCK)]
    with ThreadPoolExecutor(min(32, os.cpu_count() or 1)) as pool:
        parts = list(pool.map(read_block, blocks))
    images, labels, skipped = (list(itertools.chain.from_iterable(part)) for part in zip(*parts, strict=True))
    if not images:
        raise ValueError(f"no image of {name!r} is left: {len(skipped)} were skipped, the first: {skipped[0]}")
    if len(shapes := {image.shape for image in images}) > 1:
        raise unequal(name, shapes)
    return ArrayExamples(np.stack(images), np.array(labels, np.int32)), skipped


def unequal(name: str, shapes: Iterable[tuple[int, ...]]) -> ValueError:
    """The error for images that do not fit into one array."""
    found = ", ".join(map(str, sorted(set(shapes))[:4]))
    return ValueError(f"the images of {name!r} must be of one size, got {found}")


def _read_file(path: str) -> bytes:
    try:
        return pathlib.Path(path).read_bytes()
    except OSError as error:
        raise BadImageError(f"{path} cannot be read: {error.strerror}") from error
