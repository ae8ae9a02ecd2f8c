"""Datasets of image files with one folder per class."""

import pathlib

import numpy as np

from dropcluster_jax.data.dataset import Dataset
from dropcluster_jax.data.decoding import CorruptImageError
from dropcluster_jax.data.examples import FileExamples, decode_cached, unequal_sizes
from dropcluster_jax.data.subsets import stratified_split

_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp")
_TEST_FOLDERS = ("test", "val", "validation")


def load_folder(
    name: str, root: pathlib.Path, test_fraction: float | None, image_size: int | None, skip_corrupt: bool
) -> Dataset:
    """Opens a folder; without an `image_size` the images are decoded into memory, or read from the cache."""
    if not root.is_dir():
        raise FileNotFoundError(f"{name!r} was not found: {root} is not a folder with one folder per class")
    skipped: list[str] = []
    test_folders = [root / folder for folder in _TEST_FOLDERS if (root / folder).is_dir()]
    if (root / "train").is_dir() and test_folders:
        if test_fraction is not None:
            raise ValueError(
                f"test_fraction applies to folders without a test split, {root} has train and {test_folders[0].name}"
            )
        train_files = _list_classes(root / "train", skip_corrupt, skipped)
        test_files = _list_classes(test_folders[0], skip_corrupt, skipped)
        classes = tuple(sorted(train_files))
        if unknown := sorted(set(test_files) - set(train_files)):
            raise ValueError(
                f"{test_folders[0] / unknown[0]} is not a class of {root / 'train'}, which has {', '.join(classes)}"
            )
        train, test = _label(train_files, classes), _label(test_files, classes)
    else:
        files = _list_classes(root, skip_corrupt, skipped)
        classes = tuple(sorted(files))
        examples = _label(files, classes)
        splits = stratified_split(examples.labels, 0.2 if test_fraction is None else test_fraction)
        train, test = map(examples.take, splits)
    if image_size is not None:
        return Dataset(name, train, test, classes, image_size, skipped=tuple(skipped))
    train, train_skipped = decode_cached(f"{name}, train", train, 3, len(classes), skip_corrupt)
    test, test_skipped = decode_cached(f"{name}, test", test, 3, len(classes), skip_corrupt)
    if train.shape != test.shape:
        raise unequal_sizes(name, [train.shape, test.shape])
    return Dataset(name, train, test, classes, skipped=(*skipped, *train_skipped, *test_skipped))


def _list_classes(folder: pathlib.Path, skip_corrupt: bool, skipped: list[str]) -> dict[str, list[str]]:
    """Returns the image files of each class; anything else but hidden files is added to `skipped` or an error."""

    def skip(message: str) -> None:
        if not skip_corrupt:
            raise CorruptImageError(message)
        skipped.append(message)

    classes: dict[str, list[str]] = {}
    for entry in sorted(folder.iterdir()):
        if entry.name.startswith("."):
            continue
        if not entry.is_dir():
            skip(f"{entry} is not in the folder of a class")
            continue
        files = []
        for file in sorted(entry.iterdir()):
            if file.name.startswith("."):
                continue
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
