"""Image data sets in memory: scikit-learn's digits, and whatever TFDS has prepared on disk.

Nothing is ever downloaded, and TensorFlow is not needed. What TFDS has prepared is decoded once and then read from
the cache (`dropcluster_jax.data.cache`).
"""

import dataclasses
import functools
import os
import re
import shlex
from typing import Any

import numpy as np
from jaxtyping import Float32, Int, Int32, UInt8

from dropcluster_jax.data.cache import cached
from dropcluster_jax.data.examples import ArrayExamples, RecordExamples, decode_all, unequal
from dropcluster_jax.data.extras import train_extra


@dataclasses.dataclass(frozen=True, eq=False)
class Dataset:
    """Labelled images for training and test, in memory.

    Attributes:
        name: what it was loaded as.
        train_images: uint8 `(examples, height, width, channels)`.
        train_labels: int32 `(examples,)`, in [0, num_classes).
        test_images: like `train_images`, of the same height, width and channels.
        test_labels: like `train_labels`.
        classes: the names of the classes.
    """

    name: str
    train_images: UInt8[np.ndarray, "train height width channels"] = dataclasses.field(repr=False)
    train_labels: Int32[np.ndarray, " train"] = dataclasses.field(repr=False)
    test_images: UInt8[np.ndarray, "test height width channels"] = dataclasses.field(repr=False)
    test_labels: Int32[np.ndarray, " test"] = dataclasses.field(repr=False)
    classes: tuple[str, ...]

    @property
    def num_classes(self) -> int:
        """The number of classes."""
        return len(self.classes)

    @functools.cached_property
    def mean(self) -> Float32[np.ndarray, " channels"]:
        """The mean of each channel of the training images, scaled to [0, 1]."""
        count, total, _ = self._sums
        return np.array([t / (255 * count) for t in total], np.float32)

    @functools.cached_property
    def std(self) -> Float32[np.ndarray, " channels"]:
        """The standard deviation of each channel of the training images, scaled to [0, 1]."""
        count, total, squares = self._sums
        variances = [(count * s - t * t) / (255 * count) ** 2 for t, s in zip(total, squares, strict=True)]
        return np.sqrt(variances).astype(np.float32)

    @functools.cached_property
    def _sums(self) -> tuple[int, list[int], list[int]]:
        """How many values each channel has, their sums and the sums of their squares: integers, so exact."""
        pixels = self.train_images.reshape(-1, self.train_images.shape[-1])
        total = squares = np.zeros(pixels.shape[-1], np.int64)
        for begin in range(0, len(pixels), 1 << 20):
            part = pixels[begin : begin + (1 << 20)].astype(np.uint32)
            total = total + part.sum(0, dtype=np.int64)
            squares = squares + (part * part).sum(0, dtype=np.int64)
        return len(pixels), total.tolist(), squares.tolist()


def load(
    name: str,
    data_dir: str | os.PathLike[str] | None = None,
    train_split: str = "train",
    test_split: str = "test",
) -> Dataset:
    """Read a data set into memory.

    Args:
        name: `"digits"`, scikit-learn's 1,797 images of 8x8 pixels, values 0 to 16 scaled to 0 to 255, a
            fixed fifth of each class for test; or `NAME[/CONFIG][:VERSION]`, an image classification data set
            that TFDS has prepared in `data_dir`, without a version the newest there.
        data_dir: TFDS' folder; by default what the environment variable TFDS_DATA_DIR names, else
            `~/tensorflow_datasets`.
        train_split: the split to train on, or a part of it in TFDS' words: `"train[:512]"`, `"train[:10%]"`.
        test_split: the split to test on, likewise.

    Returns:
        The examples as stored, in their order; arrays that were read from TFDS are read-only.

    Raises:
        FileNotFoundError: the data set is not prepared, or there is no folder `data_dir`.
        ImportError: scikit-learn or TFDS is not installed.
        ValueError: there is no such split; or the data set has no `"image"` and `"label"`, images of unequal
            size or of neither 1 nor 3 channels, an image that cannot be decoded, or labels that are no class.

    Example:
        >>> digits = load("digits", train_split="train[:100]")
        >>> digits.train_images.shape, digits.test_images.shape, digits.num_classes
        ((100, 8, 8, 1), (360, 8, 8, 1), 10)
    """
    splits = {"train_split": train_split, "test_split": test_split}
    if name == "digits":
        return _load_digits(splits)
    return _load_tfds(name, data_dir, splits)


