"""Labelled images, in memory or still encoded: what sources hand out and batches are cut from."""

import dataclasses
import functools
import os
import pathlib
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
from jaxtyping import Int, Int32, UInt8

from dropcluster_jax.data.cache import cached
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

    def fingerprint(self) -> Any:
        """What changes when the files do, without reading them."""
        stats = [(path, status.st_size, status.st_mtime_ns) for path in self.paths for status in [os.stat(path)]]
        return [stats, self.labels.tolist()]


@dataclasses.dataclass(frozen=True, eq=False)
class RecordExamples:
    """Labelled images as TFDS has prepared them, decoded when asked for.

    Attributes:
        name: of the data set and its split, as errors call it.
        source: a TFDS data source whose images are left encoded.
        indices: which of its examples, int64 `(examples,)`.
        files: what changes when the files do: their names, sizes and times.
    """

    name: str
    source: Any = dataclasses.field(repr=False)
    indices: Int[np.ndarray, " examples"] = dataclasses.field(repr=False)
    files: Any = dataclasses.field(repr=False)

    def __len__(self) -> int:
        return len(self.indices)

    @functools.cached_property
    def labels(self) -> Int32[np.ndarray, " examples"]:
        """int32 `(examples,)`. Reads the data set once through, and keeps them in the cache."""

        def read_labels() -> dict[str, np.ndarray]:
            blocks = _in_blocks(len(self), lambda block: [label for _, label in self.read(block)])
            return {"labels": np.array([label for block in blocks for label in block], np.int32)}

        return cached("labels", self.fingerprint(), read_labels)["labels"]

    def take(self, indices: Int[np.ndarray, " _"] | slice) -> "RecordExamples":
        """The examples of these indices."""
        return dataclasses.replace(self, indices=self.indices[indices])

    def where(self, index: int) -> str:
        """What to call an example in an error."""
        return f"{self.name}, example {self.indices[index]},"

    def read(self, indices: Sequence[int]) -> list[tuple[bytes, int]]:
        """Encoded images and their labels."""
        examples = self.source.__getitems__([int(self.indices[index]) for index in indices])
        return [(example["image"], int(example["label"])) for example in examples]

    def fingerprint(self) -> Any:
        """What changes when the files or the selection do."""
        return [self.files, self.indices.tolist()]


EncodedExamples = FileExamples | RecordExamples
Examples = ArrayExamples | EncodedExamples


def decode_all(
    examples: EncodedExamples, channels: int, num_classes: int, skip_bad: bool
) -> tuple[ArrayExamples, list[str]]:
    """All examples in memory, decoded by several threads, and what was skipped, with the reasons.

    Raises:
        BadImageError: an image is bad, and `skip_bad` is not given.
        ValueError: the images are of unequal size; a label is no class, and `skip_bad` is not given.
    """

    def read_block(block: Sequence[int]) -> tuple[list[np.ndarray], list[int], list[str]]:
        images, labels, skipped = [], [], []
        for index, (encoded, label) in zip(block, examples.read(block), strict=True):
            try:
                check_label(label, num_classes, examples.where(index))
                images.append(decode(encoded, examples.where(index), channels))
                labels.append(label)
            except BadImageError as error:
                if not skip_bad:
                    raise
                skipped.append(str(error))
        return images, labels, skipped

    blocks = _in_blocks(len(examples), read_block)
    images = [image for block in blocks for image in block[0]]
    labels = [label for block in blocks for label in block[1]]
    skipped = [reason for block in blocks for reason in block[2]]
    if not images:
        raise ValueError(f"no image is left: {len(skipped)} were skipped, the first: {skipped[0]}")
    shapes = sorted({image.shape for image in images})
    if len(shapes) > 1:
        found = ", ".join(map(str, shapes[:4]))
        raise ValueError(f"the images must be of one size to be trained on as they are, got {found}; give a size "
                         "(--data.size) and they are cropped to it")  # fmt: skip
    return ArrayExamples(np.stack(images), np.array(labels, np.int32)), skipped


def find_bad(examples: EncodedExamples, num_classes: int) -> dict[int, str]:
    """The indices of the examples that cannot be trained on, with the reasons; decodes all, keeps none."""

    def check_block(block: Sequence[int]) -> dict[int, str]:
        bad = {}
        for index, (encoded, label) in zip(block, examples.read(block), strict=True):
            try:
                check_label(label, num_classes, examples.where(index))
                decode(encoded, examples.where(index))
            except BadImageError as error:
                bad[index] = str(error)
        return bad

    return {index: reason for block in _in_blocks(len(examples), check_block) for index, reason in block.items()}


def check_label(label: int, num_classes: int, where: str) -> None:
    """Raise `BadImageError` for a label that is no class."""
    if not 0 <= label < num_classes:
        raise BadImageError(f"{where} has the label {label}, labels must be from 0 to {num_classes - 1}")


def _in_blocks(size: int, read: Callable[[Sequence[int]], Any]) -> list[Any]:
    blocks = [range(start, min(start + _BLOCK, size)) for start in range(0, size, _BLOCK)]
    with ThreadPoolExecutor(min(32, os.cpu_count() or 1)) as pool:
        return list(pool.map(read, blocks))


def _read_file(path: str) -> bytes:
    try:
        return pathlib.Path(path).read_bytes()
    except OSError as error:
        raise BadImageError(f"{path} cannot be read: {error.strerror}") from error
