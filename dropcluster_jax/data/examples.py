"""Labeled images, in memory or encoded."""

import dataclasses
import functools
import hashlib
import itertools
import json
import os
import pathlib
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
from jaxtyping import Int, Int32, Integer, UInt8

from dropcluster_jax.cache import cached, fingerprint
from dropcluster_jax.data.decoding import CorruptImageError, Pixels, decode

_BLOCK = 256  # Examples per read; reading one at a time takes longer than decoding.


@dataclasses.dataclass(frozen=True, eq=False)
class ArrayExamples:
    """Labeled images of equal size, in memory or memory-mapped.

    Attributes:
        images: Images, uint8 `(examples, height, width, channels)`.
        labels: Labels, int32 `(examples,)`. Other integers, and the shape `(examples, 1)`, are converted.

    Raises:
        ValueError: If an array has a different type or shape, or `images` and `labels` differ in length.

    Example:
        >>> images = np.zeros((3, 8, 8, 1), np.uint8)
        >>> examples = ArrayExamples(images, np.array([0, 1, 2], np.int32))
        >>> len(examples), examples.shape, examples.take(np.array([2, 0])).labels.tolist()
        (3, (8, 8, 1), [2, 0])
    """

    images: UInt8[np.ndarray, "examples height width channels"] = dataclasses.field(repr=False)
    labels: Integer[np.ndarray, " examples"] | Integer[np.ndarray, "examples 1"] = dataclasses.field(repr=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "images", check_images("images", self.images))
        object.__setattr__(self, "labels", convert_labels("labels", self.labels))
        if len(self.images) != len(self.labels):
            raise ValueError(
                f"images and labels must have the same length, got {len(self.images)} and {len(self.labels)}"
            )

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

    def __len__(self) -> int:
        return len(self.labels)

    def take(self, indices: Int[np.ndarray, " _"] | slice) -> "FileExamples":
        return FileExamples([self.paths[i] for i in np.arange(len(self))[indices]], self.labels[indices])

    @property
    def key(self) -> Any:
        return [fingerprint(path) for path in self.paths], self.labels.tolist()

    def fingerprint(self) -> str:
        """Returns a hash of the labels and of the files' folder and file names and sizes, not of their location."""
        names = [("/".join(pathlib.Path(path).parts[-2:]), fingerprint(path)[1]) for path in self.paths]
        return _hash(names, self.labels.astype("<i4"))

    def location(self, index: int) -> str:
        return self.paths[index]

    def read(self, indices: Sequence[int]) -> list[tuple[bytes | CorruptImageError, int]]:
        """Returns encoded images, or the reason why one cannot be read, and their labels."""
        return [(_read_file(self.paths[index]), int(self.labels[index])) for index in indices]