def _load_digits(splits: dict[str, str]) -> Dataset:
    with train_extra("scikit-learn"):
        from sklearn.datasets import load_digits
        from sklearn.model_selection import train_test_split

    bunch: Any = load_digits()
    images = np.rint(bunch.images * (255 / 16)).astype(np.uint8)[..., None]
    labels = bunch.target.astype(np.int32)
    # Fixed: no run trains on what another is tested on. Shuffled: train[:100] is a sample of all classes.
    train, test = train_test_split(np.arange(len(labels)), test_size=0.2, stratify=labels, random_state=0)
    parts = {"train": train, "test": test}
    chosen = [_digits_of_split(argument, split, parts) for argument, split in splits.items()]
    arrays = [array for indices in chosen for array in (images[indices], labels[indices])]
    return Dataset("digits", *arrays, classes=tuple(str(digit) for digit in bunch.target_names))


def _digits_of_split(argument: str, split: str, parts: dict[str, Any]) -> Int[np.ndarray, " _"]:
    """The indices of a split that is written as TFDS would: `train`, `train[:100]`, `test[-10%:]`."""
    sizes = {part: len(indices) for part, indices in parts.items()}
    match = re.fullmatch(r"(train|test)(?:\[(-?\d+%?)?:(-?\d+%?)?\])?", split)
    if match is None:
        raise _no_split("digits", argument, split, sizes, "what is wanted is such as train, train[:100], train[20%:]")
    part, *ends = match.groups()
    size = sizes[part]

    def position(end: str) -> int:
        place = round(float(end[:-1]) / 100 * size) if end.endswith("%") else int(end)
        return place + size if end.startswith("-") else place

    begin, end = (default if end is None else position(end) for end, default in zip(ends, (0, size), strict=True))
    if not 0 <= begin < end <= size:
        raise _no_split("digits", argument, split, sizes, "it is empty or reaches beyond the examples")
    return parts[part][begin:end]


def _load_tfds(name: str, data_dir: str | os.PathLike[str] | None, splits: dict[str, str]) -> Dataset:
    with train_extra("tensorflow-datasets"):
        import tensorflow_datasets as tfds

    # From the files alone: `tfds.data_source(name)` goes by the code of the data set, wants the version that
    # stands there, and would download it.
    builder = tfds.builder_from_directory(_find_prepared(name, data_dir))
    features: Any = builder.info.features
    image, label = (dict(features).get(key) for key in ("image", "label"))
    if not (isinstance(image, tfds.features.Image) and image.np_dtype == np.uint8):
        raise ValueError(f'{name!r} must have a feature "image", a uint8 image, but has {_describe(features)}')
    if not (isinstance(label, tfds.features.ClassLabel) and label.num_classes):
        raise ValueError(f'{name!r} must have a feature "label", one class of several, but has {_describe(features)}')

    shape: Any = image.shape
    channels = shape[-1] or 3
    if channels not in (1, 3):
        raise ValueError(f"the images of {name!r} must have 1 or 3 channels, got {channels}")
    classes = tuple(label.names)
    parts = [_open_split(name, builder, argument, split, channels, len(classes)) for argument, split in splits.items()]
    if parts[0].shape != parts[1].shape:
        raise unequal(name, [part.shape for part in parts])
    train, test = parts
    return Dataset(name, train.images, train.labels, test.images, test.labels, classes)


