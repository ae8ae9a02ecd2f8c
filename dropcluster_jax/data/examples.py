"""Labeled images, in memory or encoded."""

import dataclasses
import functools
import hashlib
import itertools
import json
import os
import pathlib
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, ClassVar

import numpy as np
from jaxtyping import Int, Int32, Integer, UInt8

from dropcluster_jax.cache import cached, file_stamp
from dropcluster_jax.data.decoding import CorruptImageError

_BLOCK = 256  # Examples per read; reading one at a time takes longer than decoding.


@dataclasses.dataclass(frozen=True, eq=False)
class ArrayExamples:
    """Labeled images of equal size, in memory or memory-mapped.

    Attributes:
        images: Images, uint8 `(examples, height, width, channels)`.
        labels: Labels, int32 `(examples,)`. Other integers, and the shape `(examples, 1)`, are converted.

    Raises:
        ValueError: If an array has a different type or shape.

    Example:
        >>> images = np.zeros((3, 8, 8, 1), np.uint8)
        >>> examples = ArrayExamples(images, np.array([0, 1, 2], np.int32))
        >>> len(examples), examples.shape, examples.take(np.array([2, 0])).labels.tolist()
        (3, (8, 8, 1), [2, 0])
    """

    images: UInt8[np.ndarray, "examples height width channels"] = dataclasses.field(repr=False)
    labels: Integer[np.ndarray, " examples"] | Integer[np.ndarray, "examples 1"] = dataclasses.field(repr=False)

    def __post_init__(self) -> None:
        images, labels = np.asarray(self.images), np.asarray(self.labels)
        if images.dtype != np.uint8 or images.ndim != 4 or 0 in images.shape[1:]:
            raise ValueError(
                "images must be uint8, 0 to 255, of shape (examples, height, width, channels), "
                f"got {images.dtype} of shape {images.shape}"
            )
        if labels.dtype.kind not in "iu" or labels.shape not in ((len(images),), (len(images), 1)):
            raise ValueError(
                f"labels must be integers of shape ({len(images)},) or ({len(images)}, 1), "
                f"got {labels.dtype} of shape {labels.shape}"
            )
        converted = labels.reshape(len(labels)).astype(np.int32, copy=False)
        if not np.array_equal(converted, labels.ravel()):
            raise ValueError(f"labels must fit in int32, got values from {labels.min()} to {labels.max()}")
        object.__setattr__(self, "images", images)
        object.__setattr__(self, "labels", converted)

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of an image, `(height, width, channels)`."""
        return self.images.shape[1:]

    def take(self, indices: Int[np.ndarray, " _"] | slice) -> "ArrayExamples":
        """Returns the examples at these indices, in the given order; a slice returns views."""
        return ArrayExamples(self.images[indices], self.labels[indices])

    def fingerprint(self) -> str:
        """Returns a hash of the images and labels."""
        return _hash(self.images.shape, self.images, self.labels.astype("<i4"))


@dataclasses.dataclass(frozen=True, eq=False)
class FileExamples:
    """Labeled image files, read on demand."""

    paths: list[str] = dataclasses.field(repr=False)
    labels: Int32[np.ndarray, " examples"] = dataclasses.field(repr=False)
    channels: ClassVar[int] = 3

    def __len__(self) -> int:
        return len(self.labels)

    def take(self, indices: Int[np.ndarray, " _"] | slice) -> "FileExamples":
        return FileExamples([self.paths[i] for i in np.arange(len(self))[indices]], self.labels[indices])

    @property
    def key(self) -> Any:
        """JSON-serializable value that changes when the examples do; see `RecordExamples.key`."""
        return [file_stamp(path) for path in self.paths], self.labels.tolist()

    def fingerprint(self) -> str:
        """Returns a hash of the labels and of the contents of the files."""
        return _hash(image_digests(self), self.labels.astype("<i4"))

    def location(self, index: int) -> str:
        return self.paths[index]

    def read(self, indices: Sequence[int]) -> list[tuple[bytes, int]]:
        """Returns encoded images and their labels; raises OSError if a file cannot be read."""
        return [(pathlib.Path(self.paths[index]).read_bytes(), int(self.labels[index])) for index in indices]


@dataclasses.dataclass(frozen=True, eq=False)
class RecordExamples:
    """Labeled images of a prepared TFDS dataset, read on demand.

    Attributes:
        name: Name of the dataset and its split, for error messages.
        source: TFDS data source whose images are left encoded.
        files: Full name of the dataset, its split, and the `file_stamp` of each file.
        channels: Number of channels of the images.
        num_classes: Number of classes; labels are less.
        records: Indices of the records that belong to these examples.
    """

    name: str
    source: Any = dataclasses.field(repr=False)
    files: Any = dataclasses.field(repr=False)
    channels: int
    num_classes: int
    records: Int[np.ndarray, " examples"] = dataclasses.field(repr=False)

    def __len__(self) -> int:
        return len(self.records)

    @functools.cached_property
    def labels(self) -> Int32[np.ndarray, " examples"]:
        """Labels, int32 `(examples,)`; the first access reads all examples or the cache."""
        return cached_blocks("labels", self.key, self._labels, len(self), np.int32)

    def _labels(self, block: Sequence[int]) -> list[int]:
        return [label for _, label in self.read(block)]

    def take(self, indices: Int[np.ndarray, " _"] | slice) -> "RecordExamples":
        return dataclasses.replace(self, records=self.records[indices])

    @property
    def key(self) -> Any:
        """JSON-serializable value that changes when the examples or the files that contain them do."""
        return [*self.files, _hash("records", self.records.astype("<i8"))]

    def fingerprint(self) -> str:
        """Returns a hash of the dataset's name, split, file names and sizes, and of the indices of the examples."""
        full_name, split, *files = self.files
        names = [(os.path.basename(path), size) for path, size, *_ in files]
        return _hash([full_name, split, names], self.records.astype("<i8"))

    def location(self, index: int) -> str:
        return f"{self.name}, example {self.records[index]},"

    def read(self, indices: Sequence[int]) -> list[tuple[bytes, int]]:
        """Returns encoded images and their labels; raises CorruptImageError for a damaged record or invalid label."""
        try:
            records = self.source.__getitems__([int(self.records[index]) for index in indices])
        except OSError:  # temporary, unlike a damaged record
            raise
        except Exception as error:  # Undocumented: RuntimeError of ArrayRecord, DecodeError of Protocol Buffers, ...
            if len(indices) > 1:  # Find the damaged record.
                return [example for index in indices for example in self.read([index])]
            reason = (str(error).strip().splitlines() or [""])[0]
            raise CorruptImageError(f"{self.location(indices[0])} cannot be read: {reason}") from error
        examples = [(record["image"], int(record["label"])) for record in records]
        for index, (_, label) in zip(indices, examples, strict=True):
            if not 0 <= label < self.num_classes:
                raise CorruptImageError(
                    f"{self.location(index)} has the label {label}, labels must be in [0, {self.num_classes})"
                )
        return examples