@dataclasses.dataclass(frozen=True, eq=False)
class RecordExamples:
    """Labeled images of a prepared TFDS dataset, read on demand.

    Attributes:
        name: Name of the dataset and its split, for error messages.
        source: TFDS data source whose images are left encoded.
        key: JSON-serializable value that changes when the records do: name, split, and `fingerprint` of each file.
        selected: Indices of the records that belong to these examples; None for all records.
    """

    name: str
    source: Any = dataclasses.field(repr=False)
    key: Any = dataclasses.field(repr=False)
    selected: Int[np.ndarray, " examples"] | None = dataclasses.field(repr=False, default=None)

    def __len__(self) -> int:
        return len(self.source) if self.selected is None else len(self.selected)

    @functools.cached_property
    def labels(self) -> Int32[np.ndarray, " examples"]:
        """Labels, int32 `(examples,)`, -1 for unreadable records; the first access reads all records or the cache."""
        all_records = RecordExamples(self.name, self.source, self.key)

        def read_block(block: Sequence[int]) -> list[int]:
            return [label for _, label in all_records.read(block)]

        def read_all() -> dict[str, np.ndarray]:
            return {"labels": np.array(_map_blocks(read_block, len(all_records)), np.int32)}

        labels = cached("labels", self.key, read_all)["labels"]
        return labels if self.selected is None else labels[self.selected]

    def take(self, indices: Int[np.ndarray, " _"] | slice) -> "RecordExamples":
        records = np.arange(len(self.source)) if self.selected is None else self.selected
        return RecordExamples(self.name, self.source, self.key, records[indices])

    def fingerprint(self) -> str:
        """Returns a hash of the dataset's name, split, file names and sizes, and of the indices of the examples."""
        full_name, split, *files = self.key
        names = [(os.path.basename(path), size) for path, size, _ in files]
        records = range(len(self)) if self.selected is None else self.selected
        return _hash([full_name, split, names], np.asarray(records, "<i8"))

    def location(self, index: int) -> str:
        return f"{self.name}, example {self._record(index)},"

    def read(self, indices: Sequence[int]) -> list[tuple[bytes | CorruptImageError, int]]:
        """Returns encoded images and their labels; an unreadable record has an error and the label -1."""
        try:
            records = self.source.__getitems__([self._record(index) for index in indices])
            return [(record["image"], int(record["label"])) for record in records]
        except Exception as error:  # Undocumented: RuntimeError of ArrayRecord, DecodeError of Protocol Buffers, ...
            if len(indices) > 1:  # Find the damaged record.
                return [example for index in indices for example in self.read([index])]
            reason = (str(error).strip().splitlines() or [""])[0]
            return [(CorruptImageError(f"{self.location(indices[0])} cannot be read: {reason}"), -1)]

    def _record(self, index: int) -> int:
        return int(index if self.selected is None else self.selected[index])


EncodedExamples = FileExamples | RecordExamples
Examples = ArrayExamples | EncodedExamples


def check_images(name: str, images: Any) -> np.ndarray:
    """Returns images as an array; raises ValueError, with `name`, if they are not uint8 of rank 4."""
    array = np.asarray(images)
    if array.dtype != np.uint8 or array.ndim != 4 or 0 in array.shape[1:]:
        hint = "; multiply values in [0, 1] by 255 and round" if array.dtype.kind == "f" else ""
        raise ValueError(
            f"{name} must be uint8 of shape (examples, height, width, channels), "
            f"got {array.dtype} of shape {array.shape}{hint}"
        )
    return array


def convert_labels(name: str, labels: Any) -> np.ndarray:
    """Returns integer labels of shape `(examples,)` or `(examples, 1)` as int32 `(examples,)`."""
    array = np.asarray(labels)
    if array.dtype.kind not in "iu":
        raise ValueError(f"{name} must be integers, got {array.dtype}")
    if array.ndim == 2 and array.shape[1] == 1:
        array = array[:, 0]
    if array.ndim != 1:
        raise ValueError(f"{name} must have shape (examples,) or (examples, 1), got {array.shape}")
    converted = array.astype(np.int32, copy=False)
    if not np.array_equal(converted, array):
        raise ValueError(f"{name} must fit in int32, got values from {array.min()} to {array.max()}")
    return converted


def check_label_range(name: str, labels: np.ndarray, num_classes: int) -> None:
    """Raises ValueError, with `name`, if a label is not in `[0, num_classes)`."""
    invalid = np.flatnonzero((labels < 0) | (labels >= num_classes))
    if len(invalid):
        raise ValueError(f"{name} must be in [0, {num_classes}), got {labels[invalid[0]]} at index {invalid[0]}")


def decode_block(
    examples: EncodedExamples,
    indices: Sequence[int],
    num_classes: int,
    decode_image: Callable[[int, bytes, str], Pixels],
) -> list[tuple[Pixels, int] | CorruptImageError]:
    """Decodes examples with `decode_image(index, encoded, location)`; the errors of corrupt ones are in their place."""
    decoded: list[tuple[Pixels, int] | CorruptImageError] = []
    for index, (encoded, label) in zip(indices, examples.read(indices), strict=True):
        location = examples.location(index)
        try:
            if isinstance(encoded, CorruptImageError):
                raise encoded
            if not 0 <= label < num_classes:
                raise CorruptImageError(f"{location} has the label {label}, labels must be in [0, {num_classes})")
            decoded.append((decode_image(index, encoded, location), label))
        except CorruptImageError as error:
            decoded.append(error)
    return decoded


