"""Datasets of image files with one folder per class."""

import pathlib

import numpy as np

from dropcluster_jax.data.dataset import Dataset
from dropcluster_jax.data.decoding import CorruptImageError
from dropcluster_jax.data.examples import FileExamples, decode_cached, unequal_sizes
from dropcluster_jax.data.subsets import stratified_split

_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp")
# Names of the splits, in any case; of several test folders, the first is used.
_TRAIN_FOLDERS = ("train", "training")
_TEST_FOLDERS = ("test", "testing", "val", "valid", "validation")
# What operating systems and network storage leave behind, in any case; ignored like hidden files.
_SYSTEM_FILES = ("thumbs.db", "ehthumbs.db", "desktop.ini", "__macosx", "@eadir")


def load_folder(
    name: str, root: pathlib.Path, test_fraction: float | None, image_size: int | None, skip_corrupt: bool
) -> Dataset:
    """Opens a folder; without an `image_size` the images are decoded into memory, or read from the cache."""
    if not root.is_dir():
        raise FileNotFoundError(f"{name!r} was not found: {root} is not a folder with one folder per class")
    skipped: list[str] = []
    train_folder, test_folder = _find_folder(root, _TRAIN_FOLDERS), _find_folder(root, _TEST_FOLDERS)
    if train_folder is not None and test_folder is not None:
        if test_fraction is not None:
            raise ValueError(
                f"test_fraction applies to folders without a test split, {root} has {train_folder.name} and "
                f"{test_folder.name}"
            )
        train_files = _list_classes(train_folder, skip_corrupt, skipped)
        test_files = _list_classes(test_folder, skip_corrupt, skipped)
        classes = tuple(sorted(train_files))
        if unknown := sorted(set(test_files) - set(train_files)):
            raise ValueError(
                f"{test_folder / unknown[0]} is not a class of {train_folder}, which has {', '.join(classes)}"
            )
        train, test = _label(train_files, classes), _label(test_files, classes)
    elif train_folder is not None and any(entry.is_dir() for entry in _visible(train_folder)):
        raise ValueError(
            f"{root} contains {train_folder.name} but no test split: add a folder {', '.join(_TEST_FOLDERS[:-1])} or "
            f"{_TEST_FOLDERS[-1]}, or split the training images with folder:{train_folder}"
        )
    else:
        files = _list_classes(root, skip_corrupt, skipped)
        classes = tuple(sorted(files))
        examples = _label(files, classes)
        splits = stratified_split(examples.labels, 0.2 if test_fraction is None else test_fraction, classes)
        train, test = map(examples.take, splits)
    if image_size is not None:
        return Dataset(name, train, test, classes, image_size, skipped=tuple(skipped))
    train, train_skipped = decode_cached(f"{name}, train", train, 3, len(classes), skip_corrupt)
    test, test_skipped = decode_cached(f"{name}, test", test, 3, len(classes), skip_corrupt)
    if train.shape != test.shape:
        raise unequal_sizes(name, [train.shape, test.shape])
    return Dataset(name, train, test, classes, skipped=(*skipped, *train_skipped, *test_skipped))


def _visible(folder: pathlib.Path) -> list[pathlib.Path]:
    """Returns the entries of a folder by name, without hidden files and those of the system."""
    names = sorted(path.name for path in folder.iterdir())
    return [folder / name for name in names if not name.startswith(".") and name.lower() not in _SYSTEM_FILES]


def _find_folder(root: pathlib.Path, names: tuple[str, ...]) -> pathlib.Path | None:
    folders = {path.name.lower(): path for path in _visible(root) if path.is_dir()}
    return next((folders[name] for name in names if name in folders), None)


def _list_classes(folder: pathlib.Path, skip_corrupt: bool, skipped: list[str]) -> dict[str, list[str]]:
    """Returns the image files of each class; anything else that is visible is added to `skipped` or an error."""

    def skip(message: str) -> None:
        if not skip_corrupt:
            raise CorruptImageError(message)
        skipped.append(message)

    classes: dict[str, list[str]] = {}
    for entry in _visible(folder):
        if not entry.is_dir():
            skip(f"{entry} is not in the folder of a class")
            continue
        files = []
        for file in _visible(entry):
            if file.suffix.lower() in _SUFFIXES and not file.is_dir():
                files.append(str(file))
            else:
                skip(f"{file} does not have the suffix of a JPEG, PNG or WebP image")
        if files:
            classes[entry.name] = files
        else:
            skip(f"{entry} is the folder of a class but contains no images")
    if not classes:
        raise ValueError(f"{folder} contains no folders with images")
    return classes


def _label(files: dict[str, list[str]], classes: tuple[str, ...]) -> FileExamples:
    labeled = [(path, label) for label, name in enumerate(classes) for path in files.get(name, [])]
    paths, labels = zip(*labeled, strict=True)
    return FileExamples(list(paths), np.array(labels, np.int32))
