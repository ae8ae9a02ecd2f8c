"""Labeled images, in memory or encoded."""

import dataclasses
import functools
import itertools
import os
import pathlib
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
from jaxtyping import Int, Int32, UInt8

from dropcluster_jax.cache import cached, fingerprint
from dropcluster_jax.data.decoding import CorruptImageError, Pixels, decode

_BLOCK = 256  # Examples per read; reading one at a time takes longer than decoding.


@dataclasses.dataclass(frozen=True, eq=False)
class ArrayExamples:
    """Labeled images of equal size, in memory or memory-mapped.

    Attributes:
        images: Images, uint8 `(examples, height, width, channels)`.
        labels: Labels, int32 `(examples,)`.

    Raises:
        ValueError: If `images` and `labels` differ in length.

    Example:
        >>> images = np.zeros((3, 8, 8, 1), np.uint8)
        >>> examples = ArrayExamples(images, np.array([0, 1, 2], np.int32))
        >>> len(examples), examples.shape, examples.take(np.array([2, 0])).labels.tolist()
        (3, (8, 8, 1), [2, 0])
    """

    images: UInt8[np.ndarray, "examples height width channels"] = dataclasses.field(repr=False)
    labels: Int32[np.ndarray, " examples"] = dataclasses.field(repr=False)

    def __post_init__(self) -> None:
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
        key: JSON-serializable value that changes when the records do.
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

    arrays = cached("images", [examples.key, channels, num_classes, skip_corrupt], decode)
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


def _read_file(path: str) -> bytes | CorruptImageError:
    try:
        return pathlib.Path(path).read_bytes()
    except OSError as error:
        return CorruptImageError(f"{path} cannot be read: {error.strerror}")