EncodedExamples = FileExamples | RecordExamples
Examples = ArrayExamples | EncodedExamples


def map_blocks(function: Callable[[Sequence[int]], list[Any]], num_examples: int) -> list[Any]:
    """Applies a function to blocks of indices in multiple threads and concatenates the results in order."""
    blocks = [range(start, min(start + _BLOCK, num_examples)) for start in range(0, num_examples, _BLOCK)]
    with ThreadPoolExecutor(min(32, os.cpu_count() or 1)) as pool:
        return list(itertools.chain.from_iterable(pool.map(function, blocks)))


def cached_blocks(
    name: str, key: Any, function: Callable[[Sequence[int]], list[Any]], num_examples: int, dtype: Any
) -> np.ndarray:
    """Returns the result of `map_blocks` as an array, which is cached."""
    return cached(name, key, lambda: {name: np.array(map_blocks(function, num_examples), dtype)})[name]


def image_digests(examples: Examples) -> list[str]:
    """Returns a hash of each image; encoded images are read once, and their hashes are cached."""
    if isinstance(examples, ArrayExamples):
        return [hashlib.sha256(image.tobytes()).hexdigest() for image in examples.images]

    def digests(block: Sequence[int]) -> list[str]:
        return [hashlib.sha256(encoded).hexdigest() for encoded, _ in examples.read(block)]

    return cached_blocks("digests", examples.key, digests, len(examples), str).tolist()


def _hash(description: Any, *arrays: np.ndarray) -> str:
    """Returns 16 hexadecimal digits for a JSON-serializable description and the bytes of arrays."""
    digest = hashlib.sha256(json.dumps(description).encode())
    for array in arrays:
        digest.update(np.ascontiguousarray(array).data)
    return digest.hexdigest()[:16]