def decode_all(
    name: str, examples: EncodedExamples, channels: int, num_classes: int, skip_corrupt: bool = False
) -> tuple[ArrayExamples, list[str]]:
    """Decodes all examples into memory, and returns them and the location and reason for each that was skipped."""

    def read_block(block: Sequence[int]) -> list[tuple[Pixels, int] | CorruptImageError]:
        decoded = decode_block(
            examples, block, num_classes, lambda _, encoded, location: decode(encoded, location, channels)
        )
        errors = [result for result in decoded if isinstance(result, CorruptImageError)]
        if errors and not skip_corrupt:
            raise errors[0]
        return decoded

    if not len(examples):
        raise ValueError(f"{name!r} contains no images")
    decoded = _map_blocks(read_block, len(examples))
    skipped = [str(result) for result in decoded if isinstance(result, CorruptImageError)]
    valid = [result for result in decoded if not isinstance(result, CorruptImageError)]
    if not valid:
        raise ValueError(f"all images of {name!r} were skipped, the first: {skipped[0]}")
    images, labels = zip(*valid, strict=True)
    if len(shapes := {image.shape for image in images}) > 1:
        raise unequal_sizes(name, shapes)
    return ArrayExamples(np.stack(images), np.array(labels, np.int32)), skipped


def decode_cached(
    name: str, examples: EncodedExamples, channels: int, num_classes: int, skip_corrupt: bool
) -> tuple[ArrayExamples, list[str]]:
    """Returns the result of `decode_all`, from the cache if possible; records must be a whole split."""

    def decode() -> dict[str, np.ndarray]:
        arrays, skipped = decode_all(name, examples, channels, num_classes, skip_corrupt)
        return {"images": arrays.images, "labels": arrays.labels, "skipped": np.array(skipped, str)}

    # "upright" distinguishes these entries from older ones, which ignored the orientation in EXIF data.
    arrays = cached("images", [examples.key, channels, num_classes, skip_corrupt, "upright"], decode)
    return ArrayExamples(arrays["images"], arrays["labels"]), arrays["skipped"].tolist()


def unequal_sizes(name: str, shapes: Iterable[tuple[int, ...]]) -> ValueError:
    """Returns the error for images that cannot be stacked into one array."""
    distinct = ", ".join(map(str, sorted(set(shapes))[:4]))
    return ValueError(
        f"the images of {name!r} must have the same size, got {distinct}; set `image_size` to crop encoded images"
    )


def _map_blocks(function: Callable[[Sequence[int]], list[Any]], num_examples: int) -> list[Any]:
    """Applies a function to blocks of indices in multiple threads and concatenates the results in order."""
    blocks = [range(start, min(start + _BLOCK, num_examples)) for start in range(0, num_examples, _BLOCK)]
    with ThreadPoolExecutor(min(32, os.cpu_count() or 1)) as pool:
        return list(itertools.chain.from_iterable(pool.map(function, blocks)))


def _hash(description: Any, *arrays: np.ndarray) -> str:
    """Returns 16 hexadecimal digits for a JSON-serializable description and the bytes of arrays."""
    digest = hashlib.sha256(json.dumps(description).encode())
    for array in arrays:
        digest.update(np.ascontiguousarray(array).data)
    return digest.hexdigest()[:16]


def _read_file(path: str) -> bytes | CorruptImageError:
    try:
        return pathlib.Path(path).read_bytes()
    except OSError as error:
        return CorruptImageError(f"{path} cannot be read: {error.strerror}")
