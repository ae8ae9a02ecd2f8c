"""Datasets stored in a NumPy archive, `.npz`."""

import pathlib
import struct
import zipfile
import zlib

import numpy as np

from dropcluster_jax.data.config import DataConfig
from dropcluster_jax.data.dataset import Dataset
from dropcluster_jax.data.examples import ArrayExamples

# Names of images and labels for training and for testing: ours, which are also those of MedMNIST, and those of Keras.
_LAYOUTS = (
    ("train_images", "train_labels", "test_images", "test_labels"),
    ("x_train", "y_train", "x_test", "y_test"),
    ("images", "labels"),
)
_UNUSED = {"val_images", "val_labels", "x_val", "y_val"}  # The validation split of MedMNIST and Keras.
# Errors of NumPy, zipfile and zlib for damaged, encrypted or pickled archives.
_ARCHIVE_ERRORS = (OSError, ValueError, EOFError, RuntimeError, zipfile.BadZipFile, zlib.error, struct.error)


def load_npz(config: DataConfig) -> Dataset:
    """Loads and validates the arrays of an archive, without pickle, so that no code in it is run.

    Without a test split, `test` is `train`.
    """
    path = config.path
    arrays = _read(config.name, path)
    names, mean, std = (arrays.pop(key, None) for key in ("classes", "mean", "std"))
    keys = next((layout for layout in _LAYOUTS if set(layout) == set(arrays) - _UNUSED), None)
    if keys is None:
        raise ValueError(
            f"{path} must contain {', or '.join(map(', '.join, _LAYOUTS))}, and optionally classes, mean and std, "
            f"but contains {', '.join(sorted(arrays)) or 'nothing'}"
        )
    splits = [_examples(path, arrays, *pair) for pair in zip(keys[::2], keys[1::2], strict=True)]
    if (mean is None) != (std is None):
        raise ValueError(f"{path} must contain both mean and std, or neither")
    mean_std = None if mean is None or std is None else (_floats(mean), _floats(std))
    classes = _numbered(path, [split.labels for split in splits]) if names is None else tuple(np.ravel(names).tolist())
    return Dataset(config.name, splits[0], splits[-1], classes, mean_std=mean_std)


def _read(name: str, path: pathlib.Path) -> dict[str, np.ndarray]:
    if not path.is_file():
        raise FileNotFoundError(f"{name!r} was not found: {path} is not a file; create it with `numpy.savez`")
    try:
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


def _floats(array: np.ndarray) -> tuple[float, ...]:
    return tuple(np.ravel(array).astype(float).tolist())


def _numbered(path: pathlib.Path, labels: list[np.ndarray]) -> tuple[str, ...]:
    """Returns the labels, which must be 0, 1, 2, ..., as class names."""
    distinct = np.unique(np.concatenate(labels))
    if distinct[0] != 0 or distinct[-1] != len(distinct) - 1:
        raise ValueError(
            f"labels of {path} must be consecutive from 0, or classes must name them; "
            f"got {len(distinct)} distinct labels from {distinct[0]} to {distinct[-1]}"
        )
    return tuple(map(str, distinct.tolist()))
