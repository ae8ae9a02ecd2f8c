"""Labeled images, in memory or still encoded: what sources hand out and batches are cut from."""

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

from dropcluster_jax.cache import cached
from dropcluster_jax.data.decoding import CorruptImageError, Pixels, decode

_BLOCK = 256  # examples read at once: one by one, reading takes longer than decoding


@dataclasses.dataclass(frozen=True, eq=False)
class ArrayExamples:
    """Labeled images of one size, in memory (or mapped into it).

    Attributes:
        images: uint8 `(examples, height, width, channels)`.
        labels: int32 `(examples,)`.

    Raises:
        ValueError: they are not equally many.

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
            raise ValueError(f"images and labels must be equally many, got {len(self.images)} and {len(self.labels)}")

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def shape(self) -> tuple[int, ...]:
        """Of an image: `(height, width, channels)`, in pixels."""
        return self.images.shape[1:]

    def take(self, indices: Int[np.ndarray, " _"] | slice) -> "ArrayExamples":
        """Some of the examples.

        Args:
            indices: integers `(chosen,)` from 0 to below the number of examples, or a slice of them.

        Returns:
            As many examples as indices, in their order; of a slice no copies.

        Raises:
            IndexError: an index of no example.
        """
        return ArrayExamples(self.images[indices], self.labels[indices])


@dataclasses.dataclass(frozen=True, eq=False)
class FileExamples:
    """Labeled image files, decoded when asked for.

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

    def read(self, indices: Sequence[int]) -> list[tuple[bytes | CorruptImageError, int]]:
        """Encoded images, or why one cannot be read, and their labels."""
        return [(_read_file(self.paths[index]), int(self.labels[index])) for index in indices]


@dataclasses.dataclass(frozen=True, eq=False)
class RecordExamples:
    """Labeled images as TFDS has prepared them, decoded when asked for.

    Attributes:
        name: of the data set and its split, as errors call it.
        source: a TFDS data source whose images are left encoded.
        key: all that tells whether the records are still the same, as JSON takes it.
        chosen: the records that these examples are; None for all.
    """

    name: str
    source: Any = dataclasses.field(repr=False)
    key: Any = dataclasses.field(repr=False)
    chosen: Int[np.ndarray, " examples"] | None = dataclasses.field(repr=False, default=None)

    def __len__(self) -> int:
        return len(self.source) if self.chosen is None else len(self.chosen)

    @functools.cached_property
    def labels(self) -> Int32[np.ndarray, " examples"]:
        """int32 `(examples,)`, -1 where a record cannot be read; reads all once, later from the cache."""
        whole = RecordExamples(self.name, self.source, self.key)

        def read_block(block: Sequence[int]) -> list[int]:
            return [label for _, label in whole.read(block)]

        def read() -> dict[str, np.ndarray]:
            return {"labels": np.array(_over_blocks(read_block, len(whole)), np.int32)}

        labels = cached("labels", self.key, read)["labels"]
        return labels if self.chosen is None else labels[self.chosen]

    def take(self, indices: Int[np.ndarray, " _"] | slice) -> "RecordExamples":
        """The examples of these indices."""
        whole = np.arange(len(self.source)) if self.chosen is None else self.chosen
        return RecordExamples(self.name, self.source, self.key, whole[indices])

    def where(self, index: int) -> str:
        """What to call an example in an error."""
        return f"{self.name}, example {self._record(index)},"

    def read(self, indices: Sequence[int]) -> list[tuple[bytes | CorruptImageError, int]]:
        """Encoded images and their labels."""
        try:
            records = self.source.__getitems__([self._record(index) for index in indices])
            return [(record["image"], int(record["label"])) for record in records]
        except Exception as error:  # whatever a damaged file raises; one of several is looked for
            if len(indices) > 1:
                return [example for index in indices for example in self.read([index])]
            reason = (str(error).strip().splitlines() or [""])[0]
            return [(CorruptImageError(f"{self.where(indices[0])} cannot be read: {reason}"), -1)]

    def _record(self, index: int) -> int:
        return int(index if self.chosen is None else self.chosen[index])


