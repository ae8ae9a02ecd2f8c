"""Reading encoded examples, and the one place where corrupt ones are left out."""

import dataclasses
import warnings
from collections.abc import Callable, Sequence

import numpy as np

from dropcluster_jax.cache import cached
from dropcluster_jax.data.dataset import Dataset
from dropcluster_jax.data.decoding import CorruptImageError, Pixels, decode, decode_center
from dropcluster_jax.data.examples import ArrayExamples, EncodedExamples, map_blocks

# Decodes an image, given its bytes, its location for error messages, and its index.
DecodeImage = Callable[[bytes, str, int], Pixels]


def read_block(
    examples: EncodedExamples, indices: Sequence[int], decode_image: DecodeImage
) -> list[tuple[Pixels, int]]:
    """Decodes examples and returns them with their labels; raises CorruptImageError for the first corrupt one."""
    return [
        (decode_image(encoded, examples.location(index), index), label)
        for index, (encoded, label) in zip(indices, examples.read(indices), strict=True)
    ]


def read_dataset(dataset: Dataset, skip_corrupt: bool) -> Dataset:
    """Leaves out the corrupt images of a dataset of encoded images, and decodes it if it has no image size.

    Both are done once and then read from the cache. Without `skip_corrupt`, an image is checked when it is decoded.
    """
    size, splits, skipped = dataset.image_size, {}, list(dataset.skipped)
    for split, examples in (("train", dataset.train), ("test", dataset.test)):
        assert not isinstance(examples, ArrayExamples)
        name, channels = f"{split} images of {dataset.name!r}", examples.channels

        def decode_image(encoded: bytes, location: str, index: int, channels: int = channels) -> Pixels:
            return decode(encoded, location, channels) if size is None else decode_center(encoded, location, size)

        if skip_corrupt:
            examples, reasons = _leave_out_corrupt(name, examples, decode_image)
            skipped += reasons
            empty = np.setdiff1d(np.arange(len(dataset.classes)), examples.labels)
            if reasons and len(empty):
                names = ", ".join(dataset.classes[label] for label in empty)
                warnings.warn(f"no {name} are left of the classes {names}", stacklevel=2)
        splits[split] = _decode_all(name, examples, decode_image) if size is None else examples
    return dataclasses.replace(dataset, **splits, skipped=tuple(skipped))


def _leave_out_corrupt(
    name: str, examples: EncodedExamples, decode_image: DecodeImage
) -> tuple[EncodedExamples, list[str]]:
    """Returns the examples that can be decoded, and the location and reason for each of the others."""

    def find(block: Sequence[int]) -> list[tuple[int, str]]:
        try:
            read_block(examples, block, decode_image)
        except CorruptImageError as error:
            if len(block) == 1:
                return [(block[0], str(error))]
            return [corrupt for index in block for corrupt in find([index])]
        return []

    def find_all() -> dict[str, np.ndarray]:
        corrupt = map_blocks(find, len(examples))
        return {
            "indices": np.array([index for index, _ in corrupt], np.int64),
            "reasons": np.array([reason for _, reason in corrupt], str),
        }

    corrupt = cached("corrupt", [examples.key, examples.channels], find_all)
    reasons = corrupt["reasons"].tolist()
    if len(reasons) == len(examples):
        raise ValueError(f"all {name} were skipped, the first: {reasons[0]}")
    return examples.take(np.delete(np.arange(len(examples)), corrupt["indices"])), reasons


def _decode_all(name: str, examples: EncodedExamples, decode_image: DecodeImage) -> ArrayExamples:
    def decode_split() -> dict[str, np.ndarray]:
        decoded = map_blocks(lambda block: read_block(examples, block, decode_image), len(examples))
        images, labels = zip(*decoded, strict=True)
        if len(shapes := {image.shape for image in images}) > 1:
            distinct = ", ".join(map(str, sorted(shapes)[:4]))
            raise ValueError(f"the {name} must have the same size, got {distinct}; set `image_size` to crop them")
        return {"images": np.stack(images), "labels": np.array(labels, np.int32)}

    # "upright" distinguishes these entries from older ones, which ignored the orientation in EXIF data.
    return ArrayExamples(**cached("images", [examples.key, examples.channels, "upright"], decode_split))
