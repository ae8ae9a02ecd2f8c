"""Datasets stored in a NumPy archive, `.npz`."""

import pathlib
import struct
import zipfile
import zlib

import numpy as np

from dropcluster_jax.data.dataset import Dataset
from dropcluster_jax.data.examples import ArrayExamples
from dropcluster_jax.data.subsets import stratified_split

_WITH_TEST_SPLIT = ("train_images", "train_labels", "test_images", "test_labels")
_WITHOUT_TEST_SPLIT = ("images", "labels")
# Errors of NumPy, zipfile and zlib for damaged, encrypted or pickled archives.
_ARCHIVE_ERRORS = (OSError, ValueError, EOFError, RuntimeError, zipfile.BadZipFile, zlib.error, struct.error)


def load_npz(name: str, path: pathlib.Path, test_fraction: float | None) -> Dataset:
    """Loads and validates the arrays of an archive, without pickle, so that no code in it is run."""
    arrays = _read(name, path)
    class_names, mean, std = (arrays.pop(key, None) for key in ("classes", "mean", "std"))
    has_test_split = set(arrays) == set(_WITH_TEST_SPLIT)
    if not has_test_split and set(arrays) != set(_WITHOUT_TEST_SPLIT):
        raise ValueError(
            f"{path} must contain {', '.join(_WITH_TEST_SPLIT)}, or {' and '.join(_WITHOUT_TEST_SPLIT)}, "
            f"and optionally classes, mean and std, but contains {', '.join(sorted(arrays)) or 'nothing'}"
        )
    if has_test_split and test_fraction is not None:
        raise ValueError(f"test_fraction applies to archives without a test split, {path} has one")
    classes = _classes(path, class_names, [array for key, array in arrays.items() if key.endswith("labels")])
    if has_test_split:
        train, test = (_examples(path, arrays, f"{split}_", len(classes)) for split in ("train", "test"))
    else:
        examples = _examples(path, arrays, "", len(classes))
        splits = stratified_split(examples.labels, 0.2 if test_fraction is None else test_fraction)
        train, test = map(examples.take, splits)
    if train.shape != test.shape:
        raise ValueError(
            f"train_images and test_images of {path} must have the same size, got {train.shape} and {test.shape}"
        )
    return Dataset(name, train, test, classes, mean_std=_mean_and_std(path, mean, std, train.shape[-1]))


def _read(name: str, path: pathlib.Path) -> dict[str, np.ndarray]:
    if not path.is_file():
        raise FileNotFoundError(f"{name!r} was not found: {path} is not a file; create it with `numpy.savez`")
    try:
        with path.open("rb") as stream, np.load(stream, allow_pickle=False) as archive:
            arrays = {key: archive[key] for key in archive.files}
        if foreign := [key for key, value in arrays.items() if not isinstance(value, np.ndarray)]:
            raise ValueError(f"{foreign[0]} is not an array")
    except _ARCHIVE_ERRORS as error:
        raise ValueError(f"{path} cannot be read as an .npz archive: {error}") from error
    return arrays


def _examples(path: pathlib.Path, arrays: dict[str, np.ndarray], prefix: str, num_classes: int) -> ArrayExamples:
    images, labels = arrays[f"{prefix}images"], arrays[f"{prefix}labels"]
    if images.ndim == 3:
        images = images[..., None]
    if images.dtype != np.uint8 or images.ndim != 4 or images.shape[-1] not in (1, 3) or 0 in images.shape:
        raise ValueError(
            f"{prefix}images of {path} must be uint8 of shape (examples, height, width, 1 or 3 channels), "
            f"got {images.dtype} of shape {images.shape}"
        )
    if labels.shape != images.shape[:1]:
        raise ValueError(f"{prefix}labels of {path} must have shape {images.shape[:1]}, got {labels.shape}")
    invalid = np.flatnonzero((labels < 0) | (labels >= num_classes))
    if len(invalid):
        raise ValueError(
            f"{prefix}labels of {path} must be in [0, {num_classes}), got {labels[invalid[0]]} at index {invalid[0]}"
        )
    return ArrayExamples(images, labels.astype(np.int32))


def _mean_and_std(
    path: pathlib.Path, mean: np.ndarray | None, std: np.ndarray | None, channels: int
) -> tuple[tuple[float, ...], tuple[float, ...]] | None:
    if mean is None and std is None:
        return None
    for name, array in (("mean", mean), ("std", std)):
        if array is None or array.dtype.kind != "f" or array.shape != (channels,) or not np.isfinite(array).all():
            raise ValueError(
                f"{path} must contain both mean and std, as finite floats of shape ({channels},), or neither"
            )
        if name == "std" and not (array > 0).all():
            raise ValueError(f"std of {path} must be positive, got {array.tolist()}")
    assert mean is not None and std is not None
    return tuple(mean.tolist()), tuple(std.tolist())


def _classes(path: pathlib.Path, names: np.ndarray | None, labels: list[np.ndarray]) -> tuple[str, ...]:
    """Returns the class names, by default the labels, which must then be 0, 1, 2, ..."""
    for array in labels:
        if not np.issubdtype(array.dtype, np.integer):
            raise ValueError(f"labels of {path} must be integers, got {array.dtype}")
    if names is None:
        distinct = np.unique(np.concatenate([array.ravel() for array in labels]))
        if len(distinct) and (distinct[0] != 0 or distinct[-1] != len(distinct) - 1):
            raise ValueError(
                f"labels of {path} must be consecutive from 0, because it does not contain classes, "
                f"got {len(distinct)} distinct labels from {distinct[0]} to {distinct[-1]}"
            )
        return tuple(map(str, range(len(distinct))))
    if names.ndim != 1 or names.dtype.kind != "U":
        raise ValueError(f"classes of {path} must be a list of strings, got {names.dtype} of shape {names.shape}")
    if len(set(names.tolist())) < len(names):
        raise ValueError(f"classes of {path} must be distinct, got {', '.join(names)}")
    return tuple(names.tolist())
