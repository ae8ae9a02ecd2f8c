"""Images from a NumPy archive, `.npz`."""

import pathlib

import numpy as np

from dropcluster_jax.data.dataset import Dataset
from dropcluster_jax.data.examples import ArrayExamples
from dropcluster_jax.data.subsets import stratified_split

_DIVIDED = ("train_images", "train_labels", "test_images", "test_labels")
_UNDIVIDED = ("images", "labels")


def load_npz(name: str, path: pathlib.Path, test_fraction: float | None) -> Dataset:
    """The arrays of a file, checked; without pickle, so that nothing in it is ever run."""
    if not path.is_file():
        raise FileNotFoundError(f"{name!r} is not there: {path} is no file; `numpy.savez` writes one")
    try:
        with path.open("rb") as stream, np.load(stream, allow_pickle=False) as file:
            arrays = {key: file[key] for key in file.files}
        if foreign := [key for key, value in arrays.items() if not isinstance(value, np.ndarray)]:
            raise ValueError(f"{foreign[0]} is no array")
    except Exception as error:  # whatever NumPy, zipfile and zlib raise of a damaged or encrypted file
        raise ValueError(f"{path} cannot be read as an .npz file of arrays: {error}") from error

    names = arrays.pop("classes", None)
    divided = set(arrays) == set(_DIVIDED)
    if not divided and set(arrays) != set(_UNDIVIDED):
        raise ValueError(
            f"{path} must hold {', '.join(_DIVIDED)}, or {' and '.join(_UNDIVIDED)}, and may hold classes, "
            f"but holds {', '.join(sorted(arrays)) or 'nothing'}"
        )
    if divided and test_fraction is not None:
        raise ValueError(f"test_fraction is for examples that come undivided, {path} holds train and test")
    classes = _classes(path, names, [array for key, array in arrays.items() if key.endswith("labels")])
    if divided:
        train, test = (_examples(path, arrays, f"{part}_", len(classes)) for part in ("train", "test"))
    else:
        whole = _examples(path, arrays, "", len(classes))
        train, test = (
            whole.take(part) for part in stratified_split(whole.labels, 0.2 if test_fraction is None else test_fraction)
        )
    if train.shape != test.shape:
        raise ValueError(f"train_images and test_images of {path} must be of one size, got {train.shape}, {test.shape}")
    return Dataset(name, train, test, classes)


def _examples(path: pathlib.Path, arrays: dict[str, np.ndarray], prefix: str, num_classes: int) -> ArrayExamples:
    images, labels = arrays[f"{prefix}images"], arrays[f"{prefix}labels"]
    if images.ndim == 3:
        images = images[..., None]
    if images.dtype != np.uint8 or images.ndim != 4 or images.shape[-1] not in (1, 3) or 0 in images.shape:
        raise ValueError(
            f"{prefix}images of {path} must be uint8 of the shape (examples, height, width, 1 or 3 channels), "
            f"got {images.dtype} of {images.shape}"
        )
    if labels.shape != images.shape[:1]:
        raise ValueError(f"{prefix}labels of {path} must have the shape {images.shape[:1]}, got {labels.shape}")
    bad = np.flatnonzero((labels < 0) | (labels >= num_classes))
    if len(bad):
        raise ValueError(
            f"{prefix}labels of {path} must be from 0 to {num_classes - 1}, number {bad[0]} is {labels[bad[0]]}"
        )
    return ArrayExamples(images, labels.astype(np.int32))


def _classes(path: pathlib.Path, names: np.ndarray | None, labels: list[np.ndarray]) -> tuple[str, ...]:
    for array in labels:
        if not np.issubdtype(array.dtype, np.integer):
            raise ValueError(f"labels of {path} must be integers, got {array.dtype}")
    if names is None:
        found = np.unique(np.concatenate([array.ravel() for array in labels]))
        if len(found) and (found[0] != 0 or found[-1] != len(found) - 1):
            raise ValueError(
                f"labels of {path} must be 0, 1, 2, ... without a gap where it holds no classes, "
                f"got {len(found)} different ones from {found[0]} to {found[-1]}"
            )
        return tuple(map(str, range(len(found))))
    if names.ndim != 1 or names.dtype.kind != "U":
        raise ValueError(f"classes of {path} must be a list of names, got {names.dtype} of {names.shape}")
    if len(set(names.tolist())) < len(names):
        raise ValueError(f"classes of {path} must differ from one another, got {', '.join(names)}")
    return tuple(names.tolist())
