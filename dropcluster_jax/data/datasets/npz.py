"""Datasets stored in a NumPy archive, `.npz`."""

import dataclasses
import pathlib
import struct
import zipfile
import zlib

import numpy as np

from dropcluster_jax.data.config import DataConfig
from dropcluster_jax.data.dataset import Dataset
from dropcluster_jax.data.examples import ArrayExamples
from dropcluster_jax.data.subsets import DEFAULT_TEST_FRACTION, stratified_split

# Names of images and labels for training and for testing: ours, which are also those of MedMNIST, and those of Keras.
_WITH_TEST_SPLIT = (
    ("train_images", "train_labels", "test_images", "test_labels"),
    ("x_train", "y_train", "x_test", "y_test"),
)
_WITHOUT_TEST_SPLIT = ("images", "labels")
_UNUSED = {"val_images", "val_labels", "x_val", "y_val"}  # The validation split of MedMNIST and Keras.
_NPY_MAGIC = b"\x93NUMPY"
# Errors of NumPy, zipfile and zlib for damaged, encrypted or pickled archives.
_ARCHIVE_ERRORS = (OSError, ValueError, EOFError, RuntimeError, zipfile.BadZipFile, zlib.error, struct.error)


def load_npz(config: DataConfig, path: pathlib.Path) -> Dataset:
    """Loads and validates the arrays of an archive, without pickle, so that no code in it is run."""
    arrays = _read(config.name, path)
    names, mean, std = (arrays.pop(key, None) for key in ("classes", "mean", "std"))
    layouts = (*_WITH_TEST_SPLIT, _WITHOUT_TEST_SPLIT)
    keys = next((layout for layout in layouts if set(layout) == set(arrays) - _UNUSED), None)
    if keys is None:
        raise ValueError(
            f"{path} must contain {', or '.join(map(', '.join, layouts))}, and optionally classes, mean and std, "
            f"but contains {', '.join(sorted(arrays)) or 'nothing'}"
        )
    splits = [_examples(path, arrays, *pair) for pair in zip(keys[::2], keys[1::2], strict=True)]
    classes = _classes(path, names, [split.labels for split in splits])
    mean_std = _mean_and_std(path, mean, std, splits[0].shape[-1])
    dataset = Dataset(config.name, splits[0], splits[-1], classes, mean_std=mean_std)
    if keys == _WITHOUT_TEST_SPLIT:
        indices = stratified_split(dataset.train.labels, config.test_fraction or DEFAULT_TEST_FRACTION, classes)
        train, test = map(splits[0].take, indices)
        return dataclasses.replace(dataset, train=train, test=test)
    if config.test_fraction is not None:
        raise ValueError(f"test_fraction applies to archives without a test split, {path} has one")
    return dataset


def _read(name: str, path: pathlib.Path) -> dict[str, np.ndarray]:
    if not path.is_file():
        raise FileNotFoundError(f"{name!r} was not found: {path} is not a file; create it with `numpy.savez`")
    try:
        with path.open("rb") as stream:
            if stream.read(len(_NPY_MAGIC)) == _NPY_MAGIC:
                raise ValueError("it is a single array (.npy); use `numpy.savez(path, images=images, labels=labels)`")
        with zipfile.ZipFile(path):  # `numpy.load` takes files of other types for pickles
            pass
        with path.open("rb") as stream, np.load(stream, allow_pickle=False) as archive:
            arrays = {key: archive[key] for key in archive.files}
        if foreign := [key for key, value in arrays.items() if not isinstance(value, np.ndarray)]:
            raise ValueError(f"{foreign[0]} is not an array")
    except _ARCHIVE_ERRORS as error:
        raise ValueError(f"{path} cannot be read as an .npz archive: {error}") from error
    return arrays


def _examples(path: pathlib.Path, arrays: dict[str, np.ndarray], images_key: str, labels_key: str) -> ArrayExamples:
    images = arrays[images_key]
    try:
        examples = ArrayExamples(images[..., None] if images.ndim == 3 else images, arrays[labels_key])
    except ValueError as error:
        raise ValueError(f"{images_key} and {labels_key} of {path} are invalid: {error}") from None
    if examples.shape[-1] not in (1, 3) or not len(examples):
        raise ValueError(
            f"{images_key} of {path} must have 1 or 3 channels and at least one example, got the shape {images.shape}"
        )
    return examples


def _mean_and_std(
    path: pathlib.Path, mean: np.ndarray | None, std: np.ndarray | None, channels: int
) -> tuple[tuple[float, ...], tuple[float, ...]] | None:
    if mean is None and std is None:
        return None
    for array in (mean, std):
        if array is None or array.dtype.kind != "f" or array.shape != (channels,) or not np.isfinite(array).all():
            raise ValueError(
                f"{path} must contain both mean and std, as finite floats of shape ({channels},), or neither"
            )
    assert mean is not None and std is not None
    return tuple(mean.tolist()), tuple(std.tolist())


def _classes(path: pathlib.Path, names: np.ndarray | None, labels: list[np.ndarray]) -> tuple[str, ...]:
    """Returns the class names, by default the labels, which must then be 0, 1, 2, ..."""
    if names is None:
        distinct = np.unique(np.concatenate(labels))
        if len(distinct) and (distinct[0] != 0 or distinct[-1] != len(distinct) - 1):
            raise ValueError(
                f"labels of {path} must be consecutive from 0, because it does not contain classes, "
                f"got {len(distinct)} distinct labels from {distinct[0]} to {distinct[-1]}"
            )
        return tuple(map(str, range(len(distinct))))
    if names.ndim != 1 or names.dtype.kind != "U":
        raise ValueError(f"classes of {path} must be a list of strings, got {names.dtype} of shape {names.shape}")
    return tuple(names.tolist())