EncodedExamples = FileExamples | RecordExamples
Examples = ArrayExamples | EncodedExamples


def decode_block(
    examples: EncodedExamples,
    indices: Sequence[int],
    num_classes: int,
    decode_one: Callable[[int, bytes, str], Pixels],
) -> list[tuple[Pixels, int] | CorruptImageError]:
    """Some examples, decoded; what is wrong with one stands in its place.

    Args:
        examples: encoded images and their labels.
        indices: which.
        num_classes: labels must be from 0 to below it.
        decode_one: gives the pixels, from an example's index, its encoded image, and what errors call it.

    Returns:
        For each index the pixels and the label, or the error.
    """
    decoded: list[tuple[Pixels, int] | CorruptImageError] = []
    for index, (encoded, label) in zip(indices, examples.read(indices), strict=True):
        where = examples.where(index)
        try:
            if isinstance(encoded, CorruptImageError):
                raise encoded
            if not 0 <= label < num_classes:
                raise CorruptImageError(f"{where} has the label {label}, labels must be from 0 to {num_classes - 1}")
            decoded.append((decode_one(index, encoded, where), label))
        except CorruptImageError as error:
            decoded.append(error)
    return decoded


def decode_all(
    name: str, examples: EncodedExamples, channels: int, num_classes: int, skip_corrupt: bool = False
) -> tuple[ArrayExamples, list[str]]:
    """All examples in memory, decoded by several threads.

    Args:
        name: what errors call the examples together.
        examples: encoded images and their labels.
        channels: of the pixels, 3 or 1.
        num_classes: labels must be from 0 to below it.
        skip_corrupt: leave out what cannot be trained on, instead of stopping there.

    Returns:
        The examples in their order, and for each that was skipped where it lies and why.

    Raises:
        CorruptImageError: an image is bad or its label no class, and `skip_corrupt` is not given.
        ValueError: the images are of unequal size, or there is none.
    """

    def read_block(block: Sequence[int]) -> list[tuple[Pixels, int] | CorruptImageError]:
        decoded = decode_block(examples, block, num_classes, lambda _, encoded, where: decode(encoded, where, channels))
        bad = [one for one in decoded if isinstance(one, CorruptImageError)]
        if bad and not skip_corrupt:
            raise bad[0]
        return decoded

    if not len(examples):
        raise ValueError(f"{name!r} holds no image")
    decoded = _over_blocks(read_block, len(examples))
    skipped = [str(one) for one in decoded if isinstance(one, CorruptImageError)]
    sound = [one for one in decoded if not isinstance(one, CorruptImageError)]
    if not sound:
        raise ValueError(f"no image of {name!r} is left: {len(skipped)} were skipped, the first: {skipped[0]}")
    images, labels = zip(*sound, strict=True)
    if len(shapes := {image.shape for image in images}) > 1:
        raise unequal(name, shapes)
    return ArrayExamples(np.stack(images), np.array(labels, np.int32)), skipped


def unequal(name: str, shapes: Iterable[tuple[int, ...]]) -> ValueError:
    """The error for images that do not fit into one array."""
    found = ", ".join(map(str, sorted(set(shapes))[:4]))
    return ValueError(
        f"the images of {name!r} must be of one size, got {found}; an `image_size` crops encoded images to one"
    )


def _over_blocks(read_block: Callable[[Sequence[int]], list[Any]], number: int) -> list[Any]:
    """What `read_block` gives of all examples, by several threads, in their order."""
    blocks = [range(start, min(start + _BLOCK, number)) for start in range(0, number, _BLOCK)]
    with ThreadPoolExecutor(min(32, os.cpu_count() or 1)) as pool:
        return list(itertools.chain.from_iterable(pool.map(read_block, blocks)))


def _read_file(path: str) -> bytes | CorruptImageError:
    try:
        return pathlib.Path(path).read_bytes()
    except OSError as error:
        return CorruptImageError(f"{path} cannot be read: {error.strerror}")