def _find_prepared(name: str, data_dir: str | os.PathLike[str] | None) -> Any:
    """The folder `data_dir/NAME[/CONFIG]/VERSION` that holds the data set."""
    from etils import epath  # comes with TFDS; also reads gs://

    match = re.fullmatch(r"(\w+)(?:/([^/:]+))?(?::(\d+\.\d+\.\d+))?", name)
    if match is None:
        raise ValueError(f'name must be "digits" or NAME[/CONFIG][:VERSION] of a TFDS data set, got {name!r}')
    dataset, config, version = match.groups()

    if data_dir is not None:
        found_by = "data_dir"
    elif os.environ.get("TFDS_DATA_DIR"):
        data_dir, found_by = os.environ["TFDS_DATA_DIR"], "the environment variable TFDS_DATA_DIR"
    else:
        data_dir, found_by = "~/tensorflow_datasets", "the default of data_dir"
    root = epath.Path(data_dir).expanduser()
    if found_by != "the default of data_dir" and not root.is_dir():
        raise FileNotFoundError(f"{found_by} must be a folder that holds data sets, and {root} is none")

    folder = root / dataset / config if config else root / dataset
    versions = [
        info.parent
        for info in folder.glob("*/dataset_info.json")
        if re.fullmatch(r"\d+\.\d+\.\d+", info.parent.name) and version in (None, info.parent.name)
    ]
    if versions:
        return max(versions, key=lambda path: tuple(map(int, path.name.split("."))))
    configs = sorted({info.parent.parent.name for info in folder.glob("*/*/dataset_info.json")})
    if configs:
        raise ValueError(f"name must say which configuration of {dataset}, one of {', '.join(configs)}; got {name!r}")
    # The file format is not the default, and the only one but Parquet that is read without TensorFlow.
    command = f"tfds build {shlex.quote(name)} --data_dir {shlex.quote(str(root))} --file_format array_record"
    raise FileNotFoundError(
        f"{name!r} is not prepared in {root} ({found_by}): `{command}` prepares it, where TensorFlow is "
        'installed; "digits" is embedded and needs no files'
    )


def _open_split(name: str, builder: Any, argument: str, split: str, channels: int, num_classes: int) -> ArrayExamples:
    """The examples of one split, decoded, or from the cache."""
    import tensorflow_datasets as tfds

    try:
        info = builder.info.splits[split]
        if info.num_examples < 1:
            raise ValueError("it is empty")
        source = builder.as_data_source(split=split, decoders={"image": tfds.decode.SkipDecoding()})
    except NotImplementedError as error:  # what TFDS raises for formats that only TensorFlow reads
        raise ValueError(
            f"{name!r} is prepared as {builder.info.file_format.value}, which only TensorFlow reads: prepare "
            "it by `tfds build` with `--file_format array_record`"
        ) from error
    except ValueError as error:
        sizes = {part: info.num_examples for part, info in builder.info.splits.items()}
        raise _no_split(name, argument, split, sizes, str(error).splitlines()[0]) from error
    stamps = [_stamp(path) for path in info.filepaths]
    examples = RecordExamples(f"{name}/{split}", source)

    def decoded() -> dict[str, np.ndarray]:
        arrays = decode_all(name, examples, channels, num_classes)[0]
        return {"images": arrays.images, "labels": arrays.labels}

    key = [builder.info.full_name, split, channels, num_classes, stamps]
    return ArrayExamples(**cached(builder.info.name, key, decoded))


def _stamp(path: Any) -> tuple[str, int, int]:
    """What changes when a file does: its path, its size and when it was written."""
    if os.path.exists(path):
        status = os.stat(path)  # in nanoseconds: epath gives seconds, in which a file can be written twice
        return str(path), status.st_size, status.st_mtime_ns
    status = path.stat()  # in a bucket
    return str(path), status.length, status.mtime


def _describe(features: Any) -> str:
    return " ".join(", ".join(f"{key!r}: {feature}" for key, feature in sorted(features.items())).split())


def _no_split(name: str, argument: str, split: str, sizes: dict[str, int], reason: str) -> ValueError:
    available = ", ".join(f"{part} ({size} examples)" for part, size in sizes.items())
    return ValueError(f"{argument} must be a split of {name!r}, {available}, or a part of one, got {split!r}: {reason}")
